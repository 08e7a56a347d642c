"""What labels and scores must be before a number is made of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


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
