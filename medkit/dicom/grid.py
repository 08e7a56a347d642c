"""Where the slices of a stack lie: their order, the affine, and what must not be stacked.

Slices are ordered by their place along the normal of their planes, never by a number that somebody
gave them. Positions must lie on a line at equal steps; the line may be oblique to the slices, as
with a tilted gantry, and the affine is then sheared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.errors import DicomError
from medkit.dicom.frames import Frame
from medkit.dicom.selection import few

__all__ = ["Grid", "arrange"]

_PARALLEL = 1e-3  # of direction cosines: written with four digits or more
_STEP_MM, _STEP_SHARE = 0.01, 0.01  # a slice may lie off its place by so much: rounding of the file
_SHEAR_DEGREES = 0.2  # from here on the stack is called tilted
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """Slices in order, and what maps their voxels to the patient.

    Attributes:
        frames: From the first along the normal to the last.
        affine: (row, column, slice) -> RAS [mm], ``(4, 4)``.
        places: Where each slice lies among those of the grid, in steps; whole numbers but for
            slices at unequal steps that are to be resampled.
        depth: Slices of the grid, more than frames where some are missing.
        tilt_degrees: Between the normal and the line on which the slices lie.
        notes: What was unusual.
    """

    frames: tuple[Frame, ...]
    affine: NDArray[np.float64]
    places: NDArray[np.float64]
    depth: int
    tilt_degrees: float
    notes: tuple[str, ...] = ()

    @property
    def even(self) -> bool:
        """Whether each slice of the grid is one of the file's."""
        return np.array_equal(self.places, np.arange(self.depth))


def arrange(
    frames: Sequence[Frame], *, resample: bool = False, max_gap: int = 2, unread: Sequence[str] = ()
) -> Grid:
    """Order the frames of one stack and find their affine.

    Args:
        frames: One a position, of one plane and size.
        resample: Whether unequal steps are taken, to be resampled to equal ones.
        max_gap: Slices that may be missing in a row then.
        unread: Files that cannot be read and may be slices: a refusal names them.

    Raises:
        DicomError: Where they are no stack, or its geometry is not said.
    """
    first = frames[0]
    _require_alike(frames)
    if any(f.position is None or f.orientation is None for f in frames):
        lost = [f for f in frames if f.position is None or f.orientation is None]
        raise lost[0].bad(
            "no_geometry",
            "a slice must say where it lies (ImagePositionPatient, ImageOrientationPatient), and "
            f"{len(lost)} of {len(frames)} do not",
            "Without it slices cannot be ordered; read one as a picture with read_image.",
        )
    assert first.spacing is not None
    row, column, normal = _axes(first)
    position = np.array([f.position for f in frames], dtype=np.float64)
    along = position @ normal
    order = np.argsort(along, kind="stable")
    frames = tuple(frames[i] for i in order)
    position = position[order]
    notes: list[str] = []
    if len(frames) == 1:
        thickness = first.header.number("SpacingBetweenSlices") or 0.0
        thickness = thickness or first.header.number("SliceThickness") or 0.0
        step = normal * (thickness if thickness > 0 else 1.0)
        said = f"{thickness:g} mm, as its header says" if thickness > 0 else "unknown: 1 mm is put"
        notes.append(f"one slice: the step to the next is {said}")
        places, depth = np.zeros(1), 1
    else:
        step, places, depth = _steps(frames, position, normal, resample, max_gap, unread, notes)
    tilt = _tilt(step, normal)
    if tilt > _SHEAR_DEGREES:
        notes.append(
            f"gantry tilt: slices are shifted along their planes, by {tilt:.1f} degrees; the "
            "affine is sheared"
        )
    affine = np.eye(4)
    affine[:3, 0] = column * first.spacing[0]
    affine[:3, 1] = row * first.spacing[1]
    affine[:3, 2] = step
    affine[:3, 3] = position[0]
    affine[:3] = _LPS_TO_RAS @ affine[:3]
    return Grid(frames, affine, places, depth, tilt, tuple(notes))


def normal_of(frame: Frame) -> NDArray[np.float64]:
    """Return the unit normal of a frame's plane, LPS.

    Raises:
        DicomError: For direction cosines that are no right angle of unit vectors.
    """
    return _axes(frame)[2]


def _axes(frame: Frame) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    assert frame.orientation is not None
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > 10 * _PARALLEL:
        raise frame.bad(
            "bad_orientation",
            "ImageOrientationPatient must be two unit vectors at a right angle, found "
            f"{frame.orientation}",
        )
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def _require_alike(frames: Sequence[Frame]) -> None:
    """Refuse frames that differ in what a stack has once."""
    first = frames[0]
    if len({(f.rows, f.columns, f.spacing, f.orientation) for f in frames}) > 1:
        size = _most(frames, lambda f: (f.rows, f.columns))
        for frame in frames:
            _require_like(frame, first, size)
    if first.spacing is None:
        raise first.bad("no_geometry", "a slice must have a PixelSpacing, and has none")
    if len({f.header.values.get("FrameOfReferenceUID") for f in frames}) > 1:
        common = _most(frames, lambda f: f.header.text("FrameOfReferenceUID"))
        for frame in frames:
            if frame.header.text("FrameOfReferenceUID") not in ("", common):
                raise frame.bad(
                    "other_frame_of_reference",
                    "the slices of a stack must have one FrameOfReferenceUID, this one has "
                    "another: its coordinates mean another place",
                )


