"""Decisions that flip: whose flag another training, or another recipe, would turn.

An AUROC that agrees to the third digit hides them: even an ensemble of 5 flipped one patient in
77 between two trainings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medkit.metrics.checks import Floats

Flags = NDArray[np.bool_]


def flags_at(scores: ArrayLike, *, threshold: float | None = None, rate: float = 0.2) -> Flags:
    """Return who is flagged by each training, ``(S, N)`` to ``(S, N)``.

    Args:
        scores: One row per training, ``(S, N)``.
        threshold: Rows at or above it are flagged, for scores on one scale.
        rate: Without a threshold: each training flags this share of the rows, those with its
            highest scores (and all rows tied with the last of them).

    Raises:
        ValueError: When the rate is not between 0 and 1.
    """
    table = np.atleast_2d(np.asarray(scores, np.float64))
    if threshold is not None:
        return np.asarray(table >= threshold)
    if not 0 < rate < 1:
        raise ValueError(
            f"a flag rate must be between 0 and 1, got {rate}. 0.2 flags a fifth of the rows; "
            "pass a threshold where the scores are on one scale."
        )
    many = max(1, round(rate * table.shape[1]))
    last = np.partition(table, -many, axis=1)[:, -many]
    return np.asarray(table >= last[:, None])


def flips_between_seeds(flags: Flags) -> float:
    """Return the share of rows whose flag differs between two trainings, over all pairs of them.

    NaN for one training.
    """
    many = len(flags)
    if many < 2:
        return float("nan")
    flagged = flags.sum(axis=0, dtype=np.float64)
    return float(np.mean(flagged * (many - flagged)) * 2 / (many * (many - 1)))


def flips_between_recipes(a: Flags, b: Flags) -> float:
    """Return the same between a training of one recipe and one of another, over all such pairs."""
    first: Floats = a.mean(axis=0)
    second: Floats = b.mean(axis=0)
    return float(np.mean(first * (1 - second) + second * (1 - first)))


def how(threshold: float | None, rate: float) -> str:
    """Return in words where the flags are."""
    return f"flag rate {rate:g}" if threshold is None else f"flagged at {threshold:g}"
