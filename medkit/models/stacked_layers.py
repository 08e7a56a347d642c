"""Linear layers of several nets in a row: forwards and back in little but the products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_relu_backward = torch.ops.aten.threshold_backward.grad_input
_gelu_backward = torch.ops.aten.gelu_backward.grad_input

# Rows of a batch, and weights of a member, are filled up to a multiple of this. Vectorised loops
# end in a scalar one whose exponentials differ in the last bit; thus a member's numbers are never
# in it, and lie at the same place of a cache line, whatever its number and that of the others.
ALIGNED = 32
_NOTHING: AbstractContextManager[None] = nullcontext()
_Views = list[tuple[Tensor, Tensor | None]]  # weights and biases, layer by layer


def aligned(numbers: int) -> int:
    """Return the least multiple of ``ALIGNED`` that holds so many."""
    return numbers + -numbers % ALIGNED


class Chain(nn.Module):
    """Linear layers in a row, each with activation and dropout behind it, of S members.

    The weights are one flat parameter: layer by layer the weights of all members (transposed:
    inputs by outputs, the product for the gradient is then a third faster), then their biases.
    Products are taken in its precision, whatever autocast says.

    Args:
        members: S.
    """

    flat: Tensor

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = members
        self.masks = 0
        self.layers: list[_Layer] = []
        self._blocks: dict[str, tuple[int, int]] = {}  # of a weight: first and last number
        self._kept = _Kept()

    def add(self, name: str, layer: nn.Linear) -> None:
        """Append a layer whose weights are called ``name.weight`` and ``name.bias``."""
        start = self.layers[-1].end if self.layers else 0
        one = _Layer(layer.in_features, layer.out_features, layer.bias is not None, start)
        self.layers.append(one)
        between = start + one.of_weight
        prefix = f"{name}." if name else ""
        self._blocks[f"{prefix}weight"] = (start, between)
        if one.bias:
            self._blocks[f"{prefix}bias"] = (between, one.end)

    def follow(self, kind: str) -> bool:
        """Have "relu", "gelu" or "mask" follow the last layer; return False where it cannot."""
        layer = self.layers[-1]
        if kind == "mask":
            if layer.mask:
                return False
            layer.mask = True
            self.masks += 1
        else:
            if layer.activation or (kind == "gelu" and layer.mask):
                return False
            layer.activation = kind
        return True

    @property
    def ends_in_logit(self) -> bool:
        """Whether one number comes out of the last layer, as it is."""
        layer = self.layers[-1]
        return layer.outputs == 1 and not (layer.activation or layer.mask)

    def make(self) -> None:
        """Make the parameter, of zeros."""
        self.flat = nn.Parameter(torch.zeros(self.members * self.layers[-1].end))

    def block(self, name: str, *, gradient: bool = False) -> Tensor | None:
        """Return where the members keep a weight, or its gradient: a view ``(S, numbers)``."""
        whole = self.flat.grad if gradient else self.flat
        first, last = (self.members * place for place in self._blocks[name])
        return None if whole is None else whole[first:last].view(self.members, -1)

    def forward(self, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Return what comes out of the last layer, ``(S, B, outputs)``.

        Args:
            x: ``(S, B, inputs)``.
            masks: A factor from 0 on per mask, ``(S, B, width)``; none: nothing is dropped.
        """
        with _own_precision(x):
            return _Chained.apply(x.to(self.flat.dtype), self.flat, self, *masks)

    def loss(self, x: Tensor, start: Tensor | None, y: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Return the mean cross-entropy of its logits over rows with a label, summed over members.

        Args:
            x: As in ``forward``.
            start: Added to the logits, ``(S, B, 1)``.
            y: 0 or 1, float ``(S, b)``; rows from b on fill the batch up.
            masks: As in ``forward``.
        """
        with _own_precision(x):
            return _Loss.apply(x.to(self.flat.dtype), self.flat, start, y, self, *masks)

    def views(self, flat: Tensor) -> _Views:
        """Return each layer's weights, ``(S, rows, outputs)``, and biases in ``flat``."""
        kept = self._kept
        if not kept.views or kept.views[0][0].data_ptr() != flat.data_ptr():
            kept.views = self.views_of(flat.detach())
        return kept.views

    def views_of(self, flat: Tensor) -> _Views:
        """Return the same of a tensor that is not the parameter."""
        return [
            (layer.weight_in(flat, self.members), layer.bias_in(flat, self.members))
            for layer in self.layers
        ]


def _own_precision(x: Tensor) -> AbstractContextManager[object]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING


class _Kept:
    """Views of a weight that stays at its place: to make them anew takes a tenth of a step."""

    __slots__ = ("views",)  # nothing that a copy, a checkpoint or a resume point should hold

    def __init__(self) -> None:
        self.views: _Views = []

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


@dataclass
class _Layer:
    """A linear layer and what follows it.

    Attributes:
        inputs: Columns that go in.
        outputs: Columns that come out.
        bias: Whether there is one.
        start: Numbers a member has before this layer's.
        activation: "relu", "gelu" (its tanh form) or "" for none.
        mask: Whether dropout follows, before or behind a ReLU: a factor that is not negative
            can change places with it; behind a GELU only.
    """

    inputs: int
    outputs: int
    bias: bool
    start: int
    activation: str = ""
    mask: bool = False

    def __post_init__(self) -> None:
        missing = -self.inputs % (ALIGNED // math.gcd(ALIGNED, self.outputs))
        # how a product is summed depends on where in a cache line a member's begins
        self.rows = self.inputs if self.outputs == 1 else self.inputs + missing
        self.of_weight = aligned(self.rows * self.outputs)
        self.of_bias = aligned(self.outputs) if self.bias else 0
        self.end = self.start + self.of_weight + self.of_bias
        self.gaps = [
            (size, used, at)
            for size, used, at in (
                (self.of_weight, self.rows * self.outputs, self.start),
                (self.of_bias, self.outputs, self.start + self.of_weight),
            )
            if size > used
        ]

    def weight_in(self, flat: Tensor, members: int) -> Tensor:
        """Return the weights, ``(S, rows, outputs)``; those of one output as ``(S, 1, inputs)``."""
        size, at = self.of_weight, members * self.start
        if self.outputs == 1:
            return flat.as_strided((members, 1, self.rows), (size, size, 1), at)
        return flat.as_strided((members, self.rows, self.outputs), (size, self.outputs, 1), at)

    def bias_in(self, flat: Tensor, members: int) -> Tensor | None:
        """Return the biases, ``(S, 1, outputs)``; None: there are none."""
        size, at = self.of_bias, members * (self.start + self.of_weight)
        if not self.bias:
            return None
        return flat.as_strided((members, 1, self.outputs), (size, size, 1), at)

    def clear_gaps(self, flat: Tensor, members: int) -> None:
        """Set to zero what is kept for no number."""
        for size, used, at in self.gaps:
            flat.as_strided((members, size - used), (size, 1), members * at + used).zero_()


def _forward(
    x: Tensor, flat: Tensor, chain: Chain, masks: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what goes into each layer and out of the last, and what goes into each GELU."""
    values, left = [x], iter(masks)
    into_gelu: list[Tensor] = []
    for layer, (weight, bias) in zip(chain.layers, chain.views(flat), strict=True):
        if layer.outputs == 1:  # a product with one column is a sum, and slow as a product
            x = (x * weight).sum(2, keepdim=True)
            x = x if bias is None else x.add_(bias)
        else:
            if layer.rows > layer.inputs:
                x = values[-1] = F.pad(x, (0, layer.rows - layer.inputs))
            x = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
        if layer.activation == "relu":
            x = x.relu_()
        elif layer.activation == "gelu":
            into_gelu.append(x)
            x = F.gelu(x, approximate="tanh")
        if layer.mask and masks:
            x = x.mul_(next(left))
        values.append(x)
    return values, into_gelu


def _backward(
    g: Tensor,
    values: Sequence[Tensor],
    flat: Tensor,
    chain: Chain,
    masks: Sequence[Tensor],
    into_gelu: Sequence[Tensor],
    *,
    to_x: bool,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of ``x``, where it is asked for, and of the weights; ``g`` is lost."""
    layers, into = chain.layers, torch.empty_like(flat)
    views, found = chain.views(flat), chain.views_of(into)
    left, before = iter(reversed(masks)), iter(reversed(into_gelu))
    for number in reversed(range(len(layers))):
        layer, x, (weight, _), (of_weight, of_bias) = (
            layers[number], values[number], views[number], found[number],
        )  # fmt: skip
        if layer.mask and masks:
            g = g.mul_(next(left))
        if layer.activation == "relu":
            y = values[number + 1]
            y = y if y.shape[2] == layer.outputs else y[:, :, : layer.outputs]
            _relu_backward(g, y, 0, grad_input=g)
        elif layer.activation == "gelu":
            _gelu_backward(g, next(before), approximate="tanh", grad_input=g)
        if layer.outputs == 1:
            torch.sum(x * g, 1, keepdim=True, out=of_weight)
        else:
            torch.bmm(x.transpose(1, 2), g, out=of_weight)
        if of_bias is not None:
            torch.sum(g, 1, keepdim=True, out=of_bias)
        if layer.gaps:
            layer.clear_gaps(into, chain.members)
        if number or to_x:
            g = g * weight if layer.outputs == 1 else torch.bmm(g, weight.transpose(1, 2))
            g = g[:, :, : layer.inputs] if layer.rows > layer.inputs else g
    return (g if to_x else None), into


class _Chained(torch.autograd.Function):
    """The chain and its gradient, written out.

    Autograd would go over memory three times as often, and make a tensor for each gradient: the
    steps between the products took longer than they.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, flat: Tensor, chain: Chain, *masks: Tensor) -> Tensor:
        values, into_gelu = _forward(x, flat, chain, masks)
        ctx.chain, ctx.masks = chain, len(masks)
        ctx.save_for_backward(flat, *masks, *values, *into_gelu)
        return values[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        flat, *saved = ctx.saved_tensors
        last = ctx.masks + len(ctx.chain.layers) + 1
        masks, values, into_gelu = saved[: ctx.masks], saved[ctx.masks : last], saved[last:]
        to_x = ctx.needs_input_grad[0]
        both = _backward(g.clone(), values, flat, ctx.chain, masks, into_gelu, to_x=to_x)
        return *both, None, *(None for _ in masks)


class _Loss(torch.autograd.Function):
    """The last chain with the loss of its logits: the gradient is taken at once."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        flat: Tensor,
        start: Tensor | None,
        y: Tensor,
        chain: Chain,
        *masks: Tensor,
    ) -> Tensor:
        values, into_gelu = _forward(x, flat, chain, masks)
        logits, rows = values[-1] if start is None else values[-1] + start, y.shape[1]
        filled = rows < logits.shape[1]
        real = logits[:, :rows, 0] if filled else logits[:, :, 0]
        loss = F.binary_cross_entropy_with_logits(real, y, reduction="sum") / rows
        to_x, wanted = ctx.needs_input_grad[:2]
        if to_x or wanted:
            labels = F.pad(y, (0, logits.shape[1] - rows)) if filled else y
            g = torch.sigmoid(logits).sub_(labels.unsqueeze(2)).mul_(1 / rows)
            if filled:
                g[:, rows:] = 0
            found = _backward(g, values, flat, chain, masks, into_gelu, to_x=to_x)
            ctx.save_for_backward(*found)
        ctx.masks = len(masks)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.saved_tensors
        if g.device.type != "cpu" or float(g) != 1.0:  # it is, but for accumulated gradients
            found = tuple(None if gradient is None else gradient * g for gradient in found)
        return *found, None, None, None, *(None for _ in range(ctx.masks))
