"""What Lightning does at each step to no end, left out: it counts where a step takes 0.5 ms."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.trainer.connectors.logger_connector.result import (
    _ResultCollection,
    _ResultMetric,
)
from pytorch_lightning.utilities import move_data_to_device
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from medkit.callbacks.keyed_steps import moves_by_hand

_NOTHING: AbstractContextManager[None] = nullcontext()
_STEP_HOOKS = (
    *("on_before_backward", "on_after_backward", "on_before_optimizer_step"),
    "configure_gradient_clipping",
)


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
        step_without_hooks(trainer)
        log_without_moves(trainer)


def step_without_hooks(trainer: pl.Trainer) -> None:
    """Have backward and optimizer step enter only the hooks that somebody wrote.

    Lightning enters four a step for the module and all callbacks, and clips gradients by nothing,
    50 us.
    """
    plugin, written = trainer.precision_plugin, _Written(trainer)
    for name, lean in (
        ("pre_backward", _pre_backward),
        ("post_backward", _post_backward),
        ("_after_closure", _after_closure),
    ):
        original = getattr(type(plugin), name)
        if original is getattr(Precision, name):  # a plugin may do more there
            setattr(plugin, name, partial(lean, written, partial(original, plugin)))


class _Written:
    """Which hooks of a step the module or a callback has; looked up once an epoch."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._known: tuple[Any, ...] = ()
        self._names: frozenset[str] = frozenset()
        self.quiet: list[Any] | None = None

    def __contains__(self, name: str) -> bool:
        trainer = self._trainer
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        known = (trainer.current_epoch, trainer.lightning_module, len(callbacks))
        if known != self._known:
            owners = [trainer.lightning_module, *callbacks]
            hooks = _STEP_HOOKS
            self._names = frozenset(h for h in hooks if any(is_overridden(h, o) for o in owners))
            self._known = known
            before_step = "on_before_optimizer_step"
            writers: list[Any] = [o for o in owners if is_overridden(before_step, o)]
            quiet = all(getattr(writer, "logs_nothing", False) for writer in writers)
            self.quiet = writers if quiet else None
        return name in self._names

    def clips(self) -> bool:
        """Whether gradients may be clipped."""
        clips = self._trainer.gradient_clip_val not in (None, 0)
        return clips or "configure_gradient_clipping" in self


def _pre_backward(written: _Written, original: Any, tensor: Tensor, module: Any) -> Tensor:
    whole: Tensor = original(tensor, module) if "on_before_backward" in written else tensor
    return whole


def _post_backward(written: _Written, original: Any, tensor: Tensor, module: Any) -> Tensor:
    loss: Tensor = original(tensor, module) if "on_after_backward" in written else tensor.detach()
    return loss


def _after_closure(written: _Written, original: Any, model: Any, optimizer: Any) -> None:
    if written.clips() or written.quiet is None:
        original(model, optimizer)
        return
    for callback in written.quiet:  # the kit's own, which log nothing there
        callback.on_before_optimizer_step(model.trainer, model, optimizer)


def log_without_moves(trainer: pl.Trainer) -> None:
    """Have a logged value's accumulator moved to its device where it is on another one.

    Lightning does so at each ``self.log``, through all the accumulator's attributes, 150 us.
    """
    fit = trainer.fit_loop.epoch_loop
    for loop in (fit, fit.val_loop, trainer.validate_loop, trainer.test_loop):
        if type(loop._results) is _ResultCollection:
            loop._results = _Results(training=loop._results.training)


class _Results(_ResultCollection):
    """Lightning's collection of what was logged."""

    def __setitem__(self, key: str, metric: _ResultMetric) -> None:
        metric.to = partial(_to, metric)  # type: ignore[method-assign]
        super().__setitem__(key, metric)


def _to(metric: _ResultMetric, device: Any, *more: Any, **options: Any) -> _ResultMetric:
    held = [getattr(metric, name) for name in metric._defaults]
    if metric.is_tensor and all(state.device == device for state in held) and not more:
        return metric
    return _ResultMetric.to(metric, device, *more, **options)


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
