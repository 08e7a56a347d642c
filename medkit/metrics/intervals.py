"""Intervals from sums over rows: shares, means, and anything with known parts per row.

Where rows belong together (several stays of one patient) the parts are first added up within each
patient; only patients are taken as independent. That is the linearised variance of survey
statistics (Binder 1983), what the bootstrap over patients tends to, without its chance.
"""

from __future__ import annotations

from math import log, nan, sqrt
from statistics import NormalDist

import numpy as np
from scipy.special import expit

from medkit.metrics.checks import Codes, Floats
from medkit.record.results import Metric

ALONE = "no interval from one row or patient"


def two_sided(level: float) -> float:
    """Return the normal quantile that leaves ``(1 - level) / 2`` above it: 1.96 for 0.95."""
    if not 0 < level < 1:
        raise ValueError(
            f"level must be between 0 and 1, got {level}. 0.95 means an interval of 95 %."
        )
    return NormalDist().inv_cdf(0.5 + level / 2)


def variance_of_sum(
    parts: Floats, owner: Codes | None = None, stratum: Codes | None = None
) -> float:
    """Return the variance of ``parts.sum()`` under drawing rows, or whole patients, anew.

    Args:
        parts: What each row adds, ``(N,)``; parts of an estimate are its derivatives with respect
            to the rows' weights, and sum to 0.
        owner: Patient of each row, from 0; None takes rows as independent.
        stratum: Site of each row, from 0: each site keeps its number of patients. A patient seen
            at several counts with the first.

    Returns:
        NaN for one row, or one patient: there is nothing to compare with.
    """
    if owner is not None:
        stratum = unit_strata(owner, stratum)
        parts = np.bincount(owner, parts).astype(np.float64)
    if len(parts) < 2:
        return nan
    if stratum is None:
        stratum = np.zeros(len(parts), dtype=np.int64)
    size = np.bincount(stratum)
    mean = np.bincount(stratum, parts) / np.maximum(size, 1)
    alone = size == 1  # nothing to compare with: its distance from 0 stands for its spread
    mean[alone] = 0.0
    factor = np.where(alone, 1.0, size / np.maximum(size - 1, 1))
    return float(np.sum(factor[stratum] * (parts - mean[stratum]) ** 2))


def unit_strata(owner: Codes, stratum: Codes | None) -> Codes | None:
    """Return each patient's stratum, the first one where it has rows in several."""
    if stratum is None:
        return None
    first = np.full(int(owner.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, owner, stratum)
    return first


def wilson(hits: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval (1927) of a share; sound for few rows and for shares near 0."""
    z = two_sided(level)
    share = hits / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # rounding must not put the share itself outside: at 0 the lower limit comes out as 1e-18
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


def logit_limits(value: float, variance: float, level: float) -> tuple[float, float]:
    """Return limits that are symmetric on the log-odds scale, so within (0, 1)."""
    center = log(value / (1 - value))
    half = two_sided(level) * sqrt(variance) / (value * (1 - value))
    return float(expit(center - half)), float(expit(center + half))


def share(
    hit: Floats, of: Floats, name: str, *, level: float, owner: Codes | None = None
) -> Metric:
    """Return ``hit`` among ``of`` with Wilson's interval; NaN without interval among no rows.

    With patients the interval is that of as many independent rows as carry the same information
    (rows over the design effect, Rao and Scott 1992; never more than there are). At 0 and 1,
    where no design effect can be had, each patient counts as one row.

    Args:
        hit: 1 where the row counts, ``(N,)``; 0 wherever ``of`` is 0.
        of: 1 where the row is asked, ``(N,)``.
        name: For the method.
        level: Nominal coverage.
        owner: Patient of each row, from 0.
    """
    hits, n = float(hit.sum()), float(of.sum())
    if n == 0:
        return Metric(float("nan"), n=0, method=f"{name}; no value: no such row")
    value = hits / n
    if owner is None:
        low, high = wilson(hits, n, level=level)
        return Metric(value, low, high, level, int(n), method=f"{name}, Wilson")
    _, dense = np.unique(owner[of == 1], return_inverse=True)
    units = rows = float(dense.max() + 1)
    if 0 < value < 1 and units > 1:
        spread = variance_of_sum((hit - value)[of == 1] / n, dense)
        rows = min(n, value * (1 - value) / spread) if spread > 0 else n
    low, high = wilson(value * rows, rows, level=level)
    how = f"{name}, Wilson over {units:.0f} patients"
    return Metric(value, min(low, value), max(high, value), level, int(n), method=how)


def mean(
    values: Floats, *, level: float, owner: Codes | None = None, stratum: Codes | None = None
) -> tuple[float, float | None, float | None]:
    """Return a mean with its normal interval; no interval from one row or one patient."""
    value, n = float(values.mean()), len(values)
    if n < 2 or (owner is not None and owner.max() == 0):
        return value, None, None
    spread = variance_of_sum((values - value) / n, owner, stratum)
    half = two_sided(level) * sqrt(spread)
    return value, value - half, value + half


def over(owner: Codes | None) -> str:
    """Return " over 80 patients" for the method of a Metric; nothing where rows stand alone."""
    return "" if owner is None else f" over {int(owner.max()) + 1} patients"
