"""Look at a void step again: which rows of its batches are at fault, and which layer."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from medkit.callbacks.guard_rows import (
    Row,
    all_finite,
    at_fault,
    first_not_finite,
    norm_of,
    replaying,
    rows_of,
    take,
)
from medkit.callbacks.guard_step import Seen
from medkit.callbacks.guard_window import Window

_log = logging.getLogger(__name__)


@dataclass
class Micro:
    """One micro-batch of a step.

    Attributes:
        number: Its place in the epoch (``batch_idx``).
        batch: The batch as it was trained on.
        rest: What ``training_step`` got beside it.
        size: Samples in it; 0 where that cannot be seen.
        loss: Its mean loss; None where ``training_step`` keeps it to itself.
    """

    number: int
    batch: Any
    rest: tuple[Any, ...]
    size: int = 0
    loss: Tensor | None = None


@dataclass
class Fault:
    """Why a step was void.

    Attributes:
        event: What was seen.
        values: Losses and norm, in words.
        losses: Which of this process's micro-batches had a loss over its limit.
        optimizer: Whose step it was.
        loss_limits: What their losses must not exceed.
        norm_limit: What the gradient norm of the whole step must not exceed.
        layers: Where it was seen: the first layer, then parameters by their gradients.
        not_finite: Whether a loss or the norm was not finite.
        rows: Rows at fault, of all processes.
        places: Where they were in their batches, if nobody knows which rows they are.
    """

    event: str
    values: str
    losses: list[bool]
    optimizer: Optimizer
    loss_limits: list[float]
    norm_limit: float
    layers: list[str]
    not_finite: bool
    rows: list[Row] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    @classmethod
    def found(
        cls,
        event: str,
        seen: Seen,
        of_loss: Window,
        of_norm: Window,
        optimizer: Optimizer,
        names: Sequence[str],
        norms: Sequence[Tensor],
    ) -> Fault:
        """Return the fault of a step with these losses and this norm."""
        limits = [of_loss.limit_for(size) for size in seen.sizes[seen.mine]]
        of_step = of_norm.limit_for(sum(seen.sizes))
        ranked = sorted(zip(map(_rank, norms), names, strict=True), reverse=True)
        shown = ", ".join(f"{loss:.4g}" for loss in seen.losses) or "not known"
        return cls(
            event=event,
            values=f"loss {shown} (limit {of_loss.limit:.4g}), gradient {seen.norm:.4g} "
            f"(limit {of_step:.4g})",
            losses=seen.over(of_loss)[seen.mine],
            optimizer=optimizer,
            loss_limits=limits,
            norm_limit=of_step,
            layers=[name for _, name in ranked],
            not_finite=event.startswith("non-finite"),
        )

    @property
    def explained(self) -> bool:
        """Whether a few rows of the batch are at fault, and not the state of the net."""
        return bool(self.rows or self.places)


def _rank(norm: Tensor) -> float:
    value = float(norm)
    return value if math.isfinite(value) else math.inf


def find_rows(trainer: pl.Trainer, fault: Fault, micros: Sequence[Micro]) -> None:
    """Put rows, places and first layer at fault into ``fault``; all processes get the same."""
    found: tuple[list[Row], list[str], list[str]] = ([], [], [])
    one_by_one = fault.losses if any(fault.losses) else [True] * len(micros)
    module = trainer.lightning_module
    if module.automatic_optimization or hasattr(module, "loss_terms"):
        limits = fault.loss_limits or [math.inf] * len(micros)
        for micro, look, limit in zip(micros, one_by_one, limits, strict=False):
            if look:
                _look_at(trainer, fault, micro, limit, len(micros), found)
    if trainer.world_size > 1:
        everybody: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everybody, found)
        found = tuple([x for part in parts for x in part] for parts in zip(*everybody, strict=True))  # type: ignore[assignment]
    fault.rows = list(dict.fromkeys(found[0]))
    fault.places = found[1]
    fault.layers = list(dict.fromkeys([*found[2], *fault.layers]))


def _look_at(
    trainer: pl.Trainer,
    fault: Fault,
    micro: Micro,
    loss_limit: float,
    count: int,
    found: tuple[list[Row], list[str], list[str]],
) -> None:
    size = micro.size
    if not size:
        return
    look = _Look(trainer, micro, size)
    everything = list(range(size))
    with replaying(trainer.lightning_module):
        try:
            layer = first_not_finite(trainer.lightning_module, lambda: look.loss(everything))
            if not all_finite(micro.batch):
                layer = "the batch itself"
            found[2].extend([f"{layer} (forward)"] if layer else [])
            places = at_fault(look.loss, size, loss_limit)
            if not places:  # the norm of a step is of a mean over its micro-batches and processes
                limit = fault.norm_limit * count * trainer.world_size
                places = at_fault(lambda part: look.norm(part, fault.optimizer), size, limit)
        except Exception as error:  # somebody's step cannot do with parts of a batch
            _log.warning("the rows at fault were not looked for: %s", error)
            return
    rows = rows_of(trainer, micro.batch, micro.number)
    if rows is not None and len(rows) == size:
        found[0].extend(rows[at] for at in places)
    else:
        rank = f"process {trainer.global_rank}, " if trainer.world_size > 1 else ""
        found[1].extend(f"{rank}batch {micro.number}, place {at}" for at in places)


class _Look:
    """Loss and gradient norm of parts of one batch."""

    def __init__(self, trainer: pl.Trainer, micro: Micro, size: int) -> None:
        self._trainer = trainer
        self._micro = micro
        self._size = size

    def loss(self, part: list[int]) -> float:
        with torch.no_grad():
            return float(self._loss(part))

    def norm(self, part: list[int], optimizer: Optimizer) -> float:
        weights = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
        with torch.enable_grad():
            gradients = torch.autograd.grad(self._loss(part), weights, allow_unused=True)
        return math.hypot(*(float(n) for n in norm_of([g for g in gradients if g is not None])))

    def _loss(self, part: list[int]) -> Tensor:
        module: Any = self._trainer.lightning_module
        batch = take(self._micro.batch, part, self._size)
        with self._trainer.precision_plugin.train_step_context():
            if hasattr(module, "loss_terms"):
                total, weight = module.loss_terms(batch)
                # a part without an event or a mask has no loss of its own
                return torch.as_tensor(total / weight if float(weight) else 0.0 * total)
            output = module.training_step(batch, *self._micro.rest)
        return torch.as_tensor(output["loss"] if isinstance(output, Mapping) else output)
