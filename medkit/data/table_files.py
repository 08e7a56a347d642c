"""Tables from CSV and Parquet files, as they are."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

PARQUET = {".parquet", ".pq"}
_SEPARATORS = (";", "\t", "|")  # of CSV files that are separated by other than commas


def load_table(path: str | Path, texts: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV or Parquet file as it is; columns named in ``texts`` stay text (007 is not 7).

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is empty, no table, or names a column twice.
    """
    path = table_file(path)
    if path.suffix.lower() in PARQUET:
        return pd.read_parquet(path)
    with _explained(path):
        return pd.read_csv(path, **_csv_options(path, texts))


def table_chunks(
    path: str | Path, texts: Sequence[str] = (), *, rows: int = 65_536
) -> Iterator[pd.DataFrame]:
    """Yield a CSV or Parquet file some rows at a time, as :func:`load_table` reads it.

    A column's type is guessed anew in each part of a CSV file. A table without rows is yielded
    once, empty.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no table, or names a column twice.
    """
    path = table_file(path)
    found = False
    if path.suffix.lower() in PARQUET:
        parts = _parquet_chunks(path, rows)
    else:
        parts = _csv_chunks(path, texts, rows)
    for part in parts:
        found = True
        yield part.reset_index(drop=True)
    if not found:
        yield load_table(path, texts)


def _csv_chunks(path: Path, texts: Sequence[str], rows: int) -> Iterator[pd.DataFrame]:
    with _explained(path), pd.read_csv(path, chunksize=rows, **_csv_options(path, texts)) as parts:
        yield from parts


def _parquet_chunks(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    file = parquet_file(path)
    require_unique(file.schema_arrow.names, str(path))
    for batch in file.iter_batches(batch_size=rows, use_threads=False):
        yield pa.Table.from_batches([batch]).to_pandas()


def parquet_file(path: str | Path) -> pq.ParquetFile:
    """Open a Parquet file; one that is none is refused."""
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path} must be a Parquet file, and it can't be read as one: {error} Was the copy "
            "cut off? Write or fetch it again; a CSV file must be named .csv."
        ) from error


def table_file(path: str | Path) -> Path:
    """Return the path of a table; one where no file lies is refused."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"a table must be a CSV or Parquet file, and {path} is none; the working directory is "
            f"{Path.cwd()}. Give the path from there, or an absolute one."
        )
    return path


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except pd.errors.EmptyDataError:
        raise ValueError(
            f"{path} must begin with a line of column names, and it is empty. "
            "Was the export cut off? Write the table again."
        ) from None
    except (UnicodeDecodeError, pd.errors.ParserError) as error:
        raise ValueError(
            f"{path} must be UTF-8 text with commas and as many cells in each row as in the "
            f"first; found: {str(error).strip()}. Save it as CSV UTF-8, or as Parquet."
        ) from error


def _csv_options(path: Path, texts: Sequence[str]) -> dict[str, Any]:
    first = pd.read_csv(path, header=None, nrows=1, dtype=str, encoding="utf-8-sig")
    header = [str(name).strip() for name in first.iloc[0]]
    other = next((mark for mark in _SEPARATORS if len(header) == 1 and mark in header[0]), None)
    if other is not None:
        raise ValueError(
            f"{path} must have commas between its cells; its first line has none, and "
            f"{header[0].count(other)} of {other!r}. Is it separated by {other!r}? Save it with "
            "commas (and points in decimal numbers), or as Parquet."
        )
    require_unique(header, str(path))  # pandas would rename the second one in silence
    return {
        "header": 0,
        "names": header,
        "index_col": False,
        "dtype": dict.fromkeys(texts, str),  # 007 and 7 are two patients
        "low_memory": False,
        "encoding": "utf-8-sig",
    }


def require_unique(names: Sequence[str], where: str) -> None:
    """Refuse a table that names a column twice."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(
            f"{where} must name each column once, and {twice} stand there more than once. "
            "Rename or remove one of each: which of them is meant can't be guessed."
        )


def require_columns(frame: pd.DataFrame, wanted: Sequence[str], where: str) -> None:
    """Refuse a table without one of the columns, and say which name is close to it."""
    found = [str(name) for name in frame.columns]
    missing = [name for name in wanted if name not in found]
    if missing:
        close = difflib.get_close_matches(missing[0], found, n=1)
        raise ValueError(
            f"{where} has no column {missing}; found {found}. "
            + (f"Did you mean {close[0]!r}? " if close else "")
            + "Rename a column, or pass its name (target=, patient=, site=, ...); "
            "patient=None says that each row is another patient."
        )
