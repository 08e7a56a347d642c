"""Patches of a volume around places in the patient, at a spacing of their own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medkit.dicom.volume import Volume

__all__ = ["AIR_HU", "patches_at"]

AIR_HU = -1000.0
# rows go towards the patient's back, columns to the left, slices to the head: axes in RAS
_AXES_RAS = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_STRAIGHT = 1e-6


def patches_at(
    volume: Volume,
    centres_world_ras: ArrayLike,
    *,
    spacing_mm: float = 1.0,
    size: int = 24,
    outside: float = AIR_HU,
) -> NDArray[np.float32]:
    """Cut cubes around places, their axes the patient's, by trilinear interpolation.

    The centre is between voxels ``size / 2 - 1`` and ``size / 2`` where ``size`` is even. Values
    between the outermost voxels and ``outside`` are not mixed: what lies beyond the last voxel's
    centre by more than half a voxel is outside.

    Args:
        volume: In HU, of any orientation and spacing.
        centres_world_ras: Places, ``(N, 3)`` RAS [mm].
        spacing_mm: Of the patches, along all axes.
        size: Voxels along an axis.
        outside: What lies beyond the volume [HU].

    Returns:
        float32 ``(N, size, size, size)``: rows towards the back, columns to the left, slices to
        the head.

    Raises:
        ValueError: For places that are no three finite numbers, and sizes that make no sense.
    """
    centres = np.atleast_2d(np.asarray(centres_world_ras, np.float64))
    if centres.ndim != 2 or centres.shape[1] != 3 or not np.isfinite(centres).all():
        raise ValueError(
            f"places must be (N, 3) finite coordinates in RAS [mm], got shape {centres.shape}. "
            "LUNA16's are LPS: turn the signs of x and y."
        )
    if size < 1 or not spacing_mm > 0:
        raise ValueError(
            f"a patch must have voxels of a size above 0 mm, got size={size} and "
            f"spacing_mm={spacing_mm}. 24 voxels of 1 mm suit nodules."
        )
    # what one step along each axis of a patch is in voxels of the volume
    inverse = np.asarray(np.linalg.inv(volume.affine[:3, :3]), np.float64)
    steps: NDArray[np.float64] = inverse @ (_AXES_RAS * spacing_mm).T
    offsets: NDArray[np.float64] = np.arange(size, dtype=np.float64) - (size - 1) / 2
    out = np.empty((len(centres), size, size, size), np.float32)
    straight = _axis_of(steps)
    for number, centre in enumerate(np.asarray(volume.index_of(centres), np.float64)):
        if straight is None:
            out[number] = _oblique(volume.array, centre, steps, offsets, outside)
        else:
            out[number] = _along_axes(volume.array, centre, steps, offsets, outside, straight)
    return out


def _axis_of(steps: NDArray[np.float64]) -> list[int] | None:
    """Return which axis of the volume each axis of a patch runs along; None: between them."""
    largest = np.abs(steps).argmax(axis=0)
    rest = np.abs(steps).sum(axis=0) - np.abs(steps).max(axis=0)
    if len(set(largest.tolist())) < 3 or rest.max() > _STRAIGHT:
        return None
    return [int(axis) for axis in largest]


def _along_axes(
    array: NDArray[np.float32],
    centre: NDArray[np.float64],
    steps: NDArray[np.float64],
    offsets: NDArray[np.float64],
    outside: float,
    axes: list[int],
) -> NDArray[np.float32]:
    """Interpolate axis by axis: three small products in place of eight voxels a voxel."""
    weights: list[NDArray[np.float32]] = []
    needed: list[slice] = []
    beyond: list[NDArray[np.bool_]] = []
    for volume_axis, step in _by_volume_axis(axes, steps):
        length = array.shape[volume_axis]
        place = centre[volume_axis] + step * offsets
        beyond.append((place < -0.5) | (place > length - 0.5))
        place = np.clip(place, 0, length - 1)
        first = min(int(place.min()), length - 1)
        last = min(int(np.ceil(place.max())), length - 1)
        at = np.arange(first, last + 1)
        weights.append(np.clip(1 - np.abs(place[:, None] - at), 0, 1).astype(np.float32))
        needed.append(slice(first, last + 1))
    cut = np.ascontiguousarray(array[tuple(needed)])
    for weight in weights:  # along the first axis, which is then the last
        cut = np.tensordot(cut, weight, axes=(0, 1))
    for axis, lost in enumerate(beyond):
        cut[(slice(None),) * axis + (lost,)] = outside
    return cut.transpose(axes)


def _by_volume_axis(axes: list[int], steps: NDArray[np.float64]) -> Iterator[tuple[int, float]]:
    for volume_axis in range(3):
        yield volume_axis, float(steps[volume_axis, axes.index(volume_axis)])


def _oblique(
    array: NDArray[np.float32],
    centre: NDArray[np.float64],
    steps: NDArray[np.float64],
    offsets: NDArray[np.float64],
    outside: float,
) -> NDArray[np.float32]:
    from scipy.ndimage import map_coordinates

    grid = np.stack(np.meshgrid(offsets, offsets, offsets, indexing="ij"))
    place = centre[:, None, None, None] + np.tensordot(steps, grid, axes=1)
    shape = np.array(array.shape)[:, None, None, None]
    lost = ((place < -0.5) | (place > shape - 0.5)).any(axis=0)
    low = np.maximum(np.floor(place.min(axis=(1, 2, 3))).astype(int) - 1, 0)
    high = np.maximum(np.ceil(place.max(axis=(1, 2, 3))).astype(int) + 2, low + 1)
    block = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    if block.size == 0:
        return np.full(grid.shape[1:], outside, np.float32)
    local = np.clip(place, 0, shape - 1) - low[:, None, None, None]
    cut = map_coordinates(block, local, order=1, mode="nearest", output=np.float32)
    cut[lost] = outside
    return cut
