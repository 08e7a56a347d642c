"""Irregular long tables to one row per stay, by a group-by that streams.

A long table has one event per row: whose, when, what and how much, by the names of MEDS 0.4
(Medical Event Data Standard: ``subject_id, time, code, numeric_value``). Files are read in
batches; what is kept is 88 bytes per pair of stay and code that occurs. So memory is bounded by

    batch_rows x about 250 bytes  +  176 bytes x pairs  +  8 bytes x stays x columns of the result

whatever the number of events (the pairs double where their arrays grow). The result does not
depend on the size of the batches: sums are taken event by event in the order of the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medkit.data.long.events import MEDS, long_files, read_batches
from medkit.data.long.groups import GroupBy

AGGREGATES = ("first", "last", "min", "max", "mean", "count")
BATCH_ROWS = 262_144
_HOUR = 3_600_000_000  # microseconds
_BIRTH = "MEDS_BIRTH"


def wide_from_long(
    paths: str | Path | Sequence[str | Path],
    *,
    time_limit: float | None,
    codes: Sequence[str] | None = None,
    aggregates: Sequence[str] = AGGREGATES,
    static: Sequence[str] = (),
    missing_codes: Mapping[str, Sequence[float]] | None = None,
    start_code: str | None = None,
    columns: Mapping[str, str] | None = None,
    require_sorted: bool = False,
    batch_rows: int = BATCH_ROWS,
) -> pd.DataFrame:
    """Summarise each code of each stay within a time limit.

    First and last go by time; at the same time by the order of the files (sorted by name) and of
    their rows. An event without a time (MEDS: static) is within any limit and before all others.
    ``count`` counts events, those without a number too; the other aggregates see numbers only.

    Args:
        paths: CSV (also .gz) or Parquet: a file, several, or a folder of them; a MEDS folder is
            read from its ``data/``.
        time_limit: Events from the start of the stay to this many hours after it count, the limit
            included; None: all.
        codes: Take these, in this order; None: all that occur, sorted.
        aggregates: Of first, last, min, max, mean and count; each becomes a column
            ``<code>_<aggregate>``.
        static: Codes of which the first value alone is kept, in a column ``<code>``.
        missing_codes: Code -> numbers that mean missing; such an event counts nowhere.
        start_code: A stay starts at its first event of this code, or of one that begins with it
            and ``//``; None: at its first event, birth left aside. Times that are hours, or
            HH:MM since the start, need neither.
        columns: Name in MEDS -> name in the files, where they differ. A ``subject_id`` of
            :data:`medkit.data.events.FILE_NAME` says that each stay is a file named by its id.
        require_sorted: Refuse events that are not in the order of time within a stay, where they
            would otherwise be counted and sorted.
        batch_rows: Rows read at once; the result does not depend on it.

    Returns:
        One row per stay, index ``subject_id`` sorted, NaN where a code did not occur (count: 0).
        A stay without any event within the limit has a row. ``attrs["events"]`` counts what was
        read, used and left out, and why.

    Raises:
        FileNotFoundError: When there are no such files.
        ValueError: For an empty or ill-formed table; the message says which file.
    """
    _require_settings(aggregates, codes, static, time_limit)
    files, names = long_files(paths), {**MEDS, **(columns or {})}
    starts: dict[Any, int] | None = None
    if start_code is not None or _absolute(files, names, batch_rows):
        starts = _starts(files, names, batch_rows, start_code)
    groups = GroupBy(
        only=None if codes is None else [*codes, *(c for c in static if c not in codes)],
        gone={code: np.asarray(v, np.float64) for code, v in (missing_codes or {}).items()},
        starts=starts,
        limit=None if time_limit is None else round(time_limit * _HOUR),
    )
    for batch in read_batches(files, names, batch_rows):
        groups.add(batch)
        if require_sorted and groups.counts["out of order"]:
            raise ValueError(
                f"{batch.file}: events must be in the order of time within each stay, and "
                f"{groups.counts['out of order']} so far come before their predecessor. Sort the "
                "table by subject_id and time, or pass require_sorted=False: first and last then "
                "go by time."
            )
    if not groups.counts["read"]:
        raise ValueError(
            f"a long table must have at least one event, and {len(files)} file(s) from {files[0]} "
            "on have none. Was the export cut off, or its filter too narrow?"
        )
    groups.warn(time_limit)
    return groups.frame(codes, aggregates, static)


def _absolute(files: Sequence[Path], names: Mapping[str, str], batch_rows: int) -> bool:
    for batch in read_batches(files, names, min(batch_rows, 65_536)):
        if batch.timed.any():
            return batch.absolute
    return False


def _starts(
    files: Sequence[Path], names: Mapping[str, str], batch_rows: int, start_code: str | None
) -> dict[Any, int]:
    """Return stay -> time of its start, by a first pass."""
    starts: dict[Any, int] = {}
    for batch in read_batches(files, names, batch_rows):
        if start_code is None:
            good = np.array([name != _BIRTH for name in batch.codes], np.bool_)
        else:
            begins = (
                name == start_code or name.startswith(f"{start_code}//") for name in batch.codes
            )
            good = np.array([*begins], np.bool_)
        rows = np.flatnonzero(batch.timed & good[batch.code])
        earliest = np.full(len(batch.stays), np.iinfo(np.int64).max)
        np.minimum.at(earliest, batch.stay[rows], batch.time[rows])
        for name, time in zip(batch.stays, earliest.tolist(), strict=True):
            if time != np.iinfo(np.int64).max:
                starts[name] = min(time, starts.get(name, time))
    if start_code is not None and not starts:
        raise ValueError(
            f"start_code must be a code of the table, and no event has {start_code!r}. "
            "Correct it, or leave it out: a stay then starts at its first event."
        )
    return starts


def _require_settings(
    aggregates: Sequence[str],
    codes: Sequence[str] | None,
    static: Sequence[str],
    time_limit: float | None,
) -> None:
    strange = [name for name in aggregates if name not in AGGREGATES]
    if not aggregates or strange or len(set(aggregates)) < len(aggregates):
        raise ValueError(
            f"aggregates must be different ones of {list(AGGREGATES)}, got {list(aggregates)}. "
            "Others can be had from the long table by pandas."
        )
    if codes is not None and len(codes) == 0:
        raise ValueError(
            "codes must name one code at least, or be None for all there are; got none. "
            "A column is made of each."
        )
    for what, given in (("codes", codes or ()), ("static", static)):
        if isinstance(given, str) or len(set(given)) < len(given):
            raise ValueError(
                f"{what} must be a list that names each code once, got {given!r}. "
                "A column is made of each."
            )
    hours: Any = time_limit
    if hours is not None and not (isinstance(hours, int | float) and hours >= 0):
        raise ValueError(
            f"time_limit must be hours after the start, or None for all events, got {hours!r}. "
            "48 is the first two days."
        )
