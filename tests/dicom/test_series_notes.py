"""What a volume's notes and refusals say of slices that are lost or damaged: legal, yet suspect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkit.dicom import DicomError, read_series, read_volume
from medkit.dicom.index import scan
from medkit.synth import phantom_series as phantom

Write = Callable[[list[Any]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def call(datasets: list[Any]) -> Path:
        phantom.write_series(tmp_path / "ct", datasets)
        return tmp_path / "ct"

    return call


def notes(folder: Path, **options: Any) -> str:
    return "; ".join(read_series(folder, **options).notes)


def stored(dataset: Any) -> Any:
    return np.frombuffer(dataset.PixelData, "<i2")


def without_series(dataset: Any) -> Any:
    """Return a slice as a garbled header leaves it: no series, and no pixels to be found."""
    del dataset.SeriesInstanceUID, dataset.PixelData
    return dataset


def test_a_sound_series_has_no_notes(write: Write) -> None:
    assert notes(write(phantom.phantom_series())) == ""


# slices that are lost


def test_a_file_that_has_lost_its_series_is_named_as_a_damaged_slice(write: Write) -> None:
    datasets = phantom.phantom_series()
    without_series(datasets[0])
    folder = write(datasets)
    said = notes(folder)
    assert "1 file(s) without a SeriesInstanceUID left out, perhaps damaged slices" in said
    assert "slice_000.dcm" in said
    assert "instance numbers begin at 2: the first slice may be missing" in said
    assert "slice_000.dcm" in notes(folder, series=".4.1")


def test_an_index_tells_a_series_of_the_damaged_file_beside_it(write: Write) -> None:
    datasets = phantom.phantom_series()
    without_series(datasets[0])
    (series,) = scan(write(datasets)).series
    assert len(series.paths) == phantom.SLICES - 1
    assert "1 file(s) beside, of no series, left out: slice_000.dcm" in series.read().notes


def test_a_report_of_another_series_is_named(write: Write) -> None:
    datasets = phantom.phantom_series()
    report = phantom.phantom_series(slices=1, uid="2")[0]
    del report.PixelData
    said = notes(write([*datasets, report]))
    assert "1 file(s) of other series, without images, left out: slice_012.dcm" in said


@pytest.mark.parametrize("how", ["empty", "text", "no series"])
def test_where_a_slice_is_missing_a_file_that_cannot_be_read_comes_before_interpolation(
    write: Write, how: str
) -> None:
    datasets = phantom.phantom_series()
    if how == "no series":
        without_series(datasets[5])
    folder = write(datasets)
    (folder / "README.txt").write_text("no slice of anything")
    if how != "no series":
        (folder / "slice_005.dcm").write_bytes(b"" if how == "empty" else b"garbled" * 99)
    for read in (lambda: read_series(folder), lambda: scan(folder).series[0].read()):
        with pytest.raises(DicomError) as refused:
            read()
        said = str(refused.value)
        assert refused.value.problem == "missing_slice"
        assert "slice_005.dcm cannot be read and may be the missing one: restore it, or" in said
        assert said.index("slice_005") < said.index("resample=True")
        assert str(folder / "slice_005.dcm") in refused.value.paths
        assert "README" not in said


def test_every_second_slice_shows_in_numbers_and_thickness(write: Write) -> None:
    said = notes(write(phantom.phantom_series()[::2]))
    assert "instance numbers go up by 2: between each two slices 1 may be missing" in said
    assert "slices lie 5 mm apart, 2 times the SliceThickness of 2.5 mm: between them" in said
    assert "at an end" not in said


def test_slices_that_are_meant_to_lie_apart_are_not_suspect(write: Write) -> None:
    datasets = phantom.phantom_series(step_lps_mm=(0, 0, 5))
    for dataset in datasets:
        dataset.SpacingBetweenSlices = "5"
    assert notes(write(datasets)) == ""


def test_a_gap_in_numbers_at_equal_steps_is_put_at_an_end(write: Write) -> None:
    datasets = phantom.phantom_series()
    datasets[-1].InstanceNumber = "14"
    assert "instance numbers have gaps, of 2: slices may be missing at an end" in notes(
        write(datasets)
    )


def test_numbers_that_go_on_in_another_stack_are_no_gap(write: Write) -> None:
    both = []
    for time in ("1", "2"):
        datasets = phantom.phantom_series(first_instance=1 if time == "1" else 13)
        for dataset in datasets:
            dataset.TemporalPositionIdentifier = time
        both += datasets
    said = notes(write(both), stack="TemporalPositionIdentifier=2")
    assert said == "one of 2 stacks, by TemporalPositionIdentifier"


# values


def test_a_rescale_that_was_forgotten_in_all_slices_leaves_no_air(write: Write) -> None:
    datasets = phantom.phantom_series()
    for dataset in datasets:
        dataset.RescaleIntercept = "0"
    assert "no air" in notes(write(datasets))


def test_declared_padding_is_not_taken_for_air(write: Write) -> None:
    datasets = phantom.phantom_series()
    for dataset in datasets:
        pixels = stored(dataset).reshape(dataset.Rows, -1).copy()
        pixels[:8] = -2000
        dataset.PixelData, dataset.RescaleIntercept = pixels.tobytes(), "0"
        dataset.add_new((0x0028, 0x0120), "SS", -2000)
    assert "no air" in notes(write(datasets))


def test_a_rescale_that_was_forgotten_in_one_slice_names_it(write: Write) -> None:
    datasets = phantom.phantom_series()
    datasets[5].RescaleIntercept = "0"
    assert "far from those of the slices beside: slice_005.dcm" in notes(write(datasets))


def test_a_slice_with_a_rescale_of_its_own_that_is_right_is_not_suspect(write: Write) -> None:
    datasets = phantom.phantom_series()
    datasets[5].RescaleIntercept = "-2024"
    phantom.put_pixels(datasets[5], phantom.truth_of(datasets[5]))
    assert notes(write(datasets)) == "slope and intercept differ from slice to slice: each its own"


def test_a_slice_of_one_value_is_named(write: Write) -> None:
    datasets = phantom.phantom_series()
    datasets[5].PixelData = bytes(len(datasets[5].PixelData))
    assert "1 slice(s) of one value in all pixels: slice_005.dcm" in notes(write(datasets))


def test_values_below_air_inside_of_the_slices_are_said(write: Write) -> None:
    datasets = phantom.phantom_series()
    for dataset in datasets:
        pixels = stored(dataset).reshape(dataset.Rows, -1).copy()
        pixels[4:12, 4:12] = -2000
        dataset.PixelData = pixels.tobytes()
    assert "values go down to -3024 HU, and nothing is below air" in notes(write(datasets))


# messages


def test_several_series_are_those_of_the_folder_that_was_passed(tmp_path: Path) -> None:
    for uid in ("1", "2"):
        phantom.write_series(tmp_path / uid, phantom.phantom_series(uid=uid))
    with pytest.raises(DicomError, match="holds 2 series") as refused:
        read_volume(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path} holds")


def test_volumes_and_series_are_shown_in_a_line(write: Write) -> None:
    folder = write(phantom.phantom_series()[1:])
    (series,) = scan(folder).series
    uid = series.uid
    assert repr(series) == f"Series({uid}, CT, 11 file(s))"
    assert repr(series.read()) == (
        f"Volume((24, 20, 11), 0.8 x 0.7 x 2.5 mm, HU, {uid}, 1 note(s))"
    )
