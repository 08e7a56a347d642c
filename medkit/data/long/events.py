"""Files of events in batches: Parquet and CSV, columns checked, times as whole microseconds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

MEDS = {name: name for name in ("subject_id", "time", "code", "numeric_value")}
FILE_NAME = "<file name>"  # as the name of a column: one file per stay, named by its id
_ENDINGS = (".parquet", ".pq", ".csv", ".csv.gz", ".txt")
_CSV_BLOCK = 4 << 20  # bytes
_CLOCK = re.compile(r"(\d+):([0-5]\d)(?::([0-5]\d))?")


@dataclass(frozen=True)
class Batch:
    """Some events, ids and codes as numbers into short lists.

    Attributes:
        stays: Different ids in this batch.
        codes: Different codes in this batch.
        stay: ``(N,)`` place in ``stays``.
        code: ``(N,)`` place in ``codes``.
        time: ``(N,)`` [us], of the clock or since the start; 0 where there is none.
        timed: ``(N,)`` True where there is a time.
        value: ``(N,)`` NaN where there is no number.
        absolute: The times are of the clock.
        file: Where they stand.
    """

    stays: list[Any]
    codes: list[str]
    stay: NDArray[np.int64]
    code: NDArray[np.int64]
    time: NDArray[np.int64]
    timed: NDArray[np.bool_]
    value: NDArray[np.float64]
    absolute: bool
    file: Path


def long_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files of a long table, those of a folder sorted by name.

    Raises:
        FileNotFoundError: When one is not there, or a folder holds none.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    files: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            inside = path / "data" if (path / "data").is_dir() else path  # MEDS 0.4
            found = sorted(p for p in inside.rglob("*") if p.is_file() and _is_table(p))
        else:
            found = [path] if path.is_file() else []
        if not found:
            raise FileNotFoundError(
                f"a long table must be {', '.join(_ENDINGS)} files or a folder of them, and {path} "
                f"is or holds none; the working directory is {Path.cwd()}. Give the path from "
                "there, or an absolute one."
            )
        files += found
    if not files:
        raise FileNotFoundError(
            "a long table must be one file at least, and none was given. Pass a path."
        )
    return files


def _is_table(path: Path) -> bool:
    return path.name.lower().endswith(_ENDINGS) and not path.name.startswith((".", "_"))


def read_batches(
    files: Sequence[Path], names: Mapping[str, str], batch_rows: int
) -> Iterator[Batch]:
    """Yield the events of the files in order.

    Args:
        files: Parquet or CSV.
        names: Name in MEDS -> name in the files.
        batch_rows: Rows at once.

    Raises:
        ValueError: Where a file is not as it must be.
    """
    if batch_rows < 1:
        raise ValueError(f"batch_rows must be 1 at least, got {batch_rows}. 262144 is usual.")
    absolute: bool | None = None
    for file in files:
        parquet = file.name.lower().endswith((".parquet", ".pq"))
        batches = _from_parquet if parquet else _from_csv
        for table in batches(file, names, batch_rows):
            for begin in range(0, len(table), batch_rows):
                batch = _batch(table.slice(begin, batch_rows), names, file, absolute)
                if batch.timed.any():
                    absolute = batch.absolute
                yield batch


def _from_parquet(file: Path, names: Mapping[str, str], batch_rows: int) -> Iterator[pa.Table]:
    try:
        source = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{file} must be a Parquet file; found: {error}. Was its export cut off?"
        ) from error
    with source:
        _require_names(source.schema_arrow.names, names, file)
        wanted = _wanted(names)
        for batch in source.iter_batches(batch_size=batch_rows, columns=wanted, use_threads=False):
            yield pa.Table.from_batches([batch])


def _from_csv(file: Path, names: Mapping[str, str], batch_rows: int) -> Iterator[pa.Table]:
    kinds = dict.fromkeys(_wanted(names), pa.string())
    kinds[names["numeric_value"]] = pa.float64()
    options = pa_csv.ConvertOptions(
        column_types=kinds,
        include_columns=_wanted(names),
        strings_can_be_null=True,
        null_values=["", "NA", "NaN", "nan", "null", "NULL"],
        quoted_strings_can_be_null=True,
    )
    reading = pa_csv.ReadOptions(block_size=_CSV_BLOCK, use_threads=False)
    with pa.input_stream(str(file), compression="detect") as first:
        head = first.read(65_536).split(b"\n")[0].decode("utf-8-sig", "replace").strip()
    if not head:
        raise ValueError(
            f"{file} must begin with a line of column names, and it is empty. "
            "Was the export cut off? Write the table again."
        )
    _require_names([name.strip().strip('"') for name in head.split(",")], names, file)
    try:
        with (
            pa.input_stream(str(file), compression="detect") as stream,
            pa_csv.open_csv(stream, read_options=reading, convert_options=options) as reader,
        ):
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise ValueError(
            f"{file} must be UTF-8 text with commas, as many cells in each row as in the first, "
            f"and numbers in {names['numeric_value']!r}; found: {str(error).strip()}. Text values "
            "belong in a column of their own (MEDS: text_value)."
        ) from error


def _wanted(names: Mapping[str, str]) -> list[str]:
    return [name for name in names.values() if name != FILE_NAME]


def _require_names(found: Sequence[str], names: Mapping[str, str], file: Path) -> None:
    wanted = _wanted(names)
    twice = sorted({name for name in found if list(found).count(name) > 1})
    if twice:
        raise ValueError(
            f"{file} must name each column once, and {twice} stand there more than once. "
            "Rename or remove one of each: which of them is meant can't be guessed."
        )
    missing = [name for name in wanted if name not in found]
    if missing:
        close = difflib.get_close_matches(missing[0], found, n=1)
        raise ValueError(
            f"{file} must have the columns {wanted}, and {missing} are not among {list(found)}. "
            + (f"Did you mean {close[0]!r}? " if close else "")
            + f"Pass columns={{'{missing[0]}': NAME}} where it has another name."
        )


def _batch(table: pa.Table, names: Mapping[str, str], file: Path, absolute: bool | None) -> Batch:
    if names["subject_id"] == FILE_NAME:
        stays, stay = [file.name.split(".")[0]], np.zeros(len(table), np.int64)
    else:
        stays, stay = _coded(table[names["subject_id"]], "subject_id", file)
    codes, code = _coded(table[names["code"]], "code", file)
    time, timed, of_clock = _microseconds(table[names["time"]], file)
    if absolute is not None and timed.any() and of_clock != absolute:
        raise ValueError(
            f"{file}: times must all be of the clock or all since the start of the stay, and the "
            "earlier ones are of the other kind. Write them alike in all files."
        )
    numbers = table[names["numeric_value"]].combine_chunks()
    try:
        value = pd.Series(numbers.cast(pa.float64()).to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{file}: column {names['numeric_value']!r} must hold numbers; found: {error}. "
            "Text values belong in a column of their own (MEDS: text_value)."
        ) from error
    exact = value.to_numpy(np.float64, na_value=np.nan)
    return Batch(stays, [str(c) for c in codes], stay, code, time, timed, exact, of_clock, file)


def _coded(column: pa.ChunkedArray, role: str, file: Path) -> tuple[list[Any], NDArray[np.int64]]:
    if column.null_count:
        empty = np.flatnonzero(column.is_null().to_numpy())
        raise ValueError(
            f"{file}: {role} must be filled in each row; it is empty in {column.null_count} rows "
            f"(first: row {int(empty[0]) + 1} of a batch). An event that is nobody's, or is "
            "nothing, can't be counted: fill it in, or leave those rows out."
        )
    values = column.combine_chunks()
    if pa.types.is_dictionary(values.type):  # of the whole file, perhaps: only those here count
        values = values.dictionary_decode()
    values = values.dictionary_encode()
    different = values.dictionary.to_pylist()
    if any(isinstance(one, str) and not one.strip() for one in different):
        raise ValueError(
            f"{file}: {role} must be filled in each row, and in some it is spaces alone. An event "
            "that is nobody's, or is nothing, can't be counted: fill it in, or leave those out."
        )
    return different, values.indices.to_numpy().astype(np.int64)


def _microseconds(
    column: pa.ChunkedArray, file: Path
) -> tuple[NDArray[np.int64], NDArray[np.bool_], bool]:
    """Return times [us], where there are any, and whether they are of the clock."""
    values = column.combine_chunks()
    timed = ~np.asarray(values.is_null().to_numpy(zero_copy_only=False), np.bool_)
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_date(kind):
        of_clock = not pa.types.is_duration(kind)
        unit = pa.timestamp("us") if of_clock else pa.duration("us")
        whole = values.cast(unit, safe=False).cast(pa.int64())
        return whole.fill_null(0).to_numpy(zero_copy_only=False), timed, of_clock
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        hours = values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
        return _from_hours(hours, timed, file)
    if pa.types.is_null(kind):
        return np.zeros(len(values), np.int64), timed, False
    texts = values.cast(pa.string()).dictionary_encode()
    different = [text.strip() for text in texts.dictionary.to_pylist()]
    number = texts.indices.fill_null(len(different)).to_numpy(zero_copy_only=False)
    parsed, of_clock = _from_texts(different, file)
    return np.append(parsed, 0)[number], timed, of_clock


def _from_texts(different: list[str], file: Path) -> tuple[NDArray[np.int64], bool]:
    clock = [_CLOCK.fullmatch(text) for text in different]
    if all(clock):
        seconds = [
            int(m[1]) * 3600 + int(m[2]) * 60 + int(m[3] or 0) for m in clock if m is not None
        ]
        return np.array(seconds, np.int64) * 1_000_000, False
    hours = pd.to_numeric(pd.Series(different, dtype=object), errors="coerce")
    if hours.notna().all():
        return _from_hours(hours.to_numpy(np.float64), np.ones(len(hours), np.bool_), file)[
            0
        ], False
    dates = pd.to_datetime(pd.Series(different, dtype=object), errors="coerce", format="ISO8601")
    if dates.isna().any():
        # of texts in two ways the rarer is the odd one: not the first date among HH:MM
        ways = [[match is None for match in clock], hours.isna().tolist(), dates.isna().tolist()]
        strange = different[min(ways, key=sum).index(True)]
        raise ValueError(
            f"{file}: times must be ISO 8601 (2026-11-21 08:30:00), HH:MM since the start, or "
            f"hours; found {strange!r}. Write all of them in one of these ways."
        )
    return dates.to_numpy("datetime64[us]").astype(np.int64), True


def _from_hours(
    hours: NDArray[np.float64], timed: NDArray[np.bool_], file: Path
) -> tuple[NDArray[np.int64], NDArray[np.bool_], bool]:
    there = timed & ~np.isnan(hours)
    far = there & ~(np.abs(hours) < 1e8)
    if far.any():
        raise ValueError(
            f"{file}: times that are numbers must be hours since the start of the stay; found "
            f"{hours[far][0]:g}. Seconds of the clock must be written as timestamps."
        )
    return np.round(np.where(there, hours, 0) * 3.6e9).astype(np.int64), there, False
