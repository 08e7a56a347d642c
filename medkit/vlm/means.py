"""Running means of an epoch that a resumed one goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["Means"]


class Means:
    """Means by name, of whatever came since they were last taken."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}  # sum, and how many

    def add(self, name: str, values: Tensor) -> None:
        """Add values of any shape."""
        found = self._sums.setdefault(name, [0.0, 0.0])
        found[0] += float(values.detach().double().sum())
        found[1] += values.numel()

    def take(self) -> dict[str, float]:
        """Return the means, and begin anew."""
        found = {name: total / count for name, (total, count) in self._sums.items() if count}
        self._sums = {}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {name: list(pair) for name, pair in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._sums = {name: list(pair) for name, pair in state.items()}
