"""One chest CT series of a made-up hospital: volume, geometry and truth."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.synth.chest_ct_scanner import AIR_HU, MUSCLE_HU, SCANNERS, Exam, exam_of
from medkit.synth.chest_ct_scene import NODULES
from medkit.synth.chest_series_body import reference_places
from medkit.synth.chest_series_draws import Point, Stream
from medkit.synth.chest_series_files import MAKERS, PADDED_HU, ROOT
from medkit.synth.chest_series_finds import Find, put_finds
from medkit.synth.chest_series_lungs import Chest
from medkit.synth.chest_series_scanner import taken_whole
from medkit.synth.chest_series_scene import make_scene

SLICE_MM: Mapping[float, float] = {1.0: 2.0}  # of the patches -> of the series
_PIXELS, _LENGTH_MM = 160, 160.0  # usual matrix and length of a scan
_STEPS = 64  # in one mm: pixel sizes and places are whole numbers of these, so decimals hold them


@dataclass(frozen=True, eq=False)
class ChestSeries:
    """One series and all that is known of it.

    Attributes:
        volume_hu: int16 ``(H, W, D)``, from feet to head, as the scanner shows it [HU]; at B
            -3024 outside of the circle that it reconstructs.
        spacing_mm: Of rows, columns and slices.
        origin_mm: Of the first voxel, LPS.
        nodules: A row each: ``kind``, ``x_mm``, ``y_mm``, ``z_mm`` (LPS), ``diameter_mm`` (axes
            are 0.65 to 1.1 of it), ``density_hu`` (true mean within 1.2 mm of the centre, with a
            vessel that runs through it), ``where`` ("lung", "pleura", "vessel"), and
            ``found_x_mm``, ``found_y_mm``, ``found_z_mm``: where a detector says, up to 1 mm off
            along each axis.
        look_alikes: The same of what is no nodule; without diameters.
        exam: How it was taken, with the scanner's noise, scale and offset.
        air_hu: True mean of air in the windpipe as this scanner shows it [HU]; at C noise is cut
            off at -1024, so that a measured mean is higher.
        muscle_hu: True mean of muscle as this scanner shows it [HU].
        reference_mm: "air" and "muscle" -> a place, LPS [mm], with 5 mm of nothing else around it.
            A scan too short to reach the windpipe has no "air".
        site: Hospital.
        name: Of the exam, as in the table of :mod:`medkit.synth.chest_ct`.
        patient_id: A pseudonym.
        uid: SeriesInstanceUID.
    """

    volume_hu: NDArray[np.int16]
    spacing_mm: Point
    origin_mm: Point
    nodules: pd.DataFrame
    look_alikes: pd.DataFrame
    exam: Exam
    air_hu: float
    muscle_hu: float
    reference_mm: Mapping[str, Point]
    site: str
    name: str
    patient_id: str
    uid: str

    @property
    def kernel(self) -> str:
        """The reconstruction kernel, as the patches' table calls it."""
        return SCANNERS[self.site].kernel

    @property
    def protocol(self) -> str:
        """Either "routine" or "follow-up"."""
        return "follow-up" if self.exam.follow_up else "routine"


