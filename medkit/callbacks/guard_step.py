"""One optimizer step held back whole: gradients, counters, rates and the loss scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        scaler = _scaler(self._trainer)
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
        scaler = _scaler(self._trainer)
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


def gather(
    trainer: pl.Trainer, losses: Sequence[Tensor], norm: Tensor
) -> tuple[list[float], list[float], float]:
    """Return this process's losses, those of all, and the largest norm; all see the same."""
    values = torch.stack([value.float().reshape(()) for value in (*losses, norm)])
    mine: list[float] = values.tolist()
    if trainer.world_size == 1:
        return mine[:-1], mine[:-1], mine[-1]
    parts = [torch.empty_like(values) for _ in range(trainer.world_size)]
    torch.distributed.all_gather(parts, values)
    every = [part.tolist() for part in parts]
    norms = [part[-1] for part in every]
    largest = max(norms) if all(map(math.isfinite, norms)) else math.nan
    return mine[:-1], [loss for part in every for loss in part[:-1]], largest


def what_is_wrong(losses: Sequence[float], norm: float, of_loss: Window, of_norm: Window) -> str:
    """Return what a step's losses and gradient norm show; empty when they are in order."""
    if not all(map(math.isfinite, losses)):
        return "non-finite loss"
    if not math.isfinite(norm):
        return "non-finite gradient"
    if any(loss > of_loss.limit for loss in losses):
        return "loss spike"
    return "gradient spike" if norm > of_norm.limit else ""


def unscaled(trainer: pl.Trainer, optimizer: Optimizer, norm: Tensor) -> Tensor:
    """Return the norm without the loss scale, which some fused optimizers take out themselves."""
    scaler = _scaler(trainer)
    if scaler is None or not _unscales_itself(optimizer):
        return norm
    return norm / scaler.get_scale()


def found_inf(trainer: pl.Trainer, norm: float) -> bool:
    """Whether a GradScaler met an infinity of its own scale: normal, and it skips that step.

    At a scale of 1 and below it is the gradient that is not finite.
    """
    scaler = _scaler(trainer)
    return scaler is not None and not math.isfinite(norm) and scaler.get_scale() > 1


def _scaler(trainer: pl.Trainer) -> Any:
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def _unscales_itself(optimizer: Optimizer) -> bool:
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def weights_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the weights that an optimizer moves."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]
