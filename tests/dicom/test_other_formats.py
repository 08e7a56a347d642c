"""NIfTI and MetaImage through the same function, and pictures."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from medkit.dicom import DicomError, Volume, read_image, read_series, read_volume
from medkit.synth import phantom_series as phantom
from medkit.synth.broken_series import CASES, OBLIQUE

DATA = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture
def series(tmp_path: Path) -> Volume:
    CASES["oblique"].write(tmp_path / "dicom")
    return read_series(tmp_path / "dicom")


def save_mhd(
    volume: Volume, path: Path, *, compressed: bool = False, local: bool = False, **fields: Any
) -> None:
    """Write a volume as ITK would: x fastest, LPS."""
    affine = np.diag([-1, -1, 1, 1.0]) @ volume.affine
    spacing = np.array(volume.spacing_mm)
    axes = (affine[:3, :3] / spacing)[:, [1, 0, 2]]
    data = volume.slices.astype("<i2").tobytes()
    raw = zlib.compress(data) if compressed else data
    height, width, depth = volume.array.shape
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compressed),
        "TransformMatrix": " ".join(f"{x:.8f}" for x in axes.T.ravel()),
        "Offset": " ".join(f"{x:.8f}" for x in affine[:3, 3]),
        "ElementSpacing": " ".join(f"{x:.8f}" for x in spacing[[1, 0, 2]]),
        "DimSize": f"{width} {height} {depth}",
        "ElementType": "MET_SHORT",
        **fields,
        "ElementDataFile": "LOCAL" if local else "voxels.raw",
    }
    head = "".join(f"{name} = {value}\n" for name, value in lines.items()).encode()
    path.write_bytes(head + raw if local else head)
    if not local:
        path.with_name("voxels.raw").write_bytes(raw)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["scan.mhd", "scan.mha"])
def test_a_metaimage_has_the_voxels_of_the_series_at_their_places(
    series: Volume, tmp_path: Path, name: str, compressed: bool
) -> None:
    path = tmp_path / name
    save_mhd(series, path, compressed=compressed, local=name.endswith("mha"))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, series.array)
    assert volume.affine == pytest.approx(series.affine, abs=1e-6)
    assert phantom.worst_voxel(volume) <= 0.51


def test_simpleitk_agrees_on_a_metaimage(series: Volume, tmp_path: Path) -> None:
    itk = pytest.importorskip("SimpleITK", reason="another reader of MetaImage files")
    save_mhd(series, tmp_path / "scan.mhd")
    image = itk.ReadImage(str(tmp_path / "scan.mhd"))
    np.testing.assert_array_equal(itk.GetArrayFromImage(image), series.slices)
    place = image.TransformIndexToPhysicalPoint((3, 5, 7))  # x, y, z
    got = read_volume(tmp_path / "scan.mhd").world_of([5, 3, 7]) * [-1, -1, 1]
    assert got == pytest.approx(place, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"DimSize": "20 24"}, "one 3-D volume"),
        ({"ElementType": "MET_STRING"}, "cannot be understood"),
        ({"ElementSpacing": "0 1 1"}, "one 3-D volume with spacing"),
        ({"Offset": "1 2 nan"}, "cannot be understood"),
        ({"DimSize": "20 24 13"}, "bytes of voxels"),
        ({"ElementNumberOfChannels": "3"}, "one 3-D volume"),
        ({"CompressedData": "True"}, "compressed data are broken"),
    ],
)
def test_a_metaimage_that_contradicts_itself_is_refused(
    series: Volume, tmp_path: Path, fields: dict[str, str], said: str
) -> None:
    save_mhd(series, tmp_path / "scan.mhd", **fields)
    with pytest.raises(DicomError, match=said):
        read_volume(tmp_path / "scan.mhd")


@pytest.mark.parametrize("name", ["../voxels.raw", "/etc/passwd", "missing.raw"])
def test_the_data_of_a_metaimage_lie_beside_it(series: Volume, tmp_path: Path, name: str) -> None:
    path = tmp_path / "scan.mhd"
    save_mhd(series, path)
    path.write_text(path.read_text().replace("voxels.raw", name))
    with pytest.raises(DicomError, match="data file"):
        read_volume(path)


def test_a_nifti_has_its_voxels_at_their_places(series: Volume, tmp_path: Path) -> None:
    for name in ("scan.nii", "scan.nii.gz"):
        nibabel.Nifti1Image(series.array.astype(np.int16), series.affine).to_filename(
            tmp_path / name
        )
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.array, series.array)
        assert phantom.worst_voxel(volume) <= 0.51


def test_metres_are_brought_to_millimetres(series: Volume, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(
        series.array.astype(np.int16), np.diag([1e-3, 1e-3, 1e-3, 1]) @ series.affine
    )
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "scan.nii")
    assert phantom.worst_voxel(read_volume(tmp_path / "scan.nii")) <= 0.51


def test_a_broken_nifti_is_refused(series: Volume, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    nibabel.Nifti1Image(series.array, series.affine).to_filename(path)
    whole = path.read_bytes()
    for bad in (whole[: len(whole) // 2], b"", b"no image at all", gzip.compress(b"short")):
        path.write_bytes(bad)
        with pytest.raises(DicomError) as refused:
            read_volume(path)
        assert refused.value.problem == "broken_nifti"
    four = np.zeros((4, 4, 4, 2), np.float32)
    nibabel.Nifti1Image(four, np.eye(4)).to_filename(path)
    with pytest.raises(DicomError, match="one 3-D volume"):
        read_volume(path)


def test_options_of_dicom_are_refused_for_other_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are for DICOM series"):
        read_volume(tmp_path / "scan.nii", resample=True)
    with pytest.raises(FileNotFoundError):
        read_volume(tmp_path / "scan.nii")


def test_a_radiograph_is_inverted_and_says_so_and_ct_never_is(tmp_path: Path) -> None:
    picture = read_image(DATA / "dicomdirtests" / "77654033" / "CR1" / "6154")
    one = pydicom.dcmread(DATA / "dicomdirtests" / "77654033" / "CR1" / "6154")
    value = one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept)
    expected = value.max() + value.min() - value
    assert picture.array[:, :, 0] == pytest.approx(expected, rel=1e-6)
    assert any("inverted" in note for note in picture.notes)
    (path, *_) = CASES["MONOCHROME1"].write(tmp_path)
    assert phantom.worst_voxel(read_image(path)) <= 0.51


def test_one_slice_is_read_as_a_picture_without_its_place(tmp_path: Path) -> None:
    (path, *_) = CASES["no position and orientation"].write(tmp_path)
    picture = read_image(path)
    assert picture.array.shape == (phantom.ROWS, phantom.COLUMNS, 1)
    assert picture.spacing_mm == pytest.approx((*phantom.SPACING_MM, 1))
    assert any("nothing of where it lies" in note for note in picture.notes)


def test_the_gradient_of_the_phantom_shows_a_half_voxel(tmp_path: Path) -> None:
    """A judge that would not see a shift is none."""
    phantom.write_series(tmp_path, phantom.phantom_series(orientation=OBLIQUE))
    volume = read_series(tmp_path)
    for axis in range(3):
        moved = volume.affine.copy()
        moved[:3, 3] += 0.5 * moved[:3, axis]
        shifted = Volume(volume.array, moved)
        assert phantom.worst_voxel(shifted) > 2
