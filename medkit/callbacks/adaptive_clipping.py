"""Clip each unit's gradient by the size of its weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer


class AdaptiveGradientClipping(pl.Callback):
    """Keep a unit's gradient norm below ``clipping`` times the norm of its weights.

    Brock, De, Smith and Simonyan 2021 (NFNets): a unit is a row of a linear layer's weight, a
    filter of a convolution (norms over all axes but the first), or a whole bias or gain. Unlike a
    limit on the global norm it needs no scale of its own for each net; the paper uses it in nets
    without normalisation, leaves the last linear layer out, and takes a smaller ``clipping`` for
    larger batches. It is no guard: a gradient that is not finite stays so (see ``SpikeGuard``,
    which stands before it and sees unclipped gradients).

    Args:
        clipping: Largest ratio of a gradient's norm to its weight's; 0.01 in the paper for a batch
            of 4,096, up to 0.16 for small ones.
        least_norm: A weight's norm counts for at least this, so that zeros can be left.
        leave_out: Beginnings of names of parameters that are not clipped, such as ``("head.",)``.

    Raises:
        ValueError: For settings that clip everything or nothing; when a fit starts, for names that
            begin no parameter, and for a fused optimizer under 16-mixed, whose gradients still
            hold the loss scale.
    """

    logs_nothing = True  # see SpikeGuard
    # passed over by Lightning, see KeyedSteps
    on_train_batch_start = on_train_batch_end = on_before_zero_grad = None  # type: ignore[assignment]
    on_before_backward = on_after_backward = None  # type: ignore[assignment]

    def __init__(
        self, clipping: float = 0.01, *, least_norm: float = 1e-3, leave_out: Sequence[str] = ()
    ) -> None:
        if not clipping > 0 or not least_norm > 0:
            raise ValueError(
                f"clipping and least_norm must be above 0, got {clipping} and {least_norm}. The "
                "paper's are 0.01 and 0.001."
            )
        self.clipping = clipping
        self.least_norm = least_norm
        self.leave_out = tuple([leave_out] if isinstance(leave_out, str) else leave_out)
        self._left_out: set[int] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the parameters that are left out."""
        named = dict(pl_module.named_parameters())
        unknown = [start for start in self.leave_out if not any(n.startswith(start) for n in named)]
        if unknown:
            raise ValueError(
                f"leave_out must hold beginnings of parameter names, and none begins with "
                f"{unknown}; they are {list(named)[:8]} ... Check the spelling."
            )
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and any(getattr(o, "_step_supports_amp_scaling", 0) for o in trainer.optimizers):
            raise ValueError(
                "gradients must be unscaled to be clipped, and a fused optimizer under 16-mixed "
                "does that inside its step. Pass fused=False to it, or train with bf16-mixed."
            )
        self._left_out = {id(p) for n, p in named.items() if n.startswith(self.leave_out)}

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Clip."""
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and id(weight) not in self._left_out:
                    most = self.clipping * _unit_norm(weight).clamp_(min=self.least_norm)
                    norm = _unit_norm(weight.grad)
                    # where, not min: a unit within its limit keeps its bits
                    weight.grad.mul_(torch.where(norm > most, most / norm, 1.0))


def _unit_norm(value: Tensor) -> Tensor:
    """Return the L2 norm of each unit, shaped to be multiplied with ``value``."""
    axes = tuple(range(1, value.ndim)) if value.ndim > 1 else tuple(range(value.ndim))
    return torch.linalg.vector_norm(value, dim=axes, keepdim=True)
