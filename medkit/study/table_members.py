"""Members of one arm of an ablation on tables, watched while they train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from medkit.models.schedules import warmup_cosine
from medkit.models.seed_ensemble import SeedEnsemble

OPTIMIZERS: Mapping[str, float] = {"adamw": 2e-3, "sgd": 0.05}
"""Name -> highest rate where none is given. "sgd" has Nesterov's momentum of 0.9."""
_MOMENTUM = 0.9


class WatchedMembers(SeedEnsemble):
    """A :class:`SeedEnsemble` that looks at some rows often, and may average or use SGD.

    Both act on each weight alone, so a member still does not depend on the others.

    Attributes:
        watched: Name -> ``x`` of rows to look at.
        at: Optimizer steps to look at them.
        optimizer_name: Of :data:`OPTIMIZERS`.
        shift: Put on the log odds that are looked at: the prior, where draws are balanced. Without
            it losses have a large mean, which makes any band of them look narrow.
        ema: Decay of an exponential moving average of the weights, which is then what is looked
            at, validated and kept; None: none. (Lightning's callback puts the weights back before
            a module keeps its best epoch's.)
        seen: Name -> what the members said, a ``(S, N)`` of logits per look.
    """

    def watch(
        self,
        watched: Mapping[str, Tensor],
        at: Sequence[int],
        *,
        shift: float,
        optimizer: str,
        ema: float | None,
    ) -> None:
        """Set what the attributes say; once, before the fit."""
        self.watched, self.at, self.shift = dict(watched), frozenset(at), shift
        self.optimizer_name, self.ema = optimizer, ema
        self.seen: dict[str, list[Tensor]] = {name: [] for name in watched}
        self._average: Tensor | None = None

    def logits(self, x: Tensor, shift: float) -> Tensor:
        """Return the members' log odds of rows, shifted, ``(S, N)`` on the CPU."""
        with torch.no_grad():
            return (self(x.to(self.device)).float() + shift).cpu()

    def keep_best(self) -> None:
        """Take each member's best epoch for good, where that is asked for."""
        if self.best_epoch:
            self.net.put(self._best_weight())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the average along, and look."""
        step = self.trainer.global_step
        if self.ema is not None:
            now = self.net.rows()
            if self._average is None:
                self._average = now
            # from nothing it would lag behind for the first 1 / (1 - ema) steps
            self._average.lerp_(now, 1 - min(self.ema, (1 + step) / (10 + step)))
        if step in self.at:
            self._swap()
            for name, x in self.watched.items():
                self.seen[name].append(self.logits(x, self.shift))
            self._swap()

    def on_validation_epoch_start(self) -> None:
        """Validate the average."""
        self._swap()

    def on_validation_epoch_end(self) -> None:
        """Keep the best epoch of the average; go on with the weights."""
        super().on_validation_epoch_end()
        self._swap()

    def on_train_end(self) -> None:
        """Keep the average."""
        self._swap()

    def configure_optimizers(self) -> torch.optim.Optimizer | OptimizerLRSchedulerConfig:
        """Return the optimizer asked for, with SeedEnsemble's schedule."""
        if self.optimizer_name == "adamw":
            return super().configure_optimizers()
        hyper = self.hparams
        # AdamW shrinks weights by rate x decay a step; here the decay goes through the momentum
        decay = hyper["weight_decay"] * OPTIMIZERS["adamw"] * (1 - _MOMENTUM) / hyper["lr"]
        optimizer = torch.optim.SGD(
            self.net.parameters(),
            lr=hyper["lr"],
            momentum=_MOMENTUM,
            nesterov=True,
            weight_decay=decay,
        )
        return warmup_cosine(optimizer, hyper["total_steps"], warmup=hyper["warmup"])

    def _swap(self) -> None:
        if self._average is not None:
            now = self.net.rows()
            self.net.put(self._average)
            self._average = now
