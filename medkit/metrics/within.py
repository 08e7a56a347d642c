"""Ranking within places, where each place has been scored by a model of its own.

Where each hospital is left out in turn, its rows are scored by the model of the others. A pair of
rows from two hospitals then compares two models more than two patients, and an AUROC over all
pairs may say the opposite of every hospital (Forman and Scholz 2010 of folds). So only pairs
within a place count, each pair once (van Klaveren 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from medkit.metrics.checks import codes, labels_and_scores
from medkit.metrics.intervals import logit_limits, two_sided
from medkit.metrics.ranking import placement_variance, placements
from medkit.record.results import Metric


def auroc_within(
    y: ArrayLike,
    score: ArrayLike,
    places: ArrayLike,
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> Metric:
    """Return the share of pairs of a 1 and a 0 *of the same place* that the score puts right.

    That is the mean of the places' AUROC, weighted by their pairs, with DeLong's variance (1988)
    in each and the interval symmetric on the log-odds scale. A place with fewer than two rows (or
    patients) of a class has no variance and is left out: ``method`` says of how many places it is,
    ``n`` are their rows.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        score: Higher means likelier 1, ``(N,)``; comparable within a place only.
        places: Hospital of each row, ``(N,)``.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``; one seen at two places counts as two.
    """
    value, variance, n, how = _over_places(y, [score], places, groups)
    if not variance > 0 or not 0 < value < 1:
        return Metric(value, n=n, method=f"AUROC {how}; no interval")
    low, high = logit_limits(value, variance, level)
    return Metric(value, low, high, level, n, method=f"AUROC {how}, DeLong, logit")


def auroc_difference_within(
    y: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    places: ArrayLike,
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> Metric:
    """Return :func:`auroc_within` of ``a`` minus that of ``b``, with the paired interval.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        a: One score, ``(N,)``.
        b: The other, ``(N,)``.
        places: Hospital of each row, ``(N,)``.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.
    """
    value, variance, n, how = _over_places(y, [a, b], places, groups)
    if isnan(value):
        return Metric(value, n=n, method=f"AUROC difference {how}; no interval")
    how = f"AUROC difference {how}, paired DeLong, plain"
    if not variance > 0:  # the two rank every pair alike, on any resample of these rows too
        return Metric(value, value, value, level, n, method=f"{how}; no pair ranked otherwise")
    half, p = two_sided(level) * sqrt(variance), 2 * float(ndtr(-abs(value) / sqrt(variance)))
    low, high = max(-1.0, value - half), min(1.0, value + half)
    return Metric(value, low, high, level, n, method=f"{how}, p = {p:.3g}")


class _Sum(NamedTuple):
    value: float
    variance: float
    n: int
    how: str


def _over_places(
    y: ArrayLike, scores: Sequence[ArrayLike], places: ArrayLike, groups: ArrayLike | None
) -> _Sum:
    """Return the AUROC of one score, or of the first minus the second, over the places' pairs."""
    columns = [labels_and_scores(y, one)[1] for one in scores]
    labels = np.asarray(y, np.float64)
    place = codes(places, len(labels), "within")
    owner = None if groups is None else codes(groups, len(labels), "groups")
    value, variance, pairs, n, counted = 0.0, 0.0, 0, 0, 0
    many = int(place.max()) + 1
    for rows in (place == number for number in range(many)):
        ones = int(labels[rows].sum())
        weight = ones * (int(rows.sum()) - ones)
        if weight == 0:
            continue
        (above, below), *rival = (placements(labels[rows], column[rows]) for column in columns)
        for its_above, its_below in rival:
            above, below = above - its_above, below - its_below
        whose = None if owner is None else np.unique(owner[rows], return_inverse=True)[1]
        spread = placement_variance(labels[rows], above, below, whose)
        if isnan(spread):
            continue
        value += weight * float(above.mean())
        variance += weight**2 * max(spread, 0.0)  # with patients below 0 by rounding
        pairs, n, counted = pairs + weight, n + int(rows.sum()), counted + 1
    how = f"within {counted} of {many} places" if counted < many else f"within {many} places"
    if pairs == 0:
        return _Sum(nan, nan, len(labels), f"{how}: none has two of each class")
    return _Sum(value / pairs, variance / pairs**2, n, how)
