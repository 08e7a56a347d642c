"""A group-by over events in batches: stay and code to first, last, min, max, mean and count."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.data.long.events import Batch

log = logging.getLogger(__name__)

MAX_CELLS = 500_000_000  # of the result: 4 GB
NEVER = np.iinfo(np.int64).min


@dataclass
class _Pairs:
    """What is known of each pair of stay and code; arrays with room to grow."""

    arrays: dict[str, NDArray[Any]]
    used: int = 0

    @classmethod
    def empty(cls) -> _Pairs:
        return cls({name: np.empty(0, kind) for name, kind in _KINDS.items()})

    def grow(self, count: int) -> None:
        """Make room for ``count`` more pairs and set them to "nothing yet"."""
        need = self.used + count
        if need > len(self.arrays["count"]):
            room = max(1024, need, 2 * len(self.arrays["count"]))
            for name in self.arrays:  # one at a time: no second copy of everything
                old = self.arrays[name]
                self.arrays[name] = np.empty(room, old.dtype)
                self.arrays[name][: self.used] = old[: self.used]
        for name, array in self.arrays.items():
            array[self.used : need] = _NOTHING[name]
        self.used = need


_KINDS = {
    **dict.fromkeys(("stay", "code"), np.int32),
    **dict.fromkeys(("count", "numbers", "first_time", "last_time"), np.int64),
    **dict.fromkeys(("sum", "first", "last", "min", "max"), np.float64),
}
_NOTHING: dict[str, float | int] = {
    **{"stay": -1, "code": -1, "count": 0, "numbers": 0, "sum": 0.0},
    **{"first": np.nan, "last": np.nan, "min": np.inf, "max": -np.inf},
    **{"first_time": np.iinfo(np.int64).max, "last_time": NEVER},
}


class GroupBy:
    """The group-by: batches in, one table out."""

    def __init__(
        self,
        *,
        only: Sequence[str] | None,
        gone: Mapping[str, NDArray[np.float64]],
        starts: dict[Any, int] | None,
        limit: int | None,
    ) -> None:
        self.gone = gone
        self.starts = starts
        self.limit = limit
        self.stays: dict[Any, int] = {}
        self.codes: dict[str, int] = {code: place for place, code in enumerate(only or ())}
        self.fixed = only is not None
        self.last_seen = np.empty(0, np.int64)  # per stay, for the order
        self.start = np.empty(0, np.int64)
        self.pairs = _Pairs.empty()
        self.known = np.empty(0, np.int64)  # keys of the pairs, sorted
        self.slot = np.empty(0, np.int64)  # where in the pairs each key is
        reasons = ("read", "used", "before the start", "after the limit", "no start")
        more = ("other codes", "coded as missing", "not finite", "without a number")
        self.counts = dict.fromkeys((*reasons, *more, "without a time", "out of order"), 0)

    def add(self, batch: Batch) -> None:
        """Take in the next events."""
        self.counts["read"] += len(batch.stay)
        stay, code = self._stays(batch), self._codes(batch)
        time, timed = batch.time.copy(), batch.timed
        self._order(stay, time, timed)
        use = code >= 0
        self.counts["other codes"] += int((~use).sum())
        if self.starts is not None:
            start = self.start[stay]
            started = (start != NEVER) | ~timed
            self._leave(use, started, "no start")
            time = np.where(started & timed, time - start, time)
        time[~timed] = NEVER + 1
        self._leave(use, ~timed | (time >= 0), "before the start")
        if self.limit is not None:
            self._leave(use, ~timed | (time <= self.limit), "after the limit")
        value = batch.value.copy()
        endless = np.isinf(value)
        self.counts["not finite"] += int((endless & use).sum())
        value[endless] = np.nan
        for name, numbers in self.gone.items():
            coded = (code == self.codes.get(name, -2)) & np.isin(value, numbers)
            self._leave(use, ~coded, "coded as missing")
        self.counts["without a number"] += int((np.isnan(value) & use).sum())
        self.counts["without a time"] += int((use & ~timed).sum())
        self.counts["used"] += int(use.sum())
        self._merge(stay[use], code[use], time[use], value[use])

    def _leave(self, use: NDArray[np.bool_], fine: NDArray[np.bool_], reason: str) -> None:
        self.counts[reason] += int((use & ~fine).sum())
        use &= fine

    def _stays(self, batch: Batch) -> NDArray[np.int64]:
        before = len(self.stays)
        numbers = [self.stays.setdefault(name, len(self.stays)) for name in batch.stays]
        new = list(self.stays)[before:]
        self.last_seen = np.append(self.last_seen, np.full(len(new), NEVER))
        if self.starts is not None:
            begun = [self.starts.get(name, NEVER) for name in new]
            self.start = np.append(self.start, np.array(begun, np.int64))
        return np.array(numbers, np.int64)[batch.stay]

    def _codes(self, batch: Batch) -> NDArray[np.int64]:
        if self.fixed:
            numbers = [self.codes.get(name, -1) for name in batch.codes]
        else:
            numbers = [self.codes.setdefault(name, len(self.codes)) for name in batch.codes]
        return np.array(numbers, np.int64)[batch.code]

    def _order(self, stay: Any, time: Any, timed: Any) -> None:
        """Count events that lie before their predecessor of the same stay in the files."""
        rows = np.flatnonzero(timed)
        rows = rows[np.argsort(stay[rows], kind="stable")]
        if len(rows) == 0:
            return
        s, t = stay[rows], time[rows]
        first = np.append(True, s[1:] != s[:-1])
        before = np.append(NEVER, t[:-1])
        before[first] = self.last_seen[s[first]]
        self.counts["out of order"] += int((t < before).sum())
        self.last_seen[s] = t  # the last one wins, and it is the last in the file

    def _merge(self, stay: Any, code: Any, time: Any, value: Any) -> None:
        if len(stay) == 0:
            return
        key = stay << 32 | code
        different, which = np.unique(key, return_inverse=True)
        at = self._slots(different)[which]
        a = self.pairs.arrays
        np.add.at(a["count"], at, 1)
        number = ~np.isnan(value)
        at, time, value = at[number], time[number], value[number]
        if len(at) == 0:
            return
        np.add.at(a["numbers"], at, 1)
        np.add.at(a["sum"], at, value)  # one by one, in order: batches don't matter
        np.minimum.at(a["min"], at, value)
        np.maximum.at(a["max"], at, value)
        order = np.lexsort((time, at))  # stable: the file's order where times are equal
        at, time, value = at[order], time[order], value[order]
        ends = np.append(at[1:] != at[:-1], True)
        begins = np.append(True, ends[:-1])
        for name, mask in (("first", begins), ("last", ends)):
            there, when, what = at[mask], time[mask], value[mask]
            stored = a[f"{name}_time"][there]
            wins = when < stored if name == "first" else when >= stored
            a[f"{name}_time"][there[wins]] = when[wins]
            a[name][there[wins]] = what[wins]

    def _slots(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where each of some sorted keys is kept; new ones get a place."""
        place = np.searchsorted(self.known, keys)
        old = place < len(self.known)
        old[old] = self.known[place[old]] == keys[old]
        new = keys[~old]
        if len(new):
            begin = self.pairs.used
            self.pairs.grow(len(new))
            self.pairs.arrays["stay"][begin : self.pairs.used] = new >> 32
            self.pairs.arrays["code"][begin : self.pairs.used] = new & 0xFFFFFFFF
            self.slot = np.insert(self.slot, place[~old], np.arange(begin, self.pairs.used))
            self.known = np.insert(self.known, place[~old], new)
            place = np.searchsorted(self.known, keys)
        return self.slot[place]

    def warn(self, time_limit: float | None) -> None:
        """Say what was left out that nobody asked to leave out."""
        for reason in ("no start", "before the start", "not finite", "out of order"):
            if self.counts[reason]:
                log.warning(
                    "%d of %d events: %s%s",
                    self.counts[reason],
                    self.counts["read"],
                    reason,
                    "; first and last go by time" if reason == "out of order" else ", left out",
                )

    def frame(
        self, codes: Sequence[str] | None, aggregates: Sequence[str], static: Sequence[str]
    ) -> pd.DataFrame:
        """Return the table, stays sorted."""
        chosen = sorted(self.codes) if codes is None else list(codes)
        chosen = [code for code in chosen if code not in static]
        cells = len(self.stays) * (len(chosen) * len(aggregates) + len(static))
        if cells > MAX_CELLS:
            raise ValueError(
                f"the wide table must have at most {MAX_CELLS:,} cells, and {len(self.stays):,} "
                f"stays with {len(chosen):,} codes need {cells:,}. Name the codes, or fewer "
                "aggregates."
            )
        stays = _index(list(self.stays))
        row_of = np.empty(len(stays), np.int64)
        row_of[np.argsort(stays, kind="stable")] = np.arange(len(stays))
        a = {name: array[: self.pairs.used] for name, array in self.pairs.arrays.items()}
        row = row_of[a["stay"]]
        by_code = np.argsort(a["code"], kind="stable")
        bounds = np.searchsorted(a["code"][by_code], np.arange(len(self.codes) + 1))
        table: dict[str, NDArray[Any]] = {}
        for code in [*static, *chosen]:
            number = self.codes.get(code, -1)
            at = by_code[bounds[number] : bounds[number + 1]] if number >= 0 else by_code[:0]
            for aggregate in ("first",) if code in static else aggregates:
                name = code if code in static else f"{code}_{aggregate}"
                table[name] = _column(a, at, row, aggregate, len(stays))
        frame = pd.DataFrame(table, index=pd.Index(np.sort(stays), name="subject_id"))
        frame.attrs["events"] = dict(self.counts)
        return frame


def _column(a: Mapping[str, Any], at: Any, row: Any, aggregate: str, stays: int) -> NDArray[Any]:
    if aggregate == "count":
        counts = np.zeros(stays, np.int64)
        counts[row[at]] = a["count"][at]
        return counts
    values = np.full(stays, np.nan)
    there = at[a["numbers"][at] > 0]
    kept = a["sum"][there] / a["numbers"][there] if aggregate == "mean" else a[aggregate][there]
    values[row[there]] = kept
    return values


def _index(stays: list[Any]) -> NDArray[Any]:
    """Return ids as integers where all of them are, else as text."""
    texts = [str(stay) for stay in stays]
    whole = all(t.isascii() and t.isdecimal() and t == str(int(t)) for t in texts)
    if whole and max(map(int, texts)) < 2**63:
        return np.array([int(t) for t in texts], np.int64)
    return np.array(texts, dtype=object)
