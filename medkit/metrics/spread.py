"""Mean and spread over runs that differ in their seed: what a sweep's table shows.

A percentile bootstrap of a standard deviation covers 66 to 87 % at 5 to 20 seeds where 95 is
meant; the chi-square interval covers 95 to 97. Three seeds say nothing about spread.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

import numpy as np
from scipy.special import chdtri, stdtrit

from medkit.metrics.checks import Floats
from medkit.record.results import Metric


def mean_over_seeds(values: Iterable[float], *, level: float = 0.95, unit: str = "") -> Metric:
    """Return the mean with Student's t interval; no interval from one run.

    It is an interval for the mean over seeds on *these* rows: it says nothing of other patients.

    Raises:
        ValueError: When there is no value, or one is not finite.
    """
    runs = _finite(values)
    n, mean = len(runs), float(np.mean(runs))
    if n < 2:
        return Metric(mean, n=n, unit=unit, method="one run")
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * float(np.std(runs, ddof=1)) / sqrt(n)
    return Metric(mean, mean - half, mean + half, level, n, unit, "mean over seeds, t interval")


def sd_over_seeds(values: Iterable[float], *, level: float = 0.95, unit: str = "") -> Metric:
    """Return the standard deviation with its chi-square interval; NaN from one run.

    Raises:
        ValueError: When there is no value, or one is not finite.
    """
    runs = _finite(values)
    n, tail = len(runs), (1 - level) / 2
    if n < 2:
        return Metric(float("nan"), n=n, unit=unit, method="one run has no spread")
    sd = float(np.std(runs, ddof=1))
    # chdtri(df, p) leaves p in the upper tail
    low, high = (sd * sqrt((n - 1) / float(chdtri(n - 1, p))) for p in (tail, 1 - tail))
    return Metric(sd, low, high, level, n, unit, "sd over seeds, chi-square interval")


def _finite(values: Iterable[float]) -> Floats:
    runs = np.array(list(values), np.float64)
    bad = int((~np.isfinite(runs)).sum())
    if len(runs) == 0 or bad:
        raise ValueError(
            f"a mean over seeds needs at least one value, all finite; got {len(runs)}, {bad} of "
            "them not finite. A run that died is to be counted and named, not averaged or left out."
        )
    return runs
