"""Rows in memory, in whole batches, at the price of moving their bytes.

What an epoch costs at least is reading each row once and writing it once. A DataLoader adds a
Python call per row (20 to 30 times that), or per batch with ``__getitems__`` (2 to 4 times). Here
the order of an epoch is drawn at once, small batches are gathered several at a time and handed out
as views, and no process is started.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from medkit import keyed as keys
from medkit.data.batches import TableDataset, alike
from medkit.data.draws import BalancedDraws, HalfPositive
from medkit.data.fetching import PlaceBatch
from medkit.data.keyed_loader import KeyedLoader, Receive
from medkit.data.quarantine import Finding, Row
from medkit.data.screen import Screen

# Small batches are gathered together up to what torch does with one thread: to wake the others
# costs ten times the copy. Large ones are spread anyway, and need fewer calls.
_CHUNK_BYTES, _LARGE_CHUNK_BYTES = 1 << 17, 1 << 20
_LINE_BYTES = 64  # torch's allocations begin at a multiple of this


class TableLoader(KeyedLoader):
    """Batches of rows held in memory, in an order that is a function of seed and epoch.

    The batches are those of a keyed ``DataLoader`` over the same rows, bit for bit: resumable at
    any batch, shared by batches among processes, followed by the kit's callbacks. Without a key,
    neither from ``seed`` nor from ``keyed(datamodule)`` nor from the run of the Trainer it is
    passed to, each iteration draws another order from torch's global generator, as a
    ``DataLoader`` does. Under a plain ``pl.Trainer`` the epoch is told by Lightning; elsewhere by
    :meth:`set_epoch`.

    A batch is a copy: changing it in place leaves the rows as they are.

    Args:
        fields: Tensors with one entry per row, all on one device: a tuple, or a named one such as
            ``Batch(x, y, row, site)``. Batches are of the same type.
        batch_size: Rows a batch; the last one may be smaller.
        rows: Go through these rows only (those of a split), without a copy of them.
        shuffle: Each row once an epoch, shuffled; else in order.
        balanced_by: Class of each row gone through: drawn with replacement, each class equally
            often (:class:`~medkit.data.draws.BalancedDraws`).
        half_by: Label 0 or 1 of each row gone through: every second row drawn is a 1
            (:class:`~medkit.data.draws.HalfPositive`).
        drop_last: Leave a last, smaller batch out.
        seed: The run's seed; None waits for a key, see above.

    Raises:
        ValueError: For fields of different lengths, no rows, and draws that contradict each other.
    """

    def __init__(
        self,
        fields: tuple[Tensor, ...],
        batch_size: int,
        *,
        rows: Tensor | Sequence[int] | np.ndarray[Any, Any] | None = None,
        shuffle: bool = False,
        balanced_by: Tensor | None = None,
        half_by: Tensor | None = None,
        drop_last: bool = False,
        seed: int | None = None,
    ) -> None:
        _require_fields(fields, batch_size)
        classes = half_by if balanced_by is None else balanced_by
        if shuffle + (balanced_by is not None) + (half_by is not None) > 1:
            raise ValueError(
                "rows are shuffled or drawn by class, not both; got two of shuffle, balanced_by "
                "and half_by. Balanced draws come in random order anyway: leave shuffle out."
            )
        data = TableDataset(fields, None if rows is None else _row_numbers(rows, len(fields[0])))
        if classes is not None and len(classes) != len(data):
            raise ValueError(
                f"there must be a class for each row gone through, {len(data)}; got "
                f"{len(classes)}. With rows=, pass the labels of those rows: y[rows]."
            )
        sampler: BalancedDraws | HalfPositive | None = None
        if balanced_by is not None:
            sampler = BalancedDraws(balanced_by)
        elif half_by is not None:
            sampler = HalfPositive(half_by.cpu().numpy())
        loader = DataLoader(
            data,
            batch_size,
            shuffle=shuffle and len(data) > 0,  # torch refuses to shuffle nothing
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=_as_it_is,
        )
        super().__init__(loader, seed=0 if seed is None else seed)
        self.free = seed is None
        self._fields = fields
        self._at = data.at
        self._size = batch_size
        self._random = shuffle or sampler is not None
        self._per = batches_at_once(fields, batch_size)

    @property
    def sampler(self) -> SequentialSampler:
        """A stand-in, through which Lightning tells the epoch."""
        return _TellsEpoch(self)

    def __iter__(self) -> Iterator[Any]:
        epoch, cycle, first = self._where()
        if self.free and self._random:
            self._take_any_seed()
        numbers = self._numbers(len(self.loader))[first:]
        order = self._device_order(epoch, cycle)
        # of several processes each takes every W-th batch: nothing to gather at once
        per = self._per if isinstance(numbers, range) else 1
        for start in range(0, len(numbers), per):
            some = numbers[start : start + per]
            stop = (some[-1] + 1) * self._size
            batches = self._gather(order, some[0] * self._size, stop)
            for number, batch in zip(some, batches, strict=True):
                self._key_transfer(epoch, number)
                yield batch

    def bind(self, trainer: Any) -> None:
        """Take epoch and batch from this Trainer's loops, and the key of the run where it has one.

        Without one, the order is drawn from torch's global generator once.
        """
        super().bind(trainer)
        if self.free:
            with contextlib.suppress(RuntimeError):  # no run was started
                self.take_key(keys.run_seed(), self.tag)
        if self.free:
            self._take_any_seed()
            self.free = False

    def quarantine(
        self,
        screen: Screen,
        *,
        receive: Receive,
        out: Callable[[int], frozenset[Row]] | None = None,
    ) -> Sequence[Finding]:
        """Look at all rows at once; those in ``out`` are replaced as an epoch's order is drawn."""
        at = torch.arange(len(self._fields[0])) if self._at is None else self._at
        bad = screen.bad_rows(self._fields)[at].nonzero()[:, 0]
        self._order_of = None
        if out is not None:
            self._out = out
        found = []
        for row in bad.tolist():
            problem = screen.problem(alike(self._fields, [f[int(at[row])] for f in self._fields]))
            if problem is not None:
                found.append(Finding(self.name_of(row), *problem))
        return found

    def name_of(self, row: Any) -> Row:
        """Return how a row is known: by its field ``row`` where it has one, as in its batches."""
        return int(self._names()[int(row)])

    def _names(self) -> NDArray[np.int64]:
        names = getattr(self._fields, "row", None)
        known = isinstance(names, Tensor) and names.ndim == 1 and not names.is_floating_point()
        if not known:
            return np.arange(len(self.dataset))  # type: ignore[arg-type]
        return (names if self._at is None else names[self._at.to(names.device)]).cpu().numpy()  # type: ignore[union-attr,index]

    def _whole_order(self, epoch: int, cycle: int) -> NDArray[np.int64] | None:
        """Draw an epoch's order; rows that are set aside give their positions to others of it."""
        order, out = super()._whole_order(epoch, cycle), self._out(epoch)
        if not out:
            return order
        if order is None:
            order = np.arange(len(self.dataset))  # type: ignore[arg-type]
        bad = np.isin(self._names()[order], [row for row in out if isinstance(row, int)])
        sound = order[~bad]
        if len(sound) and bad.any():
            place = (epoch, cycle) if cycle else (epoch,)
            draw = keys.generator(self.seed, "redraw", *place, *self.tag)
            order = np.where(bad, sound[draw.integers(len(sound), size=len(order))], order)
        return order

    def _gather(self, order: Tensor | None, start: int, stop: int) -> Iterator[Any]:
        """Copy the rows at positions ``start`` to ``stop`` and cut them into batches."""
        if order is None:
            parts = [field[start:stop].clone() for field in self._fields]
        else:
            at = order[start:stop]
            parts = [field.index_select(0, at) for field in self._fields]
        for pieces in zip(*(part.split(self._size) for part in parts), strict=True):
            yield alike(self._fields, pieces)

    def _device_order(self, epoch: int, cycle: int) -> Tensor | None:
        """Return the row of each position, where the fields are; None: all rows, in order."""
        drawn = self._whole_order(epoch, cycle)
        if drawn is None:
            at = self._at
        else:
            order = torch.from_numpy(drawn)
            at = order if self._at is None else self._at.index_select(0, order)
        return None if at is None else at.to(self._fields[0].device)

    def _draw_order(self, epoch: int, cycle: int) -> list[PlaceBatch]:
        order = self._whole_order(epoch, cycle)
        if order is None:
            order = np.arange(len(self.loader.dataset))  # type: ignore[arg-type]
        size = self._size
        return [
            PlaceBatch(epoch, number, number * size, order[number * size : (number + 1) * size])
            for number in range(len(self.loader))
        ]

    def _rank(self) -> tuple[int, int]:
        group = torch.distributed
        if self.trainer is None and group.is_available() and group.is_initialized():
            return group.get_rank(), group.get_world_size()  # a plain Trainer's: it binds nothing
        return super()._rank()

    def _take_any_seed(self) -> None:
        several = self._rank()[1] > 1  # they must agree: 0, as DistributedSampler's
        self.seed = 0 if several else int(torch.empty((), dtype=torch.int64).random_())
        self._order_of = None


