"""One optimizer step held back whole: gradients, counters, rates and the loss scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer

from medkit.callbacks.guard_window import Window


class Hold:
    """Keeps what a step that must not happen would move although it has no gradients."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._rates: list[tuple[dict[str, Any], Any]] = []
        self._groups: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._void: list[Optimizer] = []
        self._scale: dict[str, Any] | None = None

    def void(self, optimizer: Optimizer) -> None:
        """Let the step that follows do nothing.

        Optimizers pass over weights without a gradient: no decay, no momentum. What some count in
        their groups, and the scale that a GradScaler backs off from, are put back later.
        """
        self._void.append(optimizer)
        for group in optimizer.param_groups:
            settings = {name: value for name, value in group.items() if name != "params"}
            self._groups.append((group, settings))
        scaler = scaler_of(self._trainer)
        if scaler is not None and self._scale is None:
            self._scale = scaler.state_dict()
        if scaler is not None and _unscales_itself(optimizer):
            for weight in weights_of(optimizer):  # it must find an infinity to be left out
                if weight.grad is not None:
                    weight.grad.fill_(math.inf)
            return
        self._clear(optimizer)

    def put_back(self) -> None:
        """After the step: put back what it moved all the same, the step count included."""
        for group, settings in self._groups:
            group.update(settings)
        scaler = scaler_of(self._trainer)
        if scaler is not None and self._scale is not None:
            scaler.load_state_dict(self._scale)
        loop = self._trainer.fit_loop.epoch_loop
        automatic = loop.automatic_optimization.optim_progress.optimizer.step
        manual = loop.manual_optimization.optim_step_progress
        by_itself = self._trainer.lightning_module.automatic_optimization
        progress = automatic if by_itself else manual
        for tracker in (progress.total, progress.current):
            tracker.ready -= len(self._void)
            tracker.completed -= len(self._void)
        for optimizer in self._void:
            self._clear(optimizer)
        self._void, self._groups, self._scale = [], [], None

    def lower_rates(self, optimizer: Optimizer, scale: float) -> None:
        """Let the step that follows have lower rates; its schedule never sees them."""
        for group in optimizer.param_groups:
            self._rates.append((group, group["lr"]))
            group["lr"] = group["lr"] * scale

    def rates_back(self) -> None:
        """Put the scheduled rates back."""
        for group, rate in self._rates:
            group["lr"] = rate
        self._rates.clear()

    @staticmethod
    def _clear(optimizer: Optimizer) -> None:
        for weight in weights_of(optimizer):
            weight.grad = None


@dataclass
class Seen:
    """What a step has shown, the same in every process.

    Attributes:
        losses: Mean loss of each micro-batch, process by process.
        sizes: Samples in each.
        mine: Which of them are this process's.
        norm: Of the gradient; the largest, if processes differ.
    """

    losses: list[float]
    sizes: list[int]
    mine: slice
    norm: float

    def over(self, of_loss: Window) -> list[bool]:
        """Return which losses are over their limits."""
        pairs = zip(self.losses, self.sizes, strict=True)
        return [not math.isfinite(loss) or loss > of_loss.limit_for(size) for loss, size in pairs]

    def what_is_wrong(self, of_loss: Window, of_norm: Window) -> str:
        """Return what the losses and the norm show; empty when they are in order."""
        for loss in self.losses:  # plain loops: this is run at each step
            if not math.isfinite(loss):
                return "non-finite loss"
        if not math.isfinite(self.norm):
            return "non-finite gradient"
        for loss, size in zip(self.losses, self.sizes, strict=True):
            if loss > of_loss.limit_for(size):
                return "loss spike"
        return "gradient spike" if self.norm > of_norm.limit_for(sum(self.sizes)) else ""

    def add_to(self, of_loss: Window, of_norm: Window) -> None:
        """Let windows take in what was in order."""
        for loss, size in zip(self.losses, self.sizes, strict=True):
            of_loss.add(loss, size)
        of_norm.add(self.norm, sum(self.sizes))


def gather(trainer: pl.Trainer, losses: Sequence[tuple[Tensor, int]], norm: Tensor) -> Seen:
    """Return what all processes have seen.

    Args:
        trainer: The fit's.
        losses: Of this process's micro-batches, with their sizes.
        norm: Of the gradient.
    """
    sizes = [size for _, size in losses]
    alone = trainer.world_size == 1
    if alone and norm.is_cpu:
        return Seen([loss.item() for loss, _ in losses], sizes, slice(None), norm.item())
    values = torch.stack([value.float().reshape(()) for value in (*(v for v, _ in losses), norm)])
    if alone:
        *mine, total = values.tolist()  # waits for the device, once a step
        return Seen(mine, sizes, slice(None), total)
    values = torch.cat([values, values.new_tensor(sizes)])
    parts = [torch.empty_like(values) for _ in range(trainer.world_size)]
    torch.distributed.all_gather(parts, values)
    every = [part.tolist() for part in parts]
    count = len(losses)
    totals = [part[count] for part in every]
    return Seen(
        losses=[loss for part in every for loss in part[:count]],
        sizes=[int(size) for part in every for size in part[count + 1 :]],
        mine=slice(count * trainer.global_rank, count * (trainer.global_rank + 1)),
        norm=max(totals) if all(map(math.isfinite, totals)) else math.nan,
    )


def unscaled(scaler: Any, optimizer: Optimizer, norm: float) -> float:
    """Return the norm without the loss scale, which some fused optimizers take out themselves."""
    return norm / float(scaler.get_scale()) if _unscales_itself(optimizer) else norm


def found_inf(scaler: Any, norm: float) -> bool:
    """Whether a GradScaler met an infinity of its own scale: normal, and it skips that step.

    At a scale of 1 and below it is the gradient that is not finite.
    """
    return not math.isfinite(norm) and scaler.get_scale() > 1


def scaler_of(trainer: pl.Trainer) -> Any:
    """Return the GradScaler of this fit, None where there is none."""
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def _unscales_itself(optimizer: Optimizer) -> bool:
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def weights_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the weights that an optimizer moves."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]
