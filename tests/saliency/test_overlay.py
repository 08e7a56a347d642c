from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from medkit.saliency.overlay import LUNG_HU, montage, overlay, save_montage, side_by_side
from medkit.saliency.volume_maps import NOT_CHECKED, VolumeMaps

HU = torch.linspace(-1000, 400, 3 * 12 * 12 * 6).view(3, 1, 12, 12, 6)


def maps(*, signed: bool = True) -> VolumeMaps:
    values = torch.zeros(3, 12, 12, 6)
    values[:, 4, 5, 2] = torch.tensor([2.0, -1.0, 0.5])
    return VolumeMaps(values, "made", "logit", signed, verdict="do not use made: it fails")


def test_the_slice_with_the_largest_value_is_drawn_in_millimetres_and_in_the_window() -> None:
    ax = Figure().subplots()
    colours = overlay(ax, HU[0, 0], maps().values[0], spacing_mm=(0.5, 2.0, 5.0))
    ct, painted = ax.images
    np.testing.assert_array_equal(np.asarray(ct.get_array()), HU[0, 0, :, :, 2])
    assert ct.get_clim() == LUNG_HU
    assert ct.get_extent() == [0, 24, 6, 0]
    assert colours.get_clim() == (-2, 2)
    alpha = np.asarray(painted.get_array())[..., 3]
    assert alpha[4, 5] == pytest.approx(0.75)
    assert (alpha > 0).sum() == 1  # what the map says nothing of stays CT
    assert [text.get_text() for text in ax.texts] == ["5 mm"]


def test_maps_without_a_sign_have_a_scale_from_zero() -> None:
    ax = Figure().subplots()
    colours = overlay(ax, HU[0, 0], maps().values[0], signed=False, index=3)
    assert colours.get_clim() == (0, 2)
    assert colours.get_cmap().name == "cividis"


def test_a_montage_has_one_scale_its_unit_and_the_verdict() -> None:
    figure = Figure(figsize=(8, 3))
    drawn = montage(figure, HU, maps(), titles=["a", "b", "c"], columns=2)
    assert [ax.get_title() for ax in drawn] == ["a", "b", "c"]
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "made [logit]"
    assert bar.get_ylim() == (-2, 2)
    assert "do not use made: it fails" in figure.get_suptitle().replace("\n", " ")


def test_maps_side_by_side_keep_their_own_scale_and_say_what_their_verdict_begins_with() -> None:
    other = replace(maps(signed=False), verdict=NOT_CHECKED)
    drawn = side_by_side(Figure(figsize=(5, 6)), HU, {"A": maps(), "B": other}, index=2)
    assert drawn.shape == (3, 2)
    assert [ax.get_title() for ax in drawn[0]] == ["A\ndo not use made", "B\nnot checked"]
    painted = [np.asarray(ax.images[1].get_array())[4, 5] for ax in drawn[0]]
    assert [one[3] for one in painted] == pytest.approx([0.75, 0.75])
    assert not np.allclose(painted[0], painted[1])  # one has a sign, the other none


@pytest.mark.parametrize("end", ["png", "svg"])
def test_a_montage_is_saved(tmp_path: Path, end: str) -> None:
    path = save_montage(tmp_path / "figures" / f"maps.{end}", HU, maps())
    assert path.stat().st_size > 5_000


def test_a_montage_of_one_is_no_wider_than_it_needs_and_its_texts_stay_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: made.append(self))
    one = replace(maps().take([0]), method="GradientSHAP of the mean of five nets in blocks of 4")
    save_montage(tmp_path / "one.png", HU[:1], one)
    save_montage(tmp_path / "all.png", HU, maps())
    assert made[0].get_figwidth() < 5
    made[0].draw_without_rendering()
    image, bar = made[0].axes[0].get_window_extent(), made[0].axes[1]
    assert image.x1 - image.x0 > 0.3 * made[0].bbox.width, "the candidate fills its figure"
    for text in (bar.yaxis.label, made[0]._suptitle):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= made[0].bbox.x1
        assert box.y1 <= made[0].bbox.y1


def test_what_does_not_belong_together_is_refused() -> None:
    ax = Figure().subplots()
    with pytest.raises(ValueError, match=r"got \(12, 12, 6\), \(12, 12, 5\) and slice None"):
        overlay(ax, HU[0, 0], maps().values[0][..., :5])
    with pytest.raises(ValueError, match="slice 6"):
        overlay(ax, HU[0, 0], maps().values[0], index=6)
    with pytest.raises(ValueError, match=r"must be as many; got .* and 1 titles"):
        montage(Figure(), HU, maps(), titles=["a"])
    with pytest.raises(ValueError, match=r"\(3, 1, 12, 12, 6\); got \{'A': \(2, 12, 12, 6\)\}"):
        side_by_side(Figure(), HU, {"A": maps().take(range(2))})
    with pytest.raises(ValueError, match=r"got \{\}"):
        side_by_side(Figure(), HU, {})
