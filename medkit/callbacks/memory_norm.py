"""Group instead of batch normalisation: a split batch is then the whole one."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_log = logging.getLogger(__name__)
_LEAST = 2  # channels of a group, where there is nothing but channels
_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_BETWEEN = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Identity, nn.Dropout)


def batch_norms(net: nn.Module) -> list[str]:
    """Return the names of layers that normalise by the batch they are given."""
    return [
        name
        for name, layer in net.named_modules()
        if isinstance(layer, _BatchNorm) and (layer.training or not layer.track_running_stats)
    ]


def swap_batchnorm(net: nn.Module, *, groups: int = 8) -> list[str]:
    """Put a ``GroupNorm`` (Wu 2018) in the place of each batch normalisation; return their names.

    Scale and shift are taken over, running statistics have no use any more. It is another net: swap
    before training. **Trap: directly before global average pooling it does not learn.** Each sample
    is normalised over space, and the mean over space is then nearly the same for all (nodule task:
    AUROC .55 where batch normalisation has .88). Where such a place is found, a warning names it;
    a mean taken in ``forward`` is not seen. Pool something else beside it, the centre or the
    maximum, or leave that layer as it is. Absolute intensities are lost too, since each sample gets
    its own scale.

    Args:
        net: Changed in place.
        groups: Per layer; the greatest common divisor with its channels is taken.

    Raises:
        ValueError: For fewer than one group.
    """
    if groups < 1:
        raise ValueError(
            f"groups must be at least 1, got {groups}. 8 suits 16 to 64 channels; 1 normalises "
            "over all channels."
        )
    before_pooling = set(_before_pooling(net))
    swapped = []
    for parent_name, parent in list(net.named_modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, _BatchNorm):
                continue
            swapped.append(f"{parent_name}.{name}".removeprefix("."))
            setattr(parent, name, _group_norm(layer, groups).train(layer.training))
    trapped = [name for name in swapped if name in before_pooling]
    if trapped:
        _log.warning(
            "GroupNorm directly before global average pooling does not learn: the mean over space "
            "of a map that is normalised over space is nearly the same for all samples. Found at "
            "%s; let the head see the maximum or the centre too, or keep BatchNorm there.",
            ", ".join(trapped),
        )
    return swapped


def _group_norm(layer: _BatchNorm, groups: int) -> nn.GroupNorm:
    channels = layer.num_features
    count = math.gcd(groups, channels)
    if isinstance(layer, nn.BatchNorm1d) and channels < _LEAST * count:
        count = 1  # of (B, C) a group of one channel is a single number, and becomes zero
    made = nn.GroupNorm(count, channels, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        made.weight, made.bias = layer.weight, layer.bias
    return made


def _before_pooling(net: nn.Module) -> Iterator[str]:
    """Yield norms with nothing but activations between them and a global average, as defined."""
    last = ""
    for name, layer in net.named_modules():
        if any(True for _ in layer.children()):
            continue
        if isinstance(layer, _BatchNorm):
            last = name
        elif isinstance(layer, _POOLS):
            size = layer.output_size
            sizes = size if isinstance(size, tuple) else (size,)
            if last and all(one == 1 for one in sizes):
                yield last
            last = ""
        elif not isinstance(layer, _BETWEEN):
            last = ""
