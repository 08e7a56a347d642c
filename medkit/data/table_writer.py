"""A table written part by part, whole at the end or not there at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medkit.data.table_files import PARQUET
from medkit.record.files import sync_folder


class TableWriter:
    """Takes the parts of a table, which must have the same columns.

    Attributes:
        rows: How many were written.
    """

    def __init__(self, path: Path, *, parquet: bool) -> None:
        self.rows = 0
        self._path = path
        self._parquet = parquet
        self._handle: Any = None

    def write(self, part: pd.DataFrame) -> None:
        """Append rows."""
        if self._parquet:
            schema = None if self._handle is None else self._handle.schema
            table = pa.Table.from_pandas(part, schema=schema, preserve_index=False)
            if self._handle is None:
                self._handle = pq.ParquetWriter(self._path, table.schema)
            self._handle.write_table(table)
        else:
            if self._handle is None:
                self._handle = self._path.open("w", encoding="utf-8", newline="")
            part.to_csv(self._handle, index=False, header=self.rows == 0)
        self.rows += len(part)

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            self._handle.close()


@contextmanager
def writing(path: Path) -> Iterator[TableWriter]:
    """Write a CSV or Parquet file, by its suffix; after an exception it is as it was before.

    Raises:
        OSError: Where it can't be written, such as on a full disk.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    writer = TableWriter(temp, parquet=path.suffix.lower() in PARQUET)
    try:
        try:
            yield writer
        finally:
            writer.close()
        with temp.open("rb+") as handle:
            os.fsync(handle.fileno())
        temp.replace(path)
    except OSError as error:
        raise OSError(
            f"{path} must be a file that can be written, and can't be: {error.strerror or error}. "
            "Nothing was left there; make room, or name another place."
        ) from error
    finally:
        temp.unlink(missing_ok=True)
    sync_folder(path.parent)
