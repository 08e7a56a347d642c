"""Which files make the series: those of one patient and study, each once; what was left out."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medkit.dicom.errors import DicomError
from medkit.dicom.header import Header, read_header

__all__ = ["Selection", "Source", "few", "files_below", "select"]

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass
class Selection:
    """The files of one series.

    Attributes:
        headers: One an instance, those without pixels too.
        lost: Files beside them that cannot be read and may be slices of the series.
        notes: What was left out.
    """

    headers: list[Header]
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def select(source: Source, series: str | None, beside: Sequence[str] = ()) -> Selection:
    """Read the headers of a source and return those of one series.

    Args:
        source: See :func:`~medkit.dicom.series.read_series`.
        series: The end of its UID; None: there must be one only.
        beside: Files of the same folders that are known to be in no series.

    Raises:
        DicomError: For several series, and for one of several patients, studies or modalities.
        FileNotFoundError: For a source that is not there.
    """
    several = [source] if isinstance(source, str | os.PathLike) else list(source)
    where = os.fspath(several[0]) + (f" and {len(several) - 1} more" if len(several) > 1 else "")
    found = _headers(several, where)
    _choose(found, series, where)
    _require_one_origin(found.headers)
    _leave_copies_out(found)
    if beside:
        found.notes.append(f"{len(beside)} file(s) beside, of no series, left out: {few(beside)}")
        found.lost += beside
    if found.lost:
        kinds = {Path(header.path).suffix for header in found.headers}  # a README is no slice
        found.lost = [path for path in found.lost if Path(path).suffix in kinds]
    return found


def _headers(several: Sequence[str | os.PathLike[str]], where: str) -> Selection:
    """Read the headers of all files; those that are no DICOM are noted."""
    paths: list[str] = []
    for one in several:
        if os.path.isdir(one):
            paths += files_below(one)
        elif os.path.exists(one):
            paths.append(os.fspath(one))
        else:
            raise FileNotFoundError(f"{os.fspath(one)} must be a folder or a DICOM file; not there")
    alone = len(paths) == 1
    found = Selection([])
    for path in paths:
        try:
            found.headers.append(read_header(path))
        except DicomError as error:
            if error.problem != "not_dicom" or alone:
                raise
            found.lost.append(path)
    if found.lost:
        found.notes.append(
            f"{len(found.lost)} file(s) that are no DICOM left out: {few(found.lost)}"
        )
    if not found.headers:
        raise DicomError(
            "no_images", f"{where} must hold DICOM files; found none of {len(paths)} file(s)"
        )
    return found


def files_below(folder: str | os.PathLike[str]) -> list[str]:
    """Return the files of a folder and below it, by name; links to folders are not followed."""
    found: list[str] = []
    for where, folders, names in os.walk(folder):
        folders.sort()
        found += [os.path.join(where, name) for name in sorted(names)]
    return found


def _choose(found: Selection, wanted: str | None, where: str) -> None:
    """Keep the headers of one series, and note those that say no series or have no images."""
    headers = found.headers
    if wanted is None and len({header.values.get("SeriesInstanceUID") for header in headers}) == 1:
        return
    by_series: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        by_series[header.text("SeriesInstanceUID")].append(header)
    if wanted is not None:
        chosen = [uid for uid in by_series if uid.endswith(wanted)]
        if len(chosen) != 1:
            raise ValueError(
                f"series must be the end of one SeriesInstanceUID of {len(by_series)}, got "
                f"{wanted!r}, which fits {len(chosen)}: {_listed(by_series)}"
            )
    else:
        chosen = [uid for uid, own in by_series.items() if any(one.has_pixels for one in own)]
        if len(chosen) != 1:
            raise DicomError(
                "several_series",
                f"{where} holds {len(by_series)} series, and one makes a volume: "
                f"{_listed(by_series)}. Pass series=<the end of its UID>.",
                *(own[0].path for own in by_series.values()),
            )
    found.headers = by_series.pop(chosen[0])
    unnamed = [header.path for header in by_series.pop("", [])]
    if unnamed:
        found.notes.append(
            f"{len(unnamed)} file(s) without a SeriesInstanceUID left out, perhaps damaged slices "
            f"of this series: {few(unnamed)}"
        )
        found.lost += unnamed
    others = [header.path for own in by_series.values() for header in own]
    if others and wanted is None:
        found.notes.append(
            f"{len(others)} file(s) of other series, without images, left out: {few(others)}"
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


def _leave_copies_out(found: Selection) -> None:
    """Leave exact copies of an instance out; refuse two that differ under one UID."""
    headers = found.headers
    if len({header.values.get("SOPInstanceUID", b"") for header in headers}) == len(headers):
        return
    seen: dict[str, Header] = {}
    found.headers = []
    copies: list[str] = []
    for header in headers:
        uid = header.text("SOPInstanceUID")
        first = seen.setdefault(uid, header) if uid else header
        if first is header:
            found.headers.append(header)
        elif Path(first.path).read_bytes() == Path(header.path).read_bytes():
            copies.append(header.path)
        else:
            raise header.bad(
                "same_uid",
                f"an instance must be there once; this one and {first.path} have one "
                "SOPInstanceUID and differ",
            )
    if copies:
        found.notes.append(f"{len(copies)} exact copy or copies left out: {few(copies)}")


def few(paths: Iterable[str]) -> str:
    """Return the names of the first three, and how many more there are."""
    names = [Path(path).name for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
