"""A batch's loss and gradient from its parts, with the weighting of the whole."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from medkit import keyed as keys
from medkit.callbacks.guard_rows import replaying, samples, take
from medkit.callbacks.guard_step import weights_of
from medkit.models.keyed_dropout import Part, part_of_batch

_log = logging.getLogger(__name__)

Terms = Callable[[Any], tuple[Tensor, Any]]
_PROBED = 8  # samples on which loss_terms is tried


def sizes_of_parts(size: int, most: int, *, least: int = 1) -> list[int]:
    """Return the sizes of the fewest parts of at most ``most`` samples; they differ by one at most.

    ``least`` goes first: batch normalisation can't do with a single sample.
    """
    count = max(1, min(-(-size // most), size // least))
    return [size // count + (number < size % count) for number in range(count)]


@dataclass
class Split:
    """Takes the place of ``loss_terms`` during one training step, and runs its batch in parts.

    Each part's backward pass follows its forward pass at once; the gradient of the sum is set aside
    and joins the weights' when the whole step's loss is back-propagated, times what that loss makes
    of the sum. So whatever ``training_step`` does with ``sum / weight`` (penalties, accumulation,
    a loss scale) is done to the whole batch, once.

    Attributes:
        trainer: The fit's.
        terms: The module's own ``loss_terms``.
        most: Samples at once.
        least: Samples at least.
        calls: How often it was asked.
        where: Which pass is under way.
        parts: Sizes of the parts of the last batch; empty when it was not split.
        draws_differ: Whether the net drew something that is not keyed by sample.
    """

    trainer: pl.Trainer
    terms: Terms
    most: int
    least: int = 1
    calls: int = 0
    where: str = "forward"
    parts: list[int] = field(default_factory=list)
    draws_differ: bool = False

    def __call__(self, batch: Any) -> tuple[Tensor, Any]:
        """Return sum and weight of the whole batch."""
        self.calls += 1
        size = samples(batch)
        self.parts = sizes_of_parts(size, self.most, least=self.least) if size else []
        if len(self.parts) < 2:
            self.parts = []
            return self.terms(batch)
        weights = self._weights()
        kept = [weight.grad for weight in weights]
        _set(weights, [None] * len(weights))
        try:
            total, weight, scale = self._run(batch, size)
            parked = [weight.grad for weight in weights]
        finally:
            _set(weights, kept)  # gradients of earlier micro-batches, as they were

        def join(factor: Tensor) -> None:
            with torch.no_grad():
                for p, gradient in zip(weights, parked, strict=True):
                    if gradient is not None:
                        gradient.mul_((factor / scale).to(gradient))
                        p.grad = gradient if p.grad is None else p.grad.add_(gradient)
            parked.clear()

        total.requires_grad_().register_hook(join)
        return total, weight

    def _run(self, batch: Any, size: int) -> tuple[Tensor, Any, float]:
        device = self.trainer.lightning_module.device
        draws, total, weight, scale, first = keys.get_globals(), None, 0.0, 0.0, 0
        for count in self.parts:
            part = take(batch, range(first, first + count), size)
            if samples(part) != count:
                raise RuntimeError(
                    f"a part of a batch must hold the {count} samples it was cut for, found "
                    f"{samples(part)}. Give each tensor of the batch the samples as its first axis."
                )
            with part_of_batch(first, count) as seen:
                if first and not self.draws_differ:
                    keys.restore_globals(draws)  # each part draws the keys of the whole batch
                before, self.where = _device_draws(device), "forward"
                own, own_weight = self.terms(part)
                if not first:
                    self.draws_differ = not _only_keyed(draws, seen, before, device)
                    share = abs(float(own_weight)) / count or 1.0
                    scale = self._scale(share * size)
                self.where = "backward"
                if own.requires_grad:
                    with torch.autocast(device.type, enabled=False):
                        (own * scale).backward()
            total = own.detach() if total is None else total + own.detach()
            weight = weight + own_weight
            first += count
        if total is None or first != size:
            raise RuntimeError(
                f"each of the {size} samples of a batch must be trained on once, {first} were. "
                "This is a fault of the split; please report it."
            )
        return total.clone(), weight, scale

    def _scale(self, weight: float) -> float:
        """Return a power of two near the factor that the sum's gradient will have.

        Gradients in half precision would be lost below it or overflow above it.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        return float(2.0 ** round(math.log2(scale / weight / self.trainer.accumulate_grad_batches)))

    def _weights(self) -> list[Tensor]:
        """Return what a backward pass gives gradients to."""
        own = list(self.trainer.lightning_module.parameters())
        moved = [weight for one in self.trainer.optimizers for weight in weights_of(one)]
        return [p for p in {id(p): p for p in (*own, *moved)}.values() if p.requires_grad]


def _set(weights: list[Tensor], gradients: list[Tensor | None]) -> None:
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient


def _device_draws(device: torch.device) -> Tensor | None:
    if device.type == "cpu":
        return None
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def _only_keyed(
    draws: tuple[Any, ...], seen: Part, before: Tensor | None, device: torch.device
) -> bool:
    """Whether the generators stand where the draws of keyed dropout alone would have put them."""
    after, after_on_device = keys.get_globals(), _device_draws(device)
    keys.restore_globals(draws)
    for _ in range(seen.draws):
        torch.empty((), dtype=torch.int64).random_(-(2**63), None)
    expected = keys.get_globals()
    keys.restore_globals(after)
    alike = _same(after, expected)
    return alike and (
        before is None or after_on_device is None or torch.equal(before, after_on_device)
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    found = one == other
    return bool(found.all()) if hasattr(found, "all") else bool(found)


def add_up(trainer: pl.Trainer, terms: Terms, batch: Any, most: int) -> str:
    """Try ``loss_terms`` on a few samples, whole and in halves; return what does not add up.

    In evaluation mode, so that neither dropout nor batch statistics are taken for it. Losses that
    compare samples with one another, or divide by something of the batch, are found so; one that
    happens to add up for these samples is not.
    """
    size = samples(batch)
    few = min(_PROBED, max(2, most), size)
    if few < 2:
        return ""
    index = [number * size // few for number in range(few)]
    half = few // 2
    halves = take(batch, index[:half], size), take(batch, index[half:], size)
    context = trainer.precision_plugin.train_step_context()
    with replaying(trainer.lightning_module), torch.no_grad(), context:
        try:
            found: list[Any] = [terms(part) for part in (take(batch, index, size), *halves)]
            if not isinstance(found[0], tuple | list) or len(found[0]) != 2:
                return f"it returned a {type(found[0]).__name__} and not (sum, weight)"
            whole, *parts = (tuple(map(float, both)) for both in found)
        except Exception as error:  # memory again, or code that can't do without gradients
            _log.warning("loss_terms was not tried on parts of a batch: %s", error)
            return ""
    joined = [sum(part[which] for part in parts) for which in (0, 1)]
    exact = str(trainer.precision) in ("32-true", "64-true")
    for name, value, sum_of_parts in zip(("sum", "weight"), whole, joined, strict=True):
        if not math.isclose(value, sum_of_parts, rel_tol=1e-4 if exact else 0.05, abs_tol=1e-6):
            return f"the {name} of {few} samples is {value:.6g}, of two halves {sum_of_parts:.6g}"
    return ""
