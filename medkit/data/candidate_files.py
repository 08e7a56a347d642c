"""Tables of nodule candidates as LUNA16 has them, and the files of the series they are in."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from medkit.data.candidate_tables import (
    MEASURES,
    read_table,
    require_labels,
    require_numbers,
    require_text,
)
from medkit.dicom.index import Index, scan
from medkit.dicom.series import files_below
from medkit.record.files import read_json, sha256_file, write_json
from medkit.record.pseudonym import pseudonym

__all__ = ["CandidateFiles", "find_candidates"]

_NAMES = {"seriesuid": "series", "coordX": "x", "coordY": "y_lps", "coordZ": "z", "class": "y"}
_OPTIONAL = ("site", "patient_id", "exam", "kind", "diameter_mm", "air_hu", "muscle_hu")
_VOLUMES = (".mhd", ".mha", ".nii", ".nii.gz")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CandidateFiles:
    """Candidates, and where their series are.

    Attributes:
        table: A row per candidate: ``candidate``, ``series``, ``exam``, ``patient`` (pseudonyms),
            ``site``, ``y``, ``x``, ``y_lps``, ``z`` [mm], ``kind``, ``diameter_mm``, and where the
            file has them ``air_hu`` and ``muscle_hu``.
        sources: Series -> its file, or a tuple of DICOM files.
        index: Of the DICOM files; None where there are none.
        beside: Series -> files of the same folders that are in none, perhaps its damaged slices.
    """

    table: pd.DataFrame
    sources: Mapping[str, str | tuple[str, ...]]
    index: Index | None = field(default=None)
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def digest(self) -> str:
        """Return a SHA-256 of the table."""
        return hashlib.sha256(self.table.to_csv(index=False).encode()).hexdigest()

    def digests(self, kept: Path, *, progress: bool = True) -> dict[str, str]:
        """Return series -> SHA-256 over its files; a file is hashed again only where it changed.

        Args:
            kept: File in which sizes, times and hashes are remembered.
            progress: Whether a bar is shown.
        """
        known = read_json(kept) if kept.is_file() else {}
        needed = [path for source in self.sources.values() for path in _files_of(source)]
        now: dict[str, list[object]] = {}
        for path in tqdm(needed, "hashing", unit="file", disable=not progress or len(needed) < 50):
            stat = os.stat(path)
            entry = known.get(path)
            if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
                entry = [stat.st_size, stat.st_mtime_ns, sha256_file(path)]
            now[path] = entry
        if any(known.get(path) != entry for path, entry in now.items()):
            write_json(kept, known | now)
        return {
            series: hashlib.sha256(
                "\n".join(str(now[path][2]) for path in _files_of(source)).encode()
            ).hexdigest()
            for series, source in sorted(self.sources.items())
        }


def find_candidates(
    candidates_csv: Path | str,
    images_dir: Path | str,
    *,
    annotations_csv: Path | str | None = None,
    progress: bool = True,
) -> CandidateFiles:
    """Read a table of candidates and find the series it names.

    Args:
        candidates_csv: ``seriesuid, coordX, coordY, coordZ`` (LPS [mm]), ``class`` (1: a nodule),
            and, where known, ``site``, ``patient_id``, ``exam``, ``kind``, ``diameter_mm``, and
            ``air_hu`` and ``muscle_hu``: means measured in the exam's windpipe and muscle. Without
            ``site`` the scanners' manufacturers stand for the sites, which a warning says.
        images_dir: Tree with the series: DICOM, by SeriesInstanceUID; or ``<seriesuid>.mhd``,
            ``.mha``, ``.nii`` or ``.nii.gz``. Where a series is there both ways, DICOM is read.
        annotations_csv: ``seriesuid, coordX, coordY, coordZ, diameter_mm``: a positive candidate
            within a nodule's radius gets its diameter.
        progress: Whether bars are shown.

    Raises:
        ValueError: For a table without these columns, for cells that are not what they must be
            (file, column and row are named), and for series that are not there.
    """
    table = _read(candidates_csv)
    sources: dict[str, str | tuple[str, ...]] = {}
    for path in files_below(images_dir):
        stem = _stem(path)
        if stem is not None:
            sources[stem] = path
    index = scan(images_dir, progress=progress)
    by_uid = {series.uid: series for series in index.series}
    sources |= {uid: series.paths for uid, series in by_uid.items()}
    wanted = sorted(set(table["series"]))
    missing = [uid for uid in wanted if uid not in sources]
    if missing:
        raise ValueError(
            f"{images_dir} must hold each series of {candidates_csv}; {len(missing)} of "
            f"{len(wanted)} are not there, such as {missing[0]}. Give the folder of the images, or "
            "leave these rows out of the table."
        )
    said = {uid: series.patient for uid, series in by_uid.items()}
    vendor = {uid: series.said.get("Manufacturer", "") for uid, series in by_uid.items()}
    patient = table.get("patient_id", table["series"].map(said)).fillna("")
    patient = patient.where(patient != "", table["series"])
    exam = table.get("exam", table["series"])
    table["patient"], table["exam"] = patient.map(pseudonym), exam.map(pseudonym)
    if "site" not in table:
        table["site"] = table["series"].map(vendor).fillna("").replace("", "unknown")
        _log.warning(
            "%s has no column site: the manufacturers stand for the sites, %s",
            candidates_csv,
            sorted(set(table["site"])),
        )
    table["candidate"] = [f"c{number:06d}" for number in range(len(table))]
    if annotations_csv is not None:
        _measure(table, annotations_csv)
    for name, nothing in (("kind", ""), ("diameter_mm", np.nan)):
        if name not in table:
            table[name] = nothing
    table = table.drop(columns=["patient_id"], errors="ignore")
    beside = {uid: series.beside for uid, series in by_uid.items()}
    return CandidateFiles(table, {uid: sources[uid] for uid in wanted}, index, beside)


def _read(path: Path | str) -> pd.DataFrame:
    table = read_table(
        path,
        tuple(_NAMES),
        text=("seriesuid", "patient_id", "site", "exam", "kind"),
        hint="Rename them in the table: these are the names in LUNA16's.",
    )
    table = table[[*_NAMES, *(name for name in _OPTIONAL if name in table)]].copy()
    require_text(table, ("seriesuid", "site", "exam"), path)
    require_numbers(table, ("coordX", "coordY", "coordZ"), path)
    require_numbers(table, MEASURES, path, or_missing=True)
    require_labels(table, "class", path)
    return table.rename(columns=_NAMES)


def _measure(table: pd.DataFrame, annotations_csv: Path | str) -> None:
    """Give positive candidates the diameter of the nodule they lie in."""
    needed = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
    rename = "Rename them in the table: these are the names in LUNA16's."
    nodules = read_table(annotations_csv, needed, text=("seriesuid",), hint=rename)
    require_numbers(nodules, needed[1:], annotations_csv)
    diameter = table.get("diameter_mm", pd.Series(np.nan, table.index)).astype(float).copy()
    of_series = {str(uid): own for uid, own in nodules.groupby("seriesuid")}
    for row in table.index[(table["y"] == 1) & diameter.isna()]:
        found = of_series.get(str(table.at[row, "series"]))
        if found is None:
            continue
        place = table.loc[row, ["x", "y_lps", "z"]].to_numpy(np.float64)
        apart = np.linalg.norm(found[[*needed[1:4]]].to_numpy(np.float64) - place, axis=1)
        nearest = int(apart.argmin())
        if apart[nearest] <= found["diameter_mm"].iloc[nearest] / 2:
            diameter[row] = found["diameter_mm"].iloc[nearest]
    table["diameter_mm"] = diameter


def _stem(path: str) -> str | None:
    name = os.path.basename(path)
    for ending in _VOLUMES:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return None


def _files_of(source: str | tuple[str, ...]) -> list[str]:
    """Return the files of a series; with a header its data file."""
    if isinstance(source, tuple):
        return sorted(source)
    beside = Path(source)
    if beside.suffix.lower() != ".mhd":
        return [source]
    data = [p for p in (beside.with_suffix(".raw"), beside.with_suffix(".zraw")) if p.is_file()]
    return [source, *map(str, data)]
