"""Whether a probability means what it says: Brier score and the points of a calibration plot."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from medkit.metrics.checks import labels_and_scores, probabilities
from medkit.metrics.discrimination import wilson
from medkit.record.results import Metric


def brier(y: ArrayLike, prob: ArrayLike, *, level: float = 0.95) -> Metric:
    """Return the mean squared difference between probability and outcome; lower is better.

    Always to say the prevalence scores prevalence x (1 - prevalence). The interval is the normal
    one of a mean over independent rows, cut at 0 and 1.
    """
    labels, scores = labels_and_scores(y, prob)
    probabilities(scores, "the Brier score")
    squared = (scores - labels) ** 2
    value, n = float(squared.mean()), len(squared)
    if n < 2:
        return Metric(value, n=n, method="Brier; no interval from one row")
    half = NormalDist().inv_cdf(0.5 + level / 2) * float(squared.std(ddof=1)) / sqrt(n)
    low, high = max(0.0, value - half), min(1.0, value + half)
    return Metric(value, low, high, level, n, method="Brier, normal interval of the mean")


@dataclass(frozen=True)
class CalibrationPoint:
    """One bin of rows with similar probabilities.

    Attributes:
        prob: Mean probability in the bin.
        observed: Share of label 1, with Wilson's interval.
    """

    prob: float
    observed: Metric


def calibration_points(
    y: ArrayLike, prob: ArrayLike, *, bins: int = 10, level: float = 0.95
) -> list[CalibrationPoint]:
    """Return points of a calibration plot, from bins that hold equally many rows."""
    labels, scores = labels_and_scores(y, prob)
    probabilities(scores, "a calibration plot")
    order = np.argsort(scores, kind="stable")
    points = []
    for rows in np.array_split(order, min(bins, len(order))):
        low, high = wilson(int(labels[rows].sum()), len(rows), level=level)
        share = Metric(float(labels[rows].mean()), low, high, level, len(rows), method="Wilson")
        points.append(CalibrationPoint(float(scores[rows].mean()), share))
    return points
