"""A net asked several times: the mean of its logits over turns of one patch.

A net trained under flips and transpositions still answers each turn of a patch a little
differently, and differently from seed to seed. The mean over turns takes much of that out
(Krizhevsky et al. 2012; Isensee et al. 2021), at so many times the cost of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medkit.models.nets import build

__all__ = ["TURNS", "MeanOverTurns"]

TURNS = ((), (2, 3), (2, 4), (3, 4))
"""Axes to flip: as it is, and half a turn about each axis. None of them mirrors the anatomy."""


class MeanOverTurns(nn.Module):
    """Train a net as it is; answer with the mean of its logits over :data:`TURNS`.

        net = {"net": "medkit.models.monai_nets:resnet", "net_args": {"channels": (8, 16, 32, 64)}}
        LitClassifier("medkit.models.views:MeanOverTurns", net)

    Args:
        net: Factory of a net that maps ``(B, C, H, W, D)`` to logits.
        net_args: The factory's arguments, plain types.

    Raises:
        ValueError: For a factory that is none, as in :func:`~medkit.models.nets.build`.
    """

    def __init__(self, net: str, net_args: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.net = build(net, dict(net_args or {}))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W, D)`` to what the net gives, four times in eval mode.

        Raises:
            ValueError: For what has not three spatial axes.
        """
        if x.ndim != 5:
            raise ValueError(
                "what is turned must have the shape (B, C, H, W, D), got "
                f"{tuple(x.shape)}. Take the net itself for tables and images."
            )
        if self.training:
            return self.net(x)
        return torch.stack([self.net(x.flip(axes)) for axes in TURNS]).mean(dim=0)
