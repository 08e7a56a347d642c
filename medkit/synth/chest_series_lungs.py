"""The proportions of a made-up chest, and how deep in its lungs a place lies.

Operations are those of :mod:`medkit.synth.chest_series_body`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medkit.synth.chest_series_draws import Point, Stream, unit
from medkit.synth.exact import Floats


@dataclass(frozen=True)
class Chest:
    """The proportions of one chest [mm], and of its lungs [HU].

    Attributes:
        half_width: From the middle to the skin at the side.
        half_depth: From the middle to the skin at front and back.
        fat: Thickness below the skin.
        apex: Where the lungs end above.
        base: Lowest edge of the diaphragm.
        heart: Size, as a share of the usual.
        ribs: Where the first one lies, as a share of the step between them.
        lung_hu: Of the lungs' middle.
    """

    half_width: float
    half_depth: float
    fat: float
    apex: float
    base: float
    heart: float
    ribs: float
    lung_hu: float

    @classmethod
    def drawn(cls, draws: Stream, lung_hu: float) -> Chest:
        """Draw one."""
        return cls(
            half_width=draws.between(120, 132),
            half_depth=draws.between(86, 94),
            fat=draws.between(7, 14),
            apex=draws.between(80, 95),
            base=draws.between(-100, -80),
            heart=draws.between(0.9, 1.08),
            ribs=draws.between(0, 1),
            lung_hu=lung_hu,
        )

    def cavity(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Return the depth inside the ribs, without a floor."""
        above = np.maximum(z - (self.apex - 70), 0) / 70
        narrow = np.sqrt(np.maximum(1 - above * above, 0.01))
        side, depth = (self.half_width - 26) * narrow, (self.half_depth - 21) * narrow
        bent = y + 4 - 16 * (1 - narrow) - 0.0011 * (x * x)  # the sides lie further back
        return rounded(x, bent, side, depth)

    def diaphragm(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Return the height above the diaphragm, a dome a side, the right one higher."""
        right = x < 0
        across, along = (x - np.where(right, -60.0, 60.0)) / 75, (y + 6) / 80
        dome = 45 * (1 - across * across - along * along)
        return (z - (self.base + np.where(right, 8.0, 0.0) + dome)) * 0.8

    def lung(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Return the depth inside the lungs, exact near their surface only."""
        inside = np.minimum(self.cavity(x, y, z), self.diaphragm(x, y, z))
        return without_middle(inside, self.heart_depth(x, y, z), x, y)

    def heart_depth(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Return the depth inside the heart, which leans to the left."""
        lean = x - 18 + 0.25 * (z + 38)
        p, q, r = lean / 50, (y + 22) / 40, (z + 38) / 46
        return (self.heart - np.sqrt((p * p + q * q) + r * r)) * 42

    def depth_at(self, place: Point) -> float:
        """Return the depth of one place in the lungs."""
        x, y, z = (np.full((1, 1), one) for one in place)
        return float(self.lung(x, y, z)[0, 0])

    def outward(self, place: Point) -> Point:
        """Return the direction in which the lungs' surface is nearest."""
        x, y, z = (np.full((1, 6), one) for one in place)
        step = np.eye(3)
        x[0, :3], y[0, :3], z[0, :3] = x[0, :3] - step[0], y[0, :3] - step[1], z[0, :3] - step[2]
        x[0, 3:], y[0, 3:], z[0, 3:] = x[0, 3:] + step[0], y[0, 3:] + step[1], z[0, 3:] + step[2]
        at = self.lung(x, y, z)[0].tolist()
        return unit(at[0] - at[3], at[1] - at[4], at[2] - at[5])


def without_middle(inside: Floats, heart: Floats, x: Floats, y: Floats) -> Floats:
    """Take heart, spine and what lies between the lungs out of a depth."""
    middle = np.maximum(ellipse(x - 1, y - 2, 25.0, 40.0), ellipse(x, y - 54, 25.0, 28.0))
    middle = np.maximum(middle, ellipse(x - 2, y + 40, 9.0, 50.0))
    return np.minimum(inside, -np.maximum(middle, heart))


def rounded(x: Floats, y: Floats, side: Floats | float, depth: Floats | float) -> Floats:
    """Return the depth in an outline between ellipse and rectangle, to first order."""
    p, q = np.abs(x) / side, np.abs(y) / depth
    p2, q2 = p * p, q * q
    dx, dy = (p + 1.5 * p2) / side, (q + 1.5 * q2) / depth
    return (1 - 0.5 * ((p2 + q2) + (p2 * p + q2 * q))) / (np.sqrt(dx * dx + dy * dy) + 1e-3)


def ellipse(x: Floats, y: Floats, side: float, depth: float) -> Floats:
    """Return the depth in an ellipse, to first order."""
    p, q = x / side, y / depth
    far = np.sqrt(p * p + q * q)
    slope = np.sqrt((p / side) * (p / side) + (q / depth) * (q / depth))
    return (1 - far) * (far + 1e-2) / (slope + 1e-4)  # large, not 0, in the middle
