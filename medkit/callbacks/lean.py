"""What Lightning does at each step to no end, left out: it counts where a step takes 0.5 ms."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.utilities import move_data_to_device

from medkit.callbacks.keyed_steps import moves_by_hand

_NOTHING: AbstractContextManager[None] = nullcontext()


class NoProfiler(PassThroughProfiler):
    """Profiles nothing, for nothing: Lightning's enters a generator 17 times a step, 20 us."""

    def profile(self, action_name: str) -> Any:
        """Return a context that does nothing."""
        return _NOTHING


def lighten(trainer: pl.Trainer) -> None:
    """Leave out of this Trainer's steps what does nothing, unless a profiler looks on."""
    if isinstance(trainer.profiler, NoProfiler):  # type: ignore[attr-defined]
        ask_signature_once(trainer)
        move_without_hooks(trainer)


def move_without_hooks(trainer: pl.Trainer) -> None:
    """Have batches moved to the device directly where nobody wrote a hook for it.

    Lightning looks up and enters two hooks a batch that do nothing, 20 us.
    """
    if type(trainer.strategy).batch_to_device is Strategy.batch_to_device:
        trainer.strategy.batch_to_device = partial(_move, trainer, {})  # type: ignore[method-assign]


def _move(
    trainer: pl.Trainer,
    known: dict[str, Any],
    batch: Any,
    device: torch.device | None = None,
    dataloader_idx: int = 0,
) -> Any:
    owners = (trainer.lightning_module, getattr(trainer, "datamodule", None))
    if known.get("owners") != owners:
        known["owners"] = owners
        known["by_hand"] = moves_by_hand(trainer)
    if known["by_hand"]:
        return Strategy.batch_to_device(trainer.strategy, batch, device, dataloader_idx)
    return move_data_to_device(batch, device or trainer.strategy.root_device)


def ask_signature_once(trainer: pl.Trainer) -> None:
    """Have the epoch loop remember whether ``training_step`` takes a batch number.

    Lightning reads the signature anew at each step, 25 us.
    """
    loop = trainer.fit_loop.epoch_loop
    arguments = partial(_arguments, trainer, type(loop)._build_kwargs, {})
    loop._build_kwargs = arguments  # type: ignore[method-assign]


def _arguments(
    trainer: pl.Trainer,
    ask: Any,
    known: dict[str, Any],
    kwargs: OrderedDict[str, Any],
    batch: Any,
    batch_idx: int,
) -> OrderedDict[str, Any]:
    step = trainer.lightning_module.training_step
    if known.get("step") != step:  # another module, or a method put in its place
        known["takes_number"] = "batch_idx" in ask(
            trainer.fit_loop.epoch_loop, OrderedDict(), None, 0
        )
        known["step"] = step
    kwargs["batch"] = batch
    if known["takes_number"]:
        kwargs["batch_idx"] = batch_idx
    return kwargs
