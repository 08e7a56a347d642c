"""A volume: numbers, where they lie in the patient, and where they are from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Volume"]


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D image, as it was read.

    Attributes:
        array: float32 ``(H, W, D)``, a strided view: slices lie one behind the other in memory,
            and ``volume.slices`` are they, ``(D, H, W)``, contiguous. No copy is made to turn axes;
            the affine says which is which.
        affine: Index (h, w, d) -> RAS [mm], ``(4, 4)``.
        unit: "HU" for CT; else what the file says, or "".
        provenance: Series UID, modality, vendor, kernel, kVp, thickness [mm], and more.
        notes: What was unusual, repaired or left out, in words.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    unit: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        spacing = " x ".join(f"{mm:.4g}" for mm in self.spacing_mm)
        series = self.provenance.get("series_uid") or self.provenance.get("name") or "no series UID"
        return (
            f"Volume({tuple(self.array.shape)}, {spacing} mm, {self.unit or 'no unit'}, {series}, "
            f"{len(self.notes)} note(s))"
        )

    @property
    def slices(self) -> NDArray[np.float32]:
        """The same numbers slice by slice, ``(D, H, W)``."""
        return self.array.transpose(2, 0, 1)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbours along each axis of ``array`` [mm]."""
        a, b, c = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return a, b, c

    def world_of(self, index: ArrayLike) -> NDArray[np.float64]:
        """Return RAS coordinates [mm] of voxel indices, ``(..., 3)``."""
        return np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index_of(self, world_mm: ArrayLike) -> NDArray[np.float64]:
        """Return voxel indices, not rounded, of RAS coordinates [mm], ``(..., 3)``."""
        return np.asarray(world_mm, np.float64) @ self._inverse[:3, :3].T + self._inverse[:3, 3]

    @cached_property
    def _inverse(self) -> NDArray[np.float64]:
        return np.asarray(np.linalg.inv(self.affine), np.float64)
