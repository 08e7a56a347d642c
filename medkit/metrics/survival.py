"""How well a risk orders times to an event: Harrell's and Uno's c; curves and calibration beside.

Right-censored times of one kind of event. A risk is higher where the event is expected sooner.
"""

from __future__ import annotations

from math import erfc, isnan, sqrt

import numpy as np
from numpy.typing import ArrayLike

from medkit.metrics.checks import Codes, Floats, codes, survival_times
from medkit.metrics.horizon import HorizonCalibration, brier_at, calibration_at
from medkit.metrics.intervals import ALONE, logit_limits, over, two_sided, variance_of_sum
from medkit.metrics.kaplan_meier import Curve, censoring, kaplan_meier
from medkit.record.results import Metric

__all__ = [
    "Curve",
    "HorizonCalibration",
    "brier_at",
    "c_index_difference",
    "calibration_at",
    "harrell_c",
    "kaplan_meier",
    "uno_c",
]

_MOST_ROWS = 100_000  # pairs are compared one by one: a minute or so
_CELLS = 2_000_000  # pairs held at once


def harrell_c(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> Metric:
    """Return Harrell's c (1996): of the pairs that can be ordered, the share ordered rightly.

    A pair can be ordered where the shorter time ends in an event; at equal times where one has
    the event and the other is censored, who then counts as longer (two events at one time can't
    be ordered). Equal risks count one half. With much censoring it depends on who was censored
    when: see :func:`uno_c`.

    Args:
        time: Time to the event or the end of follow-up, ``(N,)``.
        event: 1 where it happened, 0 where censored, ``(N,)``.
        risk: Higher means sooner, ``(N,)``.
        level: Nominal coverage; limits are symmetric on the log-odds scale, with the linearised
            variance over patients.
        groups: Patient of each row, ``(N,)``; pairs of one patient's rows count as any other.
        strata: Site of each row, ``(N,)``; pairs across sites count as any other.
    """
    times, events, (risks,) = survival_times(time, event, risk)
    value, parts = _concordance(times, events, risks, events)
    return _metric(value, parts, "Harrell's c", level, groups, strata)


def c_index_difference(
    time: ArrayLike,
    event: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> Metric:
    """Return Harrell's c of ``a`` minus that of ``b`` on the same rows, with the paired interval.

    The two values' derivatives by each row's weight are subtracted row by row, so what both rank
    alike cancels; ``method`` holds the two-sided p. It asks whether *these two* risks differ for
    other patients: a second training would have differed too.

    Args:
        time: Time to the event or the end of follow-up, ``(N,)``.
        event: 1 where it happened, 0 where censored, ``(N,)``.
        a: One risk, higher means sooner, ``(N,)``.
        b: The other.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.

    Returns:
        To be filed as ``test/c_index_minus_cox`` where ``b`` is Cox regression's.
    """
    times, events, (first, second) = survival_times(time, event, a, b)
    (one, parts), (other, others) = (
        _concordance(times, events, risks, events) for risks in (first, second)
    )
    value, n, what = one - other, len(times), "Harrell's c difference"
    owner = None if groups is None else codes(groups, n, "groups")
    variance = variance_of_sum(parts - others, owner)
    if isnan(variance):
        return Metric(value, n=n, method=f"{what}; {ALONE}")
    how = f"{what}, linearised{over(owner)}, plain"
    if not variance > 0:  # the two rank every pair alike, on these rows and on any resample
        return Metric(value, value, value, level, n, method=f"{how}; no pair ranked otherwise")
    half = two_sided(level) * sqrt(variance)
    low, high = max(-1.0, value - half), min(1.0, value + half)
    p = erfc(abs(value) / sqrt(2 * variance))
    return Metric(value, low, high, level, n, method=f"{how}, p = {p:.3g}")


def uno_c(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    *,
    tau: float | None = None,
    level: float = 0.95,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> Metric:
    """Return Uno's c (2011): Harrell's with pairs weighted by how likely they were to be seen.

    A pair counts 1 / G(t-)^2 of its shorter time t, G being the Kaplan-Meier estimate of the
    censoring on these rows, so the value does not depend on when patients were censored, as long
    as that has nothing to do with their risk. The interval knows that G is estimated.

    Args:
        time: Time to the event or the end of follow-up, ``(N,)``.
        event: 1 where it happened, 0 where censored, ``(N,)``.
        risk: Higher means sooner, ``(N,)``.
        tau: Only events before it count; choose one while enough patients are still followed, as
            the last few events weigh most. None counts all.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.
        strata: Site of each row, ``(N,)``.

    Raises:
        ValueError: When no event is before ``tau``.
    """
    times, events, (risks,) = survival_times(time, event, risk)
    counted = events if tau is None else events * (times < tau)
    if counted.sum() == 0:
        first = float(times[events == 1].min())
        raise ValueError(
            f"tau must be after the first event, which is at {first:g}; got {tau}. Take a time "
            "at which enough patients are still followed."
        )
    followed = censoring(times, events)
    weights = np.zeros(len(times))
    rows = counted == 1
    weights[rows] = followed.at(times[rows]) ** -2.0
    value, parts = _concordance(times, events, risks, weights, followed_slopes=True)
    name = "Uno's c" if tau is None else f"Uno's c up to {tau:g}"
    return _metric(value, parts, name, level, groups, strata)


def _concordance(
    times: Floats,
    events: Floats,
    risks: Floats,
    weights: Floats,
    *,
    followed_slopes: bool = False,
) -> tuple[float, Floats]:
    """Return concordance, and its derivative with respect to each row's weight, ``(N,)``.

    Args:
        times: ``(N,)``.
        events: ``(N,)``.
        risks: ``(N,)``.
        weights: What each row's pairs count as the shorter of two, ``(N,)``; 0 for the censored.
        followed_slopes: The weights are G(t-)^-2, whose own derivative is to be added.
    """
    n = len(times)
    if n > _MOST_ROWS:
        raise ValueError(
            f"a c-index compares all pairs, so there may be at most {_MOST_ROWS:,} rows; got "
            f"{n:,}. Score a random part: its interval says what that costs."
        )
    right, all_pairs = np.zeros(n), np.zeros(n)  # of each row as the shorter of a pair
    right_of, all_of = np.zeros(n), np.zeros(n)  # of each row as the longer, weighted
    shorter = np.flatnonzero(weights > 0)
    for rows in np.array_split(shorter, max(1, len(shorter) * n // _CELLS)):
        t, r = times[rows, None], risks[rows, None]
        pairs = (times > t) | ((times == t) & (events == 0))
        ordered = np.where(pairs, (np.sign(r - risks) + 1) / 2, 0.0)
        right[rows], all_pairs[rows] = ordered.sum(1), pairs.sum(1)
        right_of += weights[rows] @ ordered
        all_of += weights[rows] @ pairs
    total = float(weights @ all_pairs)
    if total == 0:
        raise ValueError(
            f"a c-index needs a pair that can be ordered; found none among {n} rows with "
            f"{int(events.sum())} events. Nobody was followed for longer than an event's time."
        )
    value = float(weights @ right) / total
    excess = weights * (right - value * all_pairs)
    parts = excess + right_of - value * all_of
    if followed_slopes:
        parts = parts + censoring(times, events).parts(times, events, -2 * excess)
    return value, parts / total


def _metric(
    value: float,
    parts: Floats,
    name: str,
    level: float,
    groups: ArrayLike | None,
    strata: ArrayLike | None,
) -> Metric:
    n = len(parts)
    owner: Codes | None = None if groups is None else codes(groups, n, "groups")
    stratum = None if strata is None else codes(strata, n, "strata")
    variance = variance_of_sum(parts, owner, stratum)
    if isnan(variance):
        return Metric(value, n=n, method=f"{name}; {ALONE}")
    if not variance > 0 or not 0 < value < 1:
        return Metric(value, n=n, method=f"{name}; no interval: every pair is ordered alike")
    low, high = logit_limits(value, variance, level)
    how = f"{name}, linearised{over(owner)}, logit"
    return Metric(value, low, high, level, n, method=how)
