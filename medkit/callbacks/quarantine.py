"""Samples that can't be trained on are set aside with their reason, and drawn again."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from medkit.callbacks.due import of_any_rank
from medkit.callbacks.guard_rows import Row, in_words, rows_of
from medkit.callbacks.spike_guard import SpikeGuard
from medkit.data.fetching import PlaceBatch
from medkit.data.keyed_loader import KeyedLoader
from medkit.data.quarantine import Finding
from medkit.data.quarantine_tables import look_through
from medkit.data.screen import Check, Screen

_log = logging.getLogger(__name__)
_NAMED = 3  # rows of a kind that a message names


class QuarantineError(ValueError):
    """More samples are bad than the budget allows, or one that must not be replaced."""


class Quarantine(pl.Callback):
    """Set samples aside that can't be read, are not finite or break their ranges; redraw them.

    A training sample is looked at where it is fetched, workers included. What stands in for a bad
    one is drawn from the key ``seed, "redraw", epoch, position`` among the rows of epoch 0, so it
    is the same for any number of workers and after a resume. Within the epoch that finds it a row
    is tried wherever it is drawn; from the next epoch on it is known, and not fetched again.

    Rows of validation and test are not replaced: a number on fewer or other patients is another
    number. A bad one stops with its name.

    Needs keyed loaders: ``keyed(dm)``. Rows in memory (``TableLoader``) are looked at once, as the
    fit begins. Of the kit's DataModules of tables ``ranges`` are in the units of the table, and
    where there are none, those of its contract count. Rows that a ``SpikeGuard`` of the same
    Trainer sets aside are the same set: from the next epoch on they are not fetched either.

    Not looked at: what is collated or drawn on the device. A dataset with ``__getitems__`` that
    returns whole batches as tensors is not looked at as images.

    Args:
        ranges: Field of a sample -> (low, high), see :class:`~medkit.data.screen.Screen`; or column
            -> (low, high) for the kit's DataModules of tables.
        budget: Share of the training rows that may be set aside; one always may, unless it is 0.
        checks: See :class:`~medkit.data.screen.Screen`: "finite", "constant", "padded", functions.
        fields: What "finite" looks at; None: all. The first is the image.
        on_event: Called with each intervention as keyword arguments ``event action epoch batch
            step rows detail``; None logs it.
        name_row: How rows are named there; a run gives pseudonyms, and
            :func:`~medkit.record.ledger.rows_named` leads back to the rows.

    Attributes:
        rows: Row -> reason.
    """

    def __init__(
        self,
        ranges: Mapping[str | int, tuple[Any, Any]] | None = None,
        *,
        budget: float = 0.02,
        checks: Sequence[Check] = ("finite",),
        fields: Sequence[str | int] | None = None,
        on_event: Callable[..., None] | None = None,
        name_row: Callable[[Row], Row] | None = None,
    ) -> None:
        if ranges is not None and not isinstance(ranges, Mapping):
            raise TypeError(
                f"ranges must map fields of a sample to (low, high), got {ranges!r}. Name the "
                "field: Quarantine({0: (-1024, 3071)})."
            )
        for name, given, like in (("checks", checks, "finite"), ("fields", fields, "image")):
            if given is not None and (isinstance(given, str) or not isinstance(given, Sequence)):
                raise TypeError(
                    f"{name} must be a sequence, got {given!r}. Put a single one in a tuple: "
                    f"Quarantine({name}=({like!r},))."
                )
        if not isinstance(budget, int | float) or not 0 <= budget < 1:
            raise ValueError(
                f"budget must be a share of the rows from 0 to below 1, got {budget!r}. 0.02 lets "
                "one row in fifty be set aside; 0 stops at the first."
            )
        self.screen = Screen(
            dict(ranges or {}), tuple(checks), None if fields is None else tuple(fields)
        )
        self.budget = budget
        self.on_event = on_event
        self.name_row = name_row
        self._begin()

    # passed over by Lightning, see KeyedSteps
    on_train_batch_end = on_before_zero_grad = on_before_backward = None  # type: ignore[assignment]
    on_after_backward = on_before_optimizer_step = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        own = [getattr(check, "__qualname__", check) for check in self.screen.checks]
        ranges = {name: tuple(map(_plain, limits)) for name, limits in self.screen.ranges.items()}
        return f"Quarantine({ranges}, {self.budget}, {own}, {self.screen.fields})"

    def _begin(self) -> None:
        self.rows: dict[Row, str] = {}
        self.events: list[dict[str, Any]] = []
        self._since: dict[Row, int] = {}  # the epoch that found a row
        self._new: list[Finding] = []  # of the batch that comes next
        self._epoch = 0
        self._held_out: WeakSet[KeyedLoader] = WeakSet()  # loaders that look already
        self._together: bool | None = None  # whether a SpikeGuard names rows as the loader does

    # ---- a fit begins --------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew; a resumed fit loads what it knew after this."""
        if stage == "fit":
            self._begin()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look through the rows in memory; have others looked at as they are fetched."""
        self._epoch = trainer.current_epoch
        self._adopt(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the epoch; take in loaders that were made anew."""
        self._epoch = trainer.current_epoch
        if getattr(trainer, "reload_dataloaders_every_n_epochs", 0):
            self._adopt(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give rows that a guard has set aside in this epoch their date."""
        self._date()

    def _adopt(self, trainer: pl.Trainer) -> None:
        receive = partial(self._receive, trainer)
        for loader in _loaders(trainer):
            loader.bind(trainer)
            known = look_through(
                loader, _data_of(trainer), self.screen, receive=receive, out=self._out_of
            )
            self._take(trainer, known, epoch=None)

    def _out_of(self, epoch: int) -> frozenset[Row]:
        """Return the rows found before an epoch, which are the same however it was reached."""
        return frozenset(row for row, since in self._since.items() if since < epoch)

    # ---- what is found -------------------------------------------------------------------------

    def _receive(
        self, trainer: pl.Trainer, place: PlaceBatch, found: Sequence[Finding], whole: bool
    ) -> None:
        self._new += found
        if not whole:
            new, self._new = self._new, []
            self._take(trainer, new, epoch=place.epoch, batch=place.batch)
            self._stop(trainer, f"no sound row was drawn for a place of batch {place.batch}")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write down what was found as this batch was fetched; all processes know the same."""
        new, self._new = self._new, []
        if trainer.world_size > 1 and of_any_rank(trainer, [bool(new)])[0]:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, new)
            new = [Finding(*one) for part in parts for one in part]
        if new:
            self._take(trainer, new, epoch=trainer.current_epoch, batch=batch_idx)
        if self._together is None:
            self._together = self._share(trainer, batch, batch_idx)

    def _take(
        self,
        trainer: pl.Trainer,
        found: Sequence[Finding],
        *,
        epoch: int | None,
        batch: int | None = None,
    ) -> None:
        for row, kind, detail in found:
            if row in self._since:
                continue
            self.rows[row] = f"{kind}: {detail}"
            self._since[row] = -1 if epoch is None else epoch
            self._note(trainer, f"{kind} sample", "row set aside, redrawn", row, detail, batch)
        rows = sum(len(loader.dataset) for loader in _loaders(trainer))  # type: ignore[arg-type,misc]
        if len(self.rows) > math.ceil(self.budget * rows):
            self._stop(trainer, f"{len(self.rows)} of {rows} rows had to be set aside", batch)

    def _stop(self, trainer: pl.Trainer, found: str, batch: int | None = None) -> None:
        kinds = Counter(reason.partition(":")[0] for reason in self.rows.values())
        named = []
        for kind, count in kinds.most_common():
            those = [(row, said) for row, said in self.rows.items() if said.startswith(kind)]
            some = ", ".join(f"{self._name(row)} ({said})" for row, said in those[:_NAMED])
            named.append(f"{count} {kind}, such as {some}")
        self._note(trainer, "quarantine over budget", "training stopped", None, found, batch)
        raise QuarantineError(
            f"at most {self.budget:.1%} of the rows may be set aside, but {found}: "
            f"{'; '.join(named)}. Mend these rows or what reads them, set the ranges right, or "
            "allow for more: Quarantine(budget=...)."
        )

    def _note(
        self,
        trainer: pl.Trainer,
        event: str,
        action: str,
        row: Row | None,
        detail: str,
        batch: int | None,
    ) -> None:
        line = {
            "event": event,
            "action": action,
            "epoch": None if batch is None else self._epoch,
            "batch": batch,
            "step": trainer.global_step,
            "rows": [] if row is None else [self._name(row)],
            "detail": detail,
        }
        self.events.append(line)
        _log.warning("%s", in_words(line))
        if self.on_event is not None and trainer.is_global_zero:
            self.on_event(**line)

    def _name(self, row: Row) -> Row:
        return row if self.name_row is None else self.name_row(row)

    # ---- one set with the guard of the steps ---------------------------------------------------

    def _share(self, trainer: pl.Trainer, batch: Any, batch_idx: int) -> bool:
        """Keep one set with the SpikeGuard, where it calls rows by the same names."""
        guards = [c for c in trainer.callbacks if isinstance(c, SpikeGuard)]  # type: ignore[attr-defined]
        loaders = list(_loaders(trainer))
        if not guards or len(loaders) != 1:
            return False
        names = [loaders[0].name_of(row) for row in loaders[0].rows_here(batch_idx)]
        if rows_of(trainer, batch, batch_idx) != names:
            return False
        self.rows |= guards[0].policy.set_aside
        guards[0].policy.set_aside = self.rows
        return True

    def _date(self) -> None:
        for row in self.rows.keys() - self._since.keys():
            self._since[row] = self._epoch

    # ---- validation and test -------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at validation samples as well."""
        self._look_at_held_out(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at validation samples as well."""
        self._look_at_held_out(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at test samples as well."""
        self._look_at_held_out(trainer)

    def _look_at_held_out(self, trainer: pl.Trainer) -> None:
        combined = getattr(trainer._active_loop, "_combined_loader", None)
        for loader in combined.flattened if combined is not None else ():
            if not isinstance(loader, KeyedLoader) or loader in self._held_out:
                continue
            self._held_out.add(loader)
            receive = partial(self._refuse, loader)
            found = look_through(loader, _data_of(trainer), self.screen, receive=receive)
            if found:
                self._refuse(loader, None, found, False)

    def _refuse(
        self, loader: KeyedLoader, place: PlaceBatch | None, found: Sequence[Finding], whole: bool
    ) -> None:
        some = ", ".join(
            f"{self._name(one.row)} ({one.kind}: {one.detail})" for one in found[:_NAMED]
        )
        part = loader.tag[0] if loader.tag else "held-out"
        where = "" if place is None else f" (batch {place.batch})"
        raise QuarantineError(
            f"rows of validation and test must be sound, but {part}{where} holds {some}. They are "
            "not replaced or left out, since a number on other patients is another number: mend "
            "the rows, or take them out of the split and say so."
        )

    # ---- a checkpoint --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the rows set aside, when they were found, and the events."""
        self._date()
        return {
            "rows": dict(self.rows),
            "since": dict(self._since),
            "events": [dict(line) for line in self.events],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.rows = dict(state_dict["rows"])
        self._since = dict(state_dict["since"])
        self.events = [dict(line) for line in state_dict["events"]]


def _loaders(trainer: pl.Trainer) -> Iterator[KeyedLoader]:
    combined = trainer.fit_loop._combined_loader
    for loader in combined.flattened if combined is not None else ():
        if not isinstance(loader, KeyedLoader):
            raise ValueError(
                "a quarantine needs keyed training data, whose rows are known by their place; "
                f"found a {type(loader).__name__}. Wrap it: keyed(datamodule), or "
                "keyed(loader, seed=...)."
            )
        yield loader


def _data_of(trainer: pl.Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


def _plain(limit: Any) -> Any:
    return limit.tolist() if isinstance(limit, Tensor | np.ndarray) else limit
