"""Does the net answer less without what a map shows? Deletion and insertion curves, in air."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from medkit.metrics.checks import Floats
from medkit.record.results import Metric
from medkit.saliency.map_scores import mean_of
from medkit.saliency.volume_maps import VolumeMaps
from medkit.saliency.volume_net import Part, VolumeNet, mapped


@dataclass(frozen=True, eq=False)
class RemovalCurves:
    """Logits as voxels go, or come, the map's highest first.

    Attributes:
        removed: Share of voxels, ``(S + 1,)``, from 0 to 1.
        deletion: Logits while they become air, ``(B, S + 1)``.
        insertion: Logits while they come back into air, ``(B, S + 1)``.
    """

    removed: Floats
    deletion: Floats
    insertion: Floats

    def area(self, curve: str, *, groups: ArrayLike | None = None) -> Metric:
        """Return the mean area under "deletion" (low is good) or "insertion" (high is) [logit]."""
        return mean_of(self.areas(curve), groups=groups, unit="logit")

    def areas(self, curve: str) -> Floats:
        """Return the area of each volume, ``(B,)`` [logit]."""
        if curve not in ("deletion", "insertion"):
            raise ValueError(f"curve must be 'deletion' or 'insertion', got {curve!r}.")
        return np.asarray(np.trapezoid(getattr(self, curve), self.removed, axis=1))


def removal_curves(
    of: VolumeNet, maps: VolumeMaps, volume_hu: ArrayLike | Tensor, *, steps: int = 16
) -> RemovalCurves:
    """Turn voxels into air in the order of a map, and the other way round (Petsiuk 2018).

    Steps are squares, 1/256, 4/256, ... of the voxels for 16: a nodule is a small share of a
    volume. Half-removed volumes are none that the net was trained on, so an area has no scale of
    its own: compare it with that of another map of the same volumes, such as a random net's.

    Args:
        of: The net.
        maps: Of these volumes.
        volume_hu: ``(B, 1, H, W, D)`` [HU].
        steps: Forwards in each of both curves.

    Raises:
        ValueError: For maps of other volumes, or no steps.
    """
    shape = np.shape(volume_hu)
    if steps < 1 or tuple(maps.values.shape) != (shape[0], *shape[2:]):
        raise ValueError(
            "curves need a map of each volume and at least one step; got maps "
            f"{tuple(maps.values.shape)} for volumes {tuple(shape)}, steps={steps}. Explain the "
            "same volumes."
        )
    removed = (np.arange(steps + 1) / steps) ** 2
    voxels = maps.values[0].numel()
    counts = torch.from_numpy(np.rint(removed * voxels)).long()

    def part(hu: Tensor, first: int) -> Part:
        x, x0 = of.seen(hu), of.nothing(hu)[0]
        curves = torch.empty(len(x), 2, 1, steps + 1)
        with torch.no_grad():
            for place, volume in enumerate(x):
                order = maps.values[first + place].flatten().argsort(descending=True, stable=True)
                rank = torch.empty_like(order)
                rank[order] = torch.arange(voxels)
                rank = rank.view_as(volume).to(x.device)
                for some in torch.arange(steps + 1).split(of.lanes(x.shape)):
                    gone = rank < counts[some].to(x.device).view(-1, 1, 1, 1, 1)
                    for row, (inside, outside) in enumerate(((x0, volume), (volume, x0))):
                        said = of.logit(torch.where(gone, inside, outside))
                        curves[place, row, 0, some] = said.float().cpu()
        return Part(curves)

    found = mapped(of, volume_hu, part, method="removal", unit="logit").values.double().numpy()
    return RemovalCurves(removed, found[:, 0, 0], found[:, 1, 0])
