"""What labels and scores must be before a number is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

_NO_VALUE = frozenset({"NAType", "NaTType"})


def labels_and_scores(y: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """Return both as float64 vectors.

    Raises:
        ValueError: When their lengths differ, a label is not 0 or 1, or a score is not finite.
    """
    labels, scores = np.asarray(y, np.float64), np.asarray(score, np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape or len(labels) == 0:
        raise ValueError(
            "y and score must be vectors of the same length, at least 1; got shapes "
            f"{labels.shape} and {scores.shape}. Take the column of class 1 out of a table of "
            "probabilities."
        )
    wrong = ~np.isin(labels, (0.0, 1.0))
    if wrong.any():
        raise ValueError(
            f"y must be 0 or 1 everywhere; found {labels[wrong][0]:g} in {int(wrong.sum())} of "
            f"{len(labels)} places. Drop rows without a label before scoring."
        )
    bad = ~np.isfinite(scores)
    if bad.any():
        raise ValueError(
            f"score must be finite everywhere; found {scores[bad][0]} in {int(bad.sum())} of "
            f"{len(scores)} places. A run with such a score is a failed run: count it as one."
        )
    return labels, scores


def both_classes(labels: Floats, name: str) -> tuple[int, int]:
    """Return how many ones and zeros there are; raise where one of the two is missing."""
    ones = int(labels.sum())
    if ones in (0, len(labels)):
        raise ValueError(
            f"{name} needs both classes; found {ones} with label 1 among {len(labels)}. "
            "Score a larger part, or report the Brier score, which needs one class only."
        )
    return ones, len(labels) - ones


def probabilities(scores: Floats, name: str) -> None:
    """Raise where a score is not a probability."""
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(
            f"{name} needs probabilities between 0 and 1; found {scores.min():.4g} to "
            f"{scores.max():.4g}. Pass the sigmoid of logits."
        )


def codes(values: ArrayLike, n: int, name: str) -> Codes:
    """Return which patient, site or group each row belongs to, as numbers from 0.

    Args:
        values: Ids of any kind, ``(n,)``.
        n: Rows there must be.
        name: What they are, for the message: "groups", "strata".

    Raises:
        ValueError: When there are more or fewer than ``n``, or one is missing (None, NaN, NaT).
    """
    return named_codes(values, n, name)[1]


def named_codes(values: ArrayLike, n: int, name: str) -> tuple[list[Any], Codes]:
    """Return the distinct ids, and for each row the place of its id among them."""
    ids = np.asarray(values)
    if ids.shape != (n,):
        raise ValueError(
            f"{name} must hold one id for each of the {n} rows; got shape {ids.shape}. Cut it to "
            "the rows that are scored."
        )
    gone = _missing(ids)
    if gone.any():
        raise ValueError(
            f"{name} must name every row; {int(gone.sum())} of {n} are missing, the first at row "
            f"{int(gone.argmax())}. Fill them in, or give each such row an id of its own."
        )
    if ids.dtype.kind == "O":
        ids = np.array([str(one) for one in ids], dtype=np.str_)
    distinct, code = np.unique(ids, return_inverse=True)
    return distinct.tolist(), code


def survival_times(
    time: ArrayLike, event: ArrayLike, *others: ArrayLike
) -> tuple[Floats, Floats, list[Floats]]:
    """Return times, events and further columns as float64 vectors of one length.

    Raises:
        ValueError: When lengths differ, an event is not 0 or 1, a time is missing or negative,
            another column is not finite, or nothing happened to anybody.
    """
    times, events = np.asarray(time, np.float64), np.asarray(event, np.float64)
    columns = [np.asarray(other, np.float64) for other in others]
    if (
        times.ndim != 1
        or len(times) == 0
        or any(c.shape != times.shape for c in [events, *columns])
    ):
        raise ValueError(
            "time, event and prediction must be vectors of the same length, at least 1; got shapes "
            f"{[c.shape for c in [times, events, *columns]]}. Pass one row per patient."
        )
    wrong = ~np.isin(events, (0.0, 1.0))
    if wrong.any():
        raise ValueError(
            f"event must be 1 (happened) or 0 (censored); found {events[wrong][0]:g} in "
            f"{int(wrong.sum())} of {len(events)} rows. Code competing events as one of the two."
        )
    bad = ~(np.isfinite(times) & (times >= 0))
    if bad.any():
        raise ValueError(
            f"time must be finite and not negative; found {times[bad][0]:g} in {int(bad.sum())} of "
            f"{len(times)} rows, {int(events[bad].sum())} of them with an event. An event without "
            "its time can't be used: find the time, or drop the row and say so."
        )
    for column in columns:
        if not np.isfinite(column).all():
            raise ValueError(
                f"a prediction must be finite; found {int((~np.isfinite(column)).sum())} of "
                f"{len(column)} that are not. A run with such a score is a failed run."
            )
    if events.sum() == 0:
        raise ValueError(
            f"survival needs at least one event; found none among {len(events)} rows. Follow up "
            "for longer, or score a larger part."
        )
    return times, events, columns


def _missing(ids: NDArray[Any]) -> NDArray[np.bool_]:
    if ids.dtype.kind in "fcmM":
        return np.asarray(ids != ids)
    if ids.dtype.kind != "O":
        return np.zeros(len(ids), dtype=bool)
    # pandas' NA compares as neither true nor false, so it is known by its name
    gone = [one is None or type(one).__name__ in _NO_VALUE or one != one for one in ids]
    return np.array(gone, dtype=bool)
