"""A series of DICOM files -> one volume, or a refusal that says why.

What is refused, by the name that :class:`DicomError` carries: ``other_patient``, ``other_study``,
``other_modality``, ``several_series``, ``no_images``, ``same_uid``, ``same_position``, ``stacks``,
``planes``, ``other_orientation``, ``other_size``, ``other_spacing``, ``other_frame_of_reference``,
``missing_slice``, ``uneven_spacing``, ``shifted``, ``no_geometry``, ``bad_orientation``,
``bad_spacing``, ``bad_number``, ``no_rescale``, ``other_unit``, ``modality_lut``, ``bits``,
``colour``, ``too_large``, ``frames``, ``truncated``, ``no_pixels``, ``no_decoder``,
``undecodable``, ``broken_header``, ``not_dicom``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.frames import STACKS, Frame, frames_of
from medkit.dicom.grid import arrange, normal_of
from medkit.dicom.notes import provenance, remarks, unit_of, value_remarks
from medkit.dicom.pixels import AIR_HU, read_slices
from medkit.dicom.resampling import at_equal_steps, sheared_back
from medkit.dicom.selection import Source, few, files_below, select
from medkit.dicom.volume import Volume

__all__ = ["files_below", "read_series", "read_stacks"]

_SAME_PLACE_MM = 0.01
_SAME_PLANE = 0.999  # cosine of 2.5 degrees
_SCOUT_PLANE = 0.8  # cosine of 37 degrees: a localizer lies across the stack, not nearly along it


def read_series(
    source: Source,
    *,
    series: str | None = None,
    stack: str | None = None,
    resample: bool = False,
    max_gap: int = 2,
    deshear: bool = False,
    beside: Sequence[str] = (),
) -> Volume:
    """Read the slices of one series as a volume, CT in HU.

    Slices are ordered by where they lie. Whatever would give wrong voxels is refused with a
    message that names the file and the remedy; what is repaired or left out is in the volume's
    ``notes``. A slice of another patient is refused whatever is passed.

    Args:
        source: A folder (its files, and those in folders below it), files, or one file.
        series: SeriesInstanceUID, or its end, where the folder has several.
        stack: Which of several stacks at the same places (time points, echoes, b values), as the
            refusal names them: "EchoTime=4.6".
        resample: Fill up to ``max_gap`` missing slices in a row, and bring slices at unequal steps
            to equal ones, linearly along the stack.
        max_gap: See ``resample``.
        deshear: Resample a stack from a tilted gantry to slices at a right angle to the line on
            which they lie; what was outside becomes air.
        beside: Files of the same folders that are in no series, as an index knows them: named in
            the notes, and where a slice is missing.

    Raises:
        DicomError: See above, and :mod:`medkit.dicom.series`.
        FileNotFoundError: For a source that is not there.
    """
    found = _stacks_of(source, series, beside)
    stacks = found.stacks
    if stack is None and len(stacks) > 1:
        frame = next(iter(stacks.values()))[0]
        raise frame.bad(
            "stacks",
            f"the series has {len(stacks)} stacks at the same places: {', '.join(stacks)}",
            f'Pass stack="{next(iter(stacks))}" for one of them, or call read_stacks.',
        )
    if stack is not None and stack not in stacks:
        raise ValueError(f"stack must be one of {', '.join(stacks) or 'none'}; got {stack!r}.")
    frames = next(iter(stacks.values())) if stack is None else stacks[stack]
    return _volume(frames, found, resample, max_gap, deshear)


def read_stacks(
    source: Source, *, series: str | None = None, resample: bool = False, max_gap: int = 2,
    deshear: bool = False, beside: Sequence[str] = (),
) -> dict[str, Volume]:  # fmt: skip
    """Read each stack of a series, such as its time points, by name; see :func:`read_series`."""
    found = _stacks_of(source, series, beside)
    return {
        name: _volume(frames, found, resample, max_gap, deshear)
        for name, frames in found.stacks.items()
    }


@dataclass
class _Found:
    """The frames of each stack, and what is known of the whole series.

    Attributes:
        stacks: Frames by the stack's name.
        lost: See :class:`~medkit.dicom.selection.Selection`.
        numbers: InstanceNumber of each file, as it is written, also of those that are no slice.
        notes: What was noted.
    """

    stacks: dict[str, Sequence[Frame]]
    lost: list[str]
    numbers: list[bytes]
    notes: list[str]


def _stacks_of(source: Source, series: str | None, beside: Sequence[str] = ()) -> _Found:
    """Return the frames of each stack of the series asked for, and what was noted."""
    selection = select(source, series, beside)
    headers, notes = selection.headers, selection.notes
    images = [header for header in headers if header.has_pixels]
    if len(images) < len(headers):
        empty = [header.path for header in headers if not header.has_pixels]
        notes.append(f"{len(empty)} object(s) without pixels left out: {few(empty)}")
    if not images:
        raise headers[0].bad("no_images", "a series must have images, and has none")
    notes += sorted({f"{len(images)} file(s): {note}" for h in images for note in h.notes})
    frames = [frame for header in images for frame in frames_of(header)]
    stacks = _split(_one_plane(frames, notes), notes)
    numbers = [header.values.get("InstanceNumber", b"") for header in headers]
    return _Found(stacks, selection.lost, numbers, notes)


def _one_plane(frames: list[Frame], notes: list[str]) -> list[Frame]:
    """Leave localizers out; refuse frames of several planes."""
    if len({f.orientation for f in frames}) == 1:
        return frames
    placed = [f for f in frames if f.orientation is not None]
    groups: list[tuple[NDArray[np.float64], list[Frame]]] = []
    for frame in placed:
        normal = normal_of(frame)
        for other, own in groups:
            if abs(normal @ other) > _SAME_PLANE:
                own.append(frame)
                break
        else:
            groups.append((normal, [frame]))
    if len(groups) == 1:
        return frames
    main, stack = max(groups, key=lambda group: len(group[1]))
    rest = [f for normal, own in groups for f in own if own is not stack]
    across = all(abs(n @ main) < _SCOUT_PLANE for n, own in groups if own is not stack)
    if len(stack) >= 3 and len(stack) > 2 * len(rest) and across:
        notes.append(
            f"{len(rest)} localizer(s) across the stack left out: "
            f"{few([f.header.path for f in rest])}"
        )
        return [f for f in frames if f not in rest]
    raise rest[0].bad(
        "planes",
        f"the slices of a stack must lie in parallel planes; these {len(placed)} lie in "
        f"{len(groups)} ({', '.join(str(len(own)) for _, own in groups)} slices)",
        "Localizers and scouts are no volume; read one as a picture with read_image.",
    )


def _split(frames: list[Frame], notes: list[str]) -> dict[str, Sequence[Frame]]:
    """Return frames by stack: one frame a place in each."""
    if any(f.position is None or f.orientation is None for f in frames) or len(frames) == 1:
        return {"": frames}
    places = np.round(np.array([f.position for f in frames]) / _SAME_PLACE_MM).astype(np.int64)
    at: dict[tuple[int, ...], list[Frame]] = defaultdict(list)
    for frame, place in zip(frames, map(tuple, places.tolist()), strict=True):
        at[place].append(frame)
    crowded = [own for own in at.values() if len(own) > 1]
    if not crowded:
        return {"": frames}
    for name in dict.fromkeys([*STACKS, *(n for f in frames for n in f.stack)]):
        said = [f.stack.get(name, "") for own in crowded for f in own]
        if all(len({f.stack.get(name) for f in own}) == len(own) for own in crowded):
            stacks: dict[str, list[Frame]] = defaultdict(list)
            for frame in frames:
                stacks[f"{name}={frame.stack.get(name, '')}"].append(frame)
            if len(at) == 1:
                raise frames[0].bad(
                    "same_position",
                    f"the slices of a stack must lie apart; all {len(frames)} lie at one place, "
                    f"apart in {name} only ({min(said)} to {max(said)})",
                    "A loop over time is no volume; read its frames as pictures with read_image.",
                )
            notes.append(f"one of {len(stacks)} stacks, by {name}")
            return dict(sorted(stacks.items()))
    both = crowded[0]
    raise both[1].bad(
        "same_position",
        f"one slice must lie at each place; this one and {both[0].header.path} lie at one, and "
        "nothing in their headers says which of them is meant",
    )


def _volume(
    frames: Sequence[Frame], found: _Found, resample: bool, max_gap: int, deshear: bool
) -> Volume:
    grid = arrange(frames, resample=resample, max_gap=max_gap, unread=found.lost)
    bare = [frame for frame in grid.frames if not frame.rescaled]
    if 0 < len(bare) < len(grid.frames):
        raise bare[0].bad(
            "no_rescale",
            "all slices of a stack must have RescaleSlope and RescaleIntercept, or none; this one "
            f"has none, as {len(bare)} of {len(grid.frames)}",
        )
    unit = unit_of(grid.frames[0].header)
    several = len({frame.header.values.get("RescaleType") for frame in grid.frames}) > 1
    other = [frame for frame in grid.frames if several and unit_of(frame.header) != unit]
    if other:
        raise other[0].bad(
            "other_unit",
            f"the slices of a stack must be in one unit, here {unit or 'none'}; by RescaleType "
            f"this one is in {unit_of(other[0].header) or 'none'}",
        )
    air = AIR_HU if unit == "HU" else 0.0
    # before the pixels come, which push the headers out of the cache
    notes = [*found.notes, *grid.notes, *remarks(grid, found.numbers)]
    slices = np.empty((len(grid.frames), grid.frames[0].rows, grid.frames[0].columns), np.float32)
    padding = read_slices(grid.frames, slices, air=air)
    padded = air if padding.declared else None
    notes += value_remarks(grid, slices, padded)
    if padding.declared:
        notes.append(f"{padding.declared:,} padded pixels set to {air:g}")
    affine = grid.affine
    if not grid.even:
        slices = at_equal_steps(slices, grid)
    if deshear and grid.tilt_degrees:
        slices, affine = sheared_back(slices, affine, air)
        notes.append("sheared back to slices at a right angle to their line")
    return Volume(
        array=slices.transpose(1, 2, 0),
        affine=affine,
        unit=unit,
        provenance=provenance(grid, padding.declared),
        notes=tuple(notes),
    )
