"""What a scanner makes of a whole chest at 1 mm: pixels, slices, noise and errors of its values.

Like :mod:`medkit.synth.chest_ct_scanner`, with whole numbers throughout, for any number of pixels
and slices of any size.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from medkit.synth.chest_ct_scanner import (
    BELL_SD,
    FINE,
    WEIGHT,
    Exam,
    bell,
    product,
    raw,
    whole,
)
from medkit.synth.exact import Floats, exp

_GRAIN = 0.7  # blur of the noise in pixels, as a share of the scene's in mm: patches have 1 mm


def taken_whole(
    scene: Floats,
    exam: Exam,
    *,
    size: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    noise_of: tuple[int, str, int] | None,
) -> NDArray[np.int16]:
    """Return a scene as an exam shows it.

    Args:
        scene: ``(nz, ny, nx)``, voxels of 1 mm about the middle [HU]; overwritten.
        exam: How it was taken.
        size: Slices, rows and columns of the result.
        spacing_mm: Of these; slices are as thick as the step between them.
        noise_of: Seed, hospital and number; None: without noise.
    """
    scene *= FINE
    np.rint(scene, out=scene)
    along, down, across = (
        sampled(fine, count, step, exam.blur_mm)
        for fine, count, step in zip(scene.shape, size, spacing_mm, strict=True)
    )
    # three whole weights of 12 bits and twice 16 bits of HU: below 2^53, so exact in any order
    found = along @ scene.reshape(len(scene), -1)
    found = down @ found.reshape(size[0], *scene.shape[1:]) @ across.T
    hu = found / (FINE * WEIGHT**3)
    if noise_of is not None:
        hu += _noise(exam, size, spacing_mm[0], noise_of)
    hu += 1000.0
    hu *= exam.scale
    hu += exam.offset_hu - 1000.0
    return np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu).astype(np.int16)


def sampled(fine: int, count: int, step_mm: float, sd_mm: float) -> Floats:
    """Return what pixels of a width make of one axis at 1 mm, ``(count, fine)``, rows of 4096.

    Each pixel is the mean over its width, blurred by the point spread function.
    """
    edges = np.arange(fine) - fine / 2
    centres = (np.arange(count) - (count - 1) / 2) * step_mm
    low, high = centres[:, None] - step_mm / 2, centres[:, None] + step_mm / 2
    inside = np.clip(np.minimum(high, edges + 1) - np.maximum(low, edges), 0, None)
    return whole(product(inside, _bells(fine, sd_mm)))


def _bells(count: int, sd_mm: float) -> Floats:
    """Return the point spread function about each place of an axis at 1 mm."""
    distance = np.clip(np.arange(count)[:, None] - np.arange(count)[None, :], -12, 12)
    bells = exp(-0.5 * (distance / sd_mm) ** 2)
    bells[np.abs(distance) >= 12] = 0.0
    return bells


def _noise(
    exam: Exam, size: tuple[int, int, int], slice_mm: float, noise_of: tuple[int, str, int]
) -> Floats:
    """Return noise that is correlated in plane, less in thick slices, ``(D, H, W)`` [HU]."""
    seed, site, number = noise_of
    words = raw(seed, "series noise", site, number, count=size[0] * size[1] * size[2])
    down, across = (whole(_bells(n, _GRAIN * exam.blur_mm)) for n in size[1:])
    gains = [sqrt(sum(w * w for w in (m[len(m) // 2] / WEIGHT).tolist())) for m in (down, across)]
    sd = exam.noise_hu / sqrt(slice_mm)
    values = bell(words).reshape(size)
    values *= sd * FINE / (BELL_SD * gains[0] * gains[1])
    np.rint(values, out=values)
    return (down @ values @ across.T) / (FINE * WEIGHT**2)
