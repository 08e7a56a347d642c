"""Where the lungs are, by their air: to search there and not in the table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.volume import Volume

__all__ = ["lung_mask"]

_COARSE_MM = 2.0
_SMALLEST_ML = 1.0


def lung_mask(
    volume: Volume, *, below_hu: float = -400.0, margin_mm: float = 5.0
) -> NDArray[np.bool_]:
    """Return air inside the body with a margin, its holes filled slice by slice.

    Air that touches a side of the slices is outside; where the first or the last slice cuts the
    lungs, they stay. The mask is made at about 2 mm and is meant for a search: gas in windpipe and
    bowel is in it, a lung that is cut off at the side or consolidated is not, and a nodule on the
    pleura only as far as the margin reaches.

    Args:
        volume: Chest CT in HU, in any orientation; slices are taken along the axis that runs most
            from feet to head.
        below_hu: What counts as air [HU].
        margin_mm: How far the mask goes beyond the air [mm].

    Returns:
        bool, as ``volume.array``.
    """
    from scipy import ndimage

    spacing = np.array(volume.spacing_mm)
    steps = np.maximum(1, np.floor(_COARSE_MM / spacing)).astype(int)
    air = volume.array[tuple(slice(None, None, int(step)) for step in steps)] < below_hu
    upright = int(np.abs(volume.affine[2, :3] / spacing).argmax())
    air = np.moveaxis(air, upright, 0)
    apart = spacing * steps
    apart = np.append(apart[upright], np.delete(apart, upright))

    parts, _ = ndimage.label(air)
    sides = [parts[:, 0], parts[:, -1], parts[:, :, 0], parts[:, :, -1]]
    keep = np.bincount(parts.ravel()) * apart.prod() / 1000 >= _SMALLEST_ML
    keep[np.unique(np.concatenate([side.ravel() for side in sides]))] = False
    keep[0] = False
    inside = keep[parts]
    for number, one in enumerate(inside):
        inside[number] = ndimage.binary_fill_holes(one)
    if margin_mm > 0 and inside.any():
        inside = ndimage.distance_transform_edt(~inside, sampling=apart) <= margin_mm

    inside = np.moveaxis(inside, 0, upright)
    nearest = [
        np.minimum((np.arange(length) + step // 2) // step, short - 1)
        for length, step, short in zip(volume.array.shape, steps, inside.shape, strict=True)
    ]
    return np.asarray(inside[np.ix_(*nearest)])