class _TellsEpoch(SequentialSampler):
    def __init__(self, loader: TableLoader) -> None:
        super().__init__(range(len(loader)))
        self.loader = loader

    def set_epoch(self, epoch: int) -> None:
        """Set the loader's, in training: evaluation sees the same draws each time."""
        if not self.loader.tag or self.loader.tag[0] == "train":
            self.loader.set_epoch(epoch)


def batches_at_once(fields: tuple[Tensor, ...], size: int) -> int:
    """Return how many batches are gathered together.

    One, where a batch would not begin where torch's own allocations do: what is computed from it
    may depend on that in the last bit, and on where an epoch was entered it must not.
    """
    row = [field[:1].nbytes for field in fields]
    if any(one * size % _LINE_BYTES for one in row):
        return 1
    batch = max(1, max(row) * size)
    return max(1, (_CHUNK_BYTES if batch < _CHUNK_BYTES else _LARGE_CHUNK_BYTES) // batch)


def _require_fields(fields: tuple[Tensor, ...], batch_size: int) -> None:
    shapes = [tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__ for f in fields]
    if not isinstance(fields, tuple) or not all(isinstance(s, tuple) and s for s in shapes):
        raise ValueError(
            f"a table is a tuple of tensors with one entry per row; found {type(fields).__name__} "
            f"of {shapes}. Pass (x, y), or Batch(x=..., y=..., row=..., site=...)."
        )
    if len({len(field) for field in fields}) != 1 or len({field.device for field in fields}) != 1:
        raise ValueError(
            "the fields of a table must have one entry per row, all on one device; found shapes "
            f"{shapes} on {sorted({str(field.device) for field in fields})}. "
            "Cut them to the same rows, and move them together."
        )
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(
            f"batch_size must be a whole number of rows from 1 on, got {batch_size!r}. "
            "64 suits 2,000 rows, 1024 suits millions."
        )


def _row_numbers(rows: Any, length: int) -> Tensor:
    at = torch.as_tensor(rows).cpu()
    whole = at.ndim == 1 and (at.dtype in (torch.int32, torch.int64) or len(at) == 0)
    if not whole or (len(at) and (int(at.min()) < 0 or int(at.max()) >= length)):
        found = f"{at.dtype} of shape {tuple(at.shape)}"
        if whole:
            found += f" from {int(at.min())} to {int(at.max())}"
        raise ValueError(
            f"rows must be numbers of rows from 0 to {length - 1}; found {found}. "
            "Pass those of a split (dm.split.train), or mask.nonzero()[0] of a NumPy mask."
        )
    return at.long()


def _as_it_is(batch: Any) -> Any:
    return batch
