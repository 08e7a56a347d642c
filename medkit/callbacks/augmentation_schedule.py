"""Augment more as the training goes on: by epoch, or by how far it has learnt rows by heart."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from medkit.callbacks.strengths import ByGap, Ramp
from medkit.data.keyed_loader import KeyedLoader
from medkit.data.strength import Strength, set_strength, takes_strength

__all__ = ["AugmentationSchedule", "ByGap", "Ramp"]

_log = logging.getLogger(__name__)


class AugmentationSchedule(pl.Callback):
    """Set the strength of the augmentation epoch by epoch.

    The strength is set in whatever has a method ``set_strength`` or a number ``strength``: the
    training loaders' datasets, the transforms and collate functions they hold, and the module
    itself, for what augments on the device. With a loader that is keyed it is part of a batch's
    place: workers, persistent ones too, know it, and an augmented sample is a function of seed,
    epoch, position and the strength in the ledger. Each change is a line there. A resumed fit
    goes on with the strengths it had.

    Args:
        schedule: Epoch -> strength, such as :class:`Ramp`, or :class:`ByGap`.
        on_event: Called with each change as keyword arguments, as SpikeGuard's; None logs it. All
            are in ``events``.

    Raises:
        ValueError: When a fit starts, where nothing takes a strength or it can't reach what does;
            in a fit, for a strength that is no number and a validation loss that is not logged.
    """

    # passed over by Lightning, see KeyedSteps
    on_train_batch_start = on_before_zero_grad = on_before_backward = None  # type: ignore[assignment]
    on_after_backward = on_before_optimizer_step = None  # type: ignore[assignment]

    def __init__(
        self,
        schedule: Callable[[int], float] | ByGap,
        *,
        on_event: Callable[..., None] | None = None,
    ) -> None:
        if not isinstance(schedule, ByGap) and not callable(schedule):
            raise TypeError(
                f"a schedule must be a function of the epoch, Ramp or ByGap, got {schedule!r}. One "
                "strength throughout needs no schedule: set it in the transform."
            )
        self.schedule = schedule
        self.on_event = on_event
        if not isinstance(schedule, ByGap):  # needs no losses
            self.on_train_batch_end = None  # type: ignore[assignment,method-assign]
        self._begin()

    def _begin(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.strengths: dict[int, float] = {}
        self._loss: Tensor | None = None  # sum and number of the epoch's finite losses
        self._val_loss: float | None = None  # since the last decision

    def strength_of(self, epoch: int) -> float | None:
        """Return the strength of an epoch, the last that is known; None before the first."""
        known = [one for one in self.strengths if one <= epoch]
        return self.strengths[max(known)] if known else None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew; a resumed fit loads what it knew after this."""
        if stage == "fit":
            self._begin()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that the strength gets where it is needed."""
        if isinstance(self.schedule, ByGap) and not trainer.enable_validation:
            raise ValueError(
                "a strength by the generalisation gap needs validation, and this fit has none. "
                "Pass validation data, or schedule by epoch: AugmentationSchedule(Ramp(epochs=20))."
            )
        self._decide(trainer)
        if not self._apply(trainer, pl_module):
            held = [type(loader.dataset).__name__ for loader in _loaders(trainer)]
            raise ValueError(
                "a schedule needs something that takes a strength, but neither the training data "
                f"({', '.join(held)}), their transforms, the collate function nor "
                f"{type(pl_module).__name__} has a number `strength` or a method `set_strength`. "
                "Give one of them either, and let its augmentation depend on it."
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide on the epoch's strength."""
        self._decide(trainer)
        self._apply(trainer, pl_module)
        self._loss = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add the loss; one that is not finite belongs to a step that was no good."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is None:
            return
        loss = loss.detach().float()
        one = torch.stack([torch.nan_to_num(loss, 0.0, 0.0, 0.0), loss.isfinite().float()])
        self._loss = one if self._loss is None else self._loss.to(one.device) + one

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the validation loss."""
        if not isinstance(self.schedule, ByGap) or trainer.sanity_checking:
            return
        if trainer.state.fn != "fit":
            return
        name = self.schedule.monitor
        if name not in trainer.callback_metrics:
            raise ValueError(
                f"a strength by the generalisation gap needs the validation loss {name!r}, logged "
                f"are {sorted(trainer.callback_metrics)}. Log it, or name another: "
                "ByGap(monitor=...)."
            )
        self._val_loss = float(_mean(trainer, trainer.callback_metrics[name]))

    def _decide(self, trainer: pl.Trainer) -> None:
        """Choose the strength of the epoch that begins, once."""
        epoch = trainer.current_epoch
        if epoch in self.strengths:
            return
        before, why = self.strength_of(epoch), "by epoch"
        if not isinstance(self.schedule, ByGap):
            strength = self.schedule(epoch)
        elif before is None:
            strength, why = self.schedule.start, "to begin with"
        else:
            strength, why = self._by_gap(trainer, self.schedule, before)
        try:
            number = float(strength)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                "the strength of an augmentation must be a finite number, the schedule gave "
                f"{strength!r} for epoch {epoch}. Look at what it computes there."
            )
        self.strengths[epoch] = strength = number
        if strength != before:
            self._note(trainer, before, strength, why)

    def _by_gap(self, trainer: pl.Trainer, control: ByGap, before: float) -> tuple[float, str]:
        if self._loss is None or self._val_loss is None:
            return before, ""
        total, count = _mean(trainer, self._loss).tolist()
        accumulated = trainer.accumulate_grad_batches  # Lightning hands out loss / accumulated
        train = total / count * accumulated if count else math.nan
        gap = 1 - train / self._val_loss if self._val_loss > 0 else math.nan
        why = f"gap {gap:.3g}: training loss {train:.4g}, validation loss {self._val_loss:.4g}"
        self._val_loss = None
        return control.after(before, gap), why

    def _note(self, trainer: pl.Trainer, before: float | None, strength: float, why: str) -> None:
        change = f"set to {strength:g}"
        if before is not None:
            change = f"{'raised' if strength > before else 'lowered'} to {strength:g}"
        line = {
            "event": "augmentation strength",
            "action": change,
            "epoch": trainer.current_epoch,
            "batch": None,  # before the first; a resume at it has this line, see Ledger.cut_after
            "step": trainer.global_step,
            "rows": [],
            "detail": why,
        }
        self.events.append(line)
        if not trainer.is_global_zero:
            return
        if self.on_event is not None:
            self.on_event(**line)
        _log.info("%(event)s of epoch %(epoch)s: %(action)s (%(detail)s)", line)

    def _apply(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
        """Bring the strength where batches are fetched; return how many take it."""
        strength, found = self.strengths[trainer.current_epoch], 0
        for loader in _loaders(trainer):
            if isinstance(loader, KeyedLoader):
                loader.bind(trainer)
                loader.strength_of = self.strength_of
                found += len(loader.strength.takers)
                continue
            direct = Strength([loader.dataset, loader.collate_fn])
            if direct.takers and loader.num_workers:
                raise ValueError(
                    "a strength reaches worker processes through a keyed loader, but the training "
                    f"data come from a {type(loader).__name__} with {loader.num_workers} workers. "
                    "Wrap it: keyed(datamodule, seed=0), or set num_workers=0."
                )
            direct.set(strength)
            found += len(direct.takers)
        if takes_strength(pl_module):
            set_strength(pl_module, strength)
            found += 1
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return strengths, losses and events."""
        return {
            "strengths": list(self.strengths.items()),
            "loss": None if self._loss is None else self._loss.tolist(),
            "val_loss": self._val_loss,
            "events": [dict(line) for line in self.events],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.strengths = {int(epoch): float(value) for epoch, value in state_dict["strengths"]}
        loss = state_dict["loss"]
        self._loss = None if loss is None else torch.tensor(loss)
        self._val_loss = state_dict["val_loss"]
        self.events = [dict(line) for line in state_dict["events"]]


def _loaders(trainer: pl.Trainer) -> list[Any]:
    combined = trainer.fit_loop._combined_loader
    return list(combined.flattened) if combined is not None else []


def _mean(trainer: pl.Trainer, value: Tensor) -> Tensor:
    """Return the mean over processes: all must come to one decision."""
    if trainer.world_size == 1:
        return value
    reduced: Tensor = trainer.strategy.reduce(value.to(trainer.strategy.root_device).clone())
    return reduced
