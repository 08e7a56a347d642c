"""The strength of an augmentation: found in somebody's dataset, and set for one batch.

It comes to where a batch is fetched as part of the batch's place, so a worker that has lived for
ten epochs, a prefetched batch and one fetched again after the training all have the strength of
their epoch. After the batch it is put back: a validation set that shares the transform has the
strength it was made with, whoever fetched what before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medkit.data.generators import reachable


class Strength:
    """Sets what takes a strength among all that ``roots`` hold: datasets, transforms, collates.

    That is whatever has a method ``set_strength`` or a number (or property) ``strength``.
    """

    def __init__(self, roots: list[Any]) -> None:
        self._roots = roots
        self._takers: list[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_takers": None}  # others, in another process

    @property
    def takers(self) -> list[Any]:
        """What takes a strength."""
        if self._takers is None:
            self._takers = reachable(self._roots, takes_strength)
        return self._takers

    @contextmanager
    def at(self, value: float | None) -> Iterator[None]:
        """Run a block at a strength; None: as it is. What can only be set is not put back."""
        if value is None:
            yield
            return
        readable = [(one, one.strength) for one in self.takers if hasattr(one, "strength")]
        try:
            self.set(value)
            yield
        finally:
            for one, was in readable:
                set_strength(one, was)

    def set(self, value: float) -> None:
        """Set it from now on."""
        for one in self.takers:
            set_strength(one, value)


def takes_strength(item: object) -> bool:
    """Whether this is one of those whose strength can be set."""
    if isinstance(item, type):
        return False
    if callable(getattr(type(item), "set_strength", None)):
        return True
    own = getattr(item, "__dict__", {}).get("strength", getattr(type(item), "strength", None))
    return isinstance(own, int | float | property)


def set_strength(item: Any, value: float) -> None:
    """Set it."""
    if callable(getattr(type(item), "set_strength", None)):
        item.set_strength(value)
    else:
        item.strength = value
