"""Occlusion of 3-D nets: what the logit loses when a block of the volume is air."""

from __future__ import annotations

from itertools import product

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from medkit.saliency.volume_maps import VolumeMaps
from medkit.saliency.volume_net import Part, VolumeNet, mapped, shape_of

Block = tuple[slice, slice, slice]


def occlusion(
    of: VolumeNet,
    volume_hu: ArrayLike | Tensor,
    *,
    side: int = 6,
    stride: int = 3,
    refine: float | None = None,
) -> VolumeMaps:
    """Replace blocks by air and see what the logit loses (Zeiler 2014).

    A voxel's value is the mean loss over the blocks that cover it; blocks go as Captum's do. They
    are asked for many at a time, which is where Captum by default spends its time.

    Air in the midst of a nodule is a hole that no training volume had: a loss may be the net's
    surprise rather than the nodule's worth. Read it beside an attribution.

    Args:
        of: The net.
        volume_hu: ``(B, 1, H, W, D)`` [HU].
        side: Of a block [voxels].
        stride: From one block to the next [voxels].
        refine: Share of voxels, from 0 to 1, for which blocks overlap; None: all. Blocks side by
            side are asked first; the voxels whose loss was largest, either way, then get the very
            value that they would have without ``refine``, and the others keep the coarse one.

    Raises:
        ValueError: For volumes of another shape, and sides, strides or shares that can't be.
        Interrupted: On Ctrl-C, with the maps that are done.
    """
    sides = tuple(shape_of(volume_hu)[2:])
    if not 1 <= stride <= side or side > min(sides):
        raise ValueError(
            "blocks must cover the volume and fit into it: 1 <= stride <= side <= "
            f"{min(sides)} voxels; got side={side}, stride={stride}. A side a little "
            "below a nodule's diameter and a stride of half of it are usual."
        )
    if refine is not None and not 0 < refine <= 1:
        raise ValueError(
            f"refine must be a share of the voxels, above 0 and at most 1, got {refine}. "
            "0.05 is usual; it saves time where blocks are small beside the volume."
        )
    coarse, fine = (_blocks(sides, side, step) for step in (side, stride))

    def part(hu: Tensor, _: int) -> Part:
        x, x0 = of.seen(hu), of.nothing(hu)
        maps = []
        with torch.no_grad():
            for volume in x:
                found = _losses(of, volume, x0[0], fine if refine is None else coarse)
                if refine is not None:
                    hot = _largest(found.abs(), refine)
                    chosen = [block for block in fine if hot[block].any()]
                    found = torch.where(hot, _losses(of, volume, x0[0], chosen), found)
                maps.append(found)
        return Part(torch.stack(maps))

    return mapped(of, volume_hu, part, method="occlusion", unit="logit lost")


def _blocks(sides: tuple[int, ...], side: int, stride: int) -> list[Block]:
    """Return blocks that cover a volume; the last along an axis may be cut short."""
    starts = [range(0, -(-(whole - side) // stride) * stride + 1, stride) for whole in sides]
    return [
        (slice(a, a + side), slice(b, b + side), slice(c, c + side)) for a, b, c in product(*starts)
    ]


def _losses(of: VolumeNet, volume: Tensor, nothing: Tensor, blocks: list[Block]) -> Tensor:
    """Return the mean loss over the blocks that cover each voxel, ``(H, W, D)``; 0 under none."""
    lanes, asked = of.lanes(volume.shape), len(blocks) + 1  # the first lane is the whole volume
    said = []
    for some in torch.arange(asked).chunk(-(-asked // lanes)):
        x = volume.repeat(len(some), 1, 1, 1, 1)
        for lane, number in zip(x, some.tolist(), strict=True):
            if number:
                block = blocks[number - 1]
                lane[(0, *block)] = nothing[(0, *block)]
        said.append(of.logit(x))
    logits = torch.cat(said)
    total, count = torch.zeros_like(volume[0]), torch.zeros_like(volume[0])
    for block, loss in zip(blocks, logits[0] - logits[1:], strict=True):
        total[block] += loss
        count[block] += 1
    return total / count.clamp_min(1)


def _largest(values: Tensor, share: float) -> Tensor:
    """Return where values are among the largest; ties are in."""
    count = max(1, round(share * values.numel()))
    return values >= values.flatten().topk(count).values[-1]
