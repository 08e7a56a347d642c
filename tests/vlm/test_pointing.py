from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medkit.saliency.volume_maps import VolumeMaps
from medkit.vlm.pointing import point


def corner_masks(count: int = 12) -> Tensor:
    masks = torch.zeros(count, 64, 64, 1, dtype=torch.bool)
    for number in range(count):
        row, column = 16 * (number % 4), 16 * (number // 4)
        masks[number, row : row + 8, column : column + 8] = True
    return masks


def test_a_map_that_knows_is_told_from_one_that_does_not() -> None:
    masks = corner_masks()
    patients = [f"P{number}" for number in range(len(masks))]
    knows = VolumeMaps(masks.float(), "the truth", "1")
    favourite = torch.zeros_like(knows.values)
    favourite[:, 3, 3] = 1.0  # always the same place
    blind = VolumeMaps(favourite, "a favourite place", "1")
    good, bad = (point(maps, masks, groups=patients, random=[blind]) for maps in (knows, blind))
    assert good.found.value == 1
    assert good.others.value == 0
    assert good.usable
    assert "do not use" not in str(good)
    assert bad.found.value == pytest.approx(1 / 12)
    assert bad.others.value == pytest.approx(1 / 12)
    assert not bad.usable
    assert str(bad).startswith("a favourite place: do not use")
    assert bad.on(blind).verdict.startswith("do not use")


def test_a_coarse_cell_hits_where_the_nodule_touches_it() -> None:
    masks = torch.zeros(2, 64, 64, 1, dtype=torch.bool)
    masks[:, 14:18, 2:4] = True  # in the first two rows of a grid of 4 x 4
    cells = torch.zeros(2, 4, 4, 1)
    cells[0, 1, 0] = cells[1, 2, 0] = 1.0
    found = point(VolumeMaps(cells, "cells", "1"), masks, groups=["a", "b"])
    assert found.found.value == 0.5


def test_a_random_net_that_points_as_well_spoils_the_maps() -> None:
    masks = corner_masks()
    knows = VolumeMaps(masks.float(), "the truth", "1")
    found = point(knows, masks, groups=range(len(masks)), random=[knows])
    assert found.over_random is not None
    assert found.over_random.value == 0
    assert not found.usable


def test_masks_of_fewer_pictures_than_maps_are_refused() -> None:
    masks = corner_masks(3)
    tiles = VolumeMaps(torch.rand(3, 2, 2, 5), "tiles", "1")
    with pytest.raises(ValueError, match="masks must be of as many pictures"):
        point(tiles, masks, groups=range(3))


def test_one_patient_plays_no_game() -> None:
    masks = corner_masks(2)
    with pytest.raises(ValueError, match="studies of two patients at least"):
        point(VolumeMaps(masks.float(), "the truth", "1"), masks, groups=["a", "a"])
