"""The promises of somebody's data: order, augmentation, collating, workers."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset

from medkit.check.compare import Culprit, first_difference
from medkit.check.digest import digest
from medkit.check.findings import Finding, broken, class_line, holds
from medkit.check.history import Twice
from medkit.check.subject import Subject
from medkit.check.trace import Tracer
from medkit.data.fetching import KeyedFetch, PlaceBatch, fetching_here
from medkit.data.loader import KeyedLoader, why_not_keyed

DATA_PROMISES = ("positions", "order", "augmentation", "collate", "data set-up", "workers")
_SAMPLES = 64
_SAMPLES_S = 4.0
_BATCHES = 4


class DataProbe:
    """Looks at the loaders of one DataModule.

    Args:
        subject: What is checked.
        twice: Compares passes.
        trainer: A Trainer the DataModule may ask things of.
    """

    def __init__(self, subject: Subject, twice: Twice, trainer: pl.Trainer) -> None:
        self.subject = subject
        self.twice = twice
        self.trainer = trainer
        data, train = self._built()
        self.train = train
        self.evaluation = list(_flat(data.val_dataloader())) if _has(data, "val_dataloader") else []
        self.data = data
        for loader in (*self.train, *self.evaluation):
            twice.named = {**(twice.named or {}), **_named_transforms(loader)}

    def positions(self) -> Finding:
        """Refuse what has no positions, with the line that makes it."""
        if not self.train:
            return Finding(
                "positions", False, "train_dataloader returns no DataLoader", "return one"
            )
        for loader in (*self.train, *self.evaluation):
            reason = why_not_keyed(loader) if isinstance(loader, DataLoader) else ""
            if not reason and isinstance(loader, KeyedLoader):
                continue
            reason = reason or f"a {type(loader).__name__} is not a DataLoader"
            at = class_line(type(getattr(loader, "dataset", loader)))
            if "ThreadDataLoader" in reason or not at.file:
                at = self._last_line_of_hook()
            return broken("positions", at, reason, reason)
        return holds("positions")

    def order(self) -> Finding:
        """Draw the order of two epochs after other epochs were drawn."""
        for loader in self.train:

            def draw(loader: KeyedLoader = loader) -> list[Any]:
                return [[list_of(p.rows) for p in loader._draw_order(epoch, 0)] for epoch in (0, 1)]

            def others(number: int, loader: KeyedLoader = loader) -> None:
                for epoch in range(2, 3 + number):
                    loader._draw_order(epoch, 0)

            culprit = self.twice.differs(draw, between=others)
            if culprit is not None:
                kind = type(loader.loader.sampler)
                return broken("order", culprit, f"the order that {kind.__name__} gives differs")
        return holds("order")

    def augmentation(self) -> Finding:
        """Fetch samples again after others were fetched."""
        for loader in (*self.train, *self.evaluation[:1]):
            fetch = _uncollated(loader)

            def fetched(places: list[PlaceBatch], fetch: KeyedFetch = fetch) -> list[Any]:
                with fetching_here():
                    return [fetch.__getitems__(place) for place in places]

            def others(number: int, loader: Any = loader, fetch: KeyedFetch = fetch) -> None:
                with fetching_here():
                    for place in loader.places(1)[: number + 1]:
                        fetch.__getitems__(_alone(place))

            end = time.monotonic() + _SAMPLES_S
            for number, places in enumerate(_few_at_a_time(loader.places(0))):
                fetch_them = functools.partial(fetched, places)
                culprit = self.twice.differs(
                    fetch_them, between=others, budget_s=0.0, pause=number == 0
                )
                if culprit is not None:
                    kind = type(loader.dataset).__name__
                    return broken("augmentation", culprit, f"a sample of {kind} differs")
                if time.monotonic() > end:
                    break
        return holds("augmentation")

    def collate(self) -> Finding:
        """Collate the same samples again."""
        for loader in self.train:
            places = loader.places(0)
            if not places:
                continue
            samples = _uncollated(loader).__getitems__(places[0])

            def collated(loader: KeyedLoader = loader, samples: Any = samples) -> Any:
                fresh, fetch = copy.deepcopy(samples), loader._fetch
                with fetching_here():
                    return fetch._keyed(lambda: fetch.collate(fresh), "collate", 0, 0)

            culprit = self.twice.differs(collated)
            if culprit is not None:
                return broken("collate", culprit, "a batch of the same samples differs")
        return holds("collate")

    def set_up(self) -> Finding:
        """Build the data again and look at the same rows."""

        def built() -> list[Any]:
            data, train = self._built()
            more = list(_flat(data.val_dataloader())) if _has(data, "val_dataloader") else []
            found: list[Any] = []
            for loader in (*train, *more[:1]):
                size = len(loader.dataset)
                rows = sorted({0, size // 2, size - 1})
                with fetching_here():
                    fetch = _uncollated(loader)
                    batched = loader._fetch.batched
                    found.append(size)
                    found += [
                        fetch.__getitems__(PlaceBatch(0, n, n, [row] if batched else row))
                        for n, row in enumerate(rows)
                    ]
            return found

        culprit = self.twice.differs(built, budget_s=0.0)
        if culprit is None:
            return holds("data set-up")
        advice = ""
        if culprit.function in ("__init__", "prepare_data"):
            advice = "draw in setup(), which has a key, not in __init__ or prepare_data()"
        return broken("data set-up", culprit, "the data built again differ", advice)

    def workers(self) -> Finding:
        """Fetch the same batches in this process and in two others."""
        for loader in self.train:
            here, there = (self._batches(loader, number, trace=False) for number in (0, 2))
            if [digest(a) for a, _ in here] == [digest(b) for b, _ in there]:
                continue
            here, there = (self._batches(loader, number, trace=True) for number in (0, 2))
            for (a, a_records), (b, b_records) in zip(here, there, strict=True):
                if digest(a) != digest(b):
                    culprit = first_difference(a_records, b_records)
                    return broken("workers", culprit, "a batch fetched by a worker differs")
        return holds("workers")

    def _built(self) -> tuple[pl.LightningDataModule, list[Any]]:
        data = self.subject.data()
        data.trainer = self.trainer
        data.prepare_data()
        data.setup("fit")
        return data, list(_flat(data.train_dataloader()))

    def _batches(self, loader: KeyedLoader, workers: int, *, trace: bool) -> list[Any]:
        again = with_workers(loader, workers)
        again._order_of = ((0, 0, None), loader.places(0)[:_BATCHES])
        again._inner.dataset.__class__ = _TracedFetch if trace else _PlainFetch
        vars(again._fetch)["tracer"] = (self.twice.named, self.twice.roots)
        return list(again)

    def _last_line_of_hook(self) -> Culprit:
        """Return the line of ``train_dataloader`` that makes the loader."""
        tracer = Tracer(roots=self.twice.roots)
        with tracer.recording():
            self.data.train_dataloader()
        lines = [record for record in tracer.records if record.event == "line"]
        return Culprit(lines[-1].file, lines[-1].line) if lines else class_line(type(self.data))


class _PlainFetch(KeyedFetch):
    """Gives a batch and no records."""

    def __getitems__(self, place: PlaceBatch) -> Any:
        return super().__getitems__(place), []


class _TracedFetch(KeyedFetch):
    """Gives a batch and the records of how it came about, wherever it is fetched."""

    tracer: tuple[Any, ...] = ()

    def __getitems__(self, place: PlaceBatch) -> Any:
        tracer = Tracer(*self.tracer)
        with tracer.recording():
            batch = super().__getitems__(place)
        return batch, tracer.records


def with_workers(loader: KeyedLoader, workers: int) -> KeyedLoader:
    """Return the same loader with another number of workers."""
    theirs = copy.copy(loader.loader)
    theirs.num_workers = workers
    theirs.prefetch_factor = 2 if workers else None
    again = KeyedLoader(theirs, seed=loader.seed, tag=loader.tag)
    if loader.trainer is not None:
        again.bind(loader.trainer)
    return again


def list_of(rows: Any) -> list[int]:
    """Return rows as plain integers."""
    return [int(row) for row in rows] if hasattr(rows, "__iter__") else [int(rows)]


def _uncollated(loader: KeyedLoader) -> KeyedFetch:
    """Return what fetches this loader's samples and leaves them as they are."""
    fetch = copy.copy(loader._fetch)
    fetch.collate = lambda samples: samples
    fetch.forget()
    return fetch