def _require_like(frame: Frame, first: Frame, size: tuple[int, int]) -> None:
    """Refuse a frame that does not lie on the grid of the first."""
    if (frame.rows, frame.columns) != size:
        raise frame.bad(
            "other_size",
            f"the slices of a stack must be of one size, here {size[0]} x {size[1]}; this one "
            f"has {frame.rows} x {frame.columns}",
        )
    if frame.spacing is None or first.spacing is None:
        raise frame.bad("no_geometry", "a slice must have a PixelSpacing, and has none")
    if not np.allclose(frame.spacing, first.spacing, rtol=1e-3, atol=0):
        raise frame.bad(
            "other_spacing",
            "the slices of a stack must have one PixelSpacing; found "
            f"{first.spacing} and {frame.spacing}",
        )
    if frame.orientation is None or first.orientation is None:
        return
    if not np.allclose(frame.orientation, first.orientation, rtol=0, atol=_PARALLEL):
        raise frame.bad(
            "other_orientation",
            "the slices of a stack must have one ImageOrientationPatient; found "
            f"{first.orientation} in {first.header.path} and {frame.orientation} here",
        )


def _steps(
    frames: Sequence[Frame],
    position: NDArray[np.float64],
    normal: NDArray[np.float64],
    resample: bool,
    max_gap: int,
    unread: Sequence[str],
    notes: list[str],
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return the step from slice to slice, each slice's place in steps, and how many there are."""
    along = position @ normal
    count, gaps = len(frames), np.diff(along)
    usual = float(np.sort(gaps)[(count - 2) // 2])
    least = float(gaps.min())  # with many slices missing, the usual gap is of several steps
    if least > 0 and _off(gaps / least) * least <= max(_STEP_MM, _STEP_SHARE * least):
        usual = least
    if least < _STEP_MM:
        raise frames[0].bad(
            "same_position", "slices of a stack must lie apart, and several lie at one place"
        )
    slack = max(_STEP_MM, _STEP_SHARE * usual)
    step = (position[-1] - position[0]) / (count - 1)
    if np.abs(position - position[0] - np.outer(np.arange(count), step)).max() <= slack:
        return step, np.arange(count, dtype=np.float64), count
    places = (along - along[0]) / usual
    whole = _off(places) * usual <= 2 * slack
    places = np.round(places) if whole else places
    step = (position[-1] - position[0]) / places[-1]
    aside = position - position[0] - np.outer(places, step)
    aside = aside - np.outer(aside @ normal, normal)
    worst = int(np.argmax(gaps))
    off = np.linalg.norm(aside, axis=1)
    if off.max() > 2 * slack:
        raise frames[int(np.argmax(off))].bad(
            "shifted",
            "the slices of a stack must lie on a line, and this one lies "
            f"{off.max():.2f} mm beside it",
        )
    around = [frame.header.path for frame in frames[worst : worst + 2]]
    between = " and ".join(around)
    lost = int(places[-1]) + 1 - count
    if whole:
        said = f"{lost} slice(s) of {lost + count} are missing, {gaps[worst]:g} mm"
    else:
        said = f"steps between slices go from {gaps.min():g} to {gaps.max():g} mm, the largest"
    problem = "missing_slice" if whole else "uneven_spacing"
    if not resample or gaps[worst] > (max_gap + 1.5) * usual:
        far = f"; max_gap={max_gap}" if resample else ""
        raise DicomError(
            problem,
            f"{Path(frames[0].header.path).parent}: slices must lie at equal steps, here "
            f"{usual:g} mm; {said} between {between}{far}. {_restore(unread)}; or "
            "pass resample=True, which fills small gaps from the slices beside them and says "
            "which.",
            *around,
            *unread,
        )
    depth = int(np.floor(places[-1] + 1e-6)) + 1
    names = " and ".join(Path(path).name for path in around)
    notes.append(f"resampled along the stack to steps of {usual:g} mm: {said} between {names}")
    return step, places, depth


def _restore(unread: Sequence[str]) -> str:
    """Return the remedy that invents no voxel."""
    if not unread:
        return "Export the series again"
    what = "one: restore it" if len(unread) == 1 else "ones: restore them"
    return f"{few(unread)} cannot be read and may be the missing {what}, or export the series again"


def _off(steps: NDArray[np.float64]) -> float:
    return float(np.abs(steps - np.round(steps)).max())


def _tilt(step: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    cosine = np.clip(step @ normal / np.linalg.norm(step), -1, 1)
    return float(np.degrees(np.arccos(cosine)))


def _most(frames: Sequence[Frame], what: Callable[[Frame], Any]) -> Any:
    return Counter(what(frame) for frame in frames).most_common(1)[0][0]
