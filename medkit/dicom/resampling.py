"""Slices brought to other places, linearly and only where that was asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.grid import Grid

__all__ = ["at_equal_steps", "sheared_back"]


def at_equal_steps(slices: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Return slices at each step of the grid, between those that are there; ``(D, H, W)``."""
    out = np.empty((grid.depth, *slices.shape[1:]), np.float32)
    places = grid.places
    for number in range(grid.depth):
        after = min(int(np.searchsorted(places, number - 1e-6)), len(places) - 1)
        if abs(places[after] - number) < 1e-6:
            out[number] = slices[after]
            continue
        before = max(after - 1, 0)
        share = np.float32((number - places[before]) / (places[after] - places[before]))
        out[number] = slices[before] + share * (slices[after] - slices[before])
    return out


def sheared_back(
    slices: NDArray[np.float32], affine: NDArray[np.float64], outside: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Shift each slice in its plane so that all lie behind one another; return them and the affine.

    Args:
        slices: ``(D, H, W)``.
        affine: (h, w, d) -> RAS [mm], its third column at any angle.
        outside: What comes in from beyond an edge.
    """
    from scipy.ndimage import shift

    row, column = affine[:3, 0], affine[:3, 1]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    step = affine[:3, 2]
    aside = step - (step @ normal) * normal
    # so many rows and columns a slice lies further along its plane than the one before
    rows, columns = aside @ row / (row @ row), aside @ column / (column @ column)
    middle = (len(slices) - 1) / 2
    out = np.empty_like(slices)
    for number, one in enumerate(slices):
        by = (number - middle) * rows, (number - middle) * columns
        shift(one, by, output=out[number], order=1, mode="constant", cval=outside)
    straight = affine.copy()
    straight[:3, 2] = (step @ normal) * normal
    straight[:3, 3] += middle * aside
    return out, straight
