"""How soon trainings reach a target, with those that never do."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medkit.metrics.checks import Floats
from medkit.metrics.kaplan_meier import Curve, curve_of
from medkit.metrics.spread import mean_over_seeds, sd_over_seeds
from medkit.record.results import Metric

ENOUGH_EVENTS = 200


@dataclass(frozen=True)
class StepsToTarget:
    """When each run first reached a target, and how much that differs.

    Attributes:
        target: The metric's value asked for.
        budget: Steps at the last evaluation: a run that never got there is censored then.
        steps: Of each run, interpolated; ``budget`` where censored, ``(runs,)``.
        censored: Runs that never got there.
        at_start: Runs that were there at the first evaluation, as warm starts are: for them the
            first evaluation is all that is known.
        restricted_mean: Mean of ``steps`` with its t interval.
        quartiles: Kaplan-Meier's lower quartile, median and upper quartile; NaN where fewer runs
            got there.
        band: 1.96 sd / mean of ``steps`` [%], chi-square interval; NaN where a run is censored.
        reason: Why there are no numbers (all are NaN then); empty where there are.
    """

    target: float
    budget: float
    steps: Floats
    censored: int
    at_start: int
    restricted_mean: Metric
    quartiles: tuple[float, float, float]
    band: Metric
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"steps to {self.target:g}: {self.reason}"
        low, median, high = (f"{q:.4g}" if q == q else "never" for q in self.quartiles)
        text = f"median {median} (quartiles {low} to {high}), mean {self.restricted_mean}"
        reached = f"{len(self.steps) - self.censored} of {len(self.steps)} runs"
        start = f", {self.at_start} at the first evaluation" if self.at_start else ""
        return f"steps to {self.target:g}: {reached} within {self.budget:g}{start}; {text}"


def steps_to_target(
    steps: ArrayLike, curves: ArrayLike, *, target: float, events: int, level: float = 0.95
) -> StepsToTarget:
    """Return when runs first reach ``target``, from curves of a metric that rises, such as AUROC.

    Not of the loss, which other draws of classes shift. On fewer than 200 events it measures the
    noise of the validation rows (coefficients of variation of 78 to 363 % at 31 events): then
    there are no numbers but a reason.

    Args:
        steps: Where the evaluations were, rising, ``(T,)``.
        curves: ``(runs, T)``; not finite is not there.
        target: Such as 0.5 + 0.9 x (AUROC of a logistic regression on the same rows - 0.5), which
            belongs to no recipe.
        events: Rows of the rarer class the metric was taken on.
        level: Nominal coverage.

    Raises:
        ValueError: Where shapes do not fit or the steps do not rise.
    """
    at, table = np.asarray(steps, np.float64), np.asarray(curves, np.float64)
    if at.ndim != 1 or table.ndim != 2 or table.shape[1:] != at.shape or table.size == 0:
        raise ValueError(
            "curves must be (runs, evaluations) with one step per evaluation; got shapes "
            f"{table.shape} and {at.shape}. Evaluate all runs at the same steps."
        )
    if at[0] < 0 or (np.diff(at) <= 0).any():
        raise ValueError(
            f"steps must rise from 0 or later, got {at.tolist()[:5]}... Sort the evaluations."
        )
    there = np.isfinite(table) & (table >= target)
    first, reached = there.argmax(axis=1), there.any(axis=1)
    when = np.asarray(np.where(reached, _crossing(at, table, first, target), at[-1]))
    censored, at_start = int((~reached).sum()), int(there[:, 0].sum())
    empty = Metric(nan, n=len(table))
    start = (target, float(at[-1]), when, censored, at_start)
    if events < ENOUGH_EVENTS:
        why = f"no value: {events} events, and fewer than {ENOUGH_EVENTS} measure the rows' noise"
        return StepsToTarget(*start, empty, (nan, nan, nan), empty, why)
    whole = curve_of(when, np.asarray(reached, np.float64), level=level)
    low, median, high = (_quantile(whole, share) for share in (0.25, 0.5, 0.75))
    mean, band = mean_over_seeds(when, level=level), _band(when, censored, level)
    return StepsToTarget(*start, mean, (low, median, high), band)


def _crossing(at: Floats, table: Floats, first: NDArray[np.int64], target: float) -> Floats:
    """Interpolate between the evaluation that got there and the one before."""
    runs, before = np.arange(len(table)), np.maximum(first - 1, 0)
    below, above = table[runs, before], table[runs, first]
    known = np.isfinite(below) & np.isfinite(above) & (above > below)
    share = np.divide(target - below, above - below, out=np.ones_like(above), where=known)
    return np.asarray(at[before] + share * (at[first] - at[before]))


def _quantile(curve: Curve, share: float) -> float:
    # sums of shares such as 0.1 fall short of them by rounding
    past = np.flatnonzero(curve.survival <= 1 - share + 1e-12)
    return float(curve.time[past[0]]) if len(past) else nan


def _band(when: Floats, censored: int, level: float) -> Metric:
    if censored:
        how = f"no value: {censored} of {len(when)} runs never got there; see the quartiles"
        return Metric(nan, n=len(when), unit="%", method=how)
    sd, mean = sd_over_seeds(when, level=level), float(when.mean())
    if not mean > 0 or sd.low is None or sd.high is None:
        return Metric(nan, n=len(when), unit="%", method="no value: one run, or all at step 0")
    value, low, high = (196 * limit / mean for limit in (sd.value, sd.low, sd.high))
    how = "1.96 sd / mean, chi-square interval"
    return Metric(value, low, high, level, len(when), "%", how)
