from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medkit.data.parquet import ParquetColumns


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient_id": ["007", "7", "a"],
            "site": pd.Categorical(["x", "y", "x"]),
            "lab": [1.5, np.nan, 3.0],
            "lab.first": pd.array([1, None, 3], dtype="Int64"),
            "count": np.array([1, 2, 3], np.int16),
            "flag": [True, False, None],
            "seen": pd.to_datetime(["2020-01-01", None, "2020-01-03"]),
        }
    )


@pytest.mark.parametrize("index", [None, "patient_id", "range"])
def test_columns_are_those_of_pandas(index: str | None, tmp_path: Path) -> None:
    path, table = tmp_path / "t.parquet", frame()
    if index == "range":
        table.index = pd.RangeIndex(5, 11, 2)
    (table.set_index(index) if index == "patient_id" else table).to_parquet(path)
    whole, columns = pd.read_parquet(path), ParquetColumns(path)
    assert columns.columns == whole.columns.tolist()
    assert len(columns) == len(whole)
    for name in whole.columns:
        pd.testing.assert_series_equal(columns[name], whole[name].reset_index(drop=True))


def test_a_stored_index_and_unknown_names_are_no_columns(tmp_path: Path) -> None:
    frame().set_index("patient_id").to_parquet(tmp_path / "t.parquet")
    columns = ParquetColumns(tmp_path / "t.parquet")
    assert "patient_id" not in columns
    assert "nothing" not in columns
    assert "lab" in columns


def test_a_file_that_pandas_did_not_write_is_read_too(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array([1.0, None]), "b": pa.array(["x", "y"])})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1)
    columns = ParquetColumns(tmp_path / "t.parquet")
    np.testing.assert_array_equal(columns["a"], [1.0, np.nan])
    assert columns["b"].tolist() == ["x", "y"]


def test_a_name_that_stands_there_twice_is_seen_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "t.parquet")
    assert ParquetColumns(tmp_path / "t.parquet").columns == ["a", "a"]
