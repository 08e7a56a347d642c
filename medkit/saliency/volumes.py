"""Gradients of 3-D nets: integrated, expected (GradientSHAP) and smoothed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from medkit import keyed
from medkit.saliency.volume_maps import VolumeMaps
from medkit.saliency.volume_net import Part, VolumeNet, mapped

NODES, MOST_NODES, TOLERANCE = 13, 117, 0.003


def integrated_gradients(
    of: VolumeNet,
    volume_hu: ArrayLike | Tensor,
    *,
    nodes: int = NODES,
    tolerance: float = TOLERANCE,
    most_nodes: int = MOST_NODES,
) -> VolumeMaps:
    """Share out logit(volume) - logit(air) to the voxels (Sundararajan 2017).

    The way from air to the volume is straight in what the net takes, not in HU, where the window
    has kinks. It is walked at one Gauss-Legendre node in each of a number of equal parts: ReLUs
    make the gradient jump, and there Captum's 50 nodes of one part lose what they gain on smooth
    nets. What the shares fail to add up to says where 13 were too few: such volumes are walked at
    39, 117 nodes, those asked before included. ``maps.nodes`` counts them; ``maps.residual()`` is
    what is left.

    Voxel by voxel the sign is the seed's, not the disease's: look at ``maps.in_blocks(4)``, and at
    what the checks say of it.

    Args:
        of: The net.
        volume_hu: ``(B, 1, H, W, D)`` [HU].
        nodes: At first.
        tolerance: Largest residual, as a share of the map's sum of absolute values.
        most_nodes: Not more than so many at a time, whatever the residual.

    Raises:
        ValueError: For nodes or a tolerance that can't be.
        Interrupted: On Ctrl-C, with the maps that are done.
    """
    if not 1 <= nodes <= most_nodes or not tolerance > 0:
        raise ValueError(
            "nodes must be from 1 to most_nodes and tolerance above 0; got "
            f"nodes={nodes}, most_nodes={most_nodes}, tolerance={tolerance}. "
            f"{NODES}, {MOST_NODES} and {TOLERANCE} are usual."
        )
    empty: list[Tensor] = []  # the logit of air, asked for once

    def part(hu: Tensor, _: int) -> Part:
        x, x0 = of.seen(hu), of.nothing(hu)
        with torch.no_grad():
            said = of.logit(x if empty else torch.cat([x, x0])).double()
            empty.extend(said[len(x) :])
            change = said[: len(x)] - empty[0]
            rounding = 1e-6 * (said[: len(x)].abs() + empty[0].abs())
        middles = (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
        mean, used = _mean_gradient(of, x, x0, middles), torch.full((len(x),), nodes)
        while True:
            values = (x - x0) * mean
            delta = values.double().sum((1, 2, 3, 4)) - change
            size = values.double().abs().sum((1, 2, 3, 4))
            bad = (delta.abs() > tolerance * size + rounding).cpu() & (3 * used <= most_nodes)
            rows = bad.nonzero()[:, 0]
            if not len(rows):
                break
            count = int(used.max())  # all that are still too far off are as far on
            middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
            beside = torch.cat([middles - 1 / (3 * count), middles + 1 / (3 * count)])
            mean[rows] = (mean[rows] + 2 * _mean_gradient(of, x[rows], x0, beside)) / 3
            used[rows] = 3 * count
        return Part(values[:, 0], delta.float(), used)

    return mapped(
        of,
        volume_hu,
        part,
        method="integrated gradients",
        unit="logit",
        group=max(1, of.lanes(np.shape(volume_hu)) // nodes),
    )


def gradient_shap(
    of: VolumeNet,
    volume_hu: ArrayLike | Tensor,
    *,
    references_hu: Tensor | None = None,
    draws: int = 32,
    noise_hu: float = 0.0,
    seed: int = 0,
) -> VolumeMaps:
    """Average integrated gradients over reference volumes (GradientSHAP; Erion 2021).

    Each draw takes a reference (in turn, from a drawn start), a point on the way from it to the
    volume (one from each of ``draws`` equal parts of it), and noise. Against one reference
    integrated gradients need fewer gradients.

    Args:
        of: The net.
        volume_hu: ``(B, 1, H, W, D)`` [HU].
        references_hu: ``(K, 1, H, W, D)``, such as training volumes without a nodule [HU]; None:
            air.
        draws: Gradients for each volume; the delta falls with their root.
        noise_hu: Standard deviation of the noise on the volume [HU].
        seed: Decides the draws, with the volume's place in the batch; the global generators are
            not touched.

    Raises:
        ValueError: For references of another shape, or no draws.
        Interrupted: On Ctrl-C, with the maps that are done.
    """
    _require_draws(draws, noise_hu)
    shape = np.shape(volume_hu)
    if references_hu is not None and np.shape(references_hu)[1:] != shape[1:]:
        raise ValueError(
            f"references_hu must be (K, 1, H, W, D) with the volumes' sides {tuple(shape[1:])}, "
            f"got {tuple(references_hu.shape)}. Crop them alike, or leave them out for air."
        )

    def part(hu: Tensor, first: int) -> Part:
        known = of.nothing(hu) if references_hu is None else of.seen(references_hu.to(hu))
        with torch.no_grad():
            empty = torch.cat([of.logit(one) for one in known.split(of.lanes(hu.shape))]).double()
        total, delta = torch.zeros_like(hu), torch.zeros(len(hu), dtype=torch.float64)
        for place, volume in enumerate(hu):
            draw = keyed.generator(seed, "gradient shap", first + place)
            chosen = (draw.integers(len(known)) + np.arange(draws)) % len(known)
            at = torch.from_numpy((draw.permutation(draws) + draw.random(draws)) / draws).to(hu)
            for some in torch.arange(draws).split(of.lanes(hu.shape)):
                start = known[chosen[some.numpy()]]
                x = of.seen(_noisy(volume, noise_hu, seed, first + place, some))
                way = x - start
                total[place] += (
                    way * of.gradient(start + at[some].view(-1, 1, 1, 1, 1) * way)
                ).sum(0)
            with torch.no_grad():
                said = of.logit(of.seen(volume[None])).double()[0] - empty[chosen].mean()
            delta[place] = (total[place].double().sum() / draws - said).cpu()
        return Part(
            total[:, 0] / draws, delta.float(), torch.full((len(hu),), draws, dtype=torch.int64)
        )

    return mapped(of, volume_hu, part, method="GradientSHAP", unit="logit")


def smooth_gradients(
    of: VolumeNet,
    volume_hu: ArrayLike | Tensor,
    *,
    noise_hu: float = 40.0,
    draws: int = 16,
    seed: int = 0,
) -> VolumeMaps:
    """Average the gradient over noisy copies of the volume (SmoothGrad; Smilkov 2017).

    A sensitivity, not a share: how the logit would move if a voxel did. It adds up to nothing.

    Args:
        of: The net.
        volume_hu: ``(B, 1, H, W, D)`` [HU].
        noise_hu: Standard deviation of the noise, before the window [HU]; that of the scanner is
            a sensible one. 0 with one draw is the plain gradient.
        draws: Copies of each volume.
        seed: Decides the noise, with the volume's place in the batch.

    Raises:
        ValueError: For no draws, or noise below 0.
        Interrupted: On Ctrl-C, with the maps that are done.
    """
    _require_draws(draws, noise_hu)

    def part(hu: Tensor, first: int) -> Part:
        total = torch.zeros_like(hu)
        for place, volume in enumerate(hu):
            for some in torch.arange(draws).split(of.lanes(hu.shape)):
                x = of.seen(_noisy(volume, noise_hu, seed, first + place, some))
                total[place] += of.gradient(x).sum(0)
        return Part(total[:, 0] / draws, nodes=torch.full((len(hu),), draws, dtype=torch.int64))

    return mapped(
        of, volume_hu, part, method="SmoothGrad", unit="logit per unit of the net's input"
    )


def _mean_gradient(of: VolumeNet, x: Tensor, x0: Tensor, at: Tensor) -> Tensor:
    """Return the mean gradient at some places on the way from ``x0``, at 0, to ``x``, at 1."""
    way, total = x - x0, torch.zeros_like(x)
    lanes, count = of.lanes(x.shape), len(at)
    for some in torch.arange(len(x)).split(max(1, lanes // count)):
        for part in at.to(x).chunk(-(-count * len(some) // lanes)):
            points = x0 + part.view(-1, 1, 1, 1, 1, 1) * way[some]  # (places, volumes, ...)
            total[some] += of.gradient(points.flatten(0, 1)).view_as(points).sum(0)
    return total / count


def _noisy(volume: Tensor, noise_hu: float, seed: int, place: int, draws: Tensor) -> Tensor:
    """Return copies of one volume, each with its own noise [HU]."""
    copies = volume.expand(len(draws), *volume.shape)
    if noise_hu == 0:
        return copies
    made: Callable[[int], torch.Generator] = lambda draw: keyed.torch_generator(  # noqa: E731
        seed, "noise", place, draw
    )
    noise = [torch.randn(volume.shape, generator=made(draw)) for draw in draws.tolist()]
    return copies + noise_hu * torch.stack(noise).to(volume)


def _require_draws(draws: int, noise_hu: float) -> None:
    if draws < 1 or not noise_hu >= 0:
        raise ValueError(
            f"draws must be at least 1 and noise_hu at least 0, got {draws} and {noise_hu}. "
            "16 draws and 40 HU are usual."
        )
