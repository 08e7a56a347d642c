"""What de-identification refuses or fails on, and how it says so; comments in compressed frames."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import UID

from medkit import cli
from medkit.dicom import read_image
from medkit.dicom.deidentify import SUMMARY_NAME
from medkit.synth.phantom_series import phantom_series, write_series

RISKY = {
    "Ultrasound Image Storage": {"SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.6.1")},
    "Secondary Capture Image Storage": {"SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.7")},
    "Digital X-Ray Image Storage - For Presentation": {
        "SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.1.1")
    },
    "Encapsulated PDF Storage": {"SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.104.1")},
    "Enhanced SR Storage": {"SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.88.22")},
    "private kind of object": {"SOPClassUID": UID("1.2.3.4")},
    "modality other than CT, MR, PT and NM": {"Modality": "XA"},
    "BurnedInAnnotation YES": {"BurnedInAnnotation": "YES"},
    "ImageType SECONDARY": {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]},
    "secondary capture": {"ConversionType": "WSD"},
    "colour": {"SamplesPerPixel": 3, "PixelData": bytes(2880)},
}


@pytest.mark.parametrize("why", RISKY)
def test_what_may_show_a_name_is_refused_and_listed_until_reviewed(
    why: str, tmp_path: Path, write, run
) -> None:
    write(**RISKY[why])
    assert run().refused == {"slice_000.dcm": why}
    summary = json.loads((tmp_path / "out" / SUMMARY_NAME).read_text())
    assert (summary["written"], summary["refused"]) == (0, {why: 1})
    assert len(run("reviewed", reviewed=True).written) == 1


def test_an_overlay_in_the_bits_of_the_pixels_is_refused(tmp_path: Path, run) -> None:
    (dataset,) = phantom_series(slices=1)
    dataset.add_new(0x60000102, "US", 12)
    write_series(tmp_path / "in", [dataset])
    assert list(run().refused.values()) == ["overlay in the pixels"]


def test_a_broken_file_is_listed_and_stops_nothing(tmp_path: Path, series, capsys) -> None:
    source = tmp_path / "in"
    whole = next(source.rglob("*.dcm")).read_bytes()
    (source / "headless.dcm").write_bytes(whole[:400])
    (source / "short.dcm").write_bytes(whole[:-100])
    (source / "notes.txt").write_text("Jane Doe called")
    key = tmp_path / "secret" / "key"
    words = ["deidentify", str(source), str(tmp_path / "out"), "--key-file", str(key)]
    assert cli.main(words) == 1
    said = capsys.readouterr().out
    assert "4 file(s) of 1 patient(s)" in said
    assert "failed: 2\n  no_pixels: headless.dcm\n  truncated: short.dcm\n" in said
    assert "no DICOM object: 1\n  left out: notes.txt" in said
    summary = json.loads((tmp_path / "out" / SUMMARY_NAME).read_text())
    assert (summary["failed"], summary["not_dicom"]) == ({"no_pixels": 1, "truncated": 1}, 1)
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_slope_that_is_no_number_fails_instead_of_being_dropped(
    tmp_path: Path, write, run
) -> None:
    write()
    (path,) = (tmp_path / "in").iterdir()
    path.write_bytes(path.read_bytes().replace(b"DS\x02\x001 ", b"DS\x02\x00x "))
    assert run().failed == {"slice_000.dcm": "broken_header"}


def test_an_exact_copy_is_written_once_and_listed(tmp_path: Path, run) -> None:
    write_series(tmp_path / "in", phantom_series(slices=1) * 2)
    done = run()
    assert (len(done.written), done.copies) == (1, ["slice_001.dcm"])


def test_a_key_that_can_be_guessed_is_refused(tmp_path: Path, write, run) -> None:
    write()
    with pytest.raises(ValueError, match="at least 16 bytes, got 0"):
        run(key=b"")


def test_two_files_that_differ_under_one_uid_are_not_both_written(
    tmp_path: Path, write, run
) -> None:
    write()
    (one,) = phantom_series(slices=1)
    one.InstanceNumber = "7"
    write_series(tmp_path / "in" / "more", [one, one], name="{}.dcm".format)
    done = run()
    assert (len(done.written), set(done.failed.values())) == (1, {"same_uid"})


@pytest.mark.parametrize(
    ("out", "message"), [("in/out", "outside of the source"), ("full", "empty")]
)
def test_an_output_that_would_mix_is_refused(
    out: str, message: str, tmp_path: Path, series, run
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, FileExistsError), match=message):
        run(out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_key_inside_of_the_output_is_refused(tmp_path: Path, series, capsys) -> None:
    words = ["deidentify", str(tmp_path / "in"), str(tmp_path / "out")]
    assert cli.main([*words, "--key-file", str(tmp_path / "out" / "key")]) == 2
    assert "the key must lie outside of the output" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_the_extra_it_is_named(
    tmp_path: Path, series, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from medkit.dicom import deidentify_profile

    deidentify_profile._table.cache_clear()
    monkeypatch.setitem(sys.modules, "dicomanonymizer.simpledicomanonymizer", None)
    assert cli.main(["deidentify", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert "pip install 'medkit[deidentify]'" in capsys.readouterr().err


def pixels_of(path: Any) -> Any:
    """Decode a frame, those of JPEG-LS by the kit."""
    dataset = pydicom.dcmread(path)
    return read_image(path).array if dataset.Modality == "MR" else dataset.pixel_array


@pytest.mark.parametrize(
    "name", ["JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_dcmtk.dcm"]
)
def test_comments_of_compressed_frames_go_and_the_pixels_stay(
    name: str, tmp_path: Path, run
) -> None:
    dataset = pydicom.dcmread(get_testdata_file(name))
    frames = bytearray(dataset.PixelData)
    start = frames.find(b"\xff\x4f" if "2000" in name else b"\xff\xd8")
    comment = (b"\xff\x64\0\x0e\0\1" if "2000" in name else b"\xff\xfe\0\x0c") + b"JANE^DOE12"
    behind = start + 2
    if "2000" in name:  # the size of the image comes first
        behind += 2 + int.from_bytes(frames[start + 4 : start + 6], "big")
    frames[behind:behind] = comment
    size = int.from_bytes(frames[start - 4 : start], "little") + len(comment)
    frames[start - 4 : start] = size.to_bytes(4, "little")
    dataset.PixelData = bytes(frames)
    (tmp_path / "in").mkdir()
    dataset.save_as(tmp_path / "in" / "one.dcm")
    run(reviewed=True)
    (out,) = (tmp_path / "out").rglob("*.dcm")
    assert b"JANE" in (tmp_path / "in" / "one.dcm").read_bytes()
    assert b"JANE" not in out.read_bytes()
    np.testing.assert_array_equal(pixels_of(out), pixels_of(get_testdata_file(name)))
