"""Loaders without history: what a batch holds is a function of seed, epoch and batch number.

``keyed(data)`` wraps somebody's DataLoader or DataModule. The order of an epoch is taken from
their own sampler, once, with every generator set from the epoch's key; from there only positions
count. A sample is fetched with every generator set from its position's key. So an epoch can be
entered at any batch, by any number of workers, and the same place gives the same bits.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
from lightning_utilities.core.apply_func import apply_to_collection
from numpy.typing import NDArray
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from medkit import keyed as keys
from medkit.data.fetching import KeyedFetch, PlaceBatch, Places, fetching_here, rebuilt
from medkit.data.generators import find_generators, rekey

_log = logging.getLogger(__name__)
_HOOKS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")


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
        reason = why_not_keyed(loader)
        if reason:
            raise ValueError(reason)
        self.loader = loader
        self.seed = keys.run_seed() if seed is None else int(seed)
        self.tag = tag
        self.epoch = 0
        self.trainer: pl.Trainer | None = None
        # set where a module draws while a batch is moved, which is before its step is keyed
        self.on_transfer: Callable[[int], None] | None = None
        self._places = Places()
        self._fetch = KeyedFetch(loader, self.seed, tag)
        self._inner = rebuilt(loader, self._fetch, self._places)
        self._order_of: tuple[tuple[int, int], list[PlaceBatch]] | None = None

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
        self._places.places = places
        fetch_here = self._inner.num_workers == 0 and self._fetch.draws
        # the loader draws its workers' seeds; from this the global generator stays as it is
        self._inner.generator = keys.torch_generator(self.seed, "workers", epoch, *self.tag)
        batches = iter(self._inner)
        for place in places:
            if fetch_here:
                with fetching_here():
                    batch = next(batches)
            else:
                batch = next(batches)
            self._key_transfer(epoch, place.batch)
            yield batch

    def places(self, epoch: int, *, cycle: int = 0) -> list[PlaceBatch]:
        """Return the places of one epoch over all processes, in order.

        ``cycle`` counts how often a shorter loader was begun again within one epoch.
        """
        if self._order_of is None or self._order_of[0] != (epoch, cycle):
            self._order_of = ((epoch, cycle), self._draw_order(epoch, cycle))
        return self._order_of[1]

    def rows(self, epoch: int, batch: int) -> list[int]:
        """Return the dataset indices of a batch (its number counts over all processes)."""
        return [int(row) for row in np.ravel(self.places(epoch)[batch].rows)]

    def rows_here(self, batch: int) -> list[int]:
        """Return the dataset indices of a batch of this process, in the epoch its Trainer is in."""
        epoch, _, _ = self._where()
        cycle, number = divmod(batch, max(len(self), 1))
        places = self.places(epoch, cycle=cycle)
        return [int(row) for row in np.ravel(places[self._numbers(len(places))[number]].rows)]

    def batch_at(self, epoch: int, batch: int) -> Any:
        """Fetch one batch again from its place alone, augmented as it was in training."""
        return self.fetch(self.places(epoch)[batch])

    def fetch(self, place: PlaceBatch) -> Any:
        """Fetch the rows of one place, here and now."""
        with fetching_here():
            return self._fetch.__getitems__(place)

    def _key_transfer(self, epoch: int, batch: int) -> None:
        if self.on_transfer is not None and self.trainer is not None and self.trainer.training:
            self.on_transfer(keys.seed_of(self.seed, "transfer", epoch, batch, *self.tag))

    def _whole_order(self, epoch: int, cycle: int) -> NDArray[np.int64] | None:
        """Draw an epoch's order at once, where the sampler allows that; else return None."""
        sampler = self.loader.sampler
        plain, theirs = _is_plain_random(sampler), getattr(sampler, "keyed_order", None)
        if type(self.loader.batch_sampler) is not BatchSampler or not (plain or theirs):
            return None
        place = (epoch, cycle) if cycle else (epoch,)
        draw = keys.generator(self.seed, "order", *place, *self.tag)
        order: NDArray[np.int64]
        order = draw.permutation(len(sampler)) if plain else theirs(draw)  # type: ignore[arg-type,misc]
        return order

    def _draw_order(self, epoch: int, cycle: int) -> list[PlaceBatch]:
        whole = self._whole_order(epoch, cycle)
        if whole is not None:
            order, batches = whole.tolist(), range(len(self.loader))
            size: int = self.loader.batch_size  # type: ignore[assignment]
            return [
                PlaceBatch(epoch, n, n * size, order[n * size : (n + 1) * size]) for n in batches
            ]
        place = (epoch, cycle) if cycle else (epoch,)
        key = keys.seed_of(self.seed, "order", *place, *self.tag)
        sampler = self.loader.batch_sampler or self.loader.sampler
        for part in _samplers(self.loader):
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)
        state = keys.get_globals()
        keys.set_globals(key)
        rekey(find_generators(sampler), key)
        try:
            groups = list(sampler)
        finally:
            keys.restore_globals(state)
        places, position = [], 0
        for number, group in enumerate(groups):
            places.append(PlaceBatch(epoch, number, position, group))
            position += len(group) if hasattr(group, "__len__") else 1
        return places

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
        if self.trainer is None or any(hasattr(s, "num_replicas") for s in _samplers(self.loader)):
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


