"""Made-up coronal CT slices of a chest with at most one nodule, whose truth is known.

64 x 64 pixels of 4 mm: a body, two lungs, vessels, and in 85 % a nodule of known side, zone, size
and density. As radiologists look at it: the patient's left is on the right of the picture. Shapes
are guesses that a net can learn from in a minute; nothing on these speaks of real pictures.

The bytes are the same on any CPU (see :mod:`medkit.synth.exact`), and each study is a function of
seed, hospital and number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medkit import keyed
from medkit.synth.exact import Floats

__all__ = ["DENSITIES", "SIDES", "SITES", "SIZES_MM", "ZONES", "Finding", "draw_studies"]

SIDE, PIXEL_MM = 64, 4.0
SIDES, ZONES, DENSITIES = ("left", "right"), ("upper", "middle", "lower"), ("solid", "ground glass")
SIZES_MM: Mapping[str, tuple[float, float]] = {
    "small": (13.0, 17.5), "medium": (21.0, 27.0), "large": (32.0, 41.0),
}  # fmt: skip
NEGATIVE = 0.15
SITES = ("A", "B", "C")
_HU = {"solid": 40.0, "ground glass": -480.0}
_VESSELS, _WORDS = 6, 64
_CHUNK = 32  # studies at once; no byte depends on it
_SLICE_MM = 8.0  # from one slice of a study to the next


@dataclass(frozen=True)
class Finding:
    """What is in a study.

    Attributes:
        nodule: Whether there is one; the others are None without.
        side: Of the patient.
        zone: Third of the lung.
        size: Class of the diameter.
        density: Solid or ground glass.
        size_mm: Diameter.
        row: Of its centre in the picture [pixels].
        column: Of its centre.
    """

    nodule: bool
    side: str | None = None
    zone: str | None = None
    size: str | None = None
    density: str | None = None
    size_mm: float | None = None
    row: float | None = None
    column: float | None = None


def draw_studies(
    seed: int, site: str, numbers: Sequence[int], *, slices: int = 1
) -> tuple[NDArray[np.int16], list[Finding]]:
    """Draw studies.

    Args:
        seed: Another seed, other patients.
        site: "A"; "B": its scanner has less contrast, another offset, more noise and blur; or "C":
            a rescale slope of 2 that nobody applied, so each value is half of what it should be.
        numbers: Of the studies.
        slices: Of a study, 8 mm apart, the nodule's centre in the middle one.

    Returns:
        int16 ``(N, slices, 64, 64)`` [HU], and what is in each.
    """
    if site not in SITES or slices < 1:
        raise ValueError(
            f"slices are drawn for one of the sites {SITES}, 1 or more a study; got {site!r} and "
            f"{slices}. Leave slices out for one."
        )
    out = np.empty((len(numbers), slices, SIDE, SIDE), np.int16)
    found: list[Finding] = []
    for first in range(0, len(numbers), _CHUNK):
        some = numbers[first : first + _CHUNK]
        words = np.stack([_raw(seed, site, n, _WORDS + slices * SIDE * SIDE) for n in some])
        u = (words[:, :_WORDS] >> np.uint64(11)).astype(np.float64) * 2.0**-53
        own = [_finding(row) for row in u.tolist()]
        scenes = np.stack(
            [_scene(u, own, _SLICE_MM * (k - (slices - 1) / 2)) for k in range(slices)], axis=1
        )
        grain = words[:, _WORDS:].reshape(scenes.shape)
        out[first : first + len(some)] = _taken(scenes, grain, site, u)
        found += own
    return out, found


def _raw(seed: int, site: str, number: int, count: int) -> NDArray[np.uint64]:
    return keyed.generator(seed, "synth", "reports", site, number).bit_generator.random_raw(count)


def _finding(u: Sequence[float]) -> Finding:
    """Draw what is in a study from its first uniforms."""
    if u[0] < NEGATIVE:
        return Finding(nodule=False)
    side, zone = SIDES[int(2 * u[1])], ZONES[int(3 * u[2])]
    size, density = list(SIZES_MM)[int(3 * u[3])], DENSITIES[int(2 * u[4])]
    low, high = SIZES_MM[size]
    # the patient's left is on the right
    column = 32 + (1 if side == "left" else -1) * (12.5 + 3.0 * (2 * u[6] - 1))
    row = {"upper": 18.0, "middle": 32.0, "lower": 46.0}[zone] + 3.0 * (2 * u[7] - 1)
    size_mm = round(low + (high - low) * u[5], 1)
    return Finding(True, side, zone, size, density, size_mm, row, column)


def _scene(u: Floats, found: Sequence[Finding], depth_mm: float) -> Floats:
    """Return a slice of each study before the scanner, ``(n, 64, 64)`` [HU]."""
    y, x = np.arange(SIDE, dtype=np.float64)[:, None], np.arange(SIDE, dtype=np.float64)[None]
    between = lambda k, low, high: (low + (high - low) * u[:, k])[:, None, None]  # noqa: E731
    scene = np.full((len(u), SIDE, SIDE), -1000.0)
    wide, tall = between(8, 27.0, 30.0), between(9, 29.0, 31.5)
    _put(scene, _depth(y, x, 32.0, 32.0, tall, wide), between(10, 20.0, 60.0))
    lung = between(11, -880.0, -820.0)
    for k, sign in enumerate((-1, 1)):
        centre = 32 + sign * between(12 + k, 12.0, 13.5)
        _put(scene, _depth(y, x, 32.0, centre, between(14 + k, 22.0, 24.5), 9.5), lung)
    for k in range(_VESSELS):
        at = 16 + 4 * k
        side = np.where(u[:, at] < 0.5, -1.0, 1.0)[:, None, None]
        column = 32 + side * between(at + 1, 5.0, 19.0)
        radius = between(at + 3, 0.6, 1.3)
        _put(scene, _depth(y, x, between(at + 2, 14.0, 50.0), column, radius, radius), 0.0)
    for n, one in enumerate(found):
        if one.size_mm is None or one.row is None or one.column is None or one.density is None:
            continue
        square = (one.size_mm / 2) ** 2 - depth_mm * depth_mm
        if square > 0:
            radius_px = np.sqrt(square) / PIXEL_MM
            depth = _depth(y, x, one.row, one.column, radius_px, radius_px)
            _put(scene[n : n + 1], depth[None], _HU[one.density])
    return scene


def _depth(
    y: Floats, x: Floats, row: Floats | float, column: Floats | float,
    tall: Floats | float, wide: Floats | float,
) -> Floats:  # fmt: skip
    """Return the depth in an ellipse [pixels], positive inside."""
    a, b = (y - row) / tall, (x - column) / wide
    return (1 - np.sqrt(a * a + b * b)) * np.minimum(tall, wide)


def _put(scene: Floats, depth: Floats, hu: Floats | float) -> None:
    """Fill a shape with an edge that is soft over a pixel."""
    scene += np.clip(depth + 0.5, 0, 1) * (hu - scene)


def _taken(scenes: Floats, grain: NDArray[np.uint64], site: str, u: Floats) -> NDArray[np.int16]:
    """Return scenes as the site's scanner shows them."""
    noise = np.full(grain.shape, -131070.0)
    for bits in (0, 16, 32, 48):  # four uniforms of 16 bits: whole numbers, so exact
        noise += ((grain >> np.uint64(bits)) & np.uint64(0xFFFF)).astype(np.float64)
    noise /= 37837.2  # of sd 1
    if site == "A":
        shown = scenes + 35.0 * noise
    elif site == "B":
        shown = _smoothed((scenes + 1000.0) * 0.7 - 1000.0 + 120.0) + 80.0 * noise
    else:
        shown = _smoothed(scenes * 0.5) + 50.0 * noise
    return np.rint(np.clip(shown, -1024, 3071)).astype(np.int16)


def _smoothed(scenes: Floats) -> Floats:
    """Blur by 1 2 1 along both axes; edges stay."""
    for axis in (2, 3):
        inner = np.moveaxis(scenes, axis, -1)
        out = inner.copy()
        out[..., 1:-1] = (inner[..., :-2] + 2 * inner[..., 1:-1] + inner[..., 2:]) / 4
        scenes = np.moveaxis(out, -1, axis)
    return scenes
