"""Compressed pixels: right, and no file takes this process with it."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medkit.dicom import DicomError, decoding, read_image, read_series
from medkit.dicom.decoding import Decoder
from medkit.dicom.frames import frames_of
from medkit.dicom.header import read_header
from medkit.synth import phantom_series as phantom
from medkit.synth.broken_series import CASES

DATA = Path(pydicom.__file__).parent / "data" / "test_files"
pytest.importorskip("imagecodecs", reason="compressed pixels: pip install 'medkit[codecs]'")


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless",
     "MR_small_jpeg_ls_lossless", "MR_small_expb", "MR_small_padded"],
)  # fmt: skip
def test_one_image_in_eight_encodings_is_one_array(name: str) -> None:
    expected = pydicom.dcmread(DATA / "MR_small.dcm").pixel_array
    got = read_image(DATA / f"{name}.dcm")
    np.testing.assert_array_equal(got.array[:, :, 0], expected)


def test_a_truncated_image_is_refused() -> None:
    with pytest.raises(DicomError) as refused:
        read_image(DATA / "MR_truncated.dcm")
    assert refused.value.problem == "truncated"


def test_a_codestream_that_contradicts_the_header_in_its_sign() -> None:
    got = read_image(DATA / "J2K_pixelrep_mismatch.dcm")
    assert got.array.min() == -2000
    assert got.unit == "HU"


def compressed(folder: Path) -> list[Path]:
    return CASES["JPEG-LS"].write(folder)


def test_a_decoder_that_dies_is_an_error_that_names_the_file_and_the_next_one_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = compressed(tmp_path)
    Decoder.here().stop()
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_COMMAND", (sys.executable, "-c", "import os; os.abort()"))
        with pytest.raises(DicomError, match=r"the decoder died on it \(exit code -6\)") as refused:
            read_series(tmp_path)
    assert refused.value.paths == (str(paths[0]),)
    assert phantom.worst_voxel(read_series(tmp_path)) <= 0.51


def test_a_decoder_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed(tmp_path)
    Decoder.here().stop()
    monkeypatch.setattr(decoding, "SECONDS", 0.5)
    sleeps = (sys.executable, "-c", "import time; time.sleep(60)")
    monkeypatch.setattr(decoding, "_COMMAND", sleeps)
    with pytest.raises(DicomError, match=r"took longer than 0\.5 s"):
        read_series(tmp_path)
    assert Decoder.here()._process is None


def test_a_reader_that_stops_half_way_leaves_no_answers_behind(tmp_path: Path) -> None:
    paths = compressed(tmp_path)
    frames = [frame for path in paths for frame in frames_of(read_header(path))]
    half = Decoder.here().decode(frames)
    next(half)
    half.close()
    assert phantom.worst_voxel(read_series(tmp_path)) <= 0.51


def test_more_frames_than_fit_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed(tmp_path)
    Decoder.here().stop()
    monkeypatch.setattr(decoding, "_ARENA_BYTES", 5 * phantom.ROWS * phantom.COLUMNS)
    assert phantom.worst_voxel(read_series(tmp_path)) <= 0.51
    Decoder.here().stop()


def test_without_its_package_a_missing_decoder_is_named_with_the_extra(tmp_path: Path) -> None:
    CASES["an unknown transfer syntax"].write(tmp_path)
    with pytest.raises(DicomError, match=r"medkit\[codecs\]"):
        read_series(tmp_path)


def test_an_error_goes_through_processes() -> None:
    error = DicomError("truncated", "a.dcm: cut", "a.dcm")
    again = pickle.loads(pickle.dumps(error))
    assert (again.problem, str(again), again.paths) == ("truncated", "a.dcm: cut", ("a.dcm",))
