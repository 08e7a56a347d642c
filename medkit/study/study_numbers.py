"""Numbers of a study that rest on several splits, or on pairs of trainings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, stdtrit

from medkit.metrics.checks import Floats
from medkit.metrics.decisions import Flags, flips_between_seeds
from medkit.metrics.power import FEWEST_SEEDS
from medkit.record.results import Metric

LEVEL = 0.95
_LIMITS = re.compile(r" \[[^\]]*\]")  # an interval in words


def honest(metric: Metric, n: int, *, of: str = "trainings") -> Metric:
    """Return a metric without its interval where it rests on fewer than 5 trainings."""
    if n >= FEWEST_SEEDS or metric.level is None:
        return metric
    said = _LIMITS.sub("", f"{metric.method}; no interval below {FEWEST_SEEDS} {of}")
    return replace(metric, low=None, high=None, level=None, method=said)


def pooled(found: Sequence[Metric]) -> Metric:
    """Return one spread from those of several splits: root of their mean square by degrees.

    Each split has rows of its own, so only trainings of one split are compared.
    """
    if len(found) == 1:
        return found[0]
    degrees = np.array([(metric.n or 1) - 1 for metric in found], np.float64)
    n, total = int(sum(metric.n or 0 for metric in found)), float(degrees.sum())
    how = f"{found[0].method}; root mean square of {len(found)} splits"
    if any(metric.value == inf for metric in found):
        whole = [metric for metric in found if metric.value != inf]
        how = f"a run diverged in {len(found) - len(whole)} of {len(found)} splits"
        how += f"; the others: {pooled(whole)}" if whole else ""
        return replace(found[0], value=inf, low=None, high=None, n=n, method=how)
    squares = np.array([metric.value**2 for metric in found])
    value = sqrt(float((degrees * squares).sum()) / total) if total else nan
    low, high = (value * sqrt(total / float(chdtri(total, p))) for p in (0.025, 0.975))
    return Metric(value, low, high, LEVEL, n, found[0].unit, how)


def mean_of_splits(values: Sequence[Floats]) -> Metric:
    """Return the mean over splits of their means, with a t interval over the splits."""
    means = np.array([v.mean() for v in values])
    n, how = int(sum(len(v) for v in values)), f"mean of {len(means)} splits, t over the splits"
    half = float(stdtrit(len(means) - 1, 0.975)) * float(means.std(ddof=1)) / sqrt(len(means))
    mean = float(means.mean())
    return honest(
        Metric(mean, mean - half, mean + half, LEVEL, n, method=how), len(means), of="splits"
    )


def flip_rate(tables: Sequence[Flags], how: str) -> Metric:
    """Return the share of rows whose flag another seed turns, with a jackknife over the seeds.

    All pairs of trainings give the value; the interval leaves out one training at a time, since
    pairs that share one are not independent (Arvesen 1969). It is for other trainings and these
    rows; it covered in 92 to 97 of 100 trials where 95 is meant, from 5 to 20 trainings.

    Args:
        tables: Flags ``(n, N)`` of each split; their mean is taken.
        how: Where rows are flagged.
    """
    shares = [flips_between_seeds(flags) for flags in tables]
    n, rows = sum(len(flags) for flags in tables), tables[0].shape[1]
    value = float(np.mean(shares))
    said = f"{how}, all pairs of {n} trainings on {rows} rows"
    if min(len(flags) for flags in tables) < 3:
        return Metric(value, n=n, method=said)
    variance = 0.0
    for flags in tables:
        left = [flips_between_seeds(np.delete(flags, one, axis=0)) for one in range(len(flags))]
        variance += float(np.var(left)) * (len(flags) - 1)
    half = float(stdtrit(n - len(tables), 0.975)) * sqrt(variance) / len(tables)
    low, high = max(0.0, value - half), min(1.0, value + half)
    return Metric(value, low, high, LEVEL, n, method=f"{said}, jackknife over trainings")


def linear_residual(scores: Floats, linear: Floats) -> Floats:
    """Return the share of the variance of each logit that a linear model's does not explain.

    1 - r² between the logit of each training and that of the linear model on the same rows: 0 for
    a net that says what logistic regression says, whatever its scale.

    Args:
        scores: Probabilities ``(n, N)``.
        linear: Of the linear model, ``(N,)``.
    """
    logits = _logit(np.vstack([linear[None], scores]))
    return np.array([1 - np.corrcoef(logits[0], logit)[0, 1] ** 2 for logit in logits[1:]])


def _logit(prob: Floats) -> NDArray[np.float64]:
    inside = np.clip(prob, 1e-7, 1 - 1e-7)  # a score of 0 or 1 has no logit
    return np.asarray(np.log(inside / (1 - inside)))
