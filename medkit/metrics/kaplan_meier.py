"""The Kaplan-Meier curve, and the weights that stand in for who was censored."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike

from medkit.metrics.checks import Floats, survival_times
from medkit.metrics.intervals import two_sided, wilson
from medkit.record.results import Metric


@dataclass(frozen=True)
class Curve:
    """A Kaplan-Meier curve: one entry per distinct time, in rising order, each ``(K,)``.

    Attributes:
        time: Distinct times of follow-up, in the unit given.
        at_risk: Patients still followed just before.
        events: Events at that time.
        survival: Share free of the event just after it.
        low: Lower limits, from Greenwood's variance on the log(-log) scale; NaN where there is
            none (before the first event and once nobody is left).
        high: Upper limits.
        sd: Greenwood's standard error of ``survival``.
        level: Nominal coverage.
    """

    time: Floats
    at_risk: Floats
    events: Floats
    survival: Floats
    low: Floats
    high: Floats
    sd: Floats
    level: float

    def at(self, time: float) -> Metric:
        """Return the share free of the event after ``time``.

        NaN beyond the last follow-up, unless nobody was left by then. At shares of 0 and 1, where
        Greenwood has no variance, the limits are Wilson's for the patients then at risk.
        """
        if not time >= 0:
            raise ValueError(
                f"a time must be 0 or later, got {time}. Times count from the start of follow-up."
            )
        n = int(self.at_risk[0])
        if time > self.time[-1] and self.survival[-1] > 0:
            return Metric(float("nan"), n=n, method="Kaplan-Meier; no value: beyond last follow-up")
        place = int(np.searchsorted(self.time, time, side="right")) - 1
        value = float(self.survival[place]) if place >= 0 else 1.0
        if 0 < value < 1:
            low, high = float(self.low[place]), float(self.high[place])
            return Metric(value, low, high, self.level, n, method="Kaplan-Meier, log(-log)")
        later = int(np.searchsorted(self.time, time, side="left"))
        left = float(self.at_risk[min(later, len(self.time) - 1)])
        low, high = wilson(value * left, left, level=self.level)
        return Metric(value, low, high, self.level, n, method=f"Kaplan-Meier, Wilson of {left:g}")


def kaplan_meier(time: ArrayLike, event: ArrayLike, *, level: float = 0.95) -> Curve:
    """Return the curve (Kaplan and Meier 1958) with Greenwood's interval (1926).

    At equal times events come before censorings.

    Args:
        time: Time to the event or to the end of follow-up, ``(N,)``, not negative.
        event: 1 where the event happened then, 0 where the patient was censored, ``(N,)``.
        level: Nominal coverage.
    """
    times, events, _ = survival_times(time, event)
    return curve_of(times, events, level=level)


def curve_of(times: Floats, events: Floats, *, level: float = 0.95) -> Curve:
    """Return the curve of checked vectors; there may be no event among them."""
    z = two_sided(level)
    distinct, place = np.unique(times, return_inverse=True)
    gone = np.bincount(place)
    at_risk = np.cumsum(gone[::-1])[::-1].astype(np.float64)
    happened = np.bincount(place, events).astype(np.float64)
    survival = np.cumprod(1 - happened / at_risk, dtype=np.float64)
    left = at_risk - happened
    terms = np.divide(happened, at_risk * left, out=np.zeros_like(left), where=left > 0)
    root = np.sqrt(np.cumsum(terms))
    low, high = np.full(len(distinct), np.nan), np.full(len(distinct), np.nan)
    for i in np.flatnonzero((survival > 0) & (survival < 1)):
        # d log(-log S) = dS / (S log S), and Greenwood's sd of S is S x root
        half = z * root[i] / abs(log(survival[i]))
        low[i], high[i] = survival[i] ** exp(half), survival[i] ** exp(-half)
    return Curve(distinct, at_risk, happened, survival, low, high, survival * root, level)


@dataclass(frozen=True)
class Censoring:
    """How likely a patient was still followed, G(t-) = P(censored at t or later).

    At equal times events come before censorings, so a patient with an event at t is not among
    those who could be censored at t.

    Attributes:
        time: Distinct times, ``(K,)``.
        at_risk: Who could be censored then, ``(K,)``.
        censored: Who was, ``(K,)``.
        before: G just before each time, ``(K,)``.
    """

    time: Floats
    at_risk: Floats
    censored: Floats
    before: Floats

    def at(self, times: Floats) -> Floats:
        """Return G(t-) at each of ``times``."""
        after = self.before * self._kept()
        place = np.searchsorted(self.time, times, side="left")
        return np.asarray(np.append(1.0, after)[place])

    def parts(self, times: Floats, events: Floats, slopes: Floats) -> Floats:
        """Return how a sum changes with each row's weight through the estimate of G, ``(N,)``.

        Args:
            times: The rows G was estimated from, ``(N,)``.
            events: Their events, ``(N,)``.
            slopes: Derivative of the sum with respect to log G(t-) at each row's time, ``(N,)``.
        """
        place = np.searchsorted(self.time, times)
        own = np.bincount(place, slopes, minlength=len(self.time))
        later = own.sum() - np.cumsum(own)  # of rows whose time is after each of mine
        risk, left = self.at_risk, self.at_risk - self.censored
        use = (risk > 0) & (left > 0)
        safe_risk, safe_left = np.where(use, risk, 1.0), np.where(use, left, 1.0)
        through_risk = np.where(use, later * self.censored / (safe_risk * safe_left), 0.0)
        through_own = np.where(use, -later / safe_risk, 0.0)
        before = np.cumsum(through_risk) - through_risk
        return np.asarray(before[place] + np.where(events == 0, through_own[place], 0.0))

    def _kept(self) -> Floats:
        return 1 - np.divide(
            self.censored, self.at_risk, out=np.zeros_like(self.at_risk), where=self.at_risk > 0
        )


def censoring(times: Floats, events: Floats) -> Censoring:
    """Return the Kaplan-Meier estimate of the censoring, for inverse weights."""
    distinct, place = np.unique(times, return_inverse=True)
    followed = np.cumsum(np.bincount(place)[::-1])[::-1].astype(np.float64)
    at_risk = followed - np.bincount(place, events)
    censored = np.bincount(place, 1 - events).astype(np.float64)
    kept = 1 - np.divide(censored, at_risk, out=np.zeros_like(at_risk), where=at_risk > 0)
    before = np.append(1.0, np.cumprod(kept)[:-1])
    return Censoring(distinct, at_risk, censored, before)
