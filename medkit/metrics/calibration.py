"""Whether a probability means what it says: Brier score, calibration slope, intercept and error."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isnan, pi, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from medkit import keyed
from medkit.metrics.checks import (
    Codes,
    Floats,
    both_classes,
    codes,
    labels_and_scores,
    probabilities,
)
from medkit.metrics.intervals import ALONE, mean, over, two_sided, variance_of_sum, wilson
from medkit.metrics.recalibration import (
    Fit,
    fit_logistic,
    log_odds,
    overlap,
    standardised,
)
from medkit.record.results import Metric


def brier(
    y: ArrayLike,
    prob: ArrayLike,
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> Metric:
    """Return the mean squared difference between probability and outcome; lower is better.

    Always to say the prevalence scores prevalence x (1 - prevalence). The interval is the normal
    one of a mean over independent rows (or patients), cut at 0 and 1.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        prob: Probability of label 1, ``(N,)``.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.
        strata: Site of each row, ``(N,)``.
    """
    labels, scores = labels_and_scores(y, prob)
    probabilities(scores, "the Brier score")
    n = len(labels)
    owner = None if groups is None else codes(groups, n, "groups")
    stratum = None if strata is None else codes(strata, n, "strata")
    value, low, high = mean((scores - labels) ** 2, level=level, owner=owner, stratum=stratum)
    if low is None or high is None:
        one = "row" if owner is None else "patient"
        return Metric(value, n=n, method=f"Brier; no interval from one {one}")
    how = "Brier, normal interval of the mean" + over(owner)
    return Metric(value, max(0.0, low), min(1.0, high), level, n, method=how)


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
    """Return points of a calibration plot, from bins that hold equally many rows.

    Equal probabilities share a bin, so with many ties there are fewer bins.
    """
    labels, scores = labels_and_scores(y, prob)
    probabilities(scores, "a calibration plot")
    points, bin_of = [], equal_bins(scores, bins)
    for one in np.unique(bin_of):
        rows = bin_of == one
        n, hits = int(rows.sum()), int(labels[rows].sum())
        low, high = wilson(hits, n, level=level)
        observed = Metric(hits / n, low, high, level, n, method="Wilson")
        points.append(CalibrationPoint(float(scores[rows].mean()), observed))
    return points


def equal_bins(scores: Floats, bins: int) -> Codes:
    """Return the bin of each row, ``(N,)``: equally many rows each, equal scores together."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}. 10 is usual.")
    _, inverse, count = np.unique(scores, return_inverse=True, return_counts=True)
    first = np.cumsum(count) - count
    return np.asarray((first * bins // len(scores))[inverse], dtype=np.int64)


def ece(
    y: ArrayLike,
    prob: ArrayLike,
    bins: int = 10,
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
) -> Metric:
    """Return the expected calibration error: the mean gap between probability and outcome by bins.

    It is never 0 on few rows: ``method`` says what a perfectly calibrated model of this size shows
    on average, and the limits are those of the value less its bias (a mean of absolute values of
    noisy gaps), the lower one 0 where a calibrated model shows as much once in twenty times. The
    percentile bootstrap doubles the bias instead, and never holds the truth of a calibrated model
    (``benchmarks/interval_coverage.py``). Read slope and intercept first, which have no bias to
    speak of.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        prob: Probability of label 1, ``(N,)``.
        bins: Bins, of equally many rows; equal probabilities share one.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.
        seed: Decides the draws of calibrated models.
        draws: Calibrated models to compare with.
    """
    z = two_sided(level)
    if draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}. 1,000 is usual.")
    labels, scores = labels_and_scores(y, prob)
    probabilities(scores, "ECE")
    n = len(labels)
    _, bin_of = np.unique(equal_bins(scores, bins), return_inverse=True)
    many = int(bin_of.max()) + 1
    gap = np.bincount(bin_of, scores - labels) / n
    value, side = float(np.abs(gap).sum()), np.sign(gap)
    owner = None if groups is None else codes(groups, n, "groups")
    units = n if owner is None else int(owner.max()) + 1
    if units < 2:
        return Metric(value, n=n, method="ECE; no interval from one row or patient")
    if owner is None:
        squares = np.bincount(bin_of, ((scores - labels) / n) ** 2)
        spread: Floats = np.diag(squares) - np.outer(gap, gap) / n
    else:
        sums = np.bincount(owner * many + bin_of, (scores - labels) / n, units * many)
        moves = sums.reshape(units, many) - gap / units  # what a patient adds to each bin's gap
        spread = moves.T @ moves
    spread = spread * units / (units - 1)
    half = z * sqrt(max(0.0, float(side @ spread @ side)))
    bias = float(
        np.sum(_mean_absolute(np.abs(gap), np.sqrt(np.maximum(np.diag(spread), 0))) - np.abs(gap))
    )
    # what calibrated models show: the noise of outcomes, or what is seen between patients
    root = np.diag(np.sqrt(np.bincount(bin_of, scores * (1 - scores)))) / n
    if owner is not None:
        size, axes = np.linalg.eigh(spread)
        root = axes * np.sqrt(np.maximum(size, 0))
    noise = keyed.generator(seed, "bootstrap", "ece").standard_normal((draws, many))
    shown = np.abs(noise @ root.T).sum(1)
    low = max(0.0, value - bias - half)
    if value <= np.quantile(shown, level):
        low = 0.0
    high = max(value, value - bias + half)
    how = f"ECE, {many} bins, less its bias{over(owner)}"
    how += f"; {shown.mean():.2g} if calibrated"
    return Metric(value, min(low, value), high, level, n, method=how)


def _mean_absolute(mean: Floats, sd: Floats) -> Floats:
    """Return the mean of the absolute value of normal numbers (the folded normal's)."""
    ratio = np.minimum(mean / np.where(sd > 0, sd, 1.0), 40.0)  # beyond it nothing is folded
    folded = sd * sqrt(2 / pi) * np.exp(-(ratio**2) / 2) + mean * (1 - 2 * ndtr(-ratio))
    return np.asarray(np.where((sd > 0) & (ratio < 40), folded, mean))


def expected_over_observed(
    y: ArrayLike,
    prob: ArrayLike,
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> Metric:
    """Return how many label 1 the probabilities expect for each one there is; 1 is right.

    The interval is symmetric on the log scale, with the variance of a ratio of sums over
    independent rows (or patients). Where there is no label 1 it is NaN.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        prob: Probability of label 1, ``(N,)``.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.
        strata: Site of each row, ``(N,)``.
    """
    name = "expected over observed"
    labels, scores = labels_and_scores(y, prob)
    probabilities(scores, name)
    n, expected, observed = len(labels), float(scores.sum()), float(labels.sum())
    if observed == 0:
        return Metric(float("nan"), n=n, method=f"{name}; no row with label 1")
    owner = None if groups is None else codes(groups, n, "groups")
    stratum = None if strata is None else codes(strata, n, "strata")
    value = expected / observed
    if expected == 0:
        return Metric(value, n=n, method=f"{name}; none is expected")
    variance = variance_of_sum(scores / expected - labels / observed, owner, stratum)
    if isnan(variance):
        return Metric(value, n=n, method=f"{name}; {ALONE}")
    factor = exp(two_sided(level) * sqrt(variance))
    how = f"{name}, log scale{over(owner)}"
    return Metric(value, value / factor, value * factor, level, n, method=how)


def slope_and_intercept(
    y: ArrayLike,
    prob: ArrayLike,
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> tuple[Metric, Metric]:
    """Return calibration slope, and calibration-in-the-large (the intercept with slope 1).

    Slope: of the outcome's log odds on the predicted ones (Cox 1958), both intercept and slope
    free; 1 is right, below 1 says too sure of itself, as overfitted models are. Intercept: what
    must be added to the predicted log odds, slope held at 1; 0 is right, above 0 says that the
    outcome is commoner than predicted. Probabilities are cut at 1e-7 from 0 and 1.

    Limits are the sandwich's (White 1982). Those of the likelihood (Wald, profile) are too narrow
    for the intercept as soon as the slope is not 1: at a slope of 0.4 they cover 80 % where 95 %
    is meant.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        prob: Probability of label 1, ``(N,)``.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.
        strata: Site of each row, ``(N,)``.

    Returns:
        Slope and intercept; NaN without interval for the slope where no finite one exists (all
        probabilities equal, or some probability that parts the classes).
    """
    z = two_sided(level)
    labels, scores = labels_and_scores(y, prob)
    probabilities(scores, "calibration slope and intercept")
    both_classes(labels, "calibration slope and intercept")
    n, odds = len(labels), log_odds(scores)
    owner = None if groups is None else codes(groups, n, "groups")
    stratum = None if strata is None else codes(strata, n, "strata")

    def metric(fit: Fit, scale: float, name: str) -> Metric:
        value = float(fit.coef[-1]) / scale
        variance = variance_of_sum(fit.parts[:, -1], owner, stratum)
        if isnan(variance):
            return Metric(value, n=n, method=f"{name}; {ALONE}")
        half = z * sqrt(variance) / scale
        how = f"{name}, sandwich{over(owner)}"
        return Metric(value, value - half, value + half, level, n, method=how)

    one = np.ones((n, 1))
    large = fit_logistic(labels, one, offset=odds)
    intercept = metric(large, 1.0, "calibration intercept, slope 1")
    if not overlap(labels, odds):
        why = "no finite slope: classes apart, or one probability for all"
        return Metric(float("nan"), n=n, method=f"calibration slope; {why}"), intercept
    x, sd = standardised(odds)
    free = fit_logistic(labels, np.column_stack([one, x]))
    return metric(free, sd, "calibration slope"), intercept
