"""How well a score ranks: AUROC with DeLong's interval, AUPRC beside the prevalence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medkit.metrics import resample
from medkit.metrics.checks import Floats, both_classes, codes, labels_and_scores
from medkit.metrics.comparison import auroc_difference, auroc_difference_over_seeds, how_made
from medkit.metrics.intervals import ALONE, logit_limits, share, two_sided, variance_of_sum, wilson
from medkit.metrics.ranking import Ranking, placement_variance, placements
from medkit.record.results import Metric

__all__ = [
    "auprc",
    "auroc",
    "auroc_difference",
    "auroc_difference_over_seeds",
    "bootstrap_counts",
    "delong",
    "prevalence",
    "roc_curve",
    "wilson",
]

INTERVALS = ("logit", "plain", "bootstrap")
_UNBROKEN = "no interval: no overlap of classes"


def auroc(
    y: ArrayLike,
    score: ArrayLike,
    *,
    level: float = 0.95,
    interval: str = "logit",
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
) -> Metric:
    """Return the area under the ROC curve; ties count one half.

    The variance is DeLong's (1988), by mid-ranks (Sun and Xu 2014), and Obuchowski's (1997) where
    patients have several rows: it is about other patients, not about other trainings.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        score: Higher means likelier 1, ``(N,)``.
        level: Nominal coverage.
        interval: "logit" is symmetric on the log-odds scale and stays within (0, 1); "plain" is
            symmetric around the value, cut at 0 and 1; "bootstrap" is "logit" with the variance
            of keyed resamples, which can keep the shares of sites.
            Where the classes are separated perfectly there is no interval.
        groups: Patient of each row, ``(N,)``.
        strata: Site of each row, ``(N,)``; only the bootstrap asks.
        seed: Decides the bootstrap's resamples.
        draws: Resamples of the bootstrap.
    """
    _known(interval, INTERVALS)
    labels, scores = labels_and_scores(y, score)
    both_classes(labels, "AUROC")
    owner = None if groups is None else codes(groups, len(labels), "groups")
    above, below = placements(labels, scores)
    value, variance = float(above.mean()), placement_variance(labels, above, below, owner)
    how = how_made("AUROC", "bootstrap" if interval == "bootstrap" else "DeLong", owner, interval)
    if not variance > 0 or not 0 < value < 1:
        return Metric(value, n=len(labels), method=f"AUROC; {_UNBROKEN}")
    if interval == "bootstrap":
        strata = resample.crossed(strata, labels if owner is None else None)
        _, low, high = resample.interval(
            Ranking(labels, scores).auroc,
            len(labels),
            groups=owner,
            strata=strata,
            seed=seed,
            draws=draws,
            level=level,
            kind="logit",
        )
    elif interval == "plain":
        half = two_sided(level) * sqrt(variance)
        low, high = max(0.0, value - half), min(1.0, value + half)
    else:
        low, high = logit_limits(value, variance, level)
    return Metric(value, low, high, level, len(labels), method=how)


def delong(labels: Floats, scores: Floats) -> tuple[float, float]:
    """Return AUROC and DeLong's variance of it; the variance is NaN with one row in a class."""
    above, below = placements(labels, scores)
    return float(above.mean()), placement_variance(labels, above, below)


def roc_curve(y: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """Return false and true positive rates from (0, 0) to (1, 1), one point per distinct score."""
    labels, scores = labels_and_scores(y, score)
    ones, zeros = both_classes(labels, "a ROC curve")
    hits, flagged = Ranking(labels, scores).counts(np.ones((1, len(labels))))
    return np.append(0.0, (flagged - hits)[0] / zeros), np.append(0.0, hits[0] / ones)


def auprc(
    y: ArrayLike,
    score: ArrayLike,
    *,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
    interval: str = "logit",
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> Metric:
    """Return the area under the precision-recall curve as average precision (no interpolation).

    A score that says nothing has the prevalence for value: read the two side by side
    (:func:`prevalence`).

    Args:
        y: Labels 0 and 1, ``(N,)``.
        score: Higher means likelier 1, ``(N,)``.
        seed: Decides the bootstrap's resamples; the global generators have no say.
        draws: Resamples of the bootstrap.
        level: Nominal coverage.
        interval: "logit" (Boyd 2013), with the linearised variance, is symmetric on the log-odds
            scale; "bootstrap" is the same with the variance of keyed resamples. Both let the
            prevalence vary as it does among other patients.
        groups: Patient of each row, ``(N,)``.
        strata: Site of each row, ``(N,)``.
    """
    _known(interval, ("logit", "bootstrap"))
    labels, scores = labels_and_scores(y, score)
    both_classes(labels, "AUPRC")
    n, ranking = len(labels), Ranking(labels, scores)
    owner = None if groups is None else codes(groups, n, "groups")
    stratum = None if strata is None else codes(strata, n, "strata")
    value, parts = ranking.average_precision_parts()
    how = how_made(
        "AUPRC", "bootstrap" if interval == "bootstrap" else "linearised", owner, interval
    )
    variance = variance_of_sum(parts, owner, stratum)
    if isnan(variance):
        return Metric(value, n=n, method=f"AUPRC; {ALONE}")
    if interval == "bootstrap":
        _, low, high = resample.interval(
            ranking.average_precision,
            n,
            groups=owner,
            strata=stratum,
            seed=seed,
            draws=draws,
            level=level,
            kind="logit",
        )
        return Metric(value, low, high, level, n, method=how)
    if not variance > 0 or value >= 1:
        return Metric(value, n=n, method=f"AUPRC; {_UNBROKEN}")
    low, high = logit_limits(value, variance, level)
    return Metric(value, low, high, level, n, method=how)


def prevalence(y: ArrayLike, *, level: float = 0.95, groups: ArrayLike | None = None) -> Metric:
    """Return the share of label 1 with Wilson's interval.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.
    """
    labels, _ = labels_and_scores(y, np.zeros(np.shape(y)))
    owner = None if groups is None else codes(groups, len(labels), "groups")
    return share(labels, np.ones(len(labels)), "share", level=level, owner=owner)


def bootstrap_counts(
    labels: Floats, *, seed: int, draws: int, groups: ArrayLike | None = None
) -> Iterator[NDArray[np.int64]]:
    """Yield how often each row is in a resample, ``(N,)``, once per resample.

    Without groups each class keeps its size. With groups whole groups are drawn, and a resample
    that holds one class only is drawn again.
    """
    labels = np.asarray(labels, np.float64)
    both_classes(labels, "a bootstrap of ranks")
    strata = labels if groups is None else None
    left = draws
    for weights in resample.blocks(len(labels), groups=groups, strata=strata, seed=seed):
        for counts in weights.astype(np.int64):
            if left == 0:
                return
            if len(set(labels[counts > 0])) == 2:
                left -= 1
                yield counts


def _known(interval: str, names: Sequence[str]) -> None:
    if interval not in names:
        raise ValueError(
            f"interval must be one of {list(names)}, got {interval!r}. 'logit' is the default."
        )
