"""When a loss or a gradient norm is too large to be chance: robust limits from the last values.

Losses and norms of a training spread like log-normals around a level that drifts, with outliers.
So the limit is set on their logarithms, from median and spread of a running window (median
absolute deviation: Hampel 1974; its upper side as well, since gradients are skewed to the right),
and values over it stay out of the window.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE, LEAST, EVERY = 128, 32, 16
_MAD_TO_SD, _Q90_TO_SD = 1.482602, 1 / 1.281552  # of a normal distribution
_NODES = 81


class Window:
    """The last values that were in order, and the limit they set for the next.

    Args:
        false_alarms: Chance that a value of an undisturbed training is over the limit, where the
            logarithms in the window are independent and normal. Kept for fewer values by a higher
            limit, see :func:`threshold`.
        factor: A value is never over the limit below ``factor`` times the median: heavy tails and
            nearly constant losses make smaller jumps.
    """

    def __init__(self, false_alarms: float, factor: float) -> None:
        self.false_alarms = false_alarms
        self.factor = factor
        self.limit = math.inf  # until LEAST values are there
        self._values: deque[float] = deque(maxlen=SIZE)
        self._since = 0
        self._most = 0  # samples of a value

    def limit_for(self, samples: int) -> float:
        """Return what the mean over so many samples must not exceed.

        In a smaller batch, the last of an epoch say, each sample counts for more.
        """
        return self.limit * self._most / samples if 0 < samples < self._most else self.limit

    def add(self, value: float, samples: int) -> None:
        """Take in a value that is in order; the limit is set anew at every 16th.

        One over less than half as many samples as others spreads more, and stays out.
        """
        self._most = max(self._most, samples)
        if 2 * samples < self._most:
            return
        self._values.append(value)
        self._since += 1
        if self._since >= EVERY and len(self._values) >= LEAST:
            self._since = 0
            self.limit = self._new_limit()

    @property
    def median(self) -> float:
        """Median of the window, NaN where it is empty."""
        return _quantile(np.sort(list(self._values)), 0.5) if self._values else math.nan

    def forget(self) -> None:
        """Begin anew: what is measured has changed (layers were unfrozen)."""
        self._values.clear()
        self.limit, self._since, self._most = math.inf, 0, 0

    def state(self) -> dict[str, Any]:
        """Return values, limit and count as plain types."""
        return {
            "values": list(self._values),
            "limit": self.limit,
            "since": self._since,
            "most": self._most,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._values = deque(state["values"], maxlen=SIZE)
        self.limit, self._since = float(state["limit"]), int(state["since"])
        self._most = int(state["most"])

    def _new_limit(self) -> float:
        values = np.sort(np.fromiter(self._values, np.float64, len(self._values)))
        z = threshold(len(values), self.false_alarms)
        if values[0] <= 0:  # a loss that can be negative has no logarithm: its own scale
            middle, spread = _center_and_spread(values)
            return middle + max(z * spread, (self.factor - 1) * abs(middle))
        middle, spread = _center_and_spread(np.log(values))
        over = middle + max(z * spread, math.log(self.factor))
        return math.exp(over) if over < 700 else math.inf


def _center_and_spread(ordered: NDArray[np.float64]) -> tuple[float, float]:
    middle = _quantile(ordered, 0.5)
    mad = _quantile(np.sort(np.abs(ordered - middle)), 0.5)
    upper = _quantile(ordered, 0.9) - middle
    return middle, max(_MAD_TO_SD * mad, _Q90_TO_SD * upper)


def _quantile(ordered: NDArray[np.float64], share: float) -> float:
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (at - low) * (ordered[high] - ordered[low]))


@lru_cache(maxsize=256)
def threshold(count: int, false_alarms: float) -> float:
    """Return the robust z-score that a new normal value exceeds with chance ``false_alarms``.

    The larger of two estimates of the spread is at least the MAD's, whose standard error is
    ``sqrt(1.361 / n)`` of it, that of the median ``sqrt(1.571 / n)`` standard deviations: the
    chance is averaged over both. For 128 values and 1e-6 it is 5.3 where known moments give 4.75.
    """
    candidates = [step / 50 for step in range(50, 5001)]
    at = bisect.bisect_left(candidates, -false_alarms, key=lambda z: -_exceeds(z, count))
    return candidates[min(at, len(candidates) - 1)]


def _exceeds(z: float, count: int) -> float:
    error = math.sqrt(1.361 / count)
    total = weights = 0.0
    for node in range(_NODES):
        away = -6 + 12 * node / (_NODES - 1)
        weight = math.exp(-away * away / 2)
        spread = math.exp(error * away)  # the estimate's: it is never negative
        tail = math.erfc(z * spread / math.sqrt(2 * (1 + 1.571 / count))) / 2
        total, weights = total + weight * tail, weights + weight
    return total / weights
