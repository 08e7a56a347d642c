"""Which column of somebody's table is what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from medkit.data.table_files import PARQUET, load_table, table_chunks

NAMES: Mapping[str, Sequence[str]] = {
    "patient": ("patient", "patient_id", "subject", "subject_id"),
    "row": ("row", "row_id", "id", "encounter", "encounter_id", "stay_id"),
    "y": ("y", "y_true", "label", "target", "outcome"),
    "score": ("score", "y_score", "prob", "y_prob", "probability"),
    "seed": ("seed",),
    "site": ("site", "hospital", "center", "centre"),
    "method": ("method", "model", "recipe"),
    "test": ("test", "test_set"),
    "metric": ("metric",),
}
_TEXTS = ("patient", "row", "site", "method", "test")
_SEED_COLUMN = re.compile(r"(?:seed|run|score|prob)[ _-]?(\d+)", re.IGNORECASE)
LAYOUTS = (
    "Predictions are a table with patient, y and score (seed and site where there are several), "
    "one with patient, y, seed_0, seed_1, ..., or a folder with one such file per seed; published "
    "results are a table with method, test, seed and metric."
)


def roles_of(columns: Sequence[object], where: str) -> dict[str, str]:
    """Return role -> column; capitals don't count.

    Raises:
        ValueError: Where two columns could be the same.
    """
    found: dict[str, str] = {}
    for role, names in NAMES.items():
        fits = [str(column) for column in columns if str(column).strip().lower() in names]
        if len(fits) > 1:
            raise ValueError(
                f"{where} must have one column for {role}, and {fits} could each be it. Rename "
                "or drop those that are not meant."
            )
        if fits:
            found[role] = fits[0]
    return found


def seed_columns(columns: Sequence[object]) -> dict[str, str]:
    """Return seed -> column of a table with a column of scores per seed."""
    matches = {str(c): _SEED_COLUMN.fullmatch(str(c).strip()) for c in columns}
    return {str(int(match[1])): column for column, match in matches.items() if match}


def seed_of_name(path: Path) -> str | None:
    """Return the seed a file is named for, such as 3 of ``test-seed3.csv``; its last number."""
    named = re.findall(r"seed[ _-]?(\d+)", path.stem, re.IGNORECASE)
    numbers = named or re.findall(r"\d+", path.stem)
    return str(int(numbers[-1])) if numbers else None


def read(path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return a table under the names of its roles, ids as text, and its columns by seed."""
    columns = [str(name) for name in next(iter(table_chunks(path, rows=1))).columns]
    roles = roles_of(columns, str(path))
    frame = load_table(path, [roles[role] for role in _TEXTS if role in roles])
    if frame.empty:
        raise ValueError(f"{path} must have at least one row, and has none. Write it again.")
    frame = frame.rename(columns={column: role for role, column in roles.items()})
    if "seed" in frame:
        frame["seed"] = [_seed(one, path) for one in frame["seed"].tolist()]
    return frame, {} if "score" in roles else seed_columns(columns)


def tables_in(folder: Path) -> list[Path]:
    """Return the CSV and Parquet files of a folder, by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in {".csv", *PARQUET})


def _seed(value: object, path: Path) -> str:
    if value is None or value != value:
        raise ValueError(
            f"{path} must name the seed of each row, and a row has none. Fill it in, or drop the "
            "column where there was one training only."
        )
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
