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

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.errors import DicomError
from medkit.dicom.frames import STACKS, Frame, frames_of
from medkit.dicom.grid import arrange, normal_of
from medkit.dicom.header import Header, read_header
from medkit.dicom.notes import provenance, remarks, unit_of
from medkit.dicom.pixels import AIR_HU, read_slices
from medkit.dicom.resampling import at_equal_steps, sheared_back
from medkit.dicom.volume import Volume

__all__ = ["read_series", "read_stacks"]

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
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

    Raises:
        DicomError: See above, and :mod:`medkit.dicom.series`.
        FileNotFoundError: For a source that is not there.
    """
    stacks, notes = _stacks_of(source, series)
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
    return _volume(frames, notes, resample, max_gap, deshear)


def read_stacks(
    source: Source, *, series: str | None = None, resample: bool = False, max_gap: int = 2,
    deshear: bool = False,
) -> dict[str, Volume]:  # fmt: skip
    """Read each stack of a series, such as its time points, by name; see :func:`read_series`."""
    stacks, notes = _stacks_of(source, series)
    return {
        name: _volume(frames, notes, resample, max_gap, deshear) for name, frames in stacks.items()
    }


def _stacks_of(source: Source, series: str | None) -> tuple[dict[str, Sequence[Frame]], list[str]]:
    """Return the frames of each stack of the series asked for, and what was noted."""
    notes: list[str] = []
    headers = _chosen(_headers(source, notes), series)
    _require_one_origin(headers)
    headers = _without_copies(headers, notes)
    images = [header for header in headers if header.has_pixels]
    if len(images) < len(headers):
        notes.append(f"{len(headers) - len(images)} object(s) without pixels left out")
    if not images:
        raise headers[0].bad("no_images", "a series must have images, and has none")
    notes += sorted({f"{len(images)} file(s): {note}" for h in images for note in h.notes})
    frames = [frame for header in images for frame in frames_of(header)]
    return _split(_one_plane(frames, notes), notes), notes


def _headers(source: Source, notes: list[str]) -> list[Header]:
    """Read the headers of all files; those that are no DICOM are noted."""
    several = [source] if isinstance(source, str | os.PathLike) else list(source)
    paths: list[str] = []
    for one in several:
        if os.path.isdir(one):
            paths += files_below(one)
        elif os.path.exists(one):
            paths.append(os.fspath(one))
        else:
            raise FileNotFoundError(f"{os.fspath(one)} must be a folder or a DICOM file; not there")
    alone = len(paths) == 1
    headers, strangers = [], []
    for path in paths:
        try:
            headers.append(read_header(path))
        except DicomError as error:
            if error.problem != "not_dicom" or alone:
                raise
            strangers.append(path)
    if strangers:
        notes.append(f"{len(strangers)} file(s) that are no DICOM left out: {_few(strangers)}")
    if not headers:
        raise DicomError(
            "no_images", f"{os.fspath(several[0])} must hold DICOM files; found none of "
            f"{len(paths)} file(s)",
        )  # fmt: skip
    return headers


def files_below(folder: str | os.PathLike[str]) -> list[str]:
    """Return the files of a folder and below it, by name; links to folders are not followed."""
    found: list[str] = []
    for where, folders, names in os.walk(folder):
        folders.sort()
        found += [os.path.join(where, name) for name in sorted(names)]
    return found


def _chosen(headers: list[Header], wanted: str | None) -> list[Header]:
    """Return the headers of one series."""
    if wanted is None and len({header.values.get("SeriesInstanceUID") for header in headers}) == 1:
        return headers
    by_series: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        by_series[header.text("SeriesInstanceUID")].append(header)
    if wanted is not None:
        matching = [uid for uid in by_series if uid.endswith(wanted)]
        if len(matching) != 1:
            raise ValueError(
                f"series must be the end of one SeriesInstanceUID of {len(by_series)}, got "
                f"{wanted!r}, which fits {len(matching)}: {_listed(by_series)}"
            )
        return by_series[matching[0]]
    with_images = {uid: hs for uid, hs in by_series.items() if any(h.has_pixels for h in hs)}
    if len(with_images) == 1:
        return next(iter(with_images.values()))
    raise DicomError(
        "several_series",
        f"{Path(headers[0].path).parent} holds {len(by_series)} series, and one makes a volume: "
        f"{_listed(by_series)}. Pass series=<the end of its UID>.",
        *(own[0].path for own in by_series.values()),
    )


def _listed(by_series: dict[str, list[Header]]) -> str:
    return "; ".join(
        f"{uid or '(no UID)'} ({len(own)} {own[0].text('Modality')} files, "
        f"{own[0].text('SeriesDescription') or 'no description'})"
        for uid, own in list(by_series.items())[:8]
    )


def _require_one_origin(headers: Sequence[Header]) -> None:
    """Refuse files of several patients, studies or modalities in one series."""
    for name, problem, what in (
        ("PatientID", "other_patient", "patient"),
        ("StudyInstanceUID", "other_study", "study"),
        ("Modality", "other_modality", "modality"),
    ):
        if len({header.values.get(name) for header in headers}) == 1:
            continue
        said = Counter(header.text(name) for header in headers)
        if len(said) == 1:
            continue
        usual = said.most_common(1)[0][0]
        other = next(header for header in headers if header.text(name) != usual)
        raise other.bad(
            problem,
            f"all files of a series must be of one {what}; by {name} this one is not of that of "
            f"the other {said[usual]}",
            "Two exports were mixed: nothing in this folder is safe until it is known which.",
        )


def _without_copies(headers: Sequence[Header], notes: list[str]) -> list[Header]:
    """Leave exact copies of an instance out; refuse two that differ under one UID."""
    if len({header.values.get("SOPInstanceUID", b"") for header in headers}) == len(headers):
        return list(headers)
    seen: dict[str, Header] = {}
    kept: list[Header] = []
    copies: list[str] = []
    for header in headers:
        uid = header.text("SOPInstanceUID")
        first = seen.setdefault(uid, header) if uid else header
        if first is header:
            kept.append(header)
        elif Path(first.path).read_bytes() == Path(header.path).read_bytes():
            copies.append(header.path)
        else:
            raise header.bad(
                "same_uid",
                f"an instance must be there once; this one and {first.path} have one "
                "SOPInstanceUID and differ",
            )
    if copies:
        notes.append(f"{len(copies)} exact copy or copies left out: {_few(copies)}")
    return kept


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
            f"{_few([f.header.path for f in rest])}"
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
    frames: Sequence[Frame], notes: Sequence[str], resample: bool, max_gap: int, deshear: bool
) -> Volume:
    grid = arrange(frames, resample=resample, max_gap=max_gap)
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
    slices = np.empty((len(grid.frames), grid.frames[0].rows, grid.frames[0].columns), np.float32)
    padding = read_slices(grid.frames, slices, air=air)
    notes = [*notes, *grid.notes, *remarks(grid, slices)]
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


def _few(paths: Iterable[str]) -> str:
    names = [Path(path).name for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
