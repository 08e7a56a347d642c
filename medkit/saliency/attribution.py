"""How much each feature moved a row's logit: integrated gradients, by Captum."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

with warnings.catch_warnings():  # tqdm, which Captum imports, asks for JupyterLab's widgets
    warnings.simplefilter("ignore")
    from captum.attr import IntegratedGradients


@dataclass(frozen=True)
class Attribution:
    """What integrated gradients found.

    Attributes:
        values: Share of each feature in logit(x) - logit(baseline), ``(B, F)`` [logit].
        delta: What the shares fail to add up to, ``(B,)`` [logit]; raise ``steps`` where it
            is not small beside the values.
    """

    values: Tensor
    delta: Tensor


def integrated_gradients(
    model: nn.Module, x: Tensor, *, baseline: Tensor | None = None, steps: int = 64
) -> Attribution:
    """Attribute the logit of each row to its features (Sundararajan 2017).

    An attribution says what the net does, not what the disease does. Correlated features share
    what they carry between them as training left it: look at several seeds before believing one.

    Args:
        model: Maps ``(B, F)`` to logits ``(B,)`` or ``(B, 1)``; used in eval mode, so without
            dropout, and left in the mode it was in.
        x: Rows as the model sees them, ``(B, F)``, on the model's device.
        baseline: Reference row, ``(F,)``; None is all zeros, the median patient with nothing
            missing where the DataModule scales robustly.
        steps: Points on the way from baseline to row.
    """
    if x.ndim != 2:
        raise ValueError(
            f"x must be a table of rows and features, (B, F), got shape {tuple(x.shape)}. "
            "For one row pass x[None]; images have their own functions."
        )
    reference = torch.zeros_like(x) if baseline is None else baseline.to(x).expand_as(x)
    was_training = model.training
    model.eval()
    try:
        values, delta = IntegratedGradients(lambda rows: model(rows).reshape(len(rows))).attribute(
            x, reference, n_steps=steps, return_convergence_delta=True
        )
    finally:
        model.train(was_training)
    return Attribution(values.detach().to(x.dtype), delta.detach().to(x.dtype))
