"""How well a score ranks: AUROC with DeLong's interval, AUPRC with a keyed bootstrap."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medkit import keyed
from medkit.metrics.checks import Floats, both_classes, labels_and_scores
from medkit.record.results import Metric

INTERVALS = ("logit", "plain")


def auroc(
    y: ArrayLike, score: ArrayLike, *, level: float = 0.95, interval: str = "logit"
) -> Metric:
    """Return the area under the ROC curve; ties count one half.

    The variance is DeLong's (1988), by mid-ranks (Sun and Xu 2014): it is about other patients,
    not about other trainings, and takes rows as independent.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        score: Higher means likelier 1, ``(N,)``.
        level: Nominal coverage.
        interval: "logit" is symmetric on the log-odds scale and stays within (0, 1); "plain" is
            symmetric around the value, cut at 0 and 1. Where the classes are separated perfectly
            the variance is 0 and there is no interval.
    """
    if interval not in INTERVALS:
        raise ValueError(
            f"interval must be one of {list(INTERVALS)}, got {interval!r}. 'logit' is the default."
        )
    labels, scores = labels_and_scores(y, score)
    both_classes(labels, "AUROC")
    value, variance = delong(labels, scores)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    if variance <= 0 or not 0 < value < 1:
        return Metric(value, n=len(labels), method="AUROC; no interval: no overlap of classes")
    if interval == "plain":
        half = z * sqrt(variance)
        low, high = max(0.0, value - half), min(1.0, value + half)
    else:
        center = log(value / (1 - value))
        half = z * sqrt(variance) / (value * (1 - value))
        low, high = (1 / (1 + exp(-(center + side * half))) for side in (-1, 1))
    return Metric(value, low, high, level, len(labels), method=f"AUROC, DeLong, {interval}")


def delong(labels: Floats, scores: Floats) -> tuple[float, float]:
    """Return AUROC and DeLong's variance of it; the variance is NaN with one row in a class."""
    ones, zeros = scores[labels == 1], scores[labels == 0]
    m, n = len(ones), len(zeros)
    rank = _midranks(np.concatenate([ones, zeros]))
    above = (rank[:m] - _midranks(ones)) / n  # share of zeros each one is above
    below = 1 - (rank[m:] - _midranks(zeros)) / m  # share of ones each zero is below
    value = float(above.mean())
    if min(m, n) < 2:
        return value, float("nan")
    return value, float(above.var(ddof=1) / m + below.var(ddof=1) / n)


def roc_curve(y: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """Return false and true positive rates from (0, 0) to (1, 1), one point per distinct score."""
    labels, scores = labels_and_scores(y, score)
    ones, zeros = both_classes(labels, "a ROC curve")
    hits, alarms = _counts_above(labels, scores)
    return np.append(0.0, alarms / zeros), np.append(0.0, hits / ones)


def auprc(
    y: ArrayLike,
    score: ArrayLike,
    *,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> Metric:
    """Return the area under the precision-recall curve as average precision (no interpolation).

    A score that says nothing has the prevalence for value: read the two side by side
    (:func:`prevalence`). The interval is the percentile bootstrap's, resampled within each class,
    or over whole groups (patients with several rows) where ``groups`` is given.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        score: Higher means likelier 1, ``(N,)``.
        seed: Decides the resamples; the global generators have no say.
        draws: Resamples.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.
    """
    labels, scores = labels_and_scores(y, score)
    both_classes(labels, "AUPRC")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    value = _average_precision(labels[order], np.ones(len(labels)), ends)
    resamples = np.array(
        [
            _average_precision(labels[order], counts[order], ends)
            for counts in bootstrap_counts(labels, seed=seed, draws=draws, groups=groups)
        ]
    )
    tail = (1 - level) / 2
    low, high = np.quantile(resamples, (tail, 1 - tail))
    how = "within classes" if groups is None else "over groups"
    return Metric(
        value, float(low), float(high), level, len(labels), method=f"AUPRC, bootstrap {how}"
    )


def prevalence(y: ArrayLike, *, level: float = 0.95) -> Metric:
    """Return the share of label 1 with Wilson's interval."""
    labels, _ = labels_and_scores(y, np.zeros(np.shape(y)))
    low, high = wilson(int(labels.sum()), len(labels), level=level)
    return Metric(float(labels.mean()), low, high, level, len(labels), method="share, Wilson")


def wilson(hits: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval (1927) of a share; sound for few rows and for shares near 0."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = hits / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # rounding must not put the share itself outside: at 0 the lower limit comes out as 1e-18
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


def bootstrap_counts(
    labels: Floats, *, seed: int, draws: int, groups: ArrayLike | None = None
) -> Iterator[NDArray[np.int64]]:
    """Yield how often each row is in a resample, ``(N,)``, once per resample.

    Without groups each class keeps its size. With groups whole groups are drawn, and a resample
    that holds one class only is drawn again.
    """
    draw = keyed.generator(seed, "bootstrap")
    if groups is None:
        classes = [np.flatnonzero(labels == label) for label in (1, 0)]
        for _ in range(draws):
            counts = np.zeros(len(labels), dtype=np.int64)
            for rows in classes:
                chosen = draw.integers(len(rows), size=len(rows))
                counts[rows] = np.bincount(chosen, minlength=len(rows))
            yield counts
        return
    _, owner = np.unique(np.asarray(groups), return_inverse=True)
    size = int(owner.max()) + 1
    for _ in range(draws):
        counts = np.zeros(len(labels), dtype=np.int64)
        while len(set(labels[counts > 0])) < 2:
            counts = np.bincount(draw.integers(size, size=size), minlength=size)[owner]
        yield counts


def _average_precision(labels: Floats, counts: ArrayLike, ends: NDArray[np.int64]) -> float:
    """Average precision of rows in falling order of score; ``ends`` closes each run of ties."""
    counts = np.asarray(counts, np.float64)
    hits = np.cumsum(counts * labels)[ends]
    flagged = np.cumsum(counts)[ends]
    precision = np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
    return float(np.sum(np.diff(hits, prepend=0.0) * precision) / hits[-1])


def _counts_above(labels: Floats, scores: Floats) -> tuple[Floats, Floats]:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.cumsum(labels[order])[ends]
    return hits, ends + 1 - hits


def _midranks(values: Floats) -> Floats:
    """Return ranks from 1, ties sharing their mean."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[inverse]
