"""The hazard that Cox's model leaves open: with it relative risks become probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medkit.data.follow_up import require_follow_up

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BaselineHazard:
    """Breslow's estimate (1974) of the cumulative hazard of a patient with ``eta`` 0.

    Attributes:
        time: Times of events, rising, ``(K,)``.
        cumulative: Cumulative hazard just after each, ``(K,)``.
        last: Longest follow-up; nothing is known later.
    """

    time: Floats
    cumulative: Floats
    last: float

    def state(self) -> dict[str, Any]:
        """Return tensors and a number, for a checkpoint that loads with weights_only=True."""
        steps = {
            "time": torch.from_numpy(self.time),
            "cumulative": torch.from_numpy(self.cumulative),
        }
        return {**steps, "last": self.last}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> BaselineHazard:
        """Rebuild from :meth:`state`."""
        return cls(state["time"].numpy(), state["cumulative"].numpy(), float(state["last"]))

    def survival(self, eta: ArrayLike, horizon: float) -> Floats:
        """Return P(no event until ``horizon``) at log relative hazards ``eta``, ``(N,)``.

        Raises:
            ValueError: For a horizon outside the follow-up it was fitted on.
        """
        if not 0 <= horizon <= self.last:
            raise ValueError(
                f"a horizon must lie within the follow-up, 0 to {self.last:g}; got {horizon:g}. "
                "Nobody was seen for longer: choose an earlier one (in the unit of the times)."
            )
        known = int(np.searchsorted(self.time, horizon, side="right"))
        hazard = self.cumulative[known - 1] if known else 0.0
        return np.exp(-hazard * np.exp(np.asarray(eta, np.float64)))


def breslow(time: ArrayLike, event: ArrayLike, eta: ArrayLike) -> BaselineHazard:
    """Return the baseline hazard of training patients, given their log relative hazards."""
    times, events = require_follow_up(time, event, part="training")
    score = np.asarray(eta, np.float64)
    top = float(score.max())
    weight = np.exp(score - top)
    at, owner = np.unique(times, return_inverse=True)
    deaths = np.bincount(owner, weights=events)
    at_risk = np.cumsum(np.bincount(owner, weights=weight)[::-1])[::-1]
    steps = np.exp(-top) * deaths / at_risk
    some = deaths > 0
    return BaselineHazard(at[some], np.cumsum(steps[some]), float(at[-1]))
