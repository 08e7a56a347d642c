"""Patches cut once from series of CT, kept on the disk under a key of all they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from medkit.data.candidate_files import CandidateFiles
from medkit.data.candidate_tables import (
    MEASURES,
    read_table,
    require_labels,
    require_numbers,
    require_text,
)
from medkit.data.patches import AIR_HU, patches_at
from medkit.dicom import DicomError, read_volume
from medkit.record.files import read_json, sha256_file, sha256_text, write_json

__all__ = ["PatchStore", "cut_patches", "is_patches", "open_patches"]

_VERSION = 1  # of what is cut; another one, another key
_VOLUMES, _TABLE, _ABOUT = "volume_hu.npy", "candidates.csv", "patches.json"
_SUMS = "SHA256SUMS"
_NEEDED = ("candidate", "exam", "site", "y")
_TEXT = ("candidate", "exam", "patient", "site", "kind", "series", "problem")
_MOST_OUTSIDE = 0.5
_OUTSIDE, _NOT_FINITE = "outside of its volume", "not finite"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PatchStore:
    """Patches and what is known of them.

    Attributes:
        volume_hu: int16 ``(N, S, S, S)``, mapped from the disk [HU]; rows towards the back,
            columns to the left, slices to the head.
        table: A row per patch: ``candidate``, ``exam``, ``patient``, ``site``, ``y``; ``problem``,
            "" for a sound one; and ``air_hu``, ``muscle_hu``, ``x``, ``y_lps``, ``z``, ``kind``,
            ``diameter_mm``, ``series`` where they are known.
        spacing_mm: Of the voxels.
        sha256: Of the patches and their table, or of all that cut ones depend on.
    """

    volume_hu: NDArray[np.int16]
    table: pd.DataFrame
    spacing_mm: float
    sha256: str


def is_patches(folder: Path | str) -> bool:
    """Whether a folder holds patches and their table."""
    return all((Path(folder) / name).is_file() for name in (_VOLUMES, _TABLE))


def open_patches(folder: Path | str, *, spacing_mm: float | None = None) -> PatchStore:
    """Open a folder of patches, the kit's own or one of ``medkit.synth.chest_ct``.

    All bytes are hashed, some 0.4 s for 300 MB: another patch is another ``sha256``.

    Args:
        folder: With ``volume_hu.npy`` and ``candidates.csv``: ``candidate``, ``exam``, ``site``,
            ``y`` and what else is known of each patch.
        spacing_mm: Of the voxels, where the folder doesn't say it; None: 1 mm.

    Raises:
        FileNotFoundError: Where there are none.
        ValueError: For a table that is not what it must be, and patches that are not its own.
    """
    folder = Path(folder)
    if not is_patches(folder):
        raise FileNotFoundError(
            f"{folder} must hold {_VOLUMES} and {_TABLE}, and does not. Name the folder that "
            "medkit.synth.chest_ct wrote, or give images_dir= with a candidates.csv of LUNA16."
        )
    sums = {name: sha256_file(folder / name) for name in (_VOLUMES, _TABLE)}
    if (folder / _SUMS).is_file():
        written = (line.split() for line in (folder / _SUMS).read_text().splitlines())
        for digest, name in (words for words in written if len(words) == 2):
            if sums.get(name, digest) != digest:
                _log.warning("%s was changed after %s was written", folder / name, _SUMS)
    digest = sha256_text("".join(f"{sums[name]}  {name}\n" for name in sums))
    return _opened(folder, digest, spacing_mm)


def _opened(folder: Path, digest: str, spacing_mm: float | None) -> PatchStore:
    path = folder / _TABLE
    table = read_table(path, _NEEDED, text=_TEXT, hint="Rename them in the table.")
    require_text(table, ("candidate", "exam", "patient", "site"), path)
    require_labels(table, "y", path)
    require_numbers(table, ("x", "y_lps", "z"), path)
    require_numbers(table, MEASURES, path, or_missing=True)
    problem = table.get("problem", pd.Series("", table.index))
    table["problem"] = problem.astype(object).where(problem.notna(), "")
    if "patient" not in table:
        table["patient"] = table["exam"]
    about: Mapping[str, Any] = read_json(folder / _ABOUT) if (folder / _ABOUT).is_file() else {}
    ours = bool(about) or (folder / _SUMS).is_file()
    advice = (
        "The folder is torn: remove it, and have it made again."
        if ours
        else "Leave out the rows without a patch, or add their patches."
    )
    must = f"{folder}: {_VOLUMES} must hold a patch (S, S, S) for each row of {_TABLE}"
    try:
        volume = np.load(folder / _VOLUMES, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{must}, and can't be read ({error}). {advice}") from error
    if volume.ndim != 4 or len(volume) != len(table):
        raise ValueError(f"{must}, {len(table)}; found {volume.shape}. {advice}")
    known = about.get("spacing_mm", 1.0 if ours else spacing_mm)
    if spacing_mm is not None and spacing_mm != known:
        raise ValueError(
            f"{folder} holds patches of {known} mm voxels, which are used as they are; got "
            f"spacing_mm={spacing_mm}. Leave it out, or cut others from the series."
        )
    return PatchStore(volume, table, float(known or 1.0), digest)


def cut_patches(
    files: CandidateFiles,
    *,
    spacing_mm: float = 1.0,
    size: int = 24,
    cache_dir: Path | str | None = None,
    reader: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> PatchStore:
    """Cut a patch around each candidate, or open those cut before.

    They are kept under a key of the table's content, of the content of every file of every series
    in it (as they are hashed once at intake), of the settings and of the version of this code: a
    changed byte, another spacing or another reader option is another key, so they are never stale.

    A series that the reader refuses, a candidate most of whose patch lies outside its volume, and
    one without finite values stay in the table with their ``problem``.

    Args:
        files: The candidates and where their series are.
        spacing_mm: Of the patches.
        size: Voxels along an axis.
        cache_dir: Where they are kept; None: ``medkit/patches`` in the user's cache folder.
        reader: Options of ``read_series``, such as ``{"resample": True}``.
        progress: Whether a bar is shown.

    Raises:
        ValueError: Where no series can be read.
    """
    root = Path(cache_dir) if cache_dir is not None else _usual_cache()
    root.mkdir(parents=True, exist_ok=True)
    reader = dict(reader or {})
    key = _key(files, root, {"spacing_mm": spacing_mm, "size": size, "reader": reader}, progress)
    folder = root / key[:24]
    if not (folder / _ABOUT).is_file():
        temp = Path(tempfile.mkdtemp(prefix=".cutting_", dir=root))
        try:
            _cut_into(temp, files, spacing_mm, size, reader, progress)
            write_json(temp / _ABOUT, {"sha256": key, "spacing_mm": spacing_mm, "size": size})
            try:
                temp.rename(folder)
            except OSError:  # another process was first, with the same bytes
                if not (folder / _ABOUT).is_file():
                    raise
        finally:
            shutil.rmtree(temp, ignore_errors=True)
    return _opened(folder, key, None)


def _cut_into(
    folder: Path,
    files: CandidateFiles,
    spacing_mm: float,
    size: int,
    reader: Mapping[str, Any],
    progress: bool,
) -> None:
    series = files.table["series"].to_numpy().astype(str)
    problem: NDArray[np.object_] = np.full(len(series), "", object)
    shape = (len(series), size, size, size)
    out = np.lib.format.open_memmap(folder / _VOLUMES, mode="w+", dtype=np.int16, shape=shape)
    names = sorted(set(series.tolist()))
    read = 0
    for name in tqdm(names, "cutting patches", unit="series", disable=not progress):
        rows = np.flatnonzero(series == name)
        try:
            volume = read_volume(files.sources[name], **_for(files, name, reader))
        except DicomError as error:
            problem[rows] = error.problem
            out[rows] = AIR_HU
            _log.warning("%s; its %d candidate(s) are left out", error, len(rows))
            continue
        if files.beside.get(name):  # a slice at an end that is damaged leaves no gap
            _log.warning("%s: %s", name, "; ".join(volume.notes))
        read += 1
        places = files.table[["x", "y_lps", "z"]].to_numpy(np.float64)[rows] * [-1, -1, 1]
        cut = patches_at(volume, places, spacing_mm=spacing_mm, size=size)
        finite = np.isfinite(cut).all(axis=(1, 2, 3))
        problem[rows[(cut == AIR_HU).mean(axis=(1, 2, 3)) > _MOST_OUTSIDE]] = _OUTSIDE
        problem[rows[~finite]] = _NOT_FINITE
        limits = np.iinfo(np.int16)
        out[rows] = np.clip(np.rint(np.nan_to_num(cut, nan=AIR_HU)), limits.min, limits.max)
    if not read:
        raise ValueError(
            f"none of {len(names)} series could be read: {sorted(set(problem.tolist()))}. Read one "
            "by itself with medkit.dicom.read_series to see why."
        )
    out.flush()
    table = files.table.assign(problem=problem)
    table.to_csv(folder / _TABLE, index=False)


def _for(files: CandidateFiles, series: str, reader: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reader's options where they apply: those of series are for DICOM."""
    if not isinstance(files.sources[series], tuple):
        return {}
    return {**reader, "beside": files.beside.get(series, ())}


def _key(files: CandidateFiles, root: Path, settings: Mapping[str, Any], progress: bool) -> str:
    digests = files.digests(root / "hashes.json", progress=progress)
    whole = {"version": _VERSION, **settings, "table": files.digest(), "series": digests}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _usual_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "medkit" / "patches"
