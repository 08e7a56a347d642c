"""The part of a keyed loader that workers run: fetch and collate the rows of one place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from medkit import keyed as keys
from medkit.data.generators import Generator, find_generators, rekey
from medkit.data.strength import Strength


class PlaceBatch(NamedTuple):
    """A batch before it is fetched: where it stands in its epoch, and which rows it is made of."""

    epoch: int
    batch: int
    start: int  # position of its first row in the epoch's global order
    rows: Any  # what the sampler gave: a list or array of indices, or one item without batching
    out: frozenset[int | str] = frozenset()  # rows that were set aside before this epoch
    strength: float | None = None  # of the augmentation; None: as the dataset has it


class KeyedFetch(Dataset[Any]):
    """Fetches and collates one :class:`PlaceBatch`, every draw keyed by its place.

    Rows are fetched one by one, each under its own position's key. A dataset that fetches many at
    once (``__getitems__``) is asked once, under the key of the batch's first position: there the
    draws depend on the batch size too.
    """

    def __init__(self, loader: DataLoader[Any], seed: int, tag: tuple[keys.Place, ...]) -> None:
        self.dataset = loader.dataset
        self.collate = loader.collate_fn
        self.batched = loader.batch_sampler is not None
        self.seed = seed
        self.tag = tag
        # a dataset may say that fetching draws nothing; then there is nothing to key
        self.draws = not getattr(self.dataset, "draws_nothing", False)
        self.strength = Strength([self.dataset, self.collate])
        self._private: list[Generator] | None = None
        self._known: set[str] = set()  # purposes that were drawn for in this process

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_private": None, "_known": set()}

    def forget(self) -> None:
        """Look for generators anew: in a worker they are other objects."""
        self._private, self._known = None, set()
        self.strength = Strength([self.dataset, self.collate])

    def __getitems__(self, place: PlaceBatch) -> Any:
        with self.strength.at(place.strength):
            return self._batch(place)

    def _batch(self, place: PlaceBatch) -> Any:
        fetch_many = fetch_many_of(self.dataset) if self.batched else None
        if not self.draws:  # at once, not row by row
            return self.collate(self._fetch_raw(place, fetch_many))
        samples: Any
        if not self.batched or fetch_many is not None:
            samples = self._keyed(
                lambda: self._fetch_raw(place, fetch_many), "augment", place.epoch, place.start
            )
        else:
            samples = []
            for position, row in enumerate(place.rows, start=place.start):
                where = ("augment", place.epoch, position)
                samples.append(self._keyed(partial(self.dataset.__getitem__, row), *where))
        return self._keyed(lambda: self.collate(samples), "collate", place.epoch, place.batch)

    def _fetch_raw(self, place: PlaceBatch, fetch_many: Callable[[Any], Any] | None) -> Any:
        if not self.batched:
            return self.dataset[place.rows]
        if fetch_many is not None:
            return fetch_many(place.rows)
        return [self.dataset[row] for row in place.rows]

    def _keyed(self, call: Callable[[], Any], purpose: str, *place: int) -> Any:
        """Call with every generator set; those made by the first call itself included."""
        if not self.draws:
            return call()
        key = keys.seed_of(self.seed, purpose, *place, *self.tag)
        if self._private is None:
            self._private = find_generators([self.dataset, self.collate])
        keys.set_globals(key)
        rekey(self._private, key)
        result = call()
        if purpose not in self._known:
            self._known.add(purpose)
            found = find_generators([self.dataset, self.collate])
            if len(found) > len(self._private):  # made late, as many do in a worker
                self._private = found
                keys.set_globals(key)
                rekey(found, key)
                result = call()
        return result


class Places:
    """The batch sampler of the inner loader: hands out the places it was given."""

    def __init__(self) -> None:
        self.places: Sequence[PlaceBatch] = ()

    def __iter__(self) -> Iterator[PlaceBatch]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def rebuilt(loader: DataLoader[Any], fetch: KeyedFetch, places: Places) -> DataLoader[Any]:
    """Make the inner loader: their workers, pinning and time-outs; our places and fetching."""
    workers: dict[str, Any] = {}
    if loader.num_workers > 0:
        workers = {
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "worker_init_fn": functools.partial(_begin_worker, theirs=loader.worker_init_fn),
            "multiprocessing_context": loader.multiprocessing_context,
            "timeout": loader.timeout,
        }
    return DataLoader(
        fetch,
        batch_sampler=places,  # type: ignore[arg-type]
        collate_fn=_as_it_is,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        **workers,
    )


def _begin_worker(number: int, *, theirs: Callable[[int], None] | None) -> None:
    """Let their ``worker_init_fn`` and dataset find their own dataset in this worker's info."""
    info: Any = get_worker_info()
    fetch: KeyedFetch = info.dataset
    object.__setattr__(info, "dataset", fetch.dataset)  # it refuses attributes otherwise
    fetch.forget()
    if theirs is not None:
        theirs(number)


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def fetching_here() -> Iterator[None]:
    """In the main process: one intra-op thread, as in a worker, and global generators put back."""
    state, threads = keys.get_globals(), torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
        keys.restore_globals(state)


def fetch_many_of(dataset: Dataset[Any]) -> Callable[[Any], Any] | None:
    """Return ``__getitems__`` where somebody wrote one; torch's Subset only passes it on."""
    base = dataset
    while isinstance(base, Subset):
        base = base.dataset
    return getattr(dataset, "__getitems__", None) if hasattr(base, "__getitems__") else None
