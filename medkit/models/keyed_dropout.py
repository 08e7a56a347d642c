"""Dropout whose masks belong to samples: alike whether a batch is trained whole or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medkit.models.masks import _WHOLE, LeanDropout, _noise

_WORDS = 4  # 64-bit words that Philox makes of one counter
_BY_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass
class Part:
    """Which samples of a batch are looked at, and how many masks were drawn for them."""

    first: int
    samples: int
    draws: int = 0


_part: Part | None = None  # of the process: autograd may recompute a forward pass in its own thread


class KeyedDropout(nn.Module):
    """Dropout with a mask a sample: a function of the step's key, the layer and the sample's place.

    Each call draws one number from torch's global CPU generator, however large the batch; Philox
    with that key and the sample's place in its batch as the counter makes the mask. Under
    ``KeyedSteps`` the number is a function of seed, epoch, batch and the order in which layers are
    called. ``MemoryGuard`` has every part of a split batch draw the same number, so the masks are
    those of the whole batch. The first axis must be the samples, or begin with them when time steps
    or patches were folded into it (``B * T``, not ``T * B``).

    Masks are made on the host and alike on every device; on an accelerator a mask of a large
    feature map has to be moved there. ``p`` is rounded to a multiple of 2**-16.

    Args:
        p: Share of the values set to zero, the others are scaled up; 0 <= p < 1.
        per_channel: Whole channels of ``(B, C, ...)`` are kept or dropped, as in ``nn.Dropout3d``.
    """

    def __init__(self, p: float = 0.5, *, per_channel: bool = False) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(
                f"p must be a share from 0 to below 1, got {p}. It is the share that is dropped: "
                "0.1 to 0.5 are usual."
            )
        self.p = p
        self.per_channel = per_channel

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``; in training with values set to zero, and the others scaled up."""
        if not self.training or self.p == 0 or x.numel() == 0:
            return x
        key = int(torch.empty((), dtype=torch.int64).random_(_WHOLE, None))
        first = 0
        if _part is not None:
            _part.draws += 1
            if len(x) % _part.samples:
                raise ValueError(
                    f"the first axis of what is dropped must be the {_part.samples} samples of the "
                    f"batch or a multiple, got {tuple(x.shape)}. Put the samples first; masks of "
                    "a split batch can't be told apart otherwise."
                )
            first = _part.first * (len(x) // _part.samples)
        shape = x.shape[:2] if self.per_channel else x.shape
        values = shape[1:].numel()
        counters = -(-values // (4 * _WORDS))  # a sample's, of 4 x 16 bits a word
        source = np.random.Philox(key=key % 2**64, counter=first * counters)
        bits = source.random_raw(len(x) * counters * _WORDS).view(np.int64)
        mask = _noise(torch.from_numpy(bits).view(len(x), -1), values, self.p)
        mask = mask.reshape(*shape, *[1] * (x.dim() - len(shape)))
        return x * mask.to(device=x.device, dtype=x.dtype)

    def extra_repr(self) -> str:
        """Return what ``print(net)`` shows."""
        return f"p={self.p}" + (", per_channel=True" if self.per_channel else "")


@contextmanager
def part_of_batch(first: int, samples: int) -> Iterator[Part]:
    """Have what runs here draw the masks of samples ``first`` to ``first + samples`` of a batch."""
    global _part
    before, _part = _part, Part(first, samples)
    try:
        yield _part
    finally:
        _part = before


def swap_dropout(net: nn.Module) -> list[str]:
    """Put a ``KeyedDropout`` in the place of each dropout layer; return their names.

    Dropout has no weights: checkpoints stay as they are. Not reached is what layers drop within
    themselves (``nn.MultiheadAttention``, recurrent nets), and ``net`` itself.
    """
    swapped = []
    for parent_name, parent in list(net.named_modules()):
        for name, layer in list(parent.named_children()):
            channels = type(layer) in _BY_CHANNEL
            if channels or type(layer) in (nn.Dropout, LeanDropout):
                keyed = KeyedDropout(float(layer.p), per_channel=channels)
                setattr(parent, name, keyed.train(layer.training))
                swapped.append(f"{parent_name}.{name}".removeprefix("."))
    return swapped
