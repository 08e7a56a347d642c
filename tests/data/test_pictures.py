from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medkit.data.pictures import read_picture, read_rgb
from medkit.synth import phantom_series as phantom
from medkit.synth.reports import make_studies

STUDY = make_studies(1)[0]


def test_a_picture_is_the_slice_it_was_written_from(tmp_path: Path) -> None:
    Image.fromarray(STUDY.picture(0)).save(tmp_path / "a.png")
    wide = np.round(STUDY.picture(0).astype(np.uint16) * 257)
    Image.fromarray(wide).save(tmp_path / "b.png")
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    volume = STUDY.hu[0][:, :, None].astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "c.nii.gz")
    true = np.clip((STUDY.hu[0].astype(np.float32) + 1000) / 1400, 0, 1)
    for name, step in (("a.png", 1 / 255), ("b.png", 1 / 255), ("c.nii.gz", 1e-6)):
        found = read_picture(tmp_path / name)
        assert found.dtype == np.float32
        assert np.abs(found - true).max() <= step


def test_a_slice_of_dicom_goes_through_the_kits_reader(tmp_path: Path) -> None:
    (one,) = phantom.phantom_series(slices=1)
    one.save_as(tmp_path / "slice.dcm", enforce_file_format=True)
    found = read_picture(tmp_path / "slice.dcm", window_hu=(-1024, 3071))
    stored = one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept)
    assert found.shape == (one.Rows, one.Columns)
    np.testing.assert_allclose(found, np.clip((stored + 1024) / 4095, 0, 1), atol=1e-6)


def test_image_processors_get_three_colours(tmp_path: Path) -> None:
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[:, :, 2] = 200
    Image.fromarray(colours).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "colour.png"), colours)
    wide = np.array([[0, 257 * 99], [65535, 257]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = read_rgb(tmp_path / "wide.png")
    np.testing.assert_array_equal(found, np.repeat(wide[:, :, None] // 257, 3, axis=2))
    volume = np.array([[-1000, 400], [-300, 3000]], np.int16)[:, :, None]
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "slice.nii.gz")
    found = read_rgb(tmp_path / "slice.nii.gz")
    assert found.dtype == np.uint8
    assert found[:, :, 1].tolist() == [[0, 255], [128, 255]]
    darker = read_rgb(tmp_path / "slice.nii.gz", window_hu=(-300, 3000))
    assert darker[:, :, 0].tolist() == [[0, 54], [0, 255]]


def test_twelve_bits_in_sixteen_are_refused_and_dark_pictures_are_not(tmp_path: Path) -> None:
    for most in (0, 4095, 4096):
        Image.fromarray(np.array([[0, most]], np.uint16)).save(tmp_path / f"{most}.png")
    for read in (read_picture, read_rgb):
        with pytest.raises(ValueError, match=r"4095.png must .*highest value is 4095.*Scale it"):
            read(tmp_path / "4095.png")
    assert read_picture(tmp_path / "4096.png").max() == np.float32(4096 / 65535)
    assert read_picture(tmp_path / "0.png").max() == 0


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"a.png must be a picture.*leave"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "b.png")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 2)), np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(ValueError, match=r"must be one slice, and has 2"):
        read_picture(tmp_path / "c.nii")