def _few_at_a_time(places: list[PlaceBatch]) -> Iterator[list[PlaceBatch]]:
    """Yield places of single samples from all over an epoch, a few at a time."""
    step = max(1, len(places) // _SAMPLES)
    spread = places[::step][:_SAMPLES]
    for row in range(_SAMPLES // len(spread) + 1 if spread else 0):
        some = [_alone(place, row) for place in spread if row == 0 or _has_row(place, row)]
        for start in range(0, len(some), 4):
            yield some[start : start + 4]


def _has_row(place: PlaceBatch, row: int) -> bool:
    return hasattr(place.rows, "__len__") and len(place.rows) > row


def _alone(place: PlaceBatch, row: int = 0) -> PlaceBatch:
    """Return the place of one row of a batch."""
    if not hasattr(place.rows, "__len__"):
        return place
    return place._replace(start=place.start + row, rows=place.rows[row : row + 1])


def _flat(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, CombinedLoader):
        yield from loaders.flattened
        return
    found: list[Any] = []
    apply_to_collection(loaders, KeyedLoader | DataLoader, found.append)
    yield from found


def _has(data: pl.LightningDataModule, hook: str) -> bool:
    return hook in vars(data) or getattr(type(data), hook) is not getattr(
        pl.LightningDataModule, hook
    )


def _named_transforms(loader: Any) -> dict[int, str]:
    """Return a name for each transform of each ``Compose`` that a dataset holds."""
    named: dict[int, str] = {}
    waiting: list[Any] = [getattr(loader, "dataset", None)]
    for _ in range(100):
        holder = waiting.pop() if waiting else None
        parts = vars(holder).values() if hasattr(holder, "__dict__") else ()
        for part in parts:
            transforms = getattr(part, "transforms", None)
            if isinstance(transforms, list | tuple):
                kind = type(part).__name__
                for number, transform in enumerate(transforms):
                    name = type(transform).__name__
                    named[id(transform)] = f"transform {number} of {kind}: {name}"
                    waiting.append(transform)
            elif isinstance(part, Dataset):
                waiting.append(part)
            elif isinstance(part, list | tuple):
                waiting += [one for one in part[:20] if isinstance(one, Dataset)]
    return named
