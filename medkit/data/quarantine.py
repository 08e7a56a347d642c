"""Samples that can't be trained on: told apart where they are fetched, and drawn again.

What stands in for a sample is a function of its place: rows are drawn from the key ``seed,
"redraw", epoch, position`` until one is sound, among the rows of epoch 0, so that the weights of
weighted draws count for stand-ins as well and no row of another split comes in. Workers need to
know nothing of each other for that.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from medkit import keyed as keys
from medkit.data.fetching import KeyedFetch, PlaceBatch, fetch_many_of
from medkit.data.screen import Problem, Screen

Row = int | str
TRIES = 32  # rows drawn for one position
# the machine is at fault here, not the sample: to set rows aside would not help
_NOT_THE_SAMPLE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC}


class Finding(NamedTuple):
    """One sample that was looked at and is bad."""

    row: Row
    kind: str  # a few words, the same for all of a kind
    detail: str


class Fetched(NamedTuple):
    """What comes from a worker: a batch, and how it came about."""

    batch: Any
    rows: Sequence[Any] | None  # it is made of, where they differ from those of its place
    found: tuple[Finding, ...]
    whole: bool  # False: a bad sample was not replaced, there is no batch


class ScreenedFetch(KeyedFetch):
    """Fetches the rows of a place, looks at each sample, and redraws bad ones.

    Args:
        loader: Whose dataset and collate function are taken.
        seed: The run's seed.
        tag: The loader's.
        screen: What a sample must be.
        pool: Rows that stand-ins are drawn from; empty: bad samples are not replaced.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        seed: int,
        tag: tuple[keys.Place, ...],
        screen: Screen,
        pool: Sequence[Any],
    ) -> None:
        super().__init__(loader, seed, tag)
        self.screen = screen
        self.pool = pool

    def _batch(self, place: PlaceBatch) -> Fetched:
        found: list[Finding] = []
        rows = list(place.rows) if self.batched else [place.rows]
        try:
            samples, taken = self._samples(place, rows, found)
        except _NotReplacedError:
            return Fetched(None, None, tuple(found), whole=False)
        whole = samples if self.batched else samples[0]
        batch = self._keyed(lambda: self.collate(whole), "collate", place.epoch, place.batch)
        changed = taken if any(a is not b for a, b in zip(taken, rows, strict=True)) else None
        return Fetched(batch, changed, tuple(found), whole=True)

    def _samples(
        self, place: PlaceBatch, rows: list[Any], found: list[Finding]
    ) -> tuple[Any, list[Any]]:
        out = set(place.out)
        many = fetch_many_of(self.dataset) if self.batched else None
        if many is not None:
            return self._many(place, rows, many, out, found)
        samples, taken = [], []
        for position, row in enumerate(rows, start=place.start):
            sample, one = self._sound(place, position, row, out, found)
            samples.append(sample)
            taken.append(one)
        return samples, taken

    def _sound(
        self, place: PlaceBatch, position: int, row: Any, out: set[Row], found: list[Finding]
    ) -> tuple[Any, Any]:
        """Return the sample of a position, and the row it is."""
        where = ("augment", place.epoch, position)
        for one in self._tried(place, position, row):
            if row_name(one) in out:
                continue
            sample, problem = self._look(partial(self.dataset.__getitem__, one), where)
            if problem is None:
                return sample, one
            self._note(one, problem, out, found)
        raise _NotReplacedError

    def _tried(self, place: PlaceBatch, position: int, row: Any) -> Iterator[Any]:
        """Yield the rows tried at a position: its own, then drawn ones."""
        yield row
        draw = keys.generator(self.seed, "redraw", place.epoch, position, *self.tag)
        for _ in range(TRIES if self.pool else 0):
            yield self.pool[int(draw.integers(len(self.pool)))]

    def _many(
        self,
        place: PlaceBatch,
        rows: list[Any],
        many: Callable[[Any], Any],
        out: set[Row],
        found: list[Finding],
    ) -> tuple[Any, list[Any]]:
        """Fetch a batch at once; rows of one that is bad are looked at one by one."""
        where = ("augment", place.epoch, place.start)
        draws = [self._tried(place, at, row) for at, row in enumerate(rows, start=place.start)]
        taken = [next(draw) for draw in draws]
        for _ in range(TRIES):
            for at, draw in enumerate(draws):
                while row_name(taken[at]) in out:
                    taken[at] = _next(draw)
            samples, problem = self._look(partial(many, taken), where, in_parts=True)
            if problem is None:
                return samples, taken
            before = len(found)
            for one in dict.fromkeys(map(row_name, taken)):
                row = next(row for row in taken if row_name(row) == one)
                _, problem_here = self._look(partial(many, [row]), where, in_parts=True)
                if problem_here is not None:
                    self._note(row, problem_here, out, found)
            if len(found) == before:
                many(taken)  # raises again: it is no single row's fault
                return samples, taken
        raise _NotReplacedError

    def _look(
        self, call: Callable[[], Any], where: tuple[Any, ...], *, in_parts: bool = False
    ) -> tuple[Any, Problem | None]:
        try:
            sample = self._keyed(call, *where)
        except Exception as error:  # whatever somebody's code raises over a broken file
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _NOT_THE_SAMPLE:
                raise
            return None, Problem("unreadable", _said(error))
        if in_parts and isinstance(sample, list):
            problems = (self.screen.problem(part) for part in sample)
            return sample, next((one for one in problems if one is not None), None)
        return sample, self.screen.problem(sample)

    def _note(self, row: Any, problem: Problem, out: set[Row], found: list[Finding]) -> None:
        found.append(Finding(row_name(row), *problem))
        out.add(row_name(row))
        if not self.pool:
            raise _NotReplacedError


class _NotReplacedError(Exception):
    """A bad sample stays in its place."""


def _next(draws: Iterator[Any]) -> Any:
    for row in draws:
        return row
    raise _NotReplacedError


def row_name(row: Any) -> Row:
    """Return a dataset's index as a plain number or text."""
    return int(row) if hasattr(row, "__index__") else str(row)


def _said(error: Exception) -> str:
    """Say what was raised and where; not its text, which may hold a patient's name or path."""
    trace = error.__traceback__
    place = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if not any(part in code.co_filename for part in ("site-packages", "/medkit/data/")):
            place = f" in {code.co_name}"
        trace = trace.tb_next
    return f"{type(error).__name__}{place}"
