"""Several nets of one shape as one: their products stacked, each net's numbers its own."""

from __future__ import annotations

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

    Each weight is a tensor ``(S, numbers)``, so an optimizer has as many tensors to go through as
    for one net. Understood are ``nn.Sequential`` of linear layers, activations and dropout, and
    the nets of ``medkit.models.tabular``.

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
        _require_known(solo)
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
        for name, shape in self._shapes.items():  # a tensor a layer: gradients need not be joined
            own = [self._stored(name, net.get_parameter(name)).flatten() for net in nets]
            filled = F.pad(torch.stack(own).detach(), (0, -shape.numel() % ALIGNED))
            self.register_parameter(_slash(name), nn.Parameter(filled))
        self._sizes = [weight.shape[1] for weight in self._parameters.values()]  # type: ignore[union-attr]
        fitted = dict(solo.named_buffers())  # not drawn: the same in all members
        self._fitted = list(fitted)
        for name, value in fitted.items():
            self.register_buffer(_slash(name), value.clone())
        self._numbers = {name: number for number, name in enumerate(self._shapes)}
        self._views = [(sh.numel(), (-1, *self._stored_shape(n))) for n, sh in self._shapes.items()]
        # looked up once: walking the layers at each step takes a fifth of the step
        self._steps = list(self._plan(solo, ""))
        self.dropouts: list[tuple[nn.Dropout, int]] = []  # with the width of what goes into each
        width = 0
        for kind, what in self._steps:
            if kind == "linear":
                width = self._views[what[0]][1][2]
            elif kind == "mask":
                self.dropouts.append((what, width))

    @property
    def members(self) -> int:
        """How many nets."""
        return len(next(self.parameters()))

    def forward(self, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Return logits, ``(S, B)``.

        Args:
            x: A batch for each member, ``(S, B, F)``, or one for all, ``(B, F)``; ``B`` a multiple
                of ``ALIGNED``, see :func:`filled_up`.
            masks: A factor per dropout layer, ``(S, B, width)``; none: nothing is dropped.
        """
        drops = iter(masks)
        w = [
            weight[:, :numbers].view(shape)  # type: ignore[index]
            for weight, (numbers, shape) in zip(self._parameters.values(), self._views, strict=True)
        ]
        x = x if x.dim() == 3 else x.expand(self.members, *x.shape)
        start: Tensor | None = None
        for kind, what in self._steps:
            if kind == "linear":
                x = _linear(x, w[what[0]], None if what[1] is None else w[what[1]])
            elif kind == "relu":  # in place, as nothing before it looks at what it changes
                x = x.relu_() if x.requires_grad else x.relu()
            elif kind == "mask":
                mask = next(drops, None)
                x = x if mask is None else x * mask
            elif kind == "periodic":
                x = _periodic(x, *(w[number] for number in what))
            elif kind == "start":
                coef, intercept = (self.get_buffer(name) for name in what)
                start = (x * coef).sum(2, keepdim=True) + intercept
            else:
                x = what(x)
        return (x if start is None else start + x).squeeze(2)

    def rows(self) -> Tensor:
        """Return a copy of all weights, a member a row."""
        return torch.cat([weight.detach() for weight in self.parameters()], dim=1)

    def put(self, rows: Tensor) -> None:
        """Take weights as :meth:`rows` returned them."""
        for weight, part in zip(self.parameters(), rows.split(self._sizes, 1), strict=True):
            weight.data.copy_(part)

    def state_of(self, member: int, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the ``state_dict`` of one member's net.

        Args:
            member: Its number.
            rows: Weights kept from earlier; None: the present ones.
        """
        row = (self.rows() if rows is None else rows)[member]
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

    def _plan(self, layer: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
        """Yield what is done to a batch: a kind of step, with numbers of weights or the like."""
        if isinstance(layer, nn.Sequential):
            for child, inner in zip(layer._modules, layer, strict=True):  # one used twice, twice
                yield from self._plan(inner, _join(name, child))
        elif isinstance(layer, nn.Linear):
            bias = self._numbers.get(_join(name, "bias"))
            yield "linear", (self._numbers[_join(name, "weight")], bias)
        elif isinstance(layer, nn.Dropout):
            if layer.p > 0:
                yield "mask", layer
        elif isinstance(layer, WarmMLP):  # the outermost: what it adds comes last
            yield "start", (_slash(name, "coef"), _slash(name, "intercept"))
            yield from self._plan(layer.residual, _join(name, "residual"))
        elif isinstance(layer, PeriodicColumns):
            parts = ("frequency", "weight", "bias")
            yield "periodic", [self._numbers[_join(name, part)] for part in parts]
        else:
            yield ("relu", None) if isinstance(layer, nn.ReLU) else ("call", layer)


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


def _require_known(net: nn.Module) -> None:
    """Refuse what cannot be stacked."""
    known = (nn.Sequential, nn.Linear, PeriodicColumns, *_ELEMENTWISE)
    linear = False
    for layer in net.modules():  # those known are used in this order
        linear = linear or isinstance(layer, nn.Linear)
        behind = isinstance(layer, nn.Dropout) and linear and 0 <= layer.p < 1
        if not (isinstance(layer, known) or behind or (layer is net and isinstance(net, WarmMLP))):
            raise ValueError(
                "nets are stacked where they are made of linear layers, activations, dropout "
                f"(p below 1) behind a linear layer, and what medkit.models.tabular has; found "
                f"{layer}. Train such a net once a seed, a process each: medkit sweep."
            )


def _join(*names: Any) -> str:
    return ".".join(name for name in names if name)


def _slash(*names: str) -> str:
    return _join(*names).replace(".", "/")
