from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medkit.data.parquet import ParquetColumns, open_table
from medkit.data.tables import TableSpec, read_table


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


def test_what_is_no_parquet_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"t\.parquet must be a Parquet file.*must be named \.csv"):
        open_table(path)


def test_other_tables_are_opened_as_ever(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,b\n007,2\n")
    table = open_table(tmp_path / "t.csv", ["id"])
    assert isinstance(table, pd.DataFrame)
    assert table["id"].tolist() == ["007"]
    with pytest.raises(FileNotFoundError, match="must be a CSV or Parquet file"):
        open_table(tmp_path / "none.parquet")


def test_a_table_is_the_same_from_a_file_and_from_memory(tmp_path: Path) -> None:
    table = frame().drop(columns="seen").assign(died=[0, 1, 0], flag=[True, False, True])
    table.to_parquet(tmp_path / "t.parquet")
    spec = TableSpec("died", site="site", missing_codes={"count": [2]})
    one, other = read_table(tmp_path / "t.parquet", spec), read_table(table, spec)
    assert one.features == other.features == ("lab", "lab.first", "count", "flag")
    np.testing.assert_array_equal(one.values, other.values)
    for name in ("y", "patient", "site"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
