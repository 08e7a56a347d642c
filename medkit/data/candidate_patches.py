"""The patches around candidates: cut from their series, or opened where that was done before."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medkit.data.candidate_files import find_candidates
from medkit.data.patch_store import PatchStore, cut_patches, is_patches, open_patches

__all__ = ["SIZE", "SPACING_MM", "count_lost", "patches_of"]

SPACING_MM, SIZE = 1.0, 24
_log = logging.getLogger(__name__)


def patches_of(
    candidates: str | Path,
    *,
    images_dir: str | None,
    annotations_csv: str | None,
    spacing_mm: float,
    size: int,
    cache_dir: str | None,
    reader: Mapping[str, Any],
) -> PatchStore:
    """Return the patches of a folder, or those that a table of candidates asks for.

    Args:
        candidates: Folder of patches; or a table, or a folder with a ``candidates.csv``.
        images_dir: Folder of the table's series.
        annotations_csv: See :func:`~medkit.data.candidate_files.find_candidates`.
        spacing_mm: Of the patches, like all below where they are cut.
        size: Voxels along an axis.
        cache_dir: Where patches are kept.
        reader: Options of the reader of series.

    Raises:
        ValueError: For neither of both, and for settings that count only where patches are cut.
    """
    path = Path(candidates)
    if is_patches(path) or (path.is_dir() and images_dir is None):
        of_cutting = {"images_dir": images_dir, "annotations_csv": annotations_csv}
        given = [name for name, value in {**of_cutting, "reader": reader}.items() if value]
        return _opened(path, given, spacing_mm=spacing_mm, size=size)
    table = path / "candidates.csv" if path.is_dir() else path
    if images_dir is None or not table.is_file():
        raise ValueError(
            "candidates must be a folder of patches, or a table (a folder with a "
            f"candidates.csv) with images_dir=, the folder of its series; got {path} and "
            f"images_dir={images_dir}. Pass one of both."
        )
    files = find_candidates(table, images_dir, annotations_csv=annotations_csv)
    return cut_patches(files, spacing_mm=spacing_mm, size=size, cache_dir=cache_dir, reader=reader)


def count_lost(problem: Any, *, most: float) -> dict[str, int]:
    """Return reason -> candidates left out for it.

    Args:
        problem: Series of reasons, "" for a candidate that is whole.
        most: Share of them that may be left out.

    Raises:
        ValueError: Where more are.
    """
    reasons = problem[problem != ""]
    lost = {str(k): int(v) for k, v in reasons.value_counts().items()}
    if len(reasons) / max(len(problem), 1) > most:
        raise ValueError(
            f"at most {most:.0%} of the candidates may be left out, and {len(reasons)} of "
            f"{len(problem)} would be: {lost}. Mend their series, or raise max_lost."
        )
    if lost:
        _log.warning("%d of %d candidates left out: %s", len(reasons), len(problem), lost)
    return lost


def _opened(folder: Path, given: list[str], *, spacing_mm: float, size: int) -> PatchStore:
    """Open a folder of patches; refuse settings that only count where patches are cut."""
    store = open_patches(folder, spacing_mm=None if spacing_mm == SPACING_MM else spacing_mm)
    found = store.volume_hu.shape[1]
    if size not in (SIZE, found):
        given = [*given, "size"]
    if given:
        raise ValueError(
            f"{folder} holds patches that are cut already, of {found} voxels along an axis, and "
            f"{', '.join(given)} would change nothing. Leave it out, or pass the "
            "candidates.csv that they are cut from with images_dir=."
        )
    return store
