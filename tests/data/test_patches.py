"""Patches have the values of the places they are cut from, whatever the volume's grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkit.data.patches import AIR_HU, patches_at
from medkit.dicom import Volume, read_series
from medkit.synth import phantom_series as phantom
from medkit.synth.broken_series import CASES

SIZE, SPACING = 6, 0.9


def truth(centre_ras: np.ndarray, size: int = SIZE, spacing: float = SPACING) -> np.ndarray:
    """HU of each voxel of a patch, by the phantom's gradient."""
    offset = (np.arange(size) - (size - 1) / 2) * spacing
    lps = centre_ras * [-1, -1, 1]
    grid = np.stack(np.meshgrid(offset, offset, offset, indexing="ij"), axis=-1)
    return phantom.hu_at(lps + grid[..., [1, 0, 2]])  # rows are y, columns x


@pytest.mark.parametrize(
    "name", ["good", "sagittal", "oblique", "gantry tilt", "negative step", "enhanced multi-frame"]
)
def test_a_patch_has_the_hu_of_its_places(name: str, tmp_path: Path) -> None:
    CASES[name].write(tmp_path)
    volume = read_series(tmp_path)
    middle = volume.world_of((np.array(volume.array.shape) - 1) / 2)
    centres = middle + np.array([[0, 0, 0], [0.3, -0.7, 1.1], [-1.3, 0.4, 2.0]])
    got = patches_at(volume, centres, spacing_mm=SPACING, size=SIZE)
    for patch, centre in zip(got, centres, strict=True):
        # linear truth, linear interpolation: only the rounding of stored values is left
        assert patch == pytest.approx(truth(centre), abs=0.6)


def test_the_two_ways_to_interpolate_agree(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    array = draw.normal(size=(20, 22, 14)).astype(np.float32)
    straight = Volume(array, np.diag([-0.7, -0.8, 2.5, 1.0]))
    nearly = straight.affine.copy()
    nearly[0, 1] = 3e-6  # so little that no value changes, but it is oblique
    centres = straight.world_of(draw.uniform(-3, 20, (12, 3)))
    got = patches_at(straight, centres, spacing_mm=1.1, size=8)
    slow = patches_at(Volume(array, nearly), centres, spacing_mm=1.1, size=8)
    outside = (got == AIR_HU) != (slow == AIR_HU)  # a voxel on the very edge
    assert outside.mean() < 0.01
    assert got[~outside] == pytest.approx(slow[~outside], abs=1e-3)


def test_beyond_the_volume_lies_air(tmp_path: Path) -> None:
    volume = Volume(np.zeros((10, 10, 10), np.float32), np.eye(4))
    patch = patches_at(volume, [[0.0, 0.0, 0.0]], size=4)[0]
    assert set(np.unique(patch)) == {AIR_HU, 0.0}
    # of four voxels at -1.5, -0.5, 0.5 and 1.5 the first is beyond an edge at -0.5
    assert (patch == 0).sum() == 27
    far = patches_at(volume, [[500.0, 0.0, 0.0]], size=4)
    assert (far == AIR_HU).all()


def test_rows_go_to_the_back_columns_to_the_left_and_slices_to_the_head() -> None:
    index = np.arange(10.0)
    array = np.broadcast_to(index[:, None, None], (10, 10, 10)).astype(np.float32)
    ras = Volume(array, np.eye(4))  # the first axis goes to the right
    patch = patches_at(ras, [[4.5, 4.5, 4.5]], size=4)[0]
    assert (np.diff(patch, axis=1) == -1).all(), "columns go to the left: the value falls"
    assert (np.diff(patch, axis=0) == 0).all()


@pytest.mark.parametrize(
    ("centres", "options", "said"),
    [
        ([[1.0, 2.0]], {}, r"\(N, 3\) finite"),
        ([[1.0, 2.0, np.nan]], {}, r"\(N, 3\) finite"),
        ([[1.0, 2.0, 3.0]], {"size": 0}, "above 0 mm"),
        ([[1.0, 2.0, 3.0]], {"spacing_mm": 0}, "above 0 mm"),
    ],
)
def test_places_and_sizes_that_make_no_sense(centres: list, options: dict, said: str) -> None:
    volume = Volume(np.zeros((4, 4, 4), np.float32), np.eye(4))
    with pytest.raises(ValueError, match=said):
        patches_at(volume, centres, **options)