def keyed(data: Any, *, seed: int | None = None, split_seed: int | None = None) -> Any:
    """Make order and augmentation of somebody's data functions of place.

    Args:
        data: A ``DataLoader`` (a :class:`KeyedLoader` comes back), or a LightningDataModule or
            LightningModule with ``*_dataloader`` hooks, which comes back itself: its hooks then
            return keyed loaders, and its ``setup`` draws (splits) from the key "split".
        seed: None takes the seed of the run started last.
        split_seed: Decides what ``setup`` draws. None takes that of the run, or ``seed`` where one
            is given.

    Raises:
        TypeError: For anything else.
        ValueError: For a loader that cannot be tamed, with the reason.
    """
    if split_seed is None:
        split_seed = keys.run_split_seed() if seed is None else int(seed)
    seed = keys.run_seed() if seed is None else int(seed)
    if isinstance(data, KeyedLoader):
        if data.free:
            data.take_key(seed, ())
        return data
    if isinstance(data, DataLoader):
        return KeyedLoader(data, seed=seed)
    if isinstance(data, pl.LightningDataModule | pl.LightningModule):
        for hook in _HOOKS:
            if _overrides(data, hook):
                original = getattr(data, hook)
                if isinstance(original, functools.partial):  # keyed before: the new seed counts
                    original = original.keywords["hook"]
                kind = hook.removesuffix("_dataloader")
                fresh = functools.partial(_keyed_loaders, hook=original, seed=seed, kind=kind)
                object.__setattr__(data, hook, fresh)
        if isinstance(data, pl.LightningDataModule) and _overrides(data, "setup"):
            original = getattr(data, "setup")  # noqa: B009 - Lightning wraps it by instance
            if isinstance(original, functools.partial):
                original = original.keywords["hook"]
            object.__setattr__(
                data, "setup", functools.partial(_keyed_setup, hook=original, seed=split_seed)
            )
        return data
    raise TypeError(
        f"keyed() wraps a DataLoader, a LightningDataModule or a LightningModule with loader "
        f"hooks, got {type(data).__name__}. Pass the object whose batches are trained on."
    )


def why_not_keyed(loader: DataLoader[Any]) -> str:
    """Return why the draws of a loader cannot be made functions of place; empty if they can."""
    if isinstance(loader.dataset, IterableDataset):
        return (
            f"{type(loader.dataset).__name__} is an IterableDataset: its samples have no position, "
            "so an epoch cannot be entered in the middle. Use a map-style dataset."
        )
    if any(kind.__name__ == "ThreadDataLoader" for kind in type(loader).__mro__):
        return (
            "MONAI's ThreadDataLoader fetches in threads that share their generators, so draws "
            "depend on timing. Use monai.data.DataLoader or torch's."
        )
    return ""


def _keyed_loaders(*, hook: Callable[[], Any], seed: int, kind: str) -> Any:
    trainer = _trainer_of(getattr(hook, "__self__", None))
    place: tuple[keys.Place, ...] = (kind,)
    every: int = getattr(trainer, "reload_dataloaders_every_n_epochs", 0)
    if trainer is not None and every:
        place = (kind, trainer.current_epoch // every)  # made anew because it should differ
    with keys.globals_keyed(seed, "loader", *place):
        loaders = hook()
    numbers = iter(range(1_000_000))

    def wrap(loader: DataLoader[Any] | KeyedLoader) -> Any:
        if isinstance(loader, KeyedLoader) and not loader.free:
            return loader
        number = next(numbers)
        first = kind == "train" and number == 0
        tag = () if first else (kind, number)
        if isinstance(loader, KeyedLoader):
            loader.take_key(seed, tag)
            fresh = loader
        else:
            reason = why_not_keyed(loader)
            if reason:  # left as it is; the Trainer's callbacks mark the run inexact
                _log.warning("%s", reason)
                return loader
            fresh = KeyedLoader(loader, seed=seed, tag=tag)
        if kind == "train" and trainer is not None:
            fresh.bind(trainer)  # at once: Lightning asks for the length of this process's share
        return fresh

    if isinstance(loaders, CombinedLoader):
        known = (DataLoader, KeyedLoader)
        loaders.flattened = [wrap(x) if isinstance(x, known) else x for x in loaders.flattened]
        return loaders
    return apply_to_collection(loaders, DataLoader | KeyedLoader, wrap)


def _keyed_setup(stage: str | None = None, *, hook: Callable[..., Any], seed: int) -> Any:
    with keys.globals_keyed(seed, "split"):
        return hook(stage)


def _trainer_of(owner: object) -> pl.Trainer | None:
    """Return the Trainer a DataModule or LightningModule is attached to, if there is one."""
    name = "_trainer" if isinstance(owner, pl.LightningModule) else "trainer"
    trainer = getattr(owner, name, None)
    return trainer if isinstance(trainer, pl.Trainer) else None


def _samplers(loader: DataLoader[Any]) -> tuple[object, ...]:
    return loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)


def _overrides(data: object, name: str) -> bool:
    parent = (
        pl.LightningDataModule if isinstance(data, pl.LightningDataModule) else pl.LightningModule
    )
    return name in vars(data) or getattr(type(data), name) is not getattr(parent, name)


def _is_plain_random(sampler: object) -> bool:
    """Whether this is the sampler of an ordinary shuffled loader."""
    return (
        type(sampler) is RandomSampler and not sampler.replacement and sampler._num_samples is None
    )
