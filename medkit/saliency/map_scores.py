"""Numbers from saliency maps: how alike they are, and how well they lie on a known nodule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from torch import Tensor

from medkit.metrics.checks import Floats, codes
from medkit.metrics.intervals import share
from medkit.metrics.resample import interval
from medkit.record.results import Metric
from medkit.saliency.volume_maps import VolumeMaps, in_cells


def spheres(
    diameter_mm: ArrayLike,
    sides: Sequence[int],
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    centre: ArrayLike | None = None,
    margin_mm: float = 1.0,
) -> Tensor:
    """Return where nodules of known size are, bool ``(B, H, W, D)``.

    Args:
        diameter_mm: Of each nodule [mm].
        sides: H, W and D [voxels].
        spacing_mm: Of the voxels.
        centre: Voxel of each nodule's middle, ``(B, 3)``; None: the volume's middle, where a
            candidate is by construction.
        margin_mm: Added to the radius: a candidate's middle is where a detector said.
    """
    diameter = np.atleast_1d(np.asarray(diameter_mm, np.float64))
    middle = (np.asarray(sides) - 1) / 2 if centre is None else np.asarray(centre, np.float64)
    middle = np.broadcast_to(middle, (len(diameter), 3))
    away = [
        ((np.arange(side) - middle[:, [axis]]) * spacing_mm[axis]) ** 2
        for axis, side in enumerate(sides)
    ]
    square = away[0][:, :, None, None] + away[1][:, None, :, None] + away[2][:, None, None, :]
    return torch.from_numpy(square <= (diameter / 2 + margin_mm)[:, None, None, None] ** 2)


def likeness(one: VolumeMaps, other: VolumeMaps, *, cell: int = 1) -> Floats:
    """Return Spearman's correlation of two maps of each volume, ``(B,)``; 0 where one is flat.

    Args:
        one: Maps of volumes.
        other: Maps of the same volumes.
        cell: Means over blocks of so many voxels each way are compared.
    """
    _require_alike(one.values, other.values)
    mine, theirs = (_ranks(maps.values, cell) for maps in (one, other))
    return np.asarray((mine * theirs).sum(1))


def flat(maps: VolumeMaps) -> float:
    """Return the share of volumes whose map says nothing: one value everywhere."""
    values = maps.values.flatten(1)
    return float((values.amax(1) == values.amin(1)).float().mean())


def hits(maps: VolumeMaps, mask: Tensor) -> Floats:
    """Return 1 where a map's highest voxel is inside the mask, ``(B,)``; a flat map misses.

    Of several highest voxels, as in a map of blocks, the one nearest to their middle counts.
    """
    _require_alike(maps.values, mask)
    found = []
    for values, inside in zip(maps.values, mask, strict=True):
        at = (values == values.max()).nonzero()
        nearest = (at - at.double().mean(0)).square().sum(1).argmin()
        found.append(len(at) < values.numel() and bool(inside[tuple(at[nearest].tolist())]))
    return np.array(found, np.float64)


def energy(maps: VolumeMaps, mask: Tensor) -> Floats:
    """Return the share of what speaks for the logit that lies in the mask, ``(B,)``."""
    _require_alike(maps.values, mask)
    positive = maps.values.double().clamp_min(0)
    total = positive.sum((1, 2, 3))
    inside = (positive * mask).sum((1, 2, 3)) / total.clamp_min(1e-30)
    return np.asarray(inside.numpy())


def overlap(maps: VolumeMaps, mask: Tensor) -> Floats:
    """Return the IoU of the mask and as many of the map's highest voxels, ``(B,)``."""
    _require_alike(maps.values, mask)
    found = []
    for values, inside in zip(maps.values.flatten(1), mask.flatten(1), strict=True):
        count = int(inside.sum())
        both = int(inside[values.topk(count).indices].sum()) if count else 0
        found.append(both / max(1, 2 * count - both))
    return np.array(found)


def pointing_game(maps: VolumeMaps, mask: Tensor, *, groups: ArrayLike | None = None) -> Metric:
    """Return how often the highest voxel is in the nodule, with Wilson's interval (Zhang 2018).

    Candidates lie in the middle, so a map that always points there wins it: read it beside the
    same game on nets with random weights.

    Args:
        maps: Of volumes with a nodule.
        mask: Where it is, bool ``(B, H, W, D)``.
        groups: Exam of each volume.
    """
    hit = hits(maps, mask)
    owner = None if groups is None else codes(groups, len(hit), "groups")
    return share(hit, np.ones(len(hit)), "highest voxel in the nodule", level=0.95, owner=owner)


def localisation(
    maps: Sequence[VolumeMaps], mask: Tensor, *, groups: ArrayLike | None = None
) -> dict[str, Metric]:
    """Return how well maps of the same volumes by one net or more lie on what is known.

    Several random nets say more of chance than one does.

    Args:
        maps: By each net.
        mask: Where the nodule is, bool ``(B, H, W, D)``.
        groups: Exam of each volume.

    Returns:
        ``hits``, the pointing game with Wilson's interval; ``energy`` and ``overlap``, bootstrap
        over exams. Means over nets and volumes; n counts volumes.
    """
    n = len(mask)
    owner = np.arange(n) if groups is None else codes(groups, n, "groups")
    hit = np.concatenate([hits(one, mask) for one in maps])
    played = share(
        hit, np.ones(len(hit)), "pointing game", level=0.95, owner=np.tile(owner, len(maps))
    )
    found = {"hits": replace(played, n=n)}
    for name, score in (("energy", energy), ("overlap", overlap)):
        mean = np.mean([score(one, mask) for one in maps], axis=0)
        found[name] = mean_of(mean, groups=groups)
    return found


def mean_of(values: Floats, *, groups: ArrayLike | None = None, unit: str = "") -> Metric:
    """Return the mean over volumes with its bootstrap interval over exams."""
    if len(values) < 2:
        return Metric(float(values.mean()), n=len(values), unit=unit, method="one volume")
    found, low, high = interval(
        lambda weight: weight @ values / weight.sum(1), len(values), groups=groups
    )
    over = "volumes" if groups is None else "exams"
    return Metric(found, low, high, 0.95, len(values), unit, f"mean, bootstrap over {over}")


def _ranks(values: Tensor, cell: int) -> Floats:
    ranks = rankdata(in_cells(values, cell).flatten(1).numpy(), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    size = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.asarray(ranks / np.where(size > 0, size, 1))


def _require_alike(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape or len(one) == 0:
        raise ValueError(
            "maps and masks of the same volumes are compared, (B, H, W, D) each; got "
            f"{tuple(one.shape)} and {tuple(other.shape)}. Explain the same volumes."
        )
