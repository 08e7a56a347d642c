"""What forward and backward pass of a batch move, put back when they ran out of memory."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from medkit import keyed as keys
from medkit.callbacks.guard_state import Before
from medkit.callbacks.guard_step import weights_of
from medkit.callbacks.keyed_steps import KeyedSteps


class Try:
    """Buffers, attributes, metrics, logged means, generators and gradients as a batch found them.

    Gradients are copied only where a batch adds to those of earlier ones: the first of a window
    finds those of the step before, which are zeroed anyway.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._before = Before(trainer)
        self._zeroed = not is_overridden("optimizer_zero_grad", trainer.lightning_module)
        self._gradients: list[Tensor | None] | None = None

    def take(self) -> None:
        """Remember now."""
        self._before.take()
        self._draws = keys.get_globals()
        self._hook = self._trainer.lightning_module._current_fx_name
        self._gradients = None
        if not self._zeroed or batch_number(self._trainer) % self._trainer.accumulate_grad_batches:
            now = [weight.grad for weight in self._weights()]
            self._gradients = [None if one is None else one.detach().clone() for one in now]

    def drop_old_gradients(self) -> None:
        """Let those of the step before go a little earlier, where they would be zeroed."""
        if self._gradients is None:
            for weight in self._weights():
                weight.grad = None

    def put_back(self) -> None:
        """Put everything back as it was at :meth:`take`."""
        trainer = self._trainer
        module = trainer.lightning_module
        self._before.put_back()
        module._current_fx_name = self._hook  # Lightning leaves it where an error came from
        place = (trainer.current_epoch, batch_number(trainer), trainer.global_rank)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, KeyedSteps):  # generators of the module, and the device's
                callback._set(module, "step", *place, callback.attempt)
        keys.restore_globals(self._draws)
        gradients = self._gradients or [None for _ in self._weights()]
        for weight, gradient in zip(self._weights(), gradients, strict=True):
            weight.grad = None if gradient is None else gradient.clone()

    def _weights(self) -> list[Tensor]:
        return [weight for one in self._trainer.optimizers for weight in weights_of(one)]


def batch_number(trainer: pl.Trainer) -> int:
    """Return which batch of the epoch is under way (``batch_idx``)."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
