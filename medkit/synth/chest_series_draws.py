"""Draws one after another, and points, as plain floats: the same on any CPU."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from medkit.synth.chest_ct_scanner import BELL_SD, raw

Point = tuple[float, float, float]
_BLOCK = 1024  # words drawn at once


class Stream:
    """Draws one after another, a function of ``(seed, place)``; plain floats."""

    def __init__(self, seed: int, *place: int | str) -> None:
        self.seed, self.place = seed, place
        self._words: list[int] = []
        self._used = 0

    def word(self) -> int:
        """Return 64 bits."""
        if self._used == len(self._words):
            block = self._used // _BLOCK
            self._words += raw(self.seed, *self.place, block, count=_BLOCK).tolist()
        self._used += 1
        return self._words[self._used - 1]

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return several words."""
        return np.array([self.word() for _ in range(count)], np.uint64)

    def between(self, low: float, high: float) -> float:
        """Return a number from ``low`` to ``high``."""
        return low + (high - low) * ((self.word() >> 11) * 2.0**-53)

    def direction(self) -> Point:
        """Return a unit vector, about even over the sphere."""
        parts = []
        for _ in range(3):
            word = self.word()
            parts.append((sum((word >> s) & 0xFFFF for s in (0, 16, 32, 48)) - 131070) / BELL_SD)
        return unit(parts[0], parts[1], parts[2])

    def across(self, along: Point) -> Point:
        """Return a unit vector at a right angle to another."""
        x, y, z = self.direction()
        share = (x * along[0] + y * along[1]) + z * along[2]
        return unit(x - share * along[0], y - share * along[1], z - share * along[2])

    def choice(self, shares: Mapping[str, float]) -> str:
        """Return a key, each as often as its share says."""
        u = self.between(0, 1)
        for name, share in shares.items():
            u -= share
            if u < 0:
                return name
        return name  # what rounding leaves of the last


def unit(x: float, y: float, z: float) -> Point:
    """Return a vector of length 1."""
    length = sqrt((x * x + y * y) + z * z) + 1e-9
    return x / length, y / length, z / length


def moved(start: Point, along: Point, by: float) -> Point:
    """Return the place ``by`` mm along a direction."""
    return start[0] + by * along[0], start[1] + by * along[1], start[2] + by * along[2]


def square(a: Point, b: Point) -> float:
    """Return the squared distance of two places."""
    x, y, z = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return (x * x + y * y) + z * z
