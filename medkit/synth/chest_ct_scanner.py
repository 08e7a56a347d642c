"""What the made-up hospitals' CT scanners do to a scene: kernel, slices, noise, HU errors.

Everything is done in whole sixteenths of a Hounsfield unit with whole weights of 1/4096, so every
product and sum is a whole number below 2^53: float64 holds it exactly, and neither the order of a
sum nor a fused multiply-add nor the matrix library can change a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from medkit import keyed
from medkit.synth.exact import Floats, exp, uniforms

SIZE = 24  # voxels along each side of a patch, 1 mm each
AIR_HU, MUSCLE_HU = -970.0, 50.0  # true values of what each exam's reference is measured in
FINE = 16.0  # steps in one HU
WEIGHT = 4096.0  # steps in a weight of 1
BELL_SD = sqrt(4 * (65536**2 - 1) / 12)  # of :func:`bell`
PER_EXAM = 20  # candidates
_FOLLOW_UP = 0.25  # share of exams
_GRAIN = 0.7  # blur of the noise in plane, as a share of the scene's
_PHASES = 4  # places of the slices relative to the voxels


@dataclass(frozen=True)
class Scanner:
    """The scanner of one hospital.

    Attributes:
        kernel: Name of its reconstruction kernel.
        blur_mm: Standard deviation of the point spread function [mm].
        noise_hu: Standard deviation of the noise in slices of 1 mm [HU].
        slices_mm: Slice thickness of routine exams, each as often [mm].
        offset_hu: Added to all values [HU].
        scale: Of the attenuation, that is of HU + 1000.
    """

    kernel: str
    blur_mm: float
    noise_hu: float
    slices_mm: tuple[float, float]
    offset_hu: float
    scale: float


SCANNERS: Mapping[str, Scanner] = {
    "A": Scanner("smooth", 0.85, 20.0, (1.0, 2.5), 0.0, 1.00),
    "B": Scanner("sharp", 0.45, 32.0, (2.5, 2.5), 60.0, 0.97),
    "C": Scanner("medium", 0.60, 40.0, (2.5, 5.0), -40.0, 1.04),
}


@dataclass(frozen=True)
class Exam:
    """How one exam was taken.

    Attributes:
        follow_up: Thin slices, little noise, a small field of view.
        slice_mm: Slice thickness [mm].
        blur_mm: Standard deviation of its point spread function [mm].
        noise_hu: In slices of 1 mm [HU].
        offset_hu: Of this exam [HU].
        scale: Of this exam.
        air_hu: Mean measured in the windpipe, within 3 HU, as stored [HU].
        muscle_hu: Mean measured in muscle, within 3 HU [HU].
        lung_hu: True value of its lungs [HU].
        texture_hu: Standard deviation of their texture [HU].
    """

    follow_up: bool
    slice_mm: float
    blur_mm: float
    noise_hu: float
    offset_hu: float
    scale: float
    air_hu: float
    muscle_hu: float
    lung_hu: float
    texture_hu: float

    def matrices(self, phase: float) -> tuple[Floats, Floats, Floats, Floats]:
        """Return what blurs a scene in plane and along the slices, and the same for its noise."""
        at = int(phase * _PHASES)
        scene = blur(self.blur_mm), slices(self.slice_mm, at, self.blur_mm)
        return *scene, blur(_GRAIN * self.blur_mm), slices(self.slice_mm, at, 0.0)


def exam_of(seed: int, site: str, number: int) -> Exam:
    """Draw one exam, a function of its place."""
    scanner = SCANNERS[site]
    u = uniforms(seed, "ct", "exam", site, number, shape=(8,)).tolist()
    normal = bell(raw(seed, "exam noise", site, number, count=4)) / BELL_SD
    first, second, third, fourth = normal.tolist()
    follow_up = u[0] < _FOLLOW_UP
    scale = scanner.scale * (1 + 0.01 * first)
    offset = scanner.offset_hu + 10.0 * second
    return Exam(
        follow_up=follow_up,
        slice_mm=1.0 if follow_up else scanner.slices_mm[int(2 * u[1])],
        blur_mm=scanner.blur_mm * (0.8 if follow_up else 1.0),
        noise_hu=scanner.noise_hu * (0.6 if follow_up else 0.9 + 0.2 * u[2]),
        offset_hu=offset,
        scale=scale,
        air_hu=max(-1024.0, (AIR_HU + 1000) * scale - 1000 + offset + 3.0 * third),
        muscle_hu=(MUSCLE_HU + 1000) * scale - 1000 + offset + 3.0 * fourth,
        lung_hu=-890.0 + 70.0 * u[3],
        texture_hu=10.0 + 35.0 * u[4],
    )


def taken(
    scene: Floats, grain: NDArray[np.uint64], exams: Sequence[Exam], phases: Sequence[float]
) -> NDArray[np.int16]:
    """Return scenes as their exams show them.

    Args:
        scene: ``(n, 24, 24, 24)``, slices along the last axis [HU].
        grain: Raw draws of the noise, ``(n, 24 ** 3)``.
        exams: Of each scene.
        phases: Where the slices lie relative to the voxels, from [0, 1).
    """
    plane, along, fine, between = (
        np.stack(parts)
        for parts in zip(
            *(exam.matrices(phase) for exam, phase in zip(exams, phases, strict=True)), strict=True
        )
    )
    amount = [exam.noise_hu * FINE / (BELL_SD * _gain(_GRAIN * exam.blur_mm)) for exam in exams]
    noise = bell(grain).reshape(scene.shape)
    noise *= _column(amount)
    np.rint(noise, out=noise)
    scene = np.rint(scene * FINE)
    # three whole weights and twice 14 bits: below 2^53
    whole = _blurred(scene, plane, along)
    whole += _blurred(noise, fine, between)
    hu = whole / (FINE * WEIGHT**3)  # by a power of two: exact
    hu += 1000.0
    hu *= _column([exam.scale for exam in exams])
    hu += _column([exam.offset_hu - 1000.0 for exam in exams])
    return np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu).astype(np.int16)


def raw(seed: int, *place: int | str, count: int) -> NDArray[np.uint64]:
    """Draw whole words of 64 bits, a function of ``(seed, place)``."""
    return keyed.generator(seed, "synth", "ct", *place).bit_generator.random_raw(count)


def bell(words: NDArray[np.uint64]) -> Floats:
    """Return the sum of each word's four 16-bit parts less its mean: nearly normal, and exact."""
    lanes = np.uint64(0x0000FFFF0000FFFF)
    pairs = (words & lanes) + ((words >> np.uint64(16)) & lanes)
    whole = (pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))
    return whole.astype(np.float64) - 131070.0


