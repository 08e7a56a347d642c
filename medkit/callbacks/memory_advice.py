"""What is said where a batch can't be split."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.optim import LBFGS


def why_not_guarded(trainer: pl.Trainer) -> str:
    """Return why a fit cannot be guarded; empty if it can."""
    module = trainer.lightning_module
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        return f"{type(trainer.strategy).__name__} needs all processes to split the same batch"
    if not module.automatic_optimization:
        return "manual optimization does forward, backward and step in one"
    if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
        return "LBFGS takes several looks at each step"
    if getattr(module, "trained_apart", False):
        return "its members are trained apart"
    return ""


def why_no_smaller(module: Any, where: str, size: int, tried: int, *, asked: bool) -> str:
    """Return why a batch can't be split further; empty if it can.

    Args:
        module: The LightningModule.
        where: The pass that ran out.
        size: Samples in the batch, 0 if that is not known.
        tried: How many of them ran out at once.
        asked: Whether ``training_step`` asks ``loss_terms``, as far as is known.
    """
    begin = (
        f"a batch must fit in memory or be split; this one of {size or 'an unknown number of'} "
        f"samples ran out of it in the {where} pass"
    )
    never = why_never_split(module)
    if never:
        return f"{begin}, and {never}"
    if not asked:
        return (
            f"{begin}, and training_step does not call self.loss_terms(batch), so its parts can't "
            "be weighted. Let it return sum / weight of self.loss_terms(batch)."
        )
    if not size:
        return (
            f"{begin}, and no tensor in it has samples as its first axis. Let the batch be tensors "
            "of samples, in tuples, lists or dicts."
        )
    if tried < 2:
        return (
            f"{begin} with 1 sample at once. Take smaller patches or a smaller net, or "
            "precision='bf16-mixed'."
        )
    return ""


def why_never_split(module: Any) -> str:
    """Return why no batch of a module can be split, and what to do; empty if they can."""
    if not hasattr(module, "loss_terms"):
        return (
            f"{type(module).__name__} has no loss_terms(batch) -> (sum, weight) to split it by. "
            "Write one, with training_step returning sum / weight of self.loss_terms(batch), or "
            "take smaller batches with accumulate_grad_batches."
        )
    if not getattr(module, "terms_add_up", True):
        return (
            f"the loss of {type(module).__name__} does not add up over parts of a batch. Take "
            "smaller batches, and know that they are another loss, or a smaller net."
        )
    return ""


def does_not_add_up(wrong: str, where: str) -> str:
    """Say that ``loss_terms`` is not a sum over samples."""
    return (
        "loss_terms must return a sum and a weight that add up over the parts of a batch, but "
        f"{wrong}; so a batch that ran out of memory in the {where} pass can't be split. Return "
        "the losses' sum and the sum of their weights, or take smaller batches."
    )


def batch_norm_deviates(names: str) -> str:
    """Say what batch normalisation makes of a split batch."""
    return (
        f"batch normalisation ({names}) takes each part of a split batch by itself: gradients and "
        "statistics deviate from the whole batch's (3 to 27 % in small nets); "
        "medkit.callbacks.memory_norm.swap_batchnorm puts GroupNorm in its place"
    )


DRAWS_DIFFER = (
    "the net draws random numbers that are not keyed by sample, so parts of a split batch draw "
    "others than the whole; medkit.models.keyed_dropout.swap_dropout puts KeyedDropout in its place"
)


def where_not_split(trainer: pl.Trainer) -> str:
    """Return advice for what ran out where nothing is split."""
    if trainer.training:
        return "memory ran out where MemoryGuard can't split: take smaller batches or a smaller net"
    where = trainer.state.stage.value if trainer.state.stage is not None else "evaluation"
    return (
        f"memory ran out in {where}, whose steps are not split: give its loader a smaller "
        "batch_size; in evaluation mode the results of samples do not depend on it"
    )
