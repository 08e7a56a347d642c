"""Tables of candidates read and checked: an error names the file, the column and the row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["MEASURES", "read_table", "require_labels", "require_numbers", "require_text"]

MEASURES = ("diameter_mm", "air_hu", "muscle_hu")  # may be missing in some rows


def read_table(
    path: Path | str, needed: Sequence[str], *, text: Collection[str], hint: str
) -> pd.DataFrame:
    """Read a CSV with a header; empty cells and "nan" are missing, "NA" is a name.

    Args:
        path: The file.
        needed: Columns that it must have.
        text: Columns that are text, whatever they look like.
        hint: What can be done where a column is not there.

    Raises:
        ValueError: For a file that is no table, or lacks a column.
    """
    try:
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys(text, str),
            keep_default_na=False,
            na_values=["", "nan", "NaN"],
        )
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} must be a table (CSV) with the columns {', '.join(needed)}, and can't be read "
            f"as one ({error}). Write it again."
        ) from error
    missing = [name for name in needed if name not in table]
    if missing:
        raise ValueError(
            f"{path} must have the columns {', '.join(needed)}; {missing} are not among "
            f"{list(table.columns)}. {hint}"
        )
    return table


def require_numbers(
    table: pd.DataFrame, names: Collection[str], path: Path | str, *, or_missing: bool = False
) -> None:
    """Make columns numbers, in place.

    Args:
        table: As read.
        names: Columns; those that are not there are passed over.
        path: For the message.
        or_missing: Whether a cell may be empty.

    Raises:
        ValueError: For text, infinity, and empty cells where they may not be.
    """
    for name in (name for name in names if name in table):
        values = pd.to_numeric(table[name], errors="coerce").astype(float)
        bad = ~np.isfinite(values.to_numpy())
        if or_missing:
            bad &= table[name].notna().to_numpy()
        _refuse(table, name, bad, path, "a finite number" + " or nothing" * or_missing)
        table[name] = values


def require_labels(table: pd.DataFrame, name: str, path: Path | str) -> None:
    """Make a column whole numbers 0 and 1, in place.

    Raises:
        ValueError: For anything else, and for a table without rows.
    """
    if table.empty:
        raise ValueError(
            f"{path} must have a row for each candidate; found none below the header. Write it "
            "again."
        )
    values = pd.to_numeric(table[name], errors="coerce")
    _refuse(table, name, ~values.isin([0, 1]).to_numpy(), path, "0 or 1 (1: a nodule)")
    table[name] = values.astype(np.int64)


def require_text(table: pd.DataFrame, names: Collection[str], path: Path | str) -> None:
    """Refuse empty cells in columns that say whose or whence a row is.

    Raises:
        ValueError: For the first of them.
    """
    for name in (name for name in names if name in table):
        empty = table[name].fillna("").astype(str).str.strip() == ""
        _refuse(table, name, empty.to_numpy(), path, "given")


def _refuse(
    table: pd.DataFrame, name: str, bad: NDArray[np.bool_], path: Path | str, wanted: str
) -> None:
    if not bad.any():
        return
    at = int(bad.argmax())
    found = table[name].iloc[at]
    said = "is empty" if pd.isna(found) or found == "" else f"has '{found}'"
    others = int(bad.sum()) - 1
    more = f", and {others} more of {len(table)} rows are no better" if others else ""
    raise ValueError(
        f"{path}: {name} must be {wanted} in each row; row {at + 1} below the header {said}{more}. "
        "Mend or drop what is wrong."
    )
