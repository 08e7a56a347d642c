"""A Parquet file, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from medkit.data.table_files import PARQUET, load_table, parquet_file


class ParquetColumns:
    """What ``pd.read_parquet`` gives, each column read when it is asked for, and not kept.

    A table of float64 as a whole DataFrame is twice the float32 it becomes, and twice that again
    while it is read.

    Attributes:
        columns: Names, in the order of the file; an index that pandas stored is none of them.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = parquet_file(path)
        schema = self._file.schema_arrow
        stored = (schema.pandas_metadata or {}).get("index_columns", [])
        index = [name for name in stored if isinstance(name, str)]
        self.columns = [name for name in schema.names if name not in index]

    def __len__(self) -> int:
        rows: int = self._file.metadata.num_rows
        return rows

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> pd.Series:
        table = self._file.read([name], use_threads=False)
        # by name: next to a column "lab", one named "lab.first" comes along
        column: pd.Series = table.select([name]).to_pandas()[name].reset_index(drop=True)
        del table
        pa.default_memory_pool().release_unused()
        return column


def open_table(path: str | Path, texts: Sequence[str] = ()) -> pd.DataFrame | ParquetColumns:
    """Return the columns of a Parquet file unread; any other table as ``load_table`` reads it."""
    path = Path(path)
    if path.is_file() and path.suffix.lower() in PARQUET:
        return ParquetColumns(path)
    return load_table(path, texts)
