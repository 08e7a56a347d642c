"""What times and events must be before anything is fitted to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from medkit.data.contract.schema import Contract
from medkit.data.tables import Table, TableSpec, read_table, require_features

Floats = NDArray[np.float64]
_EXACT = 2**24  # tables are float32


@dataclass(frozen=True)
class FollowUp:
    """A checked table of patients with the end of their follow-up.

    Attributes:
        table: Features, patients, sites; ``y`` is 1 where the event was seen, -1 where a table of
            new patients says nothing.
        time: From the start of follow-up to the event or the last look, ``(N,)``; NaN where a
            table of new patients says nothing.
    """

    table: Table
    time: Floats

    @property
    def y(self) -> NDArray[np.float32]:
        """Time and event, ``(N, 2)``; both NaN where nothing is known."""
        event = np.where(np.isnan(self.time), np.nan, self.table.y)
        return np.column_stack([self.time, event]).astype(np.float32)


def read_follow_up(
    source: str | Path | pd.DataFrame,
    spec: TableSpec,
    *,
    time: str,
    start: str | None = None,
    features: Sequence[str] | None = None,
    contract: Contract | None = None,
) -> FollowUp:
    """Read and check one row per patient.

    Args:
        source: A CSV or Parquet file, or a DataFrame.
        spec: What the columns are; ``target`` is the 0/1 column "event seen".
        time: Column of the time of the event or of the last look.
        start: Column of the time at which follow-up began, on the same scale; None: 0.
        features: Take exactly these columns, and do without times and events where the table has
            none (for new patients).
        contract: What the columns must be, the times among them: those of a site that counts in
            months become days like any other unit.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: For anything in the table that is not as it must be.
    """
    clocks = [name for name in (time, start) if name is not None]
    if contract is not None:
        contract = _with_clocks(contract, clocks if features is None else [], of=clocks)
    if features is not None:
        table = read_table(source, spec, features=features, contract=contract)
        return FollowUp(table, np.full(len(table.y), np.nan))
    table = read_table(source, spec, contract=contract)
    missing = [name for name in clocks if name not in table.features]
    if missing:
        raise ValueError(
            f"a table for survival needs a column of times; it has no column {missing} beside its "
            f"roles, found {list(table.features)}. Pass time= (and start=) as they are called, and "
            "have them in the contract where there is one."
        )
    at = {name: table.values[:, table.features.index(name)].astype(np.float64) for name in clocks}
    until = at[time]
    _require_known(at, table.y)
    _require_exact(at)
    if start is not None:
        backwards = until < at[start]
        if backwards.any():
            raise ValueError(
                f"follow-up must not end before it begins; {time!r} is before {start!r} in "
                f"{_rows(backwards)}. Are the columns swapped, or a date mistyped? Correct those "
                "rows or leave them out."
            )
        until = until - at[start]
    require_follow_up(until, table.y, part="table")
    _require_one_row_each(table)
    kept = [i for i, name in enumerate(table.features) if name not in clocks]
    names = tuple(table.features[i] for i in kept)
    require_features(names, [*spec.named, *clocks], "a table for survival")
    return FollowUp(replace(table, features=names, values=table.values[:, kept]), until)


def require_follow_up(time: ArrayLike, event: ArrayLike, *, part: str) -> tuple[Floats, Floats]:
    """Return both as float64 vectors.

    Raises:
        ValueError: Where lengths differ, a time is missing or negative, or an event is not 0 or 1.
    """
    times, events = np.asarray(time, np.float64), np.asarray(event, np.float64)
    if times.ndim != 1 or times.shape != events.shape or len(times) == 0:
        raise ValueError(
            "time and event must be vectors of the same length, at least 1; got shapes "
            f"{times.shape} and {events.shape}. One entry a patient: y[:, 0] and y[:, 1]."
        )
    wrong = ~np.isin(events, (0.0, 1.0))
    if wrong.any():
        raise ValueError(
            f"event must be 1 (it happened) or 0 (last seen without) in each row of the {part}; "
            f"found {events[wrong][0]:g} in {_rows(wrong)}. Recode the column."
        )
    _require_known({"time": times}, events)
    negative = times < 0
    if negative.any():
        raise ValueError(
            f"time must be 0 or more in each row of the {part}; found {times[negative].min():g} in "
            f"{_rows(negative)}. If follow-up does not begin at 0, pass start=<its column>; else "
            "leave those rows out."
        )
    return times, events


def require_events(event: ArrayLike, *, part: str) -> None:
    """Raise where a part has fewer than two events: nothing to compare, and no variance."""
    events = np.asarray(event)
    count = int((events > 0).sum())
    if count < 2:
        raise ValueError(
            f"the {part} part must hold at least two events; found {len(events)} patients with "
            f"{count}. Follow them longer, raise val_fraction, take another split_seed, or pool "
            "hospitals."
        )


def _with_clocks(contract: Contract, wanted: Sequence[str], *, of: Sequence[str]) -> Contract:
    """Let the times through that are wanted, though recorded after the outcome, and no others."""
    rules = {n: rule for n, rule in contract.columns.items() if n not in of or n in wanted}
    rules |= {n: replace(rules[n], recorded=None) for n in wanted if n in rules}
    return replace(contract, columns=rules)


def _require_known(at: dict[str, Floats], event: ArrayLike) -> None:
    for name, times in at.items():
        unknown = ~np.isfinite(times)
        if unknown.any():
            with_event = int((np.asarray(event)[unknown] > 0).sum())
            raise ValueError(
                f"each patient must have a time in {name!r}, also who had no event (the last "
                f"look); it is missing in {_rows(unknown)}, {with_event} of them with an event. "
                "Fill in the date, or leave those rows out and say so."
            )


def _require_exact(at: dict[str, Floats]) -> None:
    for name, times in at.items():
        large = np.abs(times) > _EXACT
        if large.any():
            raise ValueError(
                f"times must be at most {_EXACT:,} either way, up to which each whole number is "
                f"kept exactly; {name!r} reaches {np.abs(times).max():.4g} in {_rows(large)}. "
                "Count days rather than seconds, from a date near the study's."
            )


def _require_one_row_each(table: Table) -> None:
    ids, count = np.unique(table.patient, return_counts=True)
    twice = np.isin(table.patient, ids[count > 1])
    if twice.any():
        raise ValueError(
            f"a table for survival must have one row a patient; {int((count > 1).sum())} have "
            f"more, in {_rows(twice)}. Keep the row at the start of follow-up: rows that repeat a "
            "death count it twice."
        )


def _rows(mask: NDArray[np.bool_]) -> str:
    count, first = int(mask.sum()), int(np.argmax(mask)) + 1
    rows = "1 row" if count == 1 else f"{count} rows"
    return f"{rows} (first: row {first} below the header)"
