"""What a model of two classes can be fitted on, checked before a library says it in its words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 65_536  # rows looked at together: no second table in memory


def require_learnable(
    x: NDArray[np.floating],
    y: NDArray[np.generic],
    *,
    rows: NDArray[np.int64] | None = None,
    missing: bool = False,
) -> None:
    """Check training rows and their labels.

    Args:
        x: ``(N, F)``.
        y: ``(N,)``.
        rows: Numbers of the training rows; None: all.
        missing: Whether NaN may stand for a missing value.

    Raises:
        ValueError: Where shapes don't fit, labels are not 0 and 1, or values are not finite.
    """
    if x.ndim != 2 or x.shape[1] == 0 or y.ndim != 1 or len(x) != len(y):
        raise ValueError(
            "a fit needs rows and features, (N, F) with F from 1 on, and a label for each row; got "
            f"shapes {x.shape} and {y.shape}. Pass dm.rows('train').x and .y."
        )
    at = np.arange(len(y)) if rows is None else rows
    if len(at) and not 0 <= int(at.min()) <= int(at.max()) < len(y):
        raise ValueError(
            f"rows must be row numbers from 0 to {len(y) - 1}, found {at.min()} to {at.max()}. "
            "Pass those of the table that x holds: dm.split.train."
        )
    labels = np.unique(y[at])
    if len(labels) != 2 or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"a fit needs the labels 0 and 1 among its rows; found {labels[:4].tolist()} in "
            f"{len(at)} rows. Recode other labels (target_above=), or pool rows of both classes."
        )
    for start in range(0, len(at), _BLOCK):
        part = x[start : start + _BLOCK] if rows is None else x[at[start : start + _BLOCK]]
        wrong = np.isinf(part) if missing else ~np.isfinite(part)
        if wrong.any():
            row, column = (int(place[0]) for place in np.nonzero(wrong))
            raise ValueError(
                f"a fit needs finite values{' or NaN for missing ones' if missing else ''}; found "
                f"{part[row, column]} in row {start + row} (from 0) of its training rows, column "
                f"{column}. dm.rows('train').x has none."
            )
