"""Whether a predicted risk by a horizon (two years, say) means what it says, under censoring."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, sqrt

import numpy as np
from numpy.typing import ArrayLike

from medkit.metrics.calibration import CalibrationPoint, equal_bins
from medkit.metrics.checks import Floats, codes, probabilities, survival_times
from medkit.metrics.intervals import ALONE, mean, two_sided, variance_of_sum
from medkit.metrics.kaplan_meier import censoring, curve_of
from medkit.metrics.recalibration import fit_logistic, log_odds, overlap, standardised
from medkit.record.results import Metric


@dataclass(frozen=True)
class HorizonCalibration:
    """Calibration of a risk by a horizon.

    Attributes:
        horizon: The time, in the unit of the times.
        points: Groups of similar risk: mean predicted, and 1 - Kaplan-Meier with its interval.
        observed: 1 - Kaplan-Meier of all rows.
        predicted: Mean predicted risk of all rows.
        slope: Of the log odds of the event by the horizon on the predicted ones; 1 is right,
            below 1 too sure of itself.
        intercept: Calibration-in-the-large: what the predicted log odds lack, slope held at 1.
    """

    horizon: float
    points: list[CalibrationPoint]
    observed: Metric
    predicted: float
    slope: Metric
    intercept: Metric


def calibration_at(
    time: ArrayLike,
    event: ArrayLike,
    prob: ArrayLike,
    horizon: float,
    *,
    bins: int = 5,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> HorizonCalibration:
    """Compare predicted risk by a horizon with what happened.

    Slope and intercept are weighted logistic regressions on the rows whose state at the horizon is
    known, each weighted by one over the chance to be known (G(t-), as in :func:`uno_c`), with the
    sandwich's interval; that G is estimated is left out, which makes it wider if anything.

    Args:
        time: Time to the event or the end of follow-up, ``(N,)``.
        event: 1 where it happened, 0 where censored, ``(N,)``.
        prob: Predicted probability of the event by ``horizon``, ``(N,)`` (not of survival).
        horizon: In the unit of ``time``, within the follow-up.
        bins: Groups of equally many rows.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``; for slope and intercept.

    Raises:
        ValueError: When nobody is followed up to the horizon, or nothing happened before it.
    """
    times, events, risks, y, weights = _at_horizon(time, event, prob, horizon)
    n = len(times)
    points, bin_of = [], equal_bins(risks, bins)
    for one in np.unique(bin_of):
        rows = bin_of == one
        points.append(
            CalibrationPoint(
                float(risks[rows].mean()), _risk(times[rows], events[rows], horizon, level)
            )
        )
    owner = None if groups is None else codes(groups, n, "groups")
    known = weights > 0
    odds, one_column = log_odds(risks), np.ones((n, 1))

    def metric(value: float, parts: Floats, name: str) -> Metric:
        variance = variance_of_sum(parts, owner)
        if isnan(variance):
            return Metric(value, n=n, method=f"{name} at {horizon:g}; {ALONE}")
        half = two_sided(level) * sqrt(variance)
        how = f"{name} at {horizon:g}, weighted by censoring, sandwich"
        return Metric(value, value - half, value + half, level, n, method=how)

    x, sd = standardised(odds[known], weights[known]) if np.ptp(odds[known]) > 0 else (odds, 1.0)
    nothing = Metric(float("nan"), n=n, method="calibration; no finite value: classes apart")
    slope = intercept = nothing
    if 0 < y[known].sum() < known.sum():
        large = fit_logistic(y, one_column, offset=odds, weights=weights)
        intercept = metric(
            float(large.coef[0]), large.parts[:, 0], "calibration intercept, slope 1"
        )
    if overlap(y[known], odds[known]):
        design = np.column_stack([one_column[known], x])
        free = fit_logistic(y[known], design, weights=weights[known])
        parts = np.zeros(n)
        parts[known] = free.parts[:, 1] / sd
        slope = metric(float(free.coef[1]) / sd, parts, "calibration slope")
    observed = _risk(times, events, horizon, level)
    return HorizonCalibration(
        float(horizon), points, observed, float(risks.mean()), slope, intercept
    )


def brier_at(
    time: ArrayLike,
    event: ArrayLike,
    prob: ArrayLike,
    horizon: float,
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> Metric:
    """Return the Brier score at a horizon (Graf 1999): squared errors weighted by censoring.

    Args:
        time: Time to the event or the end of follow-up, ``(N,)``.
        event: 1 where it happened, 0 where censored, ``(N,)``.
        prob: Predicted probability of the event by ``horizon``, ``(N,)``.
        horizon: In the unit of ``time``, within the follow-up.
        level: Nominal coverage of the normal interval, which takes the weights as known.
        groups: Patient of each row, ``(N,)``.
    """
    times, _, risks, y, weights = _at_horizon(time, event, prob, horizon)
    owner = None if groups is None else codes(groups, len(times), "groups")
    value, low, high = mean(weights * (y - risks) ** 2, level=level, owner=owner)
    how = f"Brier at {horizon:g}, weighted by censoring, normal interval"
    if low is None or high is None:
        return Metric(value, n=len(times), method=f"{how}; none from one row or patient")
    return Metric(value, max(0.0, low), high, level, len(times), method=how)


def _at_horizon(
    time: ArrayLike, event: ArrayLike, prob: ArrayLike, horizon: float
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return times, events, risks, whether it happened by the horizon, and weights, all ``(N,)``.

    Someone censored exactly at the horizon is known to be free of the event by then.
    """
    times, events, (risks,) = survival_times(time, event, prob)
    probabilities(risks, "a risk by a horizon")
    y = events * (times <= horizon)
    if y.sum() == 0 or not (times >= horizon).any():
        raise ValueError(
            f"horizon must lie after the first event ({times[events == 1].min():g}) and within "
            f"the follow-up (up to {times.max():g}); got {horizon}. Choose another horizon."
        )
    known = (y == 1) | (times >= horizon)
    weights = np.zeros(len(times))
    followed = censoring(times, events).at(np.minimum(times, horizon))
    weights[known] = 1 / followed[known]
    return times, events, risks, y, weights


def _risk(times: Floats, events: Floats, horizon: float, level: float) -> Metric:
    """Return 1 - Kaplan-Meier at the horizon."""
    free = curve_of(times, events, level=level).at(horizon)
    low = None if free.high is None else 1 - free.high
    high = None if free.low is None else 1 - free.low
    return Metric(1 - free.value, low, high, free.level, free.n, method=f"1 - {free.method}")
