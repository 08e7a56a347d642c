"""The series viewer: the right voxels in the right place, judged by a volume that knows its own."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import IPython
import IPython.display
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medkit.dicom.reading import read_volume
from medkit.dicom.volume import Volume
from medkit.synth.phantom_series import phantom_series, write_series
from medkit.widgets.looks import WINDOWS, colored, grey
from medkit.widgets.planes import Nodule, planes_of
from medkit.widgets.viewer import SeriesViewer
from tests.widgets.linear import AFFINE, NODULES, SHAPE, full_viewer, linear_volume, spot, truth_at

PLANES = ("axial", "coronal", "sagittal")
ALONG = {"axial": 2, "coronal": 1, "sagittal": 0}  # world axis


def turned(order: tuple[int, int, int], signs: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return an affine with array axes along these world axes."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * (1.5 + axis)
    affine[:3, 3] = (7, -9, 11)
    return affine


def sheared(degrees: float = 20) -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[1, 2] = 5 * np.tan(np.deg2rad(degrees))
    return affine


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    "affine",
    [AFFINE, turned((0, 1, 2), (1, 1, 1)), turned((2, 0, 1), (-1, 1, -1)), sheared()],
    ids=["axial series", "RAS", "coronal series", "sheared"],
)
def test_each_pixel_says_where_it_is(affine: NDArray[np.float64], plane: str) -> None:
    volume = linear_volume(affine, (9, 8, 7))
    cut = planes_of(volume)[plane]
    picture = cut.cut(volume.array, 3)
    for right, down in ((0, 0), (0, cut.shape[0] - 1), (cut.shape[1] - 1, 2)):
        place = right * cut.spacing_mm[1], down * cut.spacing_mm[0]
        voxel = cut.voxel_at(*place, 3)
        assert voxel is not None
        assert picture[down, right] == pytest.approx(truth_at(volume.world_of(voxel)), abs=1e-3)
        np.testing.assert_allclose(cut.in_picture(voxel), place)
        assert cut.slice_at(volume.world_of(voxel)) == 3


@pytest.mark.parametrize(
    "affine", [AFFINE, turned((0, 1, 2), (1, 1, 1)), turned((1, 2, 0), (1, -1, 1))]
)
def test_right_is_left_anterior_is_up_and_the_head_is_up(affine: NDArray[np.float64]) -> None:
    volume = linear_volume(affine, (9, 8, 7))
    planes = planes_of(volume)
    assert planes["axial"].letters == ("R", "L", "A", "P")
    assert planes["coronal"].letters == ("R", "L", "S", "I")
    assert planes["sagittal"].letters == ("A", "P", "S", "I")
    for plane, (right, down) in {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}.items():
        cut = planes[plane]
        corner, other = cut.voxel_at(0, 0, 2), cut.voxel_at(cut.spacing_mm[1], 0, 2)
        below = cut.voxel_at(0, cut.spacing_mm[0], 2)
        assert corner is not None
        assert other is not None
        assert below is not None
        assert (volume.world_of(other) - volume.world_of(corner))[right] < 0
        assert (volume.world_of(below) - volume.world_of(corner))[down] < 0
        up = [cut.place_mm(2 + cut.up), cut.place_mm(2)]
        assert up[0] > up[1]


def test_a_series_as_it_is_read_is_shown_the_right_way(tmp_path: Path) -> None:
    write_series(tmp_path, phantom_series())
    volume = read_volume(tmp_path)
    viewer = SeriesViewer(volume, window=(100, 2000))
    width, height = viewer.picture_px["axial"]
    voxel = viewer.voxel_at("axial", 0.7 * width, 0.2 * height)
    assert voxel is not None
    shade = pixels(viewer.png("axial"))[int(0.2 * height), int(0.7 * width), 0]
    truth = float(grey(truth_at(volume.world_of(voxel)), (100, 2000)))
    assert shade / 255 == pytest.approx(truth, abs=0.02)


def test_what_is_oblique_or_sheared_is_said() -> None:
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[0, 0] = turn[2, 2] = np.cos(angle)
    turn[0, 2], turn[2, 0] = np.sin(angle), -np.sin(angle)
    assert SeriesViewer(linear_volume()).remarks == []
    (said,) = SeriesViewer(linear_volume(turn @ AFFINE)).remarks
    assert "up to 20.0° off" in said
    assert SeriesViewer(linear_volume(turn @ AFFINE)).planes["coronal"].letters[0] == "RI"
    assert "sheared by 20.0°" in SeriesViewer(linear_volume(sheared())).remarks[1]


def test_voxels_have_their_true_proportions() -> None:
    viewer = SeriesViewer(linear_volume(), size_px=300)
    height, width = 30 * 3, 24 * 2  # mm
    assert viewer.picture_px["axial"] == (round(300 * width / height), 300)
    assert viewer.picture_px["sagittal"] == (300, round(300 * 16 * 5 / height))


def test_a_window_is_linear_between_its_edges() -> None:
    values = np.array([-2000, -1350, -600, 150, 3000, np.nan])
    np.testing.assert_allclose(grey(values, WINDOWS["lung"]), [0, 0, 0.5, 1, 1, 0])


def test_a_change_draws_the_slice_that_was_asked_for() -> None:
    viewer = SeriesViewer(linear_volume(), window=(0, 3000))
    for plane, index in (("axial", 3), ("coronal", 0), ("sagittal", 23)):
        before = viewer.png(plane)
        viewer.show(plane, index)
        assert viewer.index[plane] == index
        assert viewer.png(plane) != before
        middle = viewer.voxel_at(plane, *(side / 2 for side in viewer.picture_px[plane]))
        assert middle is not None
        world = viewer.volume.world_of(middle)[ALONG[plane]]
        assert world == pytest.approx(viewer.planes[plane].place_mm(index))
    viewer.show("axial", 99)
    assert viewer.index["axial"] == SHAPE[2] - 1


def test_a_jump_shows_the_nodule_in_all_planes() -> None:
    viewer = full_viewer()
    for number, nodule in enumerate(NODULES):
        viewer.jump(number)
        h, w, d = np.round(viewer.volume.index_of(nodule.world_mm)).astype(int)
        assert viewer.index == {"axial": d, "coronal": h, "sagittal": w}
        assert viewer.nodule == number
    viewer.show("axial", 0)
    assert viewer.nodule is None


@pytest.mark.parametrize("affine", [AFFINE, sheared()], ids=["straight", "sheared"])
@pytest.mark.parametrize("plane", PLANES)
def test_a_circle_goes_round_the_voxels_of_the_nodule(
    affine: NDArray[np.float64], plane: str
) -> None:
    volume = linear_volume(affine)
    nodule = Nodule((2.0, -8.0, -40.0), 30.0)
    cut = planes_of(volume)[plane]
    index = cut.slice_at(nodule.world_mm)
    edge = cut.outline(nodule, index)
    assert edge is not None
    low, high = edge.min(axis=0), edge.max(axis=0)
    inside = [
        cut.in_picture(voxel)
        for voxel in np.ndindex(*SHAPE)
        if voxel[cut.axes[0]] == index
        and np.linalg.norm(volume.world_of(voxel) - nodule.world_mm) < 15
    ]
    step = np.array(cut.spacing_mm[::-1])
    assert (np.min(inside, axis=0) >= low).all()
    assert (np.max(inside, axis=0) <= high).all()
    assert (np.min(inside, axis=0) - low < 1.5 * step).all()
    assert cut.outline(nodule, 0 if index > cut.count / 2 else cut.count - 1) is None


def test_a_nodule_smaller_than_a_slice_is_circled_in_one() -> None:
    cut = planes_of(linear_volume())["axial"]  # slices of 5 mm, at -40 and -35
    drawn = [cut.outline(Nodule((2.0, -8.0, -38.5), 1.0), k) is not None for k in range(cut.count)]
    assert np.flatnonzero(drawn).tolist() == [10]


def test_an_overlay_colours_its_voxels_and_no_others() -> None:
    viewer = full_viewer()
    plain = SeriesViewer(linear_volume(), window=(0, 1200))
    cut = viewer.planes["axial"]
    differs = (colored(cut, 10, viewer.look) != colored(cut, 10, plain.look)).any(axis=-1)
    np.testing.assert_array_equal(differs, cut.cut(spot(), 10) > 0)
    viewer.opacity = 0
    np.testing.assert_array_equal(colored(cut, 10, viewer.look), colored(cut, 10, plain.look))


def test_opacity_grows_with_size_and_what_is_no_number_stays_clear() -> None:
    volume = Volume(np.full((1, 4, 1), -1350, np.float32), np.eye(4), "HU")  # black
    overlay = np.array([0, 1, -2, np.nan]).reshape(1, 4, 1)
    viewer = SeriesViewer(volume, overlay=overlay, opacity=1.0)
    cut = viewer.planes["axial"]
    row = colored(cut, 0, viewer.look).reshape(-1, 3).astype(int)
    clear, half, whole, nothing = row[::-1]  # the array's columns run to the front
    assert clear.sum() == nothing.sum() == 0
    assert whole[2] > whole[0]  # blue: below 0
    assert half[0] > half[2]  # orange
    assert half.max() < 0.6 * 230


def test_the_value_under_a_place_is_that_of_the_place() -> None:
    viewer = full_viewer()
    said = viewer.said_of((3, 5, 7))
    world = viewer.volume.world_of((3, 5, 7))
    assert said == (
        f"{truth_at(world):g} HU, overlay 0 at RAS ({world[0]:.1f}, {world[1]:.1f}, {world[2]:.1f})"
        " mm, voxel (3, 5, 7)"
    )
    assert viewer.voxel_at("axial", 1e4, 0) is None


def test_a_scale_bar_is_as_long_as_it_says() -> None:
    viewer = SeriesViewer(linear_volume(), window=(5000, 1))  # all black
    canvas = viewer._canvases["sagittal"]
    (bar,) = [line for line in canvas.panel.ax.get_lines() if line.get_color() == "white"]
    share = bar.get_xdata()[1] - bar.get_xdata()[0]
    mm = canvas.panel.scale_mm
    assert share * canvas.width * canvas.mm_per_px == pytest.approx(mm)
    assert f"{mm:g} mm" in [text.get_text() for text in canvas.panel.ax.texts]


def titles(figure: Any) -> list[str]:
    return [ax.texts[0].get_text() for ax in figure.axes if ax.get_images()]


def test_a_montage_takes_in_the_nodules_slices() -> None:
    figure = full_viewer().montage(n=4)
    # of 2, 6, 10 and 14 the one nearest to slice 4
    assert titles(figure) == [f"axial {k}\nz {5 * k - 90:.1f} mm" for k in (4, 6, 10, 14)]
    circles = [len(ax.get_lines()) - 1 for ax in figure.axes if ax.get_images()]
    assert circles == [1, 1, 1, 0]
    assert full_viewer().montage(n=1).axes


def test_a_montage_says_window_edges_and_what_it_leaves_out() -> None:
    figure = full_viewer().montage(indices=[0, 1], windows=["lung", (40, 80)], plane="coronal")
    said = [text.get_text() for text in figure.texts]
    assert said[:2] == ["lung: centre -600, width 1500 HU", "brain: centre 40, width 80 HU"]
    assert "Edges: left R, right L, top S, bottom I." in said
    assert "0 of 2 nodules lie in these slices." in said
    assert len([ax for ax in figure.axes if ax.get_ylabel() == "overlay"]) == 1
    assert figure.png().startswith(b"\x89PNG")


def test_values_without_a_unit_get_a_window_that_fits_them() -> None:
    rng = np.random.default_rng(0)
    viewer = SeriesViewer(Volume(rng.random((20, 20, 20)).astype(np.float32), np.eye(4)))
    assert viewer.window == pytest.approx((0.5, 0.98), abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlay": np.zeros((2, 2, 2))}, r"overlay must be .*\(30, 24, 16\), got.*Resample"),
        ({"overlay": spot(), "overlay_limit": 0}, "overlay_limit must be .* got 0.*Leave it out"),
        ({"size_px": 5}, "size_px must be at least 64, got 5.*384 suits"),
        ({"opacity": 2}, r"opacity must lie in \[0, 1\], got 2"),
        ({"window": "liver"}, r"window must be one of .*got 'liver'.*pass 'lung'"),
        ({"window": (40, 0)}, r"window must be .* above 0, got \(40, 0\)"),
        ({"nodules": [((0, 0, 0), -1)]}, "nodule 0 must be .* above 0 mm, got .*Pass Nodule"),
        ({"nodules": [(1, 2)]}, "nodule 0 must be"),
        ({"nodules": [((0, 500, 0), 5)]}, "nodule 0 '' must lie in the volume.*got .*Give RAS"),
        ({"nodules": [((20, -38, -40), 5), ((24, 46, -40), 5)]}, "nodule 1 .*are they LPS"),
    ],
)
def test_what_does_not_fit_the_volume_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeriesViewer(linear_volume(), **options)


def test_a_call_that_makes_no_sense_is_refused() -> None:
    viewer = full_viewer()
    with pytest.raises(ValueError, match=r"volume must be .*got ndarray.*Read one"):
        SeriesViewer(np.zeros((3, 3, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"plane must be one of .*got 'transverse'"):
        viewer.show("transverse", 1)
    with pytest.raises(ValueError, match=r"number must be .*found 2 of them, got 2.*from 0"):
        viewer.jump(2)
    with pytest.raises(ValueError, match=r"indices must be axial slices from 0 to 15, got \[16\]"):
        viewer.montage(indices=[16])
    with pytest.raises(ValueError, match=r"world_mm must be three finite .*got \[1, 2\]"):
        viewer.go_to([1, 2])
    with pytest.raises(ValueError, match="n and columns must be at least 1, got 0 and 4"):
        viewer.montage(n=0)


def part(viewer: SeriesViewer, kind: str, description: str) -> Any:
    """Return a widget by its class and description."""

    def below(widget: Any) -> Any:
        yield widget
        for child in getattr(widget, "children", ()):
            yield from below(child)

    found = [
        widget
        for widget in below(viewer.widget)
        if type(widget).__name__ == kind and getattr(widget, "description", "") == description
    ]
    return found if len(found) > 1 else found[0]


def test_sliders_and_choices_say_and_set_what_is_shown() -> None:
    pytest.importorskip("ipywidgets")
    viewer = full_viewer()
    images = part(viewer, "Image", "")
    part(viewer, "IntSlider", "axial").value = 3
    assert viewer.index["axial"] == 3
    assert images[0].value == viewer.png("axial")
    viewer.show("coronal", 5)
    assert part(viewer, "IntSlider", "coronal").value == 5
    part(viewer, "Dropdown", "window").value = "bone"
    assert viewer.window == WINDOWS["bone"]
    assert part(viewer, "FloatSlider", "width [HU]").value == 1800
    part(viewer, "FloatSlider", "centre [HU]").value = 401
    assert viewer.window == (401, 1800)
    assert part(viewer, "Dropdown", "window").value == "own"
    part(viewer, "FloatSlider", "opacity").value = 0.25
    assert viewer.opacity == 0.25
    part(viewer, "Dropdown", "nodules").value = 1
    assert viewer.nodule == 1
    viewer.window = (0, 9000)  # beyond the slider
    assert part(viewer, "FloatSlider", "width [HU]").value == 9000
    assert [image.value for image in images] == [viewer.png(plane) for plane in PLANES]


def test_the_wheel_goes_to_the_head_and_a_click_to_its_place_in_all_planes() -> None:
    pytest.importorskip("ipyevents")
    for affine, up in ((AFFINE, 1), (AFFINE @ np.diag([1, 1, -1, 1]), -1)):
        viewer = SeriesViewer(linear_volume(affine))
        assert viewer.widget is viewer.widget
        assert viewer._controls is not None
        before = viewer.index["axial"]
        at = {"dataX": 40, "dataY": 60}
        viewer._controls._pointer("axial", {"type": "wheel", "deltaY": -100, **at})
        assert viewer.index["axial"] == before + up
        voxel = viewer.voxel_at("axial", 40, 60)
        assert voxel is not None
        viewer._controls._pointer("axial", {"type": "click", **at})
        assert viewer.index == {"axial": voxel[2], "coronal": voxel[0], "sagittal": voxel[1]}


def test_a_saved_notebook_holds_a_picture_a_plane_and_no_volume() -> None:
    embed = pytest.importorskip("ipywidgets.embed")
    viewer = SeriesViewer(linear_volume(shape=(128, 128, 64)), overlay=np.ones((128, 128, 64)))
    for index in range(20):
        viewer.show("axial", index)
    state = embed.dependency_state(viewer.widget)
    buffers = [b["data"] for model in state.values() for b in model.get("buffers", ())]
    assert len(buffers) == 3
    assert len(json.dumps(state)) < sum(map(len, buffers)) + 60_000
    assert sum(map(len, buffers)) < 1.4 * sum(len(viewer.png(plane)) for plane in PLANES)


def test_closed_widgets_leave_nothing_and_the_viewer_goes_on() -> None:
    pytest.importorskip("ipywidgets")
    viewer = full_viewer()
    box = viewer.widget
    viewer.close()
    assert box.comm is None
    viewer.jump(1)
    assert viewer.widget is not box


def test_without_ipywidgets_the_extra_is_named_and_a_montage_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("ipywidgets", "ipyevents"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "medkit.widgets.controls", raising=False)
    viewer = full_viewer()
    with pytest.raises(ModuleNotFoundError, match=r"need ipywidgets.*not installed.*extra 'lab'"):
        _ = viewer.widget
    assert len(viewer.montage(n=2).axes) == 3


@pytest.mark.parametrize("place", ["live", "job"])
def test_a_notebook_shows_widgets_and_a_job_a_montage(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipywidgets")
    shown: list[Any] = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr(IPython.display, "display", shown.append)
    if place == "job":
        monkeypatch.setenv("MEDKIT_LAUNCHER_PID", "1")
    else:
        monkeypatch.delenv("MEDKIT_LAUNCHER_PID", raising=False)
    full_viewer()._ipython_display_()
    assert [type(one).__name__ for one in shown] == ["VBox" if place == "live" else "Image"]
