"""Series that are broken on purpose: right voxels or a refusal, never anything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkit.dicom import DicomError, read_series, read_stacks
from medkit.synth import phantom_series as phantom
from medkit.synth.broken_series import CASES, Case

REFUSED = [case for case in CASES.values() if case.expect != "ok"]
READ = [case for case in CASES.values() if case.expect == "ok"]


def named(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", READ, ids=named)
def test_each_voxel_has_the_hu_of_its_place(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path / "series")
    volume = read_series(tmp_path / "series", **case.options)
    outside = volume.array == -1000  # padding, or beyond the edge of what was sheared back
    rounded = 0.82 if case.name.startswith("slope") else 0.51  # half a stored step
    assert phantom.worst_voxel(volume, but=outside) <= rounded, volume.notes
    assert outside.mean() < (0.5 if "sheared" in case.name or "padding" in case.name else 0.01)
    assert case.note in " ".join(volume.notes)
    assert volume.unit == "HU"


@pytest.mark.parametrize("case", REFUSED, ids=named)
def test_what_would_be_wrong_is_refused_with_file_and_remedy(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path / "series")
    with pytest.raises(DicomError) as refused:
        read_series(tmp_path / "series", **case.options)
    error = refused.value
    assert error.problem == case.expect, str(error)
    assert str(tmp_path) in str(error)
    assert len(str(error)) > 60
    assert all(Path(path).exists() for path in error.paths)


def test_there_are_as_many_cases_as_promised() -> None:
    assert len(CASES) >= 60
    assert len(REFUSED) >= 30
    assert len(READ) >= 30


def test_padding_becomes_air_before_anything_else_and_is_counted(tmp_path: Path) -> None:
    CASES["padding"].write(tmp_path)
    volume = read_series(tmp_path)
    assert (volume.array[:3] == -1000).all()
    padded_rows = np.zeros(volume.array.shape, bool)
    padded_rows[:3] = True
    assert phantom.worst_voxel(volume, but=padded_rows) <= 0.51
    padded = 3 * phantom.COLUMNS * phantom.SLICES
    assert volume.provenance["padded_pixels"] == padded
    assert f"{padded:,} padded pixels set to -1000" in volume.notes


def test_padding_that_is_not_declared_is_left_and_said(tmp_path: Path) -> None:
    datasets = phantom.phantom_series()
    for dataset in datasets:
        stored = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, -1).copy()
        stored[:3] = -2000
        dataset.PixelData = stored.tobytes()
    phantom.write_series(tmp_path, datasets)
    volume = read_series(tmp_path)
    assert (volume.array[:3] == -3024).all()
    assert any("padding that the header does not declare" in note for note in volume.notes)


def test_a_ct_whose_numbers_are_no_hu_does_not_say_hu(tmp_path: Path) -> None:
    datasets = phantom.phantom_series()
    for dataset in datasets:
        dataset.RescaleType = "MGML"  # iodine of a dual-energy scan
    phantom.write_series(tmp_path, datasets)
    volume = read_series(tmp_path)
    assert volume.unit == "MGML"
    assert "RescaleType is MGML: a CT whose numbers are no HU" in volume.notes


def test_a_sheared_affine_is_flagged_and_sheared_back_on_demand(tmp_path: Path) -> None:
    CASES["gantry tilt"].write(tmp_path)
    tilted, straight = read_series(tmp_path), read_series(tmp_path, deshear=True)
    step, normal = tilted.affine[:3, 2], np.array([0.0, 0.0, 1.0])
    assert np.degrees(np.arccos(step @ normal / np.linalg.norm(step))) == pytest.approx(17.74, 0.01)
    assert straight.affine[:3, 2] == pytest.approx([0, 0, 2.5])
    assert tilted.provenance["tilt_degrees"] == pytest.approx(17.745, abs=0.001)


def test_stacks_at_one_place_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    CASES["two time points"].write(tmp_path)
    stacks = read_stacks(tmp_path)
    assert list(stacks) == ["TemporalPositionIdentifier=1", "TemporalPositionIdentifier=2"]
    first, second = stacks.values()
    assert phantom.worst_voxel(first) <= 0.51
    np.testing.assert_array_equal(second.array, first.array + 100)
    with pytest.raises(ValueError, match="stack must be one of TemporalPositionIdentifier=1"):
        read_series(tmp_path, stack="TemporalPositionIdentifier=3")


def test_another_patient_is_refused_whatever_is_passed(tmp_path: Path) -> None:
    CASES["slice of another patient"].write(tmp_path)
    with pytest.raises(DicomError, match="one patient") as refused:
        read_series(tmp_path, resample=True, deshear=True, max_gap=99)
    assert refused.value.paths == (str(tmp_path / "slice_005.dcm"),)
    assert "SOMEBODY-ELSE" not in str(refused.value), "a message may end up in a report"


def test_slices_lie_one_behind_the_other_and_no_axis_was_turned(tmp_path: Path) -> None:
    CASES["oblique"].write(tmp_path)
    volume = read_series(tmp_path)
    assert volume.array.shape == (phantom.ROWS, phantom.COLUMNS, phantom.SLICES)
    assert volume.slices.flags.c_contiguous
    assert volume.array.dtype == np.float32
    assert volume.spacing_mm == pytest.approx((*phantom.SPACING_MM, phantom.STEP_MM), rel=1e-5)


def test_world_and_index_are_each_others_inverse(tmp_path: Path) -> None:
    CASES["oblique"].write(tmp_path)
    volume = read_series(tmp_path)
    index = np.array([[0, 0, 0], [3, 7, 5], [23.5, 1.25, 11]])
    assert volume.index_of(volume.world_of(index)) == pytest.approx(index, abs=1e-9)


def test_a_series_is_the_same_by_folder_by_files_and_in_any_order(tmp_path: Path) -> None:
    paths = CASES["good"].write(tmp_path)
    whole = read_series(tmp_path)
    again = read_series(paths[::-1])
    np.testing.assert_array_equal(whole.array, again.array)
    np.testing.assert_array_equal(whole.affine, again.affine)


def test_what_is_not_there_or_holds_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be a folder or a DICOM file"):
        read_series(tmp_path / "nowhere")
    with pytest.raises(DicomError, match="must hold DICOM files"):
        read_series(tmp_path)
    (tmp_path / "note.txt").write_text("no image")
    with pytest.raises(DicomError) as refused:
        read_series(tmp_path / "note.txt")
    assert refused.value.problem == "not_dicom"
