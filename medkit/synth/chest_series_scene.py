"""What is in a made-up chest: its sections at 1 mm, airways and vessels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from medkit.synth.chest_ct_scanner import AIR_HU, BELL_SD, FINE, SIZE, bell, raw
from medkit.synth.chest_series_body import BLOOD_HU, CARINA_MM, TRACHEA_MM, fill, section
from medkit.synth.chest_series_draws import Point, Stream, moved, unit
from medkit.synth.chest_series_lungs import Chest
from medkit.synth.exact import Floats

MARGIN_MM = 14  # of the scene beyond the first and last slice, so that each patch fits
_TEXTURE_MM = 4  # from one coarse point of the lungs' texture to the next
HILA: Sequence[Point] = ((-30.0, 2.0, 6.0), (30.0, 4.0, 12.0))


@dataclass
class Scene:
    """A chest at 1 mm.

    Attributes:
        hu: ``(nz, ny, nx)`` about the middle [HU].
        chest: Its proportions.
        twigs: Ends of thin vessels in the lungs.
        forks: Where vessels divide.
    """

    hu: Floats
    chest: Chest
    twigs: list[Point] = field(default_factory=list)
    forks: list[Point] = field(default_factory=list)

    def tube(
        self, start: Point, end: Point, radii: tuple[float, float], hu: float, *, dark: bool = False
    ) -> None:
        """Draw a tube with round ends that gets thinner; where it is brighter, or ``dark``."""
        most = max(radii) + 1
        low = [min(a, b) - most for a, b in zip(start, end, strict=True)]
        high = [max(a, b) + most for a, b in zip(start, end, strict=True)]
        view, x, y, z = self._box(low, high)
        if not view.size:
            return
        x, y, z = x - start[0], y - start[1], z - start[2]
        dx, dy, dz = (b - a for a, b in zip(start, end, strict=True))
        at = np.clip(((x * dx + y * dy) + z * dz) / (((dx * dx + dy * dy) + dz * dz) + 1e-9), 0, 1)
        x, y, z = x - at * dx, y - at * dy, z - at * dz
        depth = radii[0] + at * (radii[1] - radii[0]) - np.sqrt((x * x + y * y) + z * z)
        _put(view, depth, hu, dark=dark)

    def flat(self, centre: Point, thin: Point, radii: tuple[float, float], hu: float) -> None:
        """Draw an ellipsoid that is round but for its thin axis."""
        reach = max(radii) + 1
        view, x, y, z = self._box([c - reach for c in centre], [c + reach for c in centre])
        x, y, z = x - centre[0], y - centre[1], z - centre[2]
        along = (x * thin[0] + y * thin[1]) + z * thin[2]
        square = np.maximum(((x * x + y * y) + z * z) - along * along, 0)
        p = along / radii[0]
        depth = (1 - np.sqrt(p * p + square / (radii[1] * radii[1]))) * min(radii)
        _put(view, depth, hu)

    def _box(
        self, low: Sequence[float], high: Sequence[float]
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Return the part between two corners (x, y, z), and places along its axes."""
        parts, axes = [], []
        for length, a, b in zip(self.hu.shape[::-1], low, high, strict=True):
            half = (length - 1) / 2
            first, end = max(int(a + half), 0), min(int(b + half) + 2, length)
            parts.append(slice(first, max(end, first)))
            axes.append(np.arange(first, max(end, first)) - half)
        view = self.hu[parts[2], parts[1], parts[0]]
        return view, axes[0][None, None, :], axes[1][None, :, None], axes[2][:, None, None]

    def patch(self, place: Point) -> tuple[Floats, Point]:
        """Return a view of the 24 voxels a side about a place, and where their middle is."""
        parts, middle = [], []
        for length, at in zip(self.hu.shape[::-1], place, strict=True):
            half = (length - 1) / 2
            first = int(at + half + 1) - SIZE // 2
            parts.append(slice(first, first + SIZE))
            middle.append(first + (SIZE - 1) / 2 - half)
        x, y, z = middle
        return self.hu[parts[2], parts[1], parts[0]], (x, y, z)

    def holds_patch(self, place: Point) -> bool:
        """Return whether all of a patch about a place lies in the scene."""
        room = zip(self.hu.shape[::-1], place, strict=True)
        return all(abs(at) + SIZE / 2 + 1 < length / 2 for length, at in room)

    def density(self, centre: Point) -> float:
        """Return the mean within 1.2 mm of a place [HU]."""
        view, x, y, z = self._box([c - 2 for c in centre], [c + 2 for c in centre])
        x, y, z = x - centre[0], y - centre[1], z - centre[2]
        inside = view[(x * x + y * y) + z * z <= 1.44]
        return float(np.rint(inside * FINE).sum()) / (FINE * len(inside))  # whole numbers: exact


def _put(view: Floats, depth: Floats, hu: float, *, dark: bool = False) -> None:
    there = view.copy()
    fill(there, depth, hu)
    (np.minimum if dark else np.maximum)(view, there, out=view)


