"""Nodules and look-alikes in a made-up chest, where each belongs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medkit.synth.chest_ct_scene import LOOK_ALIKES, NODULES, draw_alone
from medkit.synth.chest_ct_shapes import BELLS, UNIFORMS
from medkit.synth.chest_series_draws import Point, Stream, moved, square, unit
from medkit.synth.chest_series_scene import HILA, Scene

_APART_MM, _HILUM_MM, _TRIES = 24.0, 30.0, 3000
_COUNTS: Mapping[str, float] = {"0": 0.3, "1": 0.3, "2": 0.25, "3": 0.15}
"""Nodules an exam -> share of the exams."""
_LEAST, _MOST = 5, 10  # look-alikes an exam
_INSIDE_MM = 6.0  # of the ends of the scan
_DEPTHS_MM: Mapping[str, tuple[float, float]] = {
    **{"lung": (9.0, 60.0), "vessel": (4.0, 60.0), "pleura": (1.5, 4.0), "bump": (-0.2, 0.6)},
}
"""What a find lies in or hangs on -> how deep below the lungs' surface."""


@dataclass(frozen=True)
class Find:
    """A nodule or a look-alike.

    Attributes:
        kind: One of those of :mod:`medkit.synth.chest_ct_scene`.
        centre: Where it lies [mm about the middle of the scan].
        found: Where a detector says that it lies.
        diameter_mm: Of a nodule; NaN for look-alikes.
        density_hu: True mean within 1.2 mm of its centre, before the scanner [HU].
        where: "lung", "pleura" or "vessel": what it lies in or hangs on.
    """

    kind: str
    centre: Point
    found: Point
    diameter_mm: float
    density_hu: float
    where: str


def put_finds(scene: Scene, draws: Stream, *, length_mm: float, difficulty: float) -> list[Find]:
    """Put nodules and look-alikes into a chest, where they fit; return them, nodules first.

    Args:
        scene: Changed in place.
        draws: Of this exam.
        length_mm: Of the scan; all lie within it.
        difficulty: As in :func:`medkit.synth.chest_ct.make_candidates`.
    """
    finds: list[Find] = []
    kinds = [draws.choice(NODULES) for _ in range(int(draws.choice(_COUNTS)))]
    many = _LEAST + int(draws.between(0, _MOST - _LEAST + 1))
    kinds += [draws.choice(LOOK_ALIKES) for _ in range(many)]
    for kind in kinds:
        words, where = draws.words(UNIFORMS + BELLS), _where(draws, kind)
        place = _room(scene, draws, kind, where, finds, length_mm / 2 - _INSIDE_MM)
        if place is not None:
            finds.append(_put(scene, draws, words, kind, where, place, difficulty))
    return finds


def _where(draws: Stream, kind: str) -> str:
    """Return what a find lies in or hangs on."""
    u = draws.between(0, 1)
    if kind in NODULES:
        return "pleura" if u < 0.25 else "vessel" if u > 0.75 else "lung"
    return {"junction": "vessel", "bump": "pleura"}.get(kind, "lung")


def _put(
    scene: Scene,
    draws: Stream,
    words: NDArray[np.uint64],
    kind: str,
    where: str,
    place: Point,
    difficulty: float,
) -> Find:
    """Draw one nodule or look-alike."""
    diameter = float("nan")
    x, y, z = (one + draws.between(-1, 1) for one in place)  # a detector's error
    found = (x, y, z)
    if kind in _HANGING:
        _HANGING[kind](scene, draws, place, difficulty)
    else:
        view, found = scene.patch(place)
        drawn = view.copy()
        (dz, dy, dx), diameter = draw_alone(drawn, words, kind, difficulty)
        np.maximum(view, drawn, out=view)
        place = (found[0] + dx, found[1] + dy, found[2] + dz)
    density = round(scene.density(place), 1)
    return Find(kind, place, found, round(diameter, 1), density, where)


def _junction(scene: Scene, draws: Stream, place: Point, difficulty: float) -> None:
    hu, radius = draws.between(20, 60), draws.between(1.0, 2.1)
    bulge = radius * (1 + draws.between(0.0, 0.25) * difficulty)
    scene.tube(place, moved(place, draws.direction(), 0.5), (bulge, bulge), hu)
    for _ in range(2):
        end = moved(place, draws.direction(), draws.between(6, 14))
        scene.tube(place, end, (0.85 * radius, 0.5 * radius), hu)


def _stub(scene: Scene, draws: Stream, place: Point, difficulty: float) -> None:
    """Draw a vessel that comes from the hilum, about, and ends."""
    hu, radius = draws.between(20, 60), draws.between(1.2, 2.4)
    length = draws.between(11, 30) / difficulty
    home = unit(*(h - p for h, p in zip(HILA[place[0] > 0], place, strict=True)))
    along = unit(*moved(home, draws.direction(), 0.5))
    scene.tube(place, moved(place, along, length), (radius, radius), hu)


def _bump(scene: Scene, draws: Stream, place: Point, difficulty: float) -> None:
    hu, height = draws.between(20, 60), draws.between(1.4, 2.8) * difficulty
    scene.flat(place, scene.chest.outward(place), (height, draws.between(3.5, 7.0)), hu)


_HANGING: Mapping[str, Callable[[Scene, Stream, Point, float], None]] = {
    **{"junction": _junction, "stub": _stub, "bump": _bump},
}


def _room(
    scene: Scene, draws: Stream, kind: str, where: str, finds: list[Find], half_mm: float
) -> Point | None:
    """Return a free place, within two depths of the lungs' surface; None after many tries."""
    low, high = _DEPTHS_MM["bump" if kind == "bump" else where]
    known = scene.forks if kind == "junction" else scene.twigs
    taken = [*((hilum, _HILUM_MM) for hilum in HILA), *((f.centre, _APART_MM) for f in finds)]
    for _ in range(_TRIES):
        u = draws.between(0, 1)
        if where == "vessel":
            if not known:
                return None
            place = known[int(u * len(known))]
        else:
            across, along = draws.between(-110, 110), draws.between(-75, 75)
            place = (across, along, (2 * u - 1) * half_mm)
        if abs(place[2]) > half_mm or not scene.holds_patch(place):
            continue
        if any(square(place, other) < far * far for other, far in taken):
            continue
        if low <= scene.chest.depth_at(place) <= high:
            return place
    return None
