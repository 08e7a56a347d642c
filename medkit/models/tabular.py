"""Nets for tables: they start as the fitted logistic regression and learn what it misses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medkit.data.ehr import EHRDataModule
from medkit.models.classifier import LitClassifier
from medkit.models.nets import activation_named, mlp

# not warm_mlp's own defaults: a checkpoint from before them is rebuilt by what it does not say
WARM: Mapping[str, Any] = {"hidden": [128], "spread": 0.3, "activation": "gelu"}
"""Arguments of :func:`warm_mlp` that make the kit's default net; ``WEIGHT_DECAY`` belongs to it."""
WEIGHT_DECAY = 3.0


class WarmMLP(nn.Module):
    """``logit = w.x + b + residual(x)``, where ``w.x + b`` is a fitted logistic regression.

    The residual's last layer begins at zero, so before the first step the net *is* the logistic
    regression. ``w`` and ``b`` stay as they were fitted (they are buffers): weight decay then pulls
    the whole net back to the logistic regression, not to a constant.

    Args:
        coef: ``w``, one per column of ``x``.
        intercept: ``b``.
        residual: Maps ``(B, F)`` to ``(B, 1)``; its last linear layer is set to zero here.
    """

    coef: Tensor
    intercept: Tensor

    def __init__(self, coef: Sequence[float], intercept: float, residual: nn.Module) -> None:
        super().__init__()
        self.register_buffer("coef", torch.tensor(list(coef), dtype=torch.float32))
        self.register_buffer("intercept", torch.tensor(float(intercept), dtype=torch.float32))
        self.residual = residual
        last = [layer for layer in residual.modules() if isinstance(layer, nn.Linear)][-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, ``(B, F)`` to ``(B, 1)``."""
        linear = x @ self.coef + self.intercept
        return linear.unsqueeze(1) + self.residual(x)


class PeriodicColumns(nn.Module):
    """Append to ``x`` a few learnt curves of each of its first columns.

    A curve is an activated sum of sines and cosines of one column, whose frequencies are learnt too
    (PLR of Gorishniy 2022): with it the first layer can bend at both ends of a value, which one
    linear layer and an activation take many rows to find.

    Args:
        columns: How many columns, from the first; the 0/1 indicators behind them need no curve.
        frequencies: Frequencies per column.
        curves: Curves per column.
        spread: Standard deviation of the initial frequencies [cycles per unit of ``x``]: 0.1 bends
            about once over the width of a scaled column. Higher ones fit noise, unless decay holds
            the net back.
        activation: A name in :data:`~medkit.models.nets.ACTIVATIONS`.
    """

    def __init__(
        self,
        columns: int,
        *,
        frequencies: int = 8,
        curves: int = 4,
        spread: float = 0.1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.columns = columns
        self.outputs = columns * curves
        self.frequency = nn.Parameter(spread * torch.randn(columns, frequencies))
        scale = 1 / math.sqrt(2 * frequencies)
        self.weight = nn.Parameter(scale * torch.randn(columns, 2 * frequencies, curves))
        self.bias = nn.Parameter(torch.zeros(columns, 1, curves))
        self.activation = activation_named(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, F)`` as ``(B, F + columns * curves)``."""
        angle = 2 * math.pi * x[:, : self.columns].unsqueeze(2) * self.frequency
        waves = torch.cat([angle.sin(), angle.cos()], dim=2).transpose(0, 1)
        curves = self.activation(torch.baddbmm(self.bias, waves, self.weight))  # (columns, B, ..)
        return torch.cat([x, curves.transpose(0, 1).flatten(1)], dim=1)


def warm_mlp(
    *,
    coef: Sequence[float],
    intercept: float,
    periodic: int = 0,
    hidden: Sequence[int] = (32,),
    dropout: float = 0.3,
    spread: float = 0.1,
    activation: str = "relu",
) -> nn.Module:
    """Return a net that starts as logistic regression: ``(B, len(coef))`` to ``(B, 1)``.

    Args:
        coef: Of the fitted logistic regression, as plain numbers: a checkpoint rebuilds the net.
        intercept: Of it.
        periodic: Columns, from the first, that get learnt curves; 0: a plain MLP on ``x``.
        hidden: Widths of the residual's hidden layers.
        dropout: After each of them.
        spread: See :class:`PeriodicColumns`.
        activation: Of curves and hidden layers: "relu", or "gelu" (its tanh form; Hendrycks
            2016). With a smooth one rounding stays rounding. A ReLU whose input is within
            rounding of 0 switches its unit's gradient, of which Adam makes full steps: the same
            seed then ends elsewhere where products are summed in another order.

    Raises:
        ValueError: Where ``periodic`` is more than the columns there are, or for an activation
            that is not known.
    """
    if not 0 <= periodic <= len(coef):
        raise ValueError(
            f"periodic must be between 0 and the number of columns, got {periodic} for "
            f"{len(coef)} coefficients. Pass the number of columns that are not indicators."
        )
    if periodic == 0:
        residual = mlp(inputs=len(coef), hidden=hidden, dropout=dropout, activation=activation)
        return WarmMLP(coef, intercept, residual)
    curves = PeriodicColumns(periodic, spread=spread, activation=activation)
    inputs = len(coef) + curves.outputs
    residual = mlp(inputs=inputs, hidden=hidden, dropout=dropout, activation=activation)
    return WarmMLP(coef, intercept, nn.Sequential(curves, residual))


def warm_classifier(
    dm: EHRDataModule,
    *,
    max_epochs: int,
    lr: float = 2e-3,
    weight_decay: float = WEIGHT_DECAY,
    net_args: dict[str, Any] | None = None,
) -> LitClassifier:
    """Return the kit's default model for tables, fresh, for a DataModule that is set up.

    Build it inside ``run.init(stage)``: its weights are drawn from the global generator. A net
    alone is no better than a member of ``fit_folds``; use that.

    Args:
        dm: Gives the logistic regression, the number of columns and of batches, the prior.
        max_epochs: Of the fit: the rate falls to zero at its end. About 30 at 1,000 rows.
        lr: AdamW's highest rate.
        weight_decay: AdamW's. A wide net that 3.0 holds back flips fewer decisions from seed to
            seed than a narrow one at 1.0, and finds more of what columns do together.
        net_args: More arguments of :func:`warm_mlp`; they go before ``WARM``.
    """
    start = dm.baseline
    arguments = {
        "coef": list(start.coef),
        "intercept": start.intercept - dm.logit_shift,
        "periodic": dm.num_features - dm.num_indicators,
    }
    return LitClassifier(
        "medkit.models.tabular:warm_mlp",
        arguments | dict(WARM) | (net_args or {}),
        total_steps=max_epochs * dm.batches_per_epoch,
        lr=lr,
        weight_decay=weight_decay,
        logit_shift=dm.logit_shift,
    )
