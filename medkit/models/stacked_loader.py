"""Batches for many members at once, each going through the rows in its own seed's order."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from medkit import keyed
from medkit.data.batches import alike
from medkit.data.fetching import PlaceBatch, fetching_here
from medkit.data.table_loader import TableLoader, batches_at_once


class StackedLoader(TableLoader):
    """Batches of a :class:`TableLoader` for S seeds: each field is ``(S, B, ...)``.

    Member s gets the rows that the same loader with its seed yields at the same place, bit for
    bit. One gather a field, whatever S.

    Args:
        loader: Whose rows, batch size and draws are taken.
        seeds: The members'.
    """

    def __init__(self, loader: TableLoader, seeds: Sequence[int]) -> None:
        vars(self).update(vars(loader))  # all of it is the same but whose order it is
        self.seeds = keyed.seeds_of(seeds)
        self._per = batches_at_once(self._fields, self._size * len(self.seeds))
        self._order_of = None

    def fetch(self, place: PlaceBatch) -> Any:
        """Fetch the rows of one place, here and now; of some rows in a list, these."""
        if np.ndim(place.rows) != 2:
            return super().fetch(place)
        with fetching_here():
            order = self._numbered(torch.as_tensor(place.rows))
            return next(self._gather(order, 0, order.shape[1]))

    def _whole_order(self, epoch: int, cycle: int) -> NDArray[np.int64]:
        """Draw the epoch's order of each member, ``(S, N)``."""
        own, orders = self.seed, []
        try:
            for seed in self.seeds:
                self.seed = seed
                orders.append(super()._whole_order(epoch, cycle))
        finally:
            self.seed = own
        return np.stack([_counted(order, len(self.dataset)) for order in orders])  # type: ignore[arg-type]

    def _device_order(self, epoch: int, cycle: int) -> Tensor:
        return self._numbered(torch.from_numpy(self._whole_order(epoch, cycle)))

    def _numbered(self, order: Tensor) -> Tensor:
        at = order if self._at is None else self._at[order]
        return at.to(self._fields[0].device)

    def _gather(self, order: Tensor, start: int, stop: int) -> Iterator[Any]:  # type: ignore[override]
        part = order[:, start:stop]
        size = min(self._size, part.shape[1])
        # all members' rows of one batch, then of the next; the last batch may be short
        for some in part.split(max(part.shape[1] // size * size, 1), 1):
            at = some.unflatten(1, (-1, min(size, some.shape[1]))).transpose(0, 1)
            shape, at = at.shape, at.reshape(-1)
            parts = [f.index_select(0, at).view(*shape, *f.shape[1:]) for f in self._fields]
            for pieces in zip(*(each.unbind(0) for each in parts), strict=True):
                yield alike(self._fields, pieces)

    def _draw_order(self, epoch: int, cycle: int) -> list[PlaceBatch]:
        order, size = self._whole_order(epoch, cycle), self._size
        return [
            PlaceBatch(epoch, n, n * size, order[:, n * size : (n + 1) * size])
            for n in range(len(self.loader))
        ]


def stacked(data: Any, seeds: Sequence[int]) -> Any:
    """Have a DataModule of tables yield training batches for all ``seeds`` at once.

    Validation and test stay as they are: all members see the same rows.

    Args:
        data: A ``TableLoader``, or a DataModule whose ``train_dataloader`` returns one; it comes
            back itself, and yields batches as before where another module is fitted. Keyed or not:
            the members' orders come from ``seeds`` alone.
        seeds: The members'.

    Raises:
        TypeError: For anything else.
    """
    if isinstance(data, TableLoader):
        return StackedLoader(data, seeds)
    if isinstance(data, pl.LightningDataModule):
        hook = getattr(data.train_dataloader, "before_stacked", data.train_dataloader)
        seeds = keyed.seeds_of(seeds)

        def train_dataloader(data: pl.LightningDataModule) -> Any:
            trainer = data.trainer
            alone = trainer is not None and not hasattr(trainer.lightning_module, "trained_apart")
            return hook() if alone else _stacked_loader(hook, seeds)

        train_dataloader.before_stacked = hook  # type: ignore[attr-defined]

        # a bound function: keyed(), around it or in it, asks whose hook it is; Lightning, its code
        object.__setattr__(data, "train_dataloader", types.MethodType(train_dataloader, data))
        return data
    raise TypeError(_REFUSED.format(type(data).__name__))


_REFUSED = (
    "members are trained together on rows in memory: a TableLoader, or a DataModule whose "
    "train_dataloader returns one; found a {}. Use EHRDataModule, or build a TableLoader over your "
    "tensors; other data are trained on once a seed, a process each (medkit sweep)."
)


def _stacked_loader(hook: Callable[[], Any], seeds: Sequence[int]) -> StackedLoader:
    loader = hook()
    if not isinstance(loader, TableLoader):
        raise TypeError(_REFUSED.format(f"train_dataloader that returns {type(loader).__name__}"))
    return StackedLoader(loader, seeds)


def _counted(order: NDArray[np.int64] | None, rows: int) -> NDArray[np.int64]:
    return np.arange(rows) if order is None else order
