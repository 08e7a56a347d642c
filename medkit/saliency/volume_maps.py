"""Saliency maps of volumes: values, what they are of, and whether they may be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

NOT_CHECKED = "not checked: run medkit.saliency.checks on this net before these maps are shown"


@dataclass(frozen=True, eq=False)
class VolumeMaps:
    """Saliency maps of volumes.

    Attributes:
        values: float32 ``(B, H, W, D)`` on the CPU.
        method: How they were made.
        unit: Of ``values``.
        signed: Whether below zero means "against".
        delta: Where values are shares of a difference of logits: what they fail to add up to,
            ``(B,)`` [logit]. Else None.
        nodes: Gradients that were asked for on the way to each volume, ``(B,)``. Else None.
        verdict: What the checks said of the method on this net, or that none was made.
    """

    values: Tensor
    method: str
    unit: str
    signed: bool = True
    delta: Tensor | None = None
    nodes: Tensor | None = None
    verdict: str = NOT_CHECKED

    def __str__(self) -> str:
        return f"{self.method} of {len(self.values)} volumes [{self.unit}]; {self.verdict}"

    def take(self, rows: Sequence[int] | Tensor) -> VolumeMaps:
        """Return the maps of some of the volumes, such as ``range(6)``, or where a mask is True."""
        at = torch.as_tensor(rows)
        delta, nodes = (None if one is None else one[at] for one in (self.delta, self.nodes))
        return replace(self, values=self.values[at], delta=delta, nodes=nodes)

    def in_blocks(self, side: int) -> VolumeMaps:
        """Return maps whose voxels hold the mean of their block of ``side`` voxels each way.

        Shares still add up. What seeds agree on is seldom finer than a few voxels.

        Raises:
            ValueError: For a side below 1.
        """
        if side < 1:
            raise ValueError(f"side must be at least 1 voxel, got {side}. 4 mm suits lung nodules.")
        whole = in_cells(self.values, side)
        for axis in (1, 2, 3):
            whole = whole.repeat_interleave(side, dim=axis).narrow(axis, 0, self.values.shape[axis])
        return replace(self, values=whole, method=f"{self.method} in blocks of {side} voxels")

    def residual(self) -> Tensor:
        """Return ``delta`` as a share of all that the map hands out, ``(B,)``.

        The sum of absolute values is the measure: a change of the logit may be next to nothing
        where large shares for and against cancel.

        Raises:
            ValueError: For maps that need not add up to anything.
        """
        if self.delta is None:
            raise ValueError(
                f"only maps that share out a logit have a residual; {self.method} does not. "
                "integrated_gradients and gradient_shap do."
            )
        return self.delta.abs() / self.values.abs().sum((1, 2, 3)).clamp_min(1e-12)


def in_cells(values: Tensor, side: int) -> Tensor:
    """Return means over blocks of ``side`` voxels each way, ``(B, h, w, d)``."""
    return F.avg_pool3d(values[:, None], side, ceil_mode=True, count_include_pad=False)[:, 0]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what was done by then.

    Attributes:
        maps: Of the first volumes, as many as are finished.
    """

    def __init__(self, maps: VolumeMaps) -> None:
        self.maps = maps
        super().__init__(f"stopped after {len(maps.values)} volumes; they are in error.maps")
