"""How much each feature moved a row's logit: integrated gradients, by Captum."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medkit.saliency.players import Players, players_for, references

with warnings.catch_warnings():  # tqdm, which Captum imports, asks for JupyterLab's widgets
    warnings.simplefilter("ignore")
    from captum.attr import IntegratedGradients

Model = Callable[[Tensor], Tensor]
AT_ONCE = 1 << 16  # rows that a model is asked for
NOT_TESTED = "not tested: do these shares change when the net's weights are drawn anew?"


@dataclass(frozen=True)
class Attribution:
    """Shares of the columns in what a model says of rows.

    Attributes:
        values: Share of each feature (or player) in logit(x) - logit(baseline), ``(B, F)`` [logit].
        delta: What the shares fail to add up to, ``(B,)`` [logit]; where it is not small beside
            the values raise ``steps`` (or ``permutations``).
        names: Of the players, where columns were grouped; else empty.
        error: Standard error of ``values`` that the draws leave; None where nothing was drawn.
        members: The same by each member of an ensemble, ``(M, B, P)``; None for one model.
        verdict: What the randomisation test said, or that it was not asked. Print it beside the
            values, and make it the title of their figure.
    """

    values: Tensor
    delta: Tensor
    names: tuple[str, ...] = ()
    error: Tensor | None = None
    members: Tensor | None = None
    verdict: str = NOT_TESTED

    @property
    def importance(self) -> Tensor:
        """Mean absolute share, ``(F,)``; of each member, ``(M, F)``, for an ensemble."""
        values = self.values if self.members is None else self.members
        return values.abs().mean(dim=-2)

    def __str__(self) -> str:
        rows, columns = self.values.shape
        return f"shares of {columns} columns in the logits of {rows} rows; {self.verdict}"


def integrated_gradients(
    model: Model,
    x: Tensor,
    *,
    baseline: Tensor | None = None,
    steps: int = 64,
    players: Players | None = None,
) -> Attribution:
    """Attribute the logit of each row to its features (Sundararajan 2017).

    An attribution says what the net does, not what the disease does. Correlated features share
    what they carry between them as training left it: look at several seeds before believing one.

    Args:
        model: Maps ``(B, F)`` to logits ``(B,)`` or ``(B, 1)``; used in eval mode, so without
            dropout, and left in the mode it was in.
        x: Rows as the model sees them, ``(B, F)``, on the model's device.
        baseline: Reference row, ``(F,)``, or rows, ``(K, F)``, over which the shares are averaged
            (expected gradients, Erion 2021); None is all zeros, the median patient with nothing
            missing where the DataModule scales robustly.
        steps: Points on the way from baseline to row.
        players: Columns whose shares are added up, such as a value and its indicator; None: none.

    Raises:
        ValueError: For rows, references or steps that can't be.
    """
    if steps < 1:
        raise ValueError(
            f"steps must be at least 1, the points between reference and row, got {steps}. "
            "64 add up to the logit within some thousandths."
        )
    known, rows = players_for(players, x), references(baseline, x)
    values, delta = torch.zeros_like(x), torch.zeros_like(x[:, 0])
    with as_used(model):
        explain = IntegratedGradients(lambda part: answers(model, part))
        for some in rows.split(max(1, AT_ONCE // (steps * len(x)))):
            shares, miss = explain.attribute(
                x.repeat(len(some), 1),
                some.repeat_interleave(len(x), dim=0),
                n_steps=steps,
                return_convergence_delta=True,
            )
            values += shares.detach().to(x.dtype).view(len(some), *x.shape).sum(0)
            delta += miss.detach().to(x.dtype).view(len(some), len(x)).sum(0)
    values, delta = values / len(rows), delta / len(rows)
    if players is None:
        return Attribution(values, delta)
    return Attribution(known.total(values), delta, known.names)


def answers(model: Model, x: Tensor) -> Tensor:
    """Return what the model says of each row, ``(B,)``."""
    said = torch.cat([model(part).reshape(-1).to(x) for part in x.split(AT_ONCE)])
    if len(said) != len(x):
        raise ValueError(
            f"a model must say one number a row, (B,) or (B, 1); it said {len(said)} of {len(x)} "
            "rows. Wrap it in a function that picks one output: lambda x: net(x)[:, 1]."
        )
    return said


@contextmanager
def as_used(model: Any) -> Iterator[None]:
    """Put a net into eval mode, without dropout, and back; leave any other function alone."""
    if not isinstance(model, nn.Module):
        yield
        return
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training
