"""Tables of labels that go with de-identified files: their ids become the same pseudonyms.

Nobody can tell a made-up name from a label, so a column stays only if it is one of LUNA16's and
holds numbers, or if it is named; all others are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from medkit.dicom.deidentify_profile import Profile
from medkit.record.files import write_bytes

__all__ = ["read_tables", "write_table"]

_NUMBERS = ("coordX", "coordY", "coordZ", "class", "diameter_mm")


def read_tables(paths: Iterable[str | os.PathLike[str]]) -> dict[str, pd.DataFrame]:
    """Return CSV files by their names, all cells as text.

    Raises:
        FileNotFoundError: Where one is not there.
        ValueError: For what is no table, and for two of one name.
    """
    tables: dict[str, pd.DataFrame] = {}
    for path in map(Path, paths):
        if path.name in tables:
            raise ValueError(f"tables must have names of their own, found two {path.name}. Rename.")
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            if not isinstance(table.index, pd.RangeIndex):  # columns would have others' cells
                raise ValueError("its rows have more cells than there are columns")
        except ValueError as error:
            raise ValueError(f"{path} must be a CSV table ({error}). Save it again.") from error
        tables[path.name] = table.fillna("")
    return tables


def write_table(
    table: pd.DataFrame, out: Path, profile: Profile, known: set[str], keep: Sequence[str]
) -> str:
    """Write the rows of files that were written, ids as pseudonyms; return what went.

    Args:
        table: Of texts.
        out: The file to write.
        profile: Makes the pseudonyms.
        known: Those of the patients, studies, series and instances that were written.
        keep: Columns that a person has seen to say nothing of a patient.

    Raises:
        ValueError: Where no column has ids of these files.
    """
    ids: dict[str, pd.Series] = {}
    for name in table:
        for change in (profile.uid, profile.patient):
            made = table[name].str.strip().map(change)
            if made.isin(known).any():  # then all of it is ids: none stays as it was
                ids[str(name)] = made
    if not ids:
        raise ValueError("no column has ids of these files")
    stay = [
        name
        for name in table
        if name in ids or name in keep or (name in _NUMBERS and _has_numbers(table[name]))
    ]
    there = pd.DataFrame(ids).isin(known).all(axis=1)
    text = table.assign(**ids).loc[there, stay].to_csv(index=False, lineterminator="\n")
    write_bytes(out, text.encode())
    gone = ", ".join(str(name) for name in table if name not in stay)
    return f"{there.sum()} of {len(table)} rows stay; columns left out: {gone or 'none'}"


def _has_numbers(cells: pd.Series) -> bool:
    return bool(pd.to_numeric(cells[cells != ""], errors="coerce").notna().all())
