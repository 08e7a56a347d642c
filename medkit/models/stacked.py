"""Several nets of one shape as one: their products stacked, each net's numbers its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkit.models.stacked_layers import ALIGNED, Chain, aligned
from medkit.models.tabular import PeriodicColumns, WarmMLP

_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Identity)


class StackedNet(nn.Module):
    """Nets of linear layers for tables, trained as one: ``(S, B, F)`` to ``(S, B)``.

    Linear layers in a row share one flat parameter, so an optimizer has few tensors to go through.
    Understood are ``nn.Sequential`` of linear layers, activations and dropout, and the nets of
    ``medkit.models.tabular``.

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
        self.members = len(nets)
        self._shapes = {name: value.shape for name, value in solo.named_parameters()}
        fitted = dict(solo.named_buffers())  # not drawn: the same in all members
        self._fitted = list(fitted)
        for name, value in fitted.items():
            self.register_buffer(_slash(name), value.clone())
        self._chain_of: dict[str, Chain] = {}  # by weight
        self.dropouts: list[tuple[nn.Dropout, int]] = []  # with the width of what goes into each
        # looked up once: walking the layers at each step takes a fifth of the step
        self._steps: list[tuple[str, Any]] = []
        for kind, what in self._plan(solo, ""):
            self._append(kind, what)
        chain = self._steps[-1][1] if self._steps else None
        if not isinstance(chain, Chain) or not chain.ends_in_logit:
            raise ValueError(
                "a stacked net ends in a linear layer of one logit, with nothing behind it; found "
                f"{list(solo.modules())[-1]}. Give the factory outputs=1."
            )
        self._last = chain
        for name, shape in self._shapes.items():
            if name not in self._chain_of:
                size = self.members, aligned(shape.numel())
                self.register_parameter(_slash(name), nn.Parameter(torch.zeros(size)))
        for step in self._steps:
            if isinstance(step[1], Chain):
                step[1].make()
        self._sizes = [self._block(name).shape[1] for name in self._shapes]
        self.put(torch.stack([self._row_of(net) for net in nets]))

    def forward(self, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Return logits, ``(S, B)``.

        Args:
            x: A batch for each member, ``(S, B, F)``, or one for all, ``(B, F)``; ``B`` a multiple
                of ``ALIGNED``, see :func:`filled_up`.
            masks: A factor per dropout layer, ``(S, B, width)``; none: nothing is dropped.
        """
        x, start = self._through(self._steps, x, masks)
        return (x if start is None else start + x).squeeze(2)

    def loss(self, x: Tensor, y: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Return each member's mean cross-entropy, summed over the members.

        Args:
            x: As in ``forward``.
            y: 0 or 1, float ``(S, b)``; rows of ``x`` from b on fill the batch up.
            masks: As in ``forward``.
        """
        before = len(masks) - self._last.masks if masks else 0
        x, start = self._through(self._steps[:-1], x, masks[:before])
        return self._last.loss(x, start, y, masks[before:])

    def _through(
        self, steps: Sequence[tuple[str, Any]], x: Tensor, masks: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Return what comes out of some steps, and what is added to the logits."""
        x = x if x.dim() == 3 else x.expand(self.members, *x.shape)
        start, drops = None, iter(masks)
        for kind, what in steps:
            if kind == "chain":
                x = what(x, [next(drops) for _ in range(what.masks)] if masks else ())
            elif kind == "mask":
                x = x * next(drops) if masks else x
            elif kind == "periodic":
                names, activation = what
                x = _periodic(x, activation, *(self._weight(name) for name in names))
            elif kind == "start":
                coef, intercept = (self.get_buffer(name) for name in what)
                start = (x * coef).sum(2, keepdim=True) + intercept
            else:
                x = what(x)
        return x, start

    def rows(self) -> Tensor:
        """Return a copy of all weights, a member a row."""
        return torch.cat([self._block(name).detach() for name in self._shapes], dim=1)

    @torch.no_grad()
    def put(self, rows: Tensor) -> None:
        """Take weights as :meth:`rows` returned them."""
        for name, part in zip(self._shapes, rows.split(self._sizes, 1), strict=True):
            self._block(name).copy_(part)

    def gradients(self) -> list[Tensor]:
        """Return the gradient of each weight: views, ``(S, numbers)``."""
        found = [self._block(name, gradient=True) for name in self._shapes]
        return [gradient for gradient in found if gradient is not None]

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

    def _row_of(self, net: nn.Module) -> Tensor:
        own = [self._stored(name, net.get_parameter(name)).flatten() for name in self._shapes]
        return torch.cat(
            [
                F.pad(value.detach(), (0, size - len(value)))
                for value, size in zip(own, self._sizes, strict=True)
            ]
        )

    def _block(self, name: str, *, gradient: bool = False) -> Any:
        """Return where members keep a weight: a view ``(S, numbers)``."""
        chain = self._chain_of.get(name)
        if chain is not None:
            return chain.block(name, gradient=gradient)
        weight = self.get_parameter(_slash(name))
        return weight.grad if gradient else weight

    def _weight(self, name: str) -> Tensor:
        shape = self._shapes[name]
        return self._block(name)[:, : shape.numel()].view(-1, *shape)

    def _stored(self, name: str, value: Tensor) -> Tensor:
        # inputs by outputs: the product for the gradient is then a third faster
        return value.t() if name in self._chain_of and value.dim() == 2 else value

    def _stored_shape(self, name: str) -> torch.Size:
        shape = self._shapes[name]
        return shape[::-1] if name in self._chain_of else shape

    def _append(self, kind: str, what: Any) -> None:
        """Take one more step; what follows a linear layer becomes a part of it where it can."""
        chain = self._steps[-1][1] if self._steps and self._steps[-1][0] == "chain" else None
        if kind == "linear":
            name, layer = what
            if chain is None:
                chain = Chain(self.members)
                self.add_module(f"chain{len(self._steps)}", chain)
                self._steps.append(("chain", chain))
            chain.add(name, layer)
            for weight, _ in layer.named_parameters():
                self._chain_of[_join(name, weight)] = chain
            self._width = layer.out_features
            return
        if kind == "mask":
            self.dropouts.append((what, self._width))
        if chain is None or kind in ("periodic", "call") or not chain.follow(kind):
            self._steps.append((kind, what))

    def _plan(self, layer: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
        """Yield what is done to a batch: a kind of step, with layers or names of weights."""
        if isinstance(layer, nn.Sequential):
            for child, inner in zip(layer._modules, layer, strict=True):  # one used twice, twice
                yield from self._plan(inner, _join(name, child))
        elif isinstance(layer, nn.Linear):
            if _join(name, "weight") not in self._shapes:
                raise ValueError(
                    f"a stacked net uses each linear layer once, found {layer} at {name!r} again. "
                    "Train such a net once a seed, a process each: medkit sweep."
                )
            yield "linear", (name, layer)
        elif isinstance(layer, nn.Dropout):
            if layer.p > 0:
                yield "mask", layer
        elif isinstance(layer, WarmMLP):  # the outermost: what it adds comes last
            yield "start", (_slash(name, "coef"), _slash(name, "intercept"))
            yield from self._plan(layer.residual, _join(name, "residual"))
        elif isinstance(layer, nn.Identity):
            return
        elif isinstance(layer, PeriodicColumns):
            names = [_join(name, part) for part in ("frequency", "weight", "bias")]
            yield "periodic", (names, layer.activation)
        elif isinstance(layer, nn.ReLU):
            yield "relu", layer
        elif isinstance(layer, nn.GELU) and layer.approximate == "tanh":
            yield "gelu", layer
        else:
            yield "call", layer


def filled_up(batch: Tensor) -> Tensor:
    """Fill the rows of ``(..., B, F)`` up with zeros to a multiple of ``ALIGNED``."""
    missing = -batch.shape[-2] % ALIGNED
    return F.pad(batch, (0, 0, 0, missing)) if missing else batch


def _periodic(
    x: Tensor, activation: nn.Module, frequency: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Do for each member what ``PeriodicColumns`` does; ``frequency`` is (S, columns, K)."""
    members, columns = frequency.shape[:2]
    angle = 2 * math.pi * x[:, :, :columns].transpose(1, 2).unsqueeze(3) * frequency.unsqueeze(2)
    waves = torch.cat([angle.sin(), angle.cos()], dim=3).flatten(0, 1)  # (S columns, B, 2K)
    curves = activation(torch.baddbmm(bias.flatten(0, 1), waves, weight.flatten(0, 1)))
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
