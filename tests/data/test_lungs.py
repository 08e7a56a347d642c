from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medkit.data.lungs import lung_mask
from medkit.dicom.volume import Volume

# 100 rows and columns of 3 mm, 50 slices of 4 mm; the index is (row, column, slice)
AFFINE = np.array([[0, -3, 0, 150.0], [-3, 0, 0, 150.0], [0, 0, 4, -100.0], [0, 0, 0, 1]])
LEFT, RIGHT, OUTSIDE = (50, 30), (50, 70), (2, 2)


def chest() -> NDArray[np.float32]:
    """Two lungs in a body; the last slices cut them."""
    row, column, _ = np.indices((100, 100, 50), np.float32)
    hu = np.full((100, 100, 50), -1000, np.float32)
    hu[((row - 50) / 38) ** 2 + ((column - 50) / 45) ** 2 < 1] = 40
    for of_row, of_column in (LEFT, RIGHT):
        lung = ((row - of_row) / 25) ** 2 + ((column - of_column) / 15) ** 2 < 1
        lung[:, :, :10] = False
        hu[lung] = -850
    return hu


def masked(hu: NDArray[np.float32], *, margin_mm: float = 0.0) -> NDArray[np.bool_]:
    return lung_mask(Volume(hu, AFFINE, "HU"), margin_mm=margin_mm)


def test_lungs_are_in_and_what_is_around_the_body_is_not_even_where_slices_end() -> None:
    hu = chest()
    np.testing.assert_array_equal(masked(hu), hu == -850)


def test_vessels_and_nodules_in_the_lung_are_filled() -> None:
    hu = chest()
    want = hu == -850
    hu[48:53, 28:33, 20:40] = 50
    np.testing.assert_array_equal(masked(hu), want)


def test_a_nodule_on_the_pleura_is_as_far_inside_as_the_margin_reaches() -> None:
    hu = chest()
    hu[50, 15:18, 25] = 50  # 9 mm deep, at the wall
    assert not masked(hu)[50, 16, 25]
    assert masked(hu, margin_mm=5)[50, 15:18, 25].all()
    assert masked(hu, margin_mm=5).sum() > (hu == -850).sum()
    assert not masked(hu, margin_mm=5)[OUTSIDE].any()


def test_a_bubble_is_no_lung() -> None:
    hu = chest()
    hu[50, 50, 3] = -900  # 36 microlitres
    assert not masked(hu)[50, 50, 3]


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_any_order_of_axes_will_do(order: tuple[int, int, int]) -> None:
    hu = chest()
    turned = Volume(hu.transpose(order), AFFINE[:, [*order, 3]], "HU")
    np.testing.assert_array_equal(lung_mask(turned, margin_mm=0), (hu == -850).transpose(order))


def test_fine_volumes_are_masked_at_about_2_mm() -> None:
    fine = np.repeat(np.repeat(chest(), 3, axis=0), 3, axis=1)  # voxels of 1 mm
    affine = AFFINE @ np.diag([1 / 3, 1 / 3, 1, 1])
    mask = lung_mask(Volume(fine, affine, "HU"), margin_mm=0)
    assert mask.shape == fine.shape
    assert np.mean(mask != (fine == -850)) < 0.005


def test_without_lungs_the_mask_is_empty() -> None:
    assert not masked(np.full((20, 20, 10), 40, np.float32), margin_mm=5).any()