def make_series(
    *,
    site: str,
    number: int,
    seed: int = 0,
    size: tuple[int, int, int] | None = None,
    difficulty: float = 1.0,
) -> ChestSeries:
    """Draw one series, a function of its arguments.

    Args:
        site: Hospital A, B or C.
        number: Of the exam, from 0.
        seed: Another seed, other patients of the same hospitals.
        size: Rows, columns and slices. By default 160 x 160 (about 1.6 mm) and as many slices as
            make 160 mm. The field of view is the patient's, so fewer columns are larger pixels.
        difficulty: Above 1 nodules are smaller and look-alikes rounder; 0.5 to 2 make sense.

    Raises:
        ValueError: For what is not known or does not fit.
    """
    _check(site, number, size, difficulty)
    exam = exam_of(seed, site, number)
    exam = replace(exam, slice_mm=SLICE_MM.get(exam.slice_mm, exam.slice_mm))
    usual = _PIXELS, _PIXELS, round(_LENGTH_MM / exam.slice_mm)
    rows, columns, depth = (int(n) for n in size or usual)
    draws = Stream(seed, "series chest", site, number)
    chest = Chest.drawn(draws, exam.lung_hu)
    field_mm = 2 * chest.half_width * (0.94 if exam.follow_up else 1.03)  # the small one cuts skin
    pixel = ceil(field_mm / columns * _STEPS) / _STEPS
    lengths = columns * pixel, rows * pixel, depth * exam.slice_mm
    place = seed, site, number
    scene = make_scene(place, chest, texture_hu=exam.texture_hu, size_mm=lengths)
    finds = put_finds(
        scene, Stream(seed, "series finds", site, number), length_mm=lengths[2],
        difficulty=difficulty,
    )  # fmt: skip
    volume = taken_whole(
        scene.hu, exam, size=(depth, rows, columns), spacing_mm=(exam.slice_mm, pixel, pixel),
        noise_of=place,
    )  # fmt: skip
    if MAKERS[site].padded:
        volume[:, _outside(rows, columns)] = PADDED_HU
    middle = tuple(round(draws.between(*ends) * 8) / 8 for ends in _MIDDLES)
    steps = (pixel, pixel, exam.slice_mm)
    x, y, z = (
        at - (count - 1) / 2 * step
        for at, count, step in zip(middle, (columns, rows, depth), steps, strict=True)
    )
    known = reference_places(chest, lengths[2] / 2)
    key = f"{seed}/{site}/{number}/{rows}x{columns}x{depth}/{difficulty!r}"
    return ChestSeries(
        volume_hu=volume.transpose(1, 2, 0),
        spacing_mm=(pixel, pixel, exam.slice_mm),
        origin_mm=(x, y, z),
        nodules=_table([f for f in finds if f.kind in NODULES], middle),
        look_alikes=_table([f for f in finds if f.kind not in NODULES], middle),
        exam=exam,
        air_hu=max(-1024.0, _shown(AIR_HU, exam)),
        muscle_hu=_shown(MUSCLE_HU, exam),
        reference_mm={name: _world(at, middle) for name, at in known.items()},
        site=site,
        name=f"{site}{number:04d}",
        patient_id=f"PSN-{_digest(f'{seed}/{site}/{number}')[:8]}",
        uid=f"{ROOT}.6.{int(_digest(key)[:15], 16)}",
    )


_MIDDLES = ((-6.0, 6.0), (-175.0, -140.0), (-420.0, -180.0))  # of the scans, LPS [mm]
_COLUMNS = ["kind", "x_mm", "y_mm", "z_mm", "diameter_mm", "density_hu", "where"]
_FOUND = ["found_x_mm", "found_y_mm", "found_z_mm"]


def _check(site: str, number: int, size: tuple[int, int, int] | None, difficulty: float) -> None:
    if site not in SCANNERS or number < 0 or number != int(number) or not 0.2 <= difficulty <= 5:
        raise ValueError(
            "a series needs a hospital A, B or C, a whole number from 0 and a difficulty from 0.2 "
            f"to 5; got {site!r}, {number} and {difficulty}. Pass site='A', number=0."
        )
    if size is not None:
        right = len(size) == 3 and all(n == int(n) for n in size)
        if not right or not all(32 <= n <= 512 for n in size[:2]) or not 8 <= size[2] <= 200:
            raise ValueError(
                "size must be rows and columns from 32 to 512 and slices from 8 to 200, whole "
                f"numbers; got {size}. Leave it out for the usual one."
            )


def _outside(rows: int, columns: int) -> NDArray[np.bool_]:
    """Return which pixels lie outside of the circle in the square."""
    y = 2 * np.arange(rows)[:, None] - (rows - 1)
    x = 2 * np.arange(columns) - (columns - 1)
    found: NDArray[np.bool_] = x * x + y * y > columns * columns
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(hu: float, exam: Exam) -> float:
    return (hu + 1000) * exam.scale - 1000 + exam.offset_hu


def _world(place: Point, middle: Sequence[float]) -> Point:
    x, y, z = (at + by for at, by in zip(place, middle, strict=True))
    return x, y, z


def _table(finds: list[Find], middle: Sequence[float]) -> pd.DataFrame:
    rows = [
        (f.kind, *_world(f.centre, middle), f.diameter_mm, f.density_hu, f.where,
         *_world(f.found, middle))
        for f in finds
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=[*_COLUMNS, *_FOUND]).astype(
        dict.fromkeys(("x_mm", "y_mm", "z_mm", "diameter_mm", "density_hu", *_FOUND), float)
    )
