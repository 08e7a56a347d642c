"""Loaders without history: what a batch holds is a function of seed, epoch and batch number.

The order of an epoch is taken from the wrapped loader's own sampler, once, with every generator set
from the epoch's key; from there only positions count. A sample is fetched with every generator set
from its position's key. So an epoch can be entered at any batch, by any number of workers, and the
same place gives the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from medkit import keyed as keys
from medkit.data import orders
from medkit.data.fetching import KeyedFetch, PlaceBatch, Places, fetching_here, rebuilt
from medkit.data.quarantine import Fetched, Finding, Row, ScreenedFetch, row_name
from medkit.data.screen import Screen
from medkit.data.strength import Strength
from medkit.data.workers import fetched

Receive = Callable[[PlaceBatch, Sequence[Finding], bool], None]

_log = logging.getLogger(__name__)


class KeyedLoader:
    """A DataLoader whose batches depend on their place alone.

    Iterate it like the loader it wraps. Under a Trainer (bound by the kit's callbacks) it starts
    at the epoch and batch the training loop stands at; alone, at batch 0 of ``epoch``
    (:meth:`set_epoch`). With several processes, process r of W takes batches r, r + W, ... of the
    one global order; the last round is filled up from the front, as ``DistributedSampler`` does.

    Args:
        loader: A map-style ``DataLoader``.
        seed: The run's seed; None takes that of the run started last.
        tag: Tells loaders of one run apart; empty for the first training loader.

    Raises:
        ValueError: For an IterableDataset, which has no positions, and for MONAI's
            ThreadDataLoader, whose threads share generators.
    """

    free = False  # whether a key is still to come, see take_key

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        seed: int | None = None,
        tag: tuple[keys.Place, ...] = (),
    ) -> None:
        reason = orders.why_not_keyed(loader)
        if reason:
            raise ValueError(reason)
        self.loader = loader
        self.seed = keys.run_seed() if seed is None else int(seed)
        self.tag = tag
        self.epoch = 0
        self.trainer: pl.Trainer | None = None
        # set where a module draws while a batch is moved, which is before its step is keyed
        self.on_transfer: Callable[[int], None] | None = None
        # told when dead workers were replaced: the place of the lost batch, and what was said
        self.on_lost: Callable[[PlaceBatch, str], None] | None = None
        # the strength of an epoch's augmentation, where somebody schedules it
        self.strength_of: Callable[[int], float | None] = _as_it_is
        self._receive: Receive | None = None
        self._out: Callable[[int], frozenset[Row]] = _nothing
        self._stood_in: dict[tuple[int, int], list[Row]] = {}  # rows of this epoch's mended batches
        self._places = Places()
        self._fetch = KeyedFetch(loader, self.seed, tag)
        self._inner = rebuilt(loader, self._fetch, self._places)
        self._order_of: tuple[tuple[int, int, float | None], list[PlaceBatch]] | None = None

    # what others read of a DataLoader
    @property
    def dataset(self) -> Dataset[Any]:
        """The dataset of the wrapped loader, untouched."""
        return self.loader.dataset

    @property
    def batch_size(self) -> int | None:
        """Rows a batch, as the wrapped loader says it."""
        return self.loader.batch_size

    @property
    def num_workers(self) -> int:
        """Worker processes."""
        return self.loader.num_workers

    @property
    def sampler(self) -> SequentialSampler:
        """A stand-in: Lightning replaces a random sampler it sees here when it overfits batches."""
        return SequentialSampler(range(len(self)))

    @property
    def batch_sampler(self) -> None:
        """None: the order is this loader's own."""
        return None

    @property
    def _iterator(self) -> Any:
        """What Lightning looks for to end workers with the fit; they would linger until a gc."""
        return self._inner._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self._inner._iterator = iterator

    @property
    def strength(self) -> Strength:
        """What takes a strength among dataset, transforms and collate function."""
        return self._fetch.strength

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch a loader without a Trainer gives."""
        self.epoch = int(epoch)

    def bind(self, trainer: pl.Trainer) -> None:
        """Take epoch and batch from this Trainer's loops from now on."""
        self.trainer = trainer

    def take_key(self, seed: int, tag: tuple[keys.Place, ...]) -> None:
        """Draw from this key from now on: a loader made without a seed is given one later."""
        self.seed = self._fetch.seed = int(seed)
        self.tag = self._fetch.tag = tag
        self._order_of, self.free = None, False

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the position is the Trainer's. Lightning asks for it to be sure."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing back."""

    def __len__(self) -> int:
        _, world = self._rank()
        return -(-len(self.loader) // world) if world > 1 else len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        # A generator: nothing happens before the first batch is asked for. Lightning makes the
        # iterator before it knows the epoch (its issues 20550 and 21938); here that is harmless.
        epoch, cycle, first = self._where()
        places = self._local(epoch, cycle)[first:]
        if self._receive is not None:
            out = self._out(epoch)
            places = [place._replace(out=out) for place in places]
        fetch_here = self._inner.num_workers == 0 and self._fetch.draws
        batches = fetched(
            self._inner, self._places, places, begin=self._begin_workers, on_lost=self._lost
        )
        for place in places:
            if fetch_here:
                with fetching_here():
                    batch = next(batches)
            else:
                batch = next(batches)
            if self._receive is not None:
                batch = self._unpack(place, batch)
            self._key_transfer(epoch, place.batch)
            yield batch

    def _begin_workers(self) -> None:
        # the loader draws its workers' seeds; from this the global generator stays as it is
        epoch = self._places.places[0].epoch
        self._inner.generator = keys.torch_generator(self.seed, "workers", epoch, *self.tag)

    def _lost(self, place: PlaceBatch, said: str) -> None:
        _log.warning("%s; new workers go on from batch %d", said, place.batch)
        if self.on_lost is not None:
            self.on_lost(place, said)

    def quarantine(
        self,
        screen: Screen,
        *,
        receive: Receive,
        out: Callable[[int], frozenset[Row]] | None = None,
    ) -> Sequence[Finding]:
        """Have samples looked at as they are fetched, and bad ones redrawn or named.

        Args:
            screen: What a sample must be.
            receive: Called with a place, what was found there, and whether the batch is whole.
            out: Called with an epoch: the rows that must not be fetched in it.

        Returns:
            What is known at once.
        """
        pool = [row for place in self.places(0) for row in _each(place.rows)] if out else []
        self._fetch = ScreenedFetch(self.loader, self.seed, self.tag, screen, pool)
        self._inner = rebuilt(self.loader, self._fetch, self._places)
        self._receive, self._out = receive, out or _nothing
        self._stood_in.clear()
        return ()

    def name_of(self, row: Any) -> Row:
        """Return how a row is known in a quarantine: by its number in the dataset."""
        return row_name(row)

    def _unpack(self, place: PlaceBatch, got: Any) -> Any:
        if not isinstance(got, Fetched):
            return got
        if got.rows is not None:
            if self._stood_in and next(iter(self._stood_in))[0] != place.epoch:
                self._stood_in.clear()  # in a long training they would add up
            self._stood_in[place.epoch, place.batch] = list(got.rows)
        if got.found and self._receive is not None:
            self._receive(place, got.found, got.whole)
        return got.batch

    def places(self, epoch: int, *, cycle: int = 0) -> list[PlaceBatch]:
        """Return the places of one epoch over all processes, in order.

        ``cycle`` counts how often a shorter loader was begun again within one epoch.
        """
        strength = self.strength_of(epoch)
        if self._order_of is None or self._order_of[0] != (epoch, cycle, strength):
            order = self._draw_order(epoch, cycle)
            if strength is not None:
                order = [place._replace(strength=strength) for place in order]
            self._order_of = ((epoch, cycle, strength), order)
        return self._order_of[1]

    def rows(self, epoch: int, batch: int) -> list[int]:
        """Return the dataset indices of a batch (its number counts over all processes)."""
        return self._rows_at(self.places(epoch)[batch])

    def rows_here(self, batch: int) -> list[int]:
        """Return the dataset indices of a batch of this process, in the epoch its Trainer is in."""
        epoch, _, _ = self._where()
        cycle, number = divmod(batch, max(len(self), 1))
        places = self.places(epoch, cycle=cycle)
        return self._rows_at(places[self._numbers(len(places))[number]])

    def _rows_at(self, place: PlaceBatch) -> list[int]:
        rows = self._stood_in.get((place.epoch, place.batch), place.rows)
        return [int(row) for row in np.ravel(rows)]

    def batch_at(self, epoch: int, batch: int) -> Any:
        """Fetch one batch again from its place alone, augmented as it was in training."""
        return self.fetch(self.places(epoch)[batch])

    def fetch(self, place: PlaceBatch) -> Any:
        """Fetch the rows of one place, here and now."""
        if self._receive is not None and not place.out:
            place = place._replace(out=self._out(place.epoch))
        with fetching_here():
            got = self._fetch.__getitems__(place)
        if isinstance(got, Fetched) and not got.whole and self._receive is not None:
            self._receive(place, got.found, got.whole)
        return got.batch if isinstance(got, Fetched) else got

    def _key_transfer(self, epoch: int, batch: int) -> None:
        if self.on_transfer is not None and self.trainer is not None and self.trainer.training:
            self.on_transfer(keys.seed_of(self.seed, "transfer", epoch, batch, *self.tag))

    def _whole_order(self, epoch: int, cycle: int) -> NDArray[np.int64] | None:
        """Draw an epoch's order at once, where the sampler allows that; else return None."""
        return orders.at_once(self.loader, self.seed, epoch, cycle, self.tag)

    def _draw_order(self, epoch: int, cycle: int) -> list[PlaceBatch]:
        whole = self._whole_order(epoch, cycle)
        if whole is None:
            return orders.of_sampler(self.loader, self.seed, epoch, cycle, self.tag)
        order, size = whole.tolist(), self.loader.batch_size or 1
        return [
            PlaceBatch(epoch, n, n * size, order[n * size : (n + 1) * size])
            for n in range(len(self.loader))
        ]

    def _local(self, epoch: int, cycle: int) -> list[PlaceBatch]:
        places = self.places(epoch, cycle=cycle)
        return [places[number] for number in self._numbers(len(places))]

    def _numbers(self, batches: int) -> Sequence[int]:
        """Return which batches of the global order are this process's."""
        rank, world = self._rank()
        if world == 1:
            return range(batches)
        return [*range(batches), *range(batches)[: -batches % world]][rank::world]

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None or any(
            hasattr(s, "num_replicas") for s in orders.samplers(self.loader)
        ):
            return 0, 1  # alone, or a sampler that takes its own share
        return self.trainer.global_rank, self.trainer.world_size

    def _where(self) -> tuple[int, int, int]:
        """Return epoch, cycle and first batch of the iteration that begins now."""
        if self.trainer is None or not self.trainer.training:
            return self.epoch, 0, 0
        if self.tag and self.tag[0] != "train":
            return 0, 0, 0  # evaluation sees the same draws each time
        loop = self.trainer.fit_loop
        overfits = getattr(self.trainer, "overfit_batches", 0) > 0  # the same batches each epoch
        epoch = 0 if overfits else loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        length = max(len(self), 1)
        cycle, first = divmod(loop.epoch_loop.batch_progress.current.ready, length)
        combined = loop._combined_loader
        if cycle and combined is not None and combined._mode != "max_size_cycle":
            return epoch, 0, length  # used up: this mode does not begin it again
        return epoch, cycle, first


def _each(rows: Any) -> list[Any]:
    return list(rows) if isinstance(rows, list | tuple | np.ndarray) else [rows]


def _as_it_is(epoch: int) -> None:
    return None


def _nothing(epoch: int) -> frozenset[Row]:
    return frozenset()
