"""A known truth beside a table, matched to its rows or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.data import columns
from medkit.data.contract.cells import rows_of
from medkit.data.table_files import load_table
from medkit.data.tables import Table


def read_truth(path: str | Path, table: Table) -> NDArray[np.float64]:
    """Return the true probability of each row of a table, ``(N,)``.

    Args:
        path: CSV or Parquet, one row per row of the table and in its order. The first column is
            the row's number, from 0, or its patient's id; the second P(y = 1 | the row).
        table: As read, ``dm.table``.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When its rows are not those of the table, or it holds no probabilities.
    """
    frame = load_table(path)
    n = len(table.y)
    without = 'Where no truth is known, pass -p truth_path "".'
    if len(frame) != n:
        raise ValueError(
            f"truth_path must have a row for each row of csv_path: {path} has {len(frame):,} rows, "
            f"the table {n:,}. {without}"
        )
    if len(frame.columns) < 2:
        raise ValueError(
            f"{path} must have two columns, the row (or patient) and its true probability; found "
            f"{list(frame.columns)}. {without}"
        )
    first, second = frame.columns[:2]
    ids = columns.texts(load_table(path, [first])[first], str(path))  # 007 is not 7
    wrong = [ids != own for own in (np.arange(n).astype(str), table.patient)]
    if all(other.any() for other in wrong):
        raise ValueError(
            f"{path}: column {first!r} must hold the row's number, from 0, or its patient's id, in "
            f"the order of the table; it holds others in {rows_of(min(wrong, key=np.sum))}. Is it "
            f"the truth of another table? {without}"
        )
    prob = pd.to_numeric(frame[second], errors="coerce").to_numpy(np.float64)
    bad = ~((prob >= 0) & (prob <= 1))
    if bad.any():
        raise ValueError(
            f"{path}: column {second!r} must hold probabilities, from 0 to 1; it does not in "
            f"{rows_of(bad)}. Put the column of the true probability second."
        )
    return prob
