"""Shapes in patches, as signed distances [mm]: tubes, ellipsoids, half spaces.

Positive inside, with an edge that is soft over 1 mm. Only ``+``, ``-``, ``*``, ``/`` and ``sqrt``
on whole arrays, which IEEE 754 fixes to the bit, and sums written out; see
:mod:`medkit.synth.exact`. Vectors are three arrays ``(n, 1, 1, 1)``, one entry a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medkit.synth.chest_ct_scanner import BELL_SD, SIZE, bell
from medkit.synth.exact import Floats

FAR = 100.0  # [mm], beyond any patch
UNIFORMS, BELLS = 64, 64  # draws of a patch for its shapes
_OWN = 28  # draws that all patches use before the one of a kind begins
_AXIS = np.arange(SIZE) - (SIZE - 1) / 2
_X, _Y, _Z = (_AXIS.reshape(shape) for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))

Vector = tuple[Floats, Floats, Floats]
Rows = NDArray[np.bool_]


class Draws:
    """The draws of some patches, handed out column by column."""

    def __init__(self, uniform: Floats, normal: Floats, at: int = 0) -> None:
        self.uniform, self.normal = uniform, normal
        self._u = self._g = at

    @classmethod
    def of(cls, words: NDArray[np.uint64]) -> Draws:
        """Read raw words, ``(n, UNIFORMS + BELLS)``."""
        uniform = (words[:, :UNIFORMS] >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return cls(uniform, bell(words[:, UNIFORMS : UNIFORMS + BELLS]) / BELL_SD)

    def at(self, rows: Rows) -> Draws:
        """Return those of some patches from where each kind begins."""
        return Draws(self.uniform[rows], self.normal[rows], _OWN)

    def between(self, low: float, high: float) -> Floats:
        """Return numbers from ``low`` to ``high``, ``(n, 1, 1, 1)``."""
        self._u += 1
        return (low + (high - low) * self.uniform[:, self._u - 1])[:, None, None, None]

    def direction(self) -> Vector:
        """Return unit vectors, even over the sphere up to what tells the bell from a normal."""
        self._g += 3
        parts = self.normal[:, self._g - 3 : self._g]
        return unit(*(parts[:, k][:, None, None, None] for k in range(3)))

    def across(self, along: Vector) -> Vector:
        """Return unit vectors at right angles to others."""
        a = self.direction()
        share = dot(a, along)
        x, y, z = (one - share * other for one, other in zip(a, along, strict=True))
        return unit(x, y, z)


def put(scene: Floats, rows: Rows, depth: Floats, hu: Floats | float, share: float = 1.0) -> None:
    """Fill a shape, where its signed distance is positive, with a value."""
    there = scene[rows]
    covered = np.clip(depth + 0.5, 0, 1)
    if share != 1:
        covered *= share
    there += covered * (hu - there)
    scene[rows] = there


def tube(
    start: Vector, along: Vector, radius: Floats, low: float, high: float | Floats = FAR
) -> Floats:
    """Return the depth in a tube with round ends, from ``low`` to ``high`` along its axis [mm]."""
    x, y, z = start
    t = along_of(along) - dot(start, along)
    square = ((_X - x) ** 2 + (_Y - y) ** 2) + (_Z - z) ** 2
    near = np.clip(t, low, high)
    square -= near * (2 * t - near)
    return radius - np.sqrt(np.maximum(square, 0, out=square))


def ellipsoid(
    centre: Vector, axes: Sequence[Vector], radii: Sequence[Floats], lobes: Sequence[Floats] = ()
) -> Floats:
    """Return the depth in an ellipsoid, lobed by about ``lobes``, right across its thin axis."""
    parts = [
        (along_of(axis) - dot(centre, axis)) / radius
        for axis, radius in zip(axes, radii, strict=True)
    ]
    p, q, r = parts
    square = (p * p + q * q) + r * r
    far = np.sqrt(square)
    if lobes:
        a, b, c = lobes
        far *= 1 + (a * (p * q) + b * (q * r) + c * (p * r)) / (square + 0.1)
    return (1 - far) * np.minimum(np.minimum(radii[0], radii[1]), radii[2])


def along_of(direction: Vector) -> Floats:
    """Return each voxel's place along a direction [mm]."""
    x, y, z = direction
    return (_X * x + _Y * y) + _Z * z


def put_some(
    scene: Floats, rows: Rows, of: Rows, depth: Floats, hu: Floats | float, share: float = 1.0
) -> None:
    """Fill a shape in some of the rows of a kind."""
    those = np.zeros_like(rows)
    those[rows] = of
    put(scene, those, depth[of], hu if isinstance(hu, float) else hu[of], share)


def dot(a: Vector, b: Vector) -> Floats:
    """Return the scalar product."""
    return (a[0] * b[0] + a[1] * b[1]) + a[2] * b[2]


def cross(a: Vector, b: Vector) -> Vector:
    """Return the vector product."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def unit(x: Floats, y: Floats, z: Floats) -> Vector:
    """Return a vector of length 1."""
    length = np.sqrt((x * x + y * y) + z * z) + 1e-9
    return x / length, y / length, z / length


def times(a: Vector, by: Floats | float) -> Vector:
    """Return a vector, longer by a factor."""
    return a[0] * by, a[1] * by, a[2] * by


def plus(a: Vector, b: Vector) -> Vector:
    """Return the sum of two vectors."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def at_rows(a: Vector, rows: Rows) -> Vector:
    """Return the vectors of some patches."""
    return a[0][rows], a[1][rows], a[2][rows]