@lru_cache(maxsize=64)
def blur(sd_mm: float) -> Floats:
    """Return the matrix that blurs along one axis, whole weights that add up to 4096 a row."""
    distance = np.arange(SIZE)[:, None] - np.arange(SIZE)[None, :]
    return whole(exp(-0.5 * (distance / sd_mm) ** 2))


@lru_cache(maxsize=64)
def slices(thickness_mm: float, phase: int, sd_mm: float) -> Floats:
    """Return what slices of a thickness make of one axis at 1 mm: averaged, then interpolated."""
    sharp = blur(sd_mm) / WEIGHT if sd_mm > 0 else np.eye(SIZE)
    if thickness_mm <= 1:
        return whole(sharp)
    first = -thickness_mm * (1 + phase / _PHASES)
    centres = first + thickness_mm * np.arange(int(SIZE / thickness_mm) + 4)
    edges = np.arange(SIZE) - 0.5
    low, high = centres[:, None] - thickness_mm / 2, centres[:, None] + thickness_mm / 2
    inside = np.clip(np.minimum(high, edges + 1) - np.maximum(low, edges), 0, None)
    at = np.arange(SIZE)[:, None]
    between = np.clip(1 - np.abs(at - centres) / thickness_mm, 0, None)
    # slices beyond the patch show its edge
    reach = sum(inside[:, k] for k in range(SIZE))
    inside[reach <= 0, 0] = (centres[reach <= 0] < 0) * 1.0
    inside[reach <= 0, -1] = (centres[reach <= 0] > 0) * 1.0
    reach = sum(inside[:, k] for k in range(SIZE))
    averaged = inside / reach[:, None]
    return whole(product(product(between, averaged), sharp))


def product(a: Floats, b: Floats) -> Floats:
    """Multiply small matrices term by term, so that the order of the sum is the same anywhere."""
    total = np.zeros((len(a), b.shape[1]))
    for k in range(a.shape[1]):
        total = total + a[:, k : k + 1] * b[k]
    return total


def whole(weights: Floats) -> Floats:
    """Scale rows to whole weights of sum 4096; what rounding leaves goes to the largest."""
    total, width = np.zeros(len(weights)), weights.shape[1]
    for k in range(width):  # one by one, so that the order of the sum is the same anywhere
        total = total + weights[:, k]
    found = np.rint(weights * (WEIGHT / total[:, None]))
    rest = WEIGHT - sum(found[:, k] for k in range(width))
    found[np.arange(len(found)), found.argmax(axis=1)] += rest
    found.setflags(write=False)
    return found


@lru_cache(maxsize=64)
def _gain(sd_mm: float) -> float:
    """Return what is left of white noise's standard deviation after the blur in plane."""
    middle = (blur(sd_mm)[SIZE // 2] / WEIGHT).tolist()
    return sum(weight * weight for weight in middle)


def _blurred(values: Floats, plane: Floats, along: Floats) -> Floats:
    n = len(values)
    rows = (plane @ values.reshape(n, SIZE, SIZE * SIZE)).reshape(values.shape)
    return (plane[:, None] @ rows) @ along.transpose(0, 2, 1)[:, None]


def _column(values: Sequence[float]) -> Floats:
    return np.asarray(values, np.float64)[:, None, None, None]
