"""What is in a patch of a made-up lung: vessels, chest wall, and a nodule or its look-alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medkit.synth.chest_ct_scanner import BELL_SD, SIZE, bell
from medkit.synth.chest_ct_shapes import (
    BELLS,
    FAR,
    UNIFORMS,
    Draws,
    Rows,
    Vector,
    along_of,
    at_rows,
    cross,
    dot,
    ellipsoid,
    plus,
    put,
    put_some,
    times,
    tube,
)
from medkit.synth.exact import Floats

NODULES: Mapping[str, float] = {"solid": 0.55, "part-solid": 0.23, "ground glass": 0.22}
LOOK_ALIKES: Mapping[str, float] = {
    **{"junction": 0.30, "stub": 0.15, "bump": 0.18, "scar": 0.15, "blob": 0.10},
    "calcified": 0.12,
}
"""Kind -> share: a vessel's junction that bulges, a vessel that ends, a bump of the pleura, a scar,
a diffuse blob, and a calcified granuloma, which only its density tells from a nodule."""

TEXTURE = 8  # coarse points of the lung's texture along each axis
WORDS = UNIFORMS + BELLS + TEXTURE**3  # of 64 bits, before those of the noise


def lung(
    words: NDArray[np.uint64], lung_hu: Sequence[float], texture_hu: Sequence[float]
) -> Floats:
    """Return lung with its texture, ``(n, 24, 24, 24)`` [HU]."""
    coarse = bell(words[:, UNIFORMS + BELLS :]).reshape(-1, TEXTURE, TEXTURE, TEXTURE)
    # 64ths of a HU and weights of 1/64: whole numbers throughout, like the scanner's
    coarse = np.rint(coarse * (np.asarray(texture_hu) * 64 / BELL_SD)[:, None, None, None])
    n = len(coarse)
    found = (_FINER @ coarse.reshape(n, TEXTURE, -1)).reshape(n, SIZE, TEXTURE, TEXTURE)
    found = (_FINER @ found) @ _FINER.T
    return found / 64.0**4 + np.asarray(lung_hu)[:, None, None, None]


def furnish(scene: Floats, draws: Draws, kind: Sequence[str], difficulty: float) -> Floats:
    """Put vessels, fissures, chest wall and the candidate into lung, in place.

    Args:
        scene: From :func:`lung`.
        draws: Of the patches.
        kind: Of each: one of :data:`NODULES` or :data:`LOOK_ALIKES`.
        difficulty: 1 is usual; above it nodules are smaller and look-alikes rounder.

    Returns:
        Diameter of each nodule [mm], NaN for look-alikes, ``(n,)``.
    """
    kinds = np.asarray(kind)
    many, wall, fissure = draws.between(0, 4), draws.between(0, 1), draws.between(0, 1)
    for number in range(3):
        along = draws.direction()
        away, offset = draws.across(along), draws.between(4, 11)
        depth, hu = draws.between(0.6, 1.8), draws.between(20, 60)
        rows = (many > number + 1).ravel()
        start = at_rows(times(away, offset), rows)
        put(scene, rows, tube(start, at_rows(along, rows), depth[rows], -FAR), hu[rows])
    normal, offset = draws.direction(), draws.between(-7, 7)
    rows = (fissure < 0.25).ravel()
    plane = np.abs(along_of(at_rows(normal, rows)) - offset[rows])
    put(scene, rows, 0.3 - 0.5 * plane, -600.0)
    normal, offset, hu = draws.direction(), draws.between(7, 11.5), draws.between(30, 60)
    rows = (wall < 0.35).ravel()
    put(scene, rows, along_of(at_rows(normal, rows)) - offset[rows], hu[rows])
    diameter = np.full(len(scene), np.nan)
    for name in dict.fromkeys(kind):
        rows = kinds == name
        own = draws.at(rows)
        centre = tuple(own.between(-1, 1) for _ in range(3))  # a detector's error
        if name in NODULES:
            diameter[rows] = _nodule(scene, rows, own, centre, name, difficulty)  # type: ignore[arg-type]
        else:
            _DRAWN[name](scene, rows, own, centre, difficulty)  # type: ignore[arg-type]
    return diameter


def draw_alone(
    patch: Floats, words: NDArray[np.uint64], kind: str, difficulty: float
) -> tuple[tuple[float, float, float], float]:
    """Put one candidate that hangs on neither wall nor vessel into a patch, in place.

    Args:
        patch: ``(24, 24, 24)`` [HU].
        words: ``UNIFORMS + BELLS`` raw draws.
        kind: One of :data:`NODULES`, or "scar", "blob" or "calcified".
        difficulty: As in :func:`furnish`.

    Returns:
        Where its centre lies from the middle of the patch [mm], and the diameter of a nodule [mm];
        NaN for look-alikes.
    """
    rows = np.array([True])
    draws = Draws.of(words[None]).at(rows)
    centre = (draws.between(-1, 1), draws.between(-1, 1), draws.between(-1, 1))
    diameter = np.array([np.nan])
    if kind in NODULES:
        diameter = _nodule(patch[None], rows, draws, centre, kind, difficulty, alone=True)
    else:
        _DRAWN[kind](patch[None], rows, draws, centre, difficulty)
    x, y, z = (one.item() for one in centre)
    return (x, y, z), diameter.item()


def _nodule(
    scene: Floats,
    rows: Rows,
    draws: Draws,
    centre: Vector,
    kind: str,
    difficulty: float,
    *,
    alone: bool = False,
) -> Floats:
    diameter = 4 + draws.between(1, 9) / difficulty
    radius, soft, ground = diameter / 2, draws.between(10, 65), draws.between(-680, -450)
    first = draws.direction()
    second = draws.across(first)
    axes = first, second, cross(first, second)
    radii = [radius * draws.between(0.65, 1.1) for _ in range(3)]
    lobes = [draws.between(-0.2, 0.2) for _ in range(3)]
    where, spiky = draws.between(0, 1), (draws.between(0, 1) < 0.35).ravel()
    depth = ellipsoid(centre, axes, radii, lobes)
    out = draws.direction()
    wall = along_of(out) - (dot(centre, out) + 0.7 * radius)
    start = plus(centre, times(out, 0.9 * radius))
    beside = tube(start, draws.across(out), draws.between(0.7, 1.5), -FAR)
    if not alone:
        put_some(scene, rows, (where < 0.25).ravel(), wall, soft)
        put_some(scene, rows, (where > 0.75).ravel(), beside, soft)
    put(scene, rows, depth, soft if kind == "solid" else ground)
    if kind == "part-solid":
        put(scene, rows, ellipsoid(centre, axes, [0.55 * one for one in radii]), soft)
    for _ in range(7):
        ray = tube(
            centre, draws.direction(), radius * 0 + 0.4, 0.0, radius * draws.between(1.2, 1.7)
        )
        put_some(scene, rows, spiky, ray, -300.0 if kind == "ground glass" else soft, share=0.7)
    return diameter.ravel()


def _junction(scene: Floats, rows: Rows, draws: Draws, centre: Vector, difficulty: float) -> None:
    hu, radius = draws.between(20, 60), draws.between(1.0, 2.1)
    for _ in range(3):
        branch = draws.between(0.7, 1.0) * radius
        put(scene, rows, tube(centre, draws.direction(), branch, 0.0), hu)
    bulge = radius * (1 + draws.between(0.0, 0.25) * difficulty)
    put(scene, rows, tube(centre, draws.direction(), bulge, 0.0, 0.5), hu)


def _stub(scene: Floats, rows: Rows, draws: Draws, centre: Vector, difficulty: float) -> None:
    hu, radius = draws.between(20, 60), draws.between(1.2, 2.4)
    length = draws.between(11, 30) / difficulty
    put(scene, rows, tube(centre, draws.direction(), radius, 0.0, length), hu)


def _bump(scene: Floats, rows: Rows, draws: Draws, centre: Vector, difficulty: float) -> None:
    hu, out = draws.between(20, 60), draws.direction()
    height, width = draws.between(1.0, 2.0) * difficulty, draws.between(3.5, 7.0)
    side = draws.across(out)
    surface = plus(centre, times(out, 0.5 * height))
    put(scene, rows, along_of(out) - dot(surface, out), hu)
    axes = out, side, cross(out, side)
    radii = height * 1.4, width, width * draws.between(0.6, 1.0)
    put(scene, rows, ellipsoid(surface, axes, radii), hu)


def _scar(scene: Floats, rows: Rows, draws: Draws, centre: Vector, difficulty: float) -> None:
    hu, thin = draws.between(-40, 50), draws.direction()
    side = draws.across(thin)
    long = cross(thin, side)
    radii = draws.between(0.5, 1.0) * difficulty, draws.between(2.5, 5.0), draws.between(4.5, 9.0)
    put(scene, rows, ellipsoid(centre, (thin, side, long), radii), hu)
    for sign in (-1.0, 1.0):
        strand = tube(centre, times(long, sign), draws.between(0.4, 0.8), 0.0, 14.0)
        put(scene, rows, strand, hu, share=0.8)


def _blob(scene: Floats, rows: Rows, draws: Draws, centre: Vector, difficulty: float) -> None:
    first = draws.direction()
    second = draws.across(first)
    radii = [draws.between(4.0, 7.5) for _ in range(3)]
    depth = ellipsoid(centre, (first, second, cross(first, second)), radii)
    hu = draws.between(-740, -540)
    put(scene, rows, depth * (0.15 * difficulty), hu)


def _calcified(scene: Floats, rows: Rows, draws: Draws, centre: Vector, difficulty: float) -> None:
    hu, radius = draws.between(280, 800), draws.between(1.5, 4.0)
    first = draws.direction()
    second = draws.across(first)
    radii = [radius * draws.between(0.8, 1.1) for _ in range(3)]
    put(scene, rows, ellipsoid(centre, (first, second, cross(first, second)), radii), hu)


_DRAWN: Mapping[str, Callable[[Floats, Rows, Draws, Vector, float], None]] = {
    **{"junction": _junction, "stub": _stub, "bump": _bump, "scar": _scar, "blob": _blob},
    "calcified": _calcified,
}


def _finer() -> Floats:
    """Return weights, whole 64ths, that interpolate the coarse points linearly to each voxel."""
    at = np.arange(SIZE)[:, None] * ((TEXTURE - 1) / (SIZE - 1))
    found = np.rint(64 * np.clip(1 - np.abs(at - np.arange(TEXTURE)), 0, None))
    found[np.arange(SIZE), found.argmax(axis=1)] += 64 - sum(found[:, k] for k in range(TEXTURE))
    return found


_FINER = _finer()
