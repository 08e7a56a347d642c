"""Series of real scanners: equal to ground truth voxel for voxel, or refused as they must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from medkit.dicom import DicomError, Volume, read_series, read_volume

DATA = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"


def require_equal(volume: Volume, truth: Volume) -> None:
    """Compare voxels at the same places, whatever the order of axes."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij"), axis=-1)
    there = truth.index_of(volume.world_of(index))
    nearest = np.rint(there).astype(int)
    assert np.abs(there - nearest).max() < 1e-4
    assert sorted(volume.array.shape) == sorted(truth.array.shape)
    np.testing.assert_array_equal(volume.array, truth.array[tuple(np.moveaxis(nearest, -1, 0))])


@pytest.mark.parametrize(
    "name",
    ["anatomical/001", "anatomical/002_non_isotropic", "compressed/001", "compressed_jpegls/001",
     "compressed_rle/001"],
)  # fmt: skip
def test_a_series_with_ground_truth_equals_it_voxel_for_voxel(name: str, real_data: Path) -> None:
    folder = real_data / "dicom2nifti" / "generic" / name
    require_equal(read_series(folder), read_volume(f"{folder}_ground_truth.nii.gz"))


def test_a_missing_slice_is_refused(real_data: Path) -> None:
    with pytest.raises(DicomError) as refused:
        read_series(real_data / "dicom2nifti" / "failing" / "sliceincrement" / "001")
    assert refused.value.problem == "missing_slice"


def test_a_gantry_tilt_is_loaded_sheared_and_flagged(real_data: Path) -> None:
    volume = read_series(real_data / "dicom2nifti" / "failing" / "gantrytilting" / "001")
    assert volume.provenance["tilt_degrees"] == pytest.approx(14, abs=0.1)
    assert any("gantry tilt" in note for note in volume.notes)


def test_scattered_slices_of_a_chest_are_no_volume(real_data: Path) -> None:
    with pytest.raises(DicomError) as refused:  # 24 of 97 slices of 3 mm
        read_series(real_data / "ct_series_24")
    assert refused.value.problem == "missing_slice"
    assert "63 slice(s) of 87 are missing" in str(refused.value)


def test_neighbours_of_that_chest_equal_what_pydicom_reads(real_data: Path) -> None:
    # instances 93, 95 and 96: the last two are neighbours
    paths = [real_data / "ct_series_24" / f"0000{n}.dcm" for n in (47, 53)]
    volume = read_series(paths)
    assert volume.spacing_mm[2] == pytest.approx(3)
    read = sorted(map(pydicom.dcmread, paths), key=lambda one: one.ImagePositionPatient[2])
    for number, one in enumerate(read):
        hu = one.pixel_array * np.float64(one.RescaleSlope) + one.RescaleIntercept
        np.testing.assert_array_equal(volume.array[:, :, number], hu.astype(np.float32))
    assert volume.provenance["vendor"].upper().startswith("SIEMENS")


def test_contiguous_ct_with_falling_numbers_is_loaded() -> None:
    volume = read_series(DATA / "98892001" / "CT5N")
    assert volume.array.shape[2] == 5
    assert volume.spacing_mm[2] == pytest.approx(2.5, abs=0.01)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("77654033/CT2", "missing_slice"),
        ("98892001/CT2N", "planes"),
        ("98892003/MR2", "several_series"),
        ("98892003/MR700", "planes"),
    ],
)
def test_scouts_and_gaps_are_refused(name: str, problem: str) -> None:
    with pytest.raises(DicomError) as refused:
        read_series(DATA / name)
    assert refused.value.problem == problem