def make_scene(
    place: tuple[int, str, int], chest: Chest, *, texture_hu: float, size_mm: Point,
) -> Scene:  # fmt: skip
    """Draw the chest of an exam, all healthy.

    Args:
        place: Seed, hospital and number of the exam.
        chest: Its proportions.
        texture_hu: Standard deviation of the lungs' texture [HU].
        size_mm: Field of view and length of the scan, (x, y, z).
    """
    seed, site, number = place
    nx, ny = (int(one) + 8 for one in size_mm[:2])
    nz = int(size_mm[2]) + 2 * MARGIN_MM
    texture = _texture(place, (nz, ny, nx), texture_hu)
    hu = np.empty((nz, ny, nx))
    x, y = (np.arange(n, dtype=np.float64) - (n - 1) / 2 for n in (nx, ny))
    for k in range(nz):
        z = k - (nz - 1) / 2
        hu[k] = section(chest, x[None, :], y[:, None], z, texture(k))
    scene = Scene(hu, chest)
    _airways(scene)
    for side, hilum in enumerate(HILA):
        _tree(scene, Stream(seed, "series vessels", site, number, side), hilum)
    return scene


def _texture(
    place: tuple[int, str, int], shape: tuple[int, int, int], sd_hu: float
) -> Callable[[int], Floats]:
    """Return a function that gives the lungs' texture in a section [HU]."""
    seed, site, number = place
    nz, ny, nx = (n // _TEXTURE_MM + 2 for n in shape)
    words = raw(seed, "series texture", site, number, count=nz * ny * nx)
    coarse = np.rint(bell(words) * (sd_hu * 64 / BELL_SD)).reshape(nz, ny, nx)

    def at(k: int) -> Floats:
        part, step = k % _TEXTURE_MM, k // _TEXTURE_MM
        plane = (_TEXTURE_MM - part) * coarse[step] + part * coarse[step + 1]
        finer = _finer(_finer(plane).T).T[: shape[1], : shape[2]]
        return finer / (64.0 * _TEXTURE_MM**3)  # whole numbers: exact

    return at


def _finer(rows: Floats) -> Floats:
    """Put three rows between each two, linearly, and all four times as large."""
    found = np.empty(((len(rows) - 1) * _TEXTURE_MM, rows.shape[1]))
    for part in range(_TEXTURE_MM):
        found[part::_TEXTURE_MM] = (_TEXTURE_MM - part) * rows[:-1] + part * rows[1:]
    return found


def _airways(scene: Scene) -> None:
    """Draw windpipe and main bronchi, with their walls."""
    carina = (0.0, 0.0, CARINA_MM)
    pipes = [((0.0, 0.0, 400.0), carina, TRACHEA_MM)]
    pipes += [(carina, (h[0] * 1.1, h[1] + 4, h[2]), 6.0) for h in HILA]
    for wall, value in ((1.8, 30.0), (0.0, AIR_HU)):
        for start, end, radius in pipes:
            scene.tube(start, end, (radius + wall, radius + wall), value, dark=not wall)


def _tree(scene: Scene, draws: Stream, hilum: Point) -> None:
    """Grow the vessels of one lung, each half as often as the one before, and its first bronchi."""
    side = 1.0 if hilum[0] > 0 else -1.0
    buds = []
    for k in range(11):  # from the apex to the base, to the front and to the back
        up, back = 1.0 - 0.2 * k, (-0.8, 0.1, 0.8)[k % 3]
        along = unit(
            side * draws.between(0.35, 1.0), back + draws.between(-0.3, 0.3),
            up + draws.between(-0.2, 0.2),
        )  # fmt: skip
        buds.append((hilum, along, draws.between(2.4, 3.6), draws.between(14, 22), 0))
    while buds:
        start, along, radius, length, age = buds.pop()
        end = moved(start, along, length)
        if scene.chest.depth_at(end) < 2.5 and age > 0:
            end = moved(start, along, 0.45 * length)
            if scene.chest.depth_at(end) < 1.5:
                continue
        thinner = 0.92 * radius
        scene.tube(start, end, (radius, thinner), BLOOD_HU + 5)
        if age == 1:
            _bronchus(scene, draws, start, end, along, radius)
        if 0.6 < radius < 1.4:
            scene.twigs.append(end)
        if thinner < 0.55 or age > 10:
            continue
        if 1.0 <= thinner <= 2.1:
            scene.forks.append(end)
        aside = draws.across(along)
        for share, sign in ((draws.between(0.82, 0.96), 1.0), (draws.between(0.55, 0.85), -1.0)):
            lean = sign * draws.between(0.3, 0.8) * (1.5 - share)
            turned = unit(*moved(along, aside, lean))
            buds.append((end, turned, share * thinner, length * draws.between(0.75, 1.0), age + 1))


def _bronchus(
    scene: Scene, draws: Stream, start: Point, end: Point, along: Point, radius: float
) -> None:
    aside = draws.across(along)
    a, b = (moved(place, aside, 1.75 * radius + 1) for place in (start, end))
    scene.tube(a, b, (0.8 * radius + 0.9, 0.7 * radius + 0.8), -150.0)
    scene.tube(a, b, (0.8 * radius, 0.7 * radius), AIR_HU, dark=True)
