"""Several nets of one shape as one: their products stacked, each net's numbers its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkit.models.tabular import PeriodicColumns, WarmMLP

# Rows of a batch, and weights of a member, are filled up to a multiple of this. Vectorised loops
# end in a scalar one whose exponentials differ in the last bit; thus a member's numbers are never
# in it, and lie at the same place of a cache line, whatever its number and that of the others.
ALIGNED = 32
_LINE = 16  # numbers in a cache line
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Identity)


class StackedNet(nn.Module):
    """Nets of linear layers for tables, trained as one: ``(S, B, F)`` to ``(S, B)``.

    All weights of a member lie in one row of ``weight``, so that an optimizer has one tensor to
    go through. Understood are ``nn.Sequential`` of linear layers, activations and dropout, and the
    nets of ``medkit.models.tabular``.

    Args:
        nets: One a member, built alike; two at least, since the product of a stack of one is
            rounded as that of a net alone is.

    Raises:
        ValueError: For fewer, and for nets with other layers.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(nets) < 2:
            raise ValueError(
                f"a stack has two members or more, got {len(nets)}. Train one net as a "
                "LitClassifier: its last bits are others than those of a member."
            )
        solo = nets[0]
        self.dropouts = list(_dropouts(solo))  # with the width of what goes into each
        outputs = [layer.out_features for layer in solo.modules() if isinstance(layer, nn.Linear)]
        if outputs[-1:] != [1]:
            raise ValueError(
                f"a stacked net ends in a linear layer of one logit, got {outputs[-1:] or 'none'}."
                " Give the factory outputs=1."
            )
        self._transposed = {
            f"{name}.weight".removeprefix(".")
            for name, layer in solo.named_modules()
            if isinstance(layer, nn.Linear)
        }
        self._shapes = {name: value.shape for name, value in solo.named_parameters()}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        filled = -sum(self._sizes) % ALIGNED
        rows = [
            torch.cat([self._stored(n, p).flatten() for n, p in net.named_parameters()])
            for net in nets
        ]
        self.weight = nn.Parameter(F.pad(torch.stack(rows).detach(), (0, filled)))
        self._sizes[-1] += filled  # with a piece of its own, gradients are joined six times slower
        fitted = dict(solo.named_buffers())  # not drawn: the same in all members
        self._fitted = list(fitted)
        for name, value in fitted.items():
            self.register_buffer(_slash(name), value.clone())
        # how the layers follow each other, without weights of its own
        self._layers = (copy.deepcopy(solo),)  # in a tuple: not registered
        for layer in self._layers[0].modules():
            layer._parameters.clear()
            layer._buffers.clear()

    @property
    def members(self) -> int:
        """How many nets."""
        return len(self.weight)

    def forward(self, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Return logits, ``(S, B)``.

        Args:
            x: A batch for each member, ``(S, B, F)``, or one for all, ``(B, F)``; ``B`` a multiple
                of ``ALIGNED``, see :func:`filled_up`.
            masks: A factor per dropout layer, ``(S, B, width)``; none: nothing is dropped.
        """
        pieces = self.weight.split(self._sizes, dim=1)
        weights = {
            name: piece[:, : shape.numel()].unflatten(1, self._stored_shape(name))
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }
        stack = x if x.dim() == 3 else x.expand(self.members, *x.shape)
        return self._through(self._layers[0], "", stack, weights, iter(masks)).squeeze(2)

    def state_of(self, member: int, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Return the ``state_dict`` of one member's net.

        Args:
            member: Its number.
            weight: Weights kept from earlier, like ``self.weight``; None: the present ones.
        """
        row = (self.weight if weight is None else weight)[member].detach()
        state = {
            name: self._stored(name, piece[: shape.numel()].view(self._stored_shape(name))).clone()
            for (name, shape), piece in zip(
                self._shapes.items(), row.split(self._sizes), strict=True
            )
        }
        return state | {name: self.get_buffer(_slash(name)).clone() for name in self._fitted}

    def _stored(self, name: str, value: Tensor) -> Tensor:
        # inputs by outputs: the product for the gradient is then a third faster
        return value.t() if name in self._transposed else value

    def _stored_shape(self, name: str) -> torch.Size:
        shape = self._shapes[name]
        return shape[::-1] if name in self._transposed else shape

    def _through(
        self, layer: nn.Module, name: str, x: Tensor, w: dict[str, Tensor], masks: Iterator[Tensor]
    ) -> Tensor:
        if isinstance(layer, nn.Sequential):
            for child, inner in layer.named_children():
                x = self._through(inner, _join(name, child), x, w, masks)
            return x
        if isinstance(layer, nn.Linear):
            return _linear(x, w[_join(name, "weight")], w.get(_join(name, "bias")))
        if isinstance(layer, nn.Dropout):
            mask = next(masks, None) if layer.p > 0 else None
            return x if mask is None else x * mask
        if isinstance(layer, WarmMLP):
            coef, intercept = self.get_buffer(_slash(name, "coef")), _slash(name, "intercept")
            start = (x * coef).sum(2, keepdim=True) + self.get_buffer(intercept)
            return start + self._through(layer.residual, _join(name, "residual"), x, w, masks)
        if isinstance(layer, PeriodicColumns):
            return _periodic(x, *(w[_join(name, n)] for n in ("frequency", "weight", "bias")))
        if isinstance(layer, nn.ReLU) and x.requires_grad:
            return x.relu_()  # nothing before it looks at what it changes
        return layer(x)


def filled_up(batch: Tensor) -> Tensor:
    """Fill the rows of ``(..., B, F)`` up with zeros to a multiple of ``ALIGNED``."""
    missing = -batch.shape[-2] % ALIGNED
    return F.pad(batch, (0, 0, 0, missing)) if missing else batch


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.shape[2] == 1:  # a product with one column is a sum, and slow as a product
        y = (x * weight.transpose(1, 2)).sum(2, keepdim=True)
        return y if bias is None else y + bias.unsqueeze(1)
    missing = -weight.shape[1] % (_LINE // math.gcd(_LINE, weight.shape[2]))
    if missing:  # a member's gradient must begin at a cache line: how it is summed depends on that
        x, weight = F.pad(x, (0, missing)), F.pad(weight, (0, 0, 0, missing))
    if bias is None:
        return torch.bmm(x, weight)
    return torch.baddbmm(bias.unsqueeze(1), x, weight)


def _periodic(x: Tensor, frequency: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Do for each member what ``PeriodicColumns`` does; ``frequency`` is (S, columns, K)."""
    members, columns = frequency.shape[:2]
    angle = 2 * math.pi * x[:, :, :columns].transpose(1, 2).unsqueeze(3) * frequency.unsqueeze(2)
    waves = torch.cat([angle.sin(), angle.cos()], dim=3).flatten(0, 1)  # (S columns, B, 2K)
    curves = torch.baddbmm(bias.flatten(0, 1), waves, weight.flatten(0, 1)).relu_()
    curves = curves.unflatten(0, (members, columns)).transpose(1, 2).flatten(2)
    return torch.cat([x, curves], dim=2)


def _dropouts(net: nn.Module) -> Iterator[tuple[nn.Dropout, int]]:
    """Yield the dropout layers that drop, with their width; refuse what cannot be stacked."""
    width: int | None = None
    for layer in net.modules():  # those understood here are used in this order
        if isinstance(layer, nn.Linear):
            width = layer.out_features
        elif isinstance(layer, nn.Dropout) and width is not None and 0 <= layer.p < 1:
            if layer.p > 0:
                yield layer, width
        elif not isinstance(layer, (nn.Sequential, WarmMLP, PeriodicColumns, *_ELEMENTWISE)):
            raise ValueError(
                "nets are stacked where they are made of linear layers, activations, dropout "
                f"(p below 1) behind a linear layer, and what medkit.models.tabular has; found "
                f"{layer}. Train such a net once a seed, a process each: medkit sweep."
            )


def _join(*names: Any) -> str:
    return ".".join(name for name in names if name)


def _slash(*names: str) -> str:
    return _join(*names).replace(".", "/")
