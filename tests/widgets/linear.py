"""A volume whose every voxel says where it is, with nodules and an overlay."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.volume import Volume
from medkit.synth.phantom_series import hu_at
from medkit.widgets.viewer import Nodule, SeriesViewer

SHAPE = (30, 24, 16)
# rows to the back, columns to the left, slices to the head; voxels of 3 x 2 x 5 mm
AFFINE = np.array([[0.0, -2, 0, 20], [-3, 0, 0, 40], [0, 0, 5, -90], [0, 0, 0, 1]])
NODULES = (Nodule((2.0, -8.0, -40.0), 12.0, "one"), Nodule((-10.0, 22.0, -70.0), 20.0, "two"))


def truth_at(world_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the HU of places, RAS [mm]."""
    return hu_at(world_mm * [-1, -1, 1])


def linear_volume(
    affine: NDArray[np.float64] = AFFINE, shape: tuple[int, int, int] = SHAPE, unit: str = "HU"
) -> Volume:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    empty = Volume(np.zeros(shape, np.float32), affine, unit)
    return Volume(truth_at(empty.world_of(index)).astype(np.float32), affine, unit)


def spot() -> NDArray[np.float32]:
    """An overlay that is 1 around the first nodule and 0 elsewhere."""
    overlay = np.zeros(SHAPE, np.float32)
    h, w, d = np.round(linear_volume().index_of(NODULES[0].world_mm)).astype(int)
    overlay[h - 2 : h + 3, w - 3 : w + 4, d - 1 : d + 2] = 1.0
    return overlay


def full_viewer() -> SeriesViewer:
    return SeriesViewer(
        linear_volume(), overlay=spot(), nodules=NODULES, window=(0.0, 1200.0), opacity=0.6
    )
