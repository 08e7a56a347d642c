"""What explaining a 3-D net has in common: HU through a window, air, few volumes at a time."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from tqdm import tqdm

from medkit.saliency.attribution import as_used
from medkit.saliency.volume_maps import Interrupted, VolumeMaps

AIR_HU = -1000.0
AT_ONCE = 10 * 32**3  # voxels in one forward; more gain no time and take memory

Window = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class VolumeNet:
    """A trained net, and how it is shown volumes.

    Maps are made on HU, and what stands for "nothing there" is air, *before* the window: zero
    after it is air under one window and soft tissue under another.

    Attributes:
        net: Maps ``(B, 1, H, W, D)`` to logits ``(B, K)``, ``(B, 1)`` or ``(B,)``. Used in eval
            mode and left in the mode it was in.
        window: Maps HU to what the net takes, voxel by voxel, such as
            ``lambda hu: ((hu + 1000) / 1400).clamp(0, 1)``. Correct an exam's HU before.
        target: Which logit is explained; None only where there is one.
        baseline_hu: What voxels are compared with, or replaced by [HU].
        at_once: Volumes in one forward, which bounds the memory; None: as many as have 10 * 32^3
            voxels, at least 1.
        progress: Show a bar; None: on a terminal.
    """

    net: nn.Module
    window: Window
    target: int | None = None
    baseline_hu: float = AIR_HU
    at_once: int | None = None
    progress: bool | None = None

    def lanes(self, shape: Sequence[int]) -> int:
        """Return how many volumes of a shape ``(..., H, W, D)`` go into one forward."""
        if self.at_once is not None:
            return max(1, self.at_once)
        return max(1, AT_ONCE // max(1, math.prod(shape[-3:])))

    def seen(self, volume_hu: Tensor) -> Tensor:
        """Return volumes as the net takes them."""
        x = self.window(volume_hu)
        if x.shape != volume_hu.shape or not x.is_floating_point():
            raise ValueError(
                "window must map HU to floating-point numbers of the same shape, voxel by voxel; "
                f"got {x.dtype} {tuple(x.shape)} from {tuple(volume_hu.shape)}. Resample before."
            )
        return x

    def nothing(self, volume_hu: Tensor) -> Tensor:
        """Return one volume of air as the net takes it, ``(1, 1, H, W, D)``."""
        return self.seen(torch.full_like(volume_hu[:1], self.baseline_hu))

    def logit(self, x: Tensor) -> Tensor:
        """Return the logit that is explained, of volumes as the net takes them, ``(B,)``."""
        said = self.net(x)
        if isinstance(said, tuple):  # MONAI's ViT: logits, hidden states
            said = said[0]
        said = said.reshape(len(x), -1)
        if self.target is None and said.shape[1] == 1:
            return said[:, 0]
        if self.target is None or not 0 <= self.target < said.shape[1]:
            raise ValueError(
                f"target must name one of the net's {said.shape[1]} logits a volume, got "
                f"{self.target}. Pass VolumeNet(..., target=1) for the class to be explained."
            )
        return said[:, self.target]

    def gradient(self, x: Tensor) -> Tensor:
        """Return the logit's derivative at each of a batch of volumes."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.logit(x).sum(), x)
        return found

    def ask(self, volume_hu: ArrayLike | Tensor) -> Tensor:
        """Return the logit of each volume, ``(B,)``, on the CPU."""
        with torch.no_grad(), as_used(self.net):
            parts = _groups(self, volume_hu, 0)
            return torch.cat([self.logit(self.seen(hu)).float().cpu() for _, hu in parts])


class Part(NamedTuple):
    """Maps of a few volumes: ``(b, H, W, D)``, and ``(b,)`` each."""

    values: Tensor
    delta: Tensor | None = None
    nodes: Tensor | None = None

    def room_for(self, count: int) -> Part:
        """Return room for such parts of ``count`` volumes, on the CPU."""

        def room(one: Tensor) -> Tensor:
            return torch.empty((count, *one.shape[1:]), dtype=one.dtype)

        delta, nodes = (None if one is None else room(one) for one in self[1:])
        return Part(room(self.values), delta, nodes)

    def put(self, first: int, part: Part) -> None:
        """Put a part into its place."""
        for room, one in zip(self, part, strict=True):
            if room is not None and one is not None:
                room[first : first + len(one)] = one.detach()


def mapped(
    of: VolumeNet,
    volume_hu: ArrayLike | Tensor,
    explain: Callable[[Tensor, int], Part],
    *,
    method: str,
    unit: str,
    signed: bool = True,
    group: int = 0,
) -> VolumeMaps:
    """Explain volumes, a few at a time.

    Args:
        of: The net.
        volume_hu: ``(B, 1, H, W, D)`` [HU], any real dtype; may lie on the disk.
        explain: Called with some of the volumes, float32 on the net's device, and the place of
            the first of them.
        method: For the maps.
        unit: Of the values.
        signed: Whether below zero means "against".
        group: Volumes in one call; 0: as many as go into one forward.

    Raises:
        Interrupted: On Ctrl-C, with the maps that are done.
    """
    count, done = shape_of(volume_hu)[0], 0
    whole = Part(torch.zeros(0, *shape_of(volume_hu)[2:]))

    def made() -> VolumeMaps:
        delta, nodes = (None if one is None else one[:done] for one in whole[1:])
        return VolumeMaps(whole.values[:done], method, unit, signed, delta, nodes)

    show = sys.stderr.isatty() if of.progress is None else of.progress
    try:
        with (
            as_used(of.net),
            tqdm(total=count, desc=method, unit="volume", disable=not show) as bar,
        ):
            for first, hu in _groups(of, volume_hu, group):
                part = explain(hu, first)
                if not done:
                    whole = part.room_for(count)
                whole.put(first, part)
                done = first + len(hu)
                bar.update(len(hu))
    except KeyboardInterrupt as stop:
        raise Interrupted(made()) from stop
    return made()


def shape_of(volume_hu: ArrayLike | Tensor) -> torch.Size:
    """Return the shape of volumes; refuse what is not ``(B, 1, H, W, D)``."""
    shape = torch.Size(getattr(volume_hu, "shape", ()))
    if len(shape) != 5 or shape[1] != 1 or 0 in shape:
        raise ValueError(
            f"volumes must be (B, 1, H, W, D) in HU, got shape {tuple(shape)}. Add the axes that "
            "are missing: candidates.volume_hu[rows][:, None]."
        )
    return shape


def _groups(
    of: VolumeNet, volume_hu: ArrayLike | Tensor, group: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the place of the first volume and some volumes, checked, on the net's device."""
    shape = shape_of(volume_hu)
    device = next((p.device for p in of.net.parameters()), torch.device("cpu"))
    size = group or of.lanes(shape)
    for first in range(0, shape[0], size):
        part = volume_hu[first : first + size]  # type: ignore[index]
        if not isinstance(part, Tensor):
            part = torch.from_numpy(np.array(part, np.float32))
        hu = part.to(device, torch.float32)
        most = float(hu.abs().max())
        if not 5 < most < 1e5 and most != 0:  # NaN is no number between either
            raise ValueError(
                f"volumes must be in HU, finite, and not windowed yet; volumes {first} to "
                f"{first + len(hu) - 1} have absolute values up to {most:.3g}. Pass HU, and the "
                "window apart: VolumeNet(net, window)."
            )
        yield first, hu
