"""A net for survival that starts as the penalised linear Cox model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medkit.models.cox import CoxBaseline
from medkit.models.nets import mlp


class WarmCox(nn.Module):
    """``eta = w.x + residual(x)``, where ``w`` is a fitted linear Cox model.

    The residual's last layer begins at zero, so before the first step the net *is* that model, and
    ``w`` stays as it was fitted (a buffer): a penalty pulls the net back to it. A net that starts
    from random weights spends its training on finding the linear part, and differs from seed to
    seed in how well it has.

    Args:
        coef: ``w``, log hazard ratio per unit of each column, ``(F,)``.
        residual: Maps ``(B, F)`` to ``(B, 1)``; its last linear layer is set to zero here.
    """

    coef: Tensor

    def __init__(self, coef: Sequence[float], residual: nn.Module) -> None:
        super().__init__()
        self.register_buffer("coef", torch.tensor(list(coef), dtype=torch.float32))
        self.residual = residual
        last = [layer for layer in residual.modules() if isinstance(layer, nn.Linear)][-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return log relative hazards, ``(B, F)`` to ``(B, 1)``."""
        return (x @ self.coef).unsqueeze(1) + self.residual(x)


def warm_cox(
    *, coef: Sequence[float], hidden: Sequence[int] = (32,), dropout: float = 0.0
) -> nn.Module:
    """Return a :class:`WarmCox` with an MLP for residual; plain arguments, for a checkpoint."""
    return WarmCox(coef, mlp(inputs=len(coef), hidden=hidden, dropout=dropout))


def warm_start(
    cox: CoxBaseline, *, hidden: Sequence[int] = (32,), dropout: float = 0.0
) -> dict[str, Any]:
    """Return ``net`` and ``net_args`` of :func:`warm_cox`: ``LitCox(**warm_start(cox), ...)``."""
    arguments = {"coef": cox.coef.tolist(), "hidden": list(hidden), "dropout": dropout}
    return {"net": f"{__name__}:warm_cox", "net_args": arguments}
