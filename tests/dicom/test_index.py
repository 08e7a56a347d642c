"""What is in a tree of folders, read once, and again only where it changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from medkit.dicom import read_series
from medkit.dicom.index import scan
from medkit.synth import phantom_series as phantom
from medkit.synth.broken_series import CASES


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    for patient in ("P2", "P1"):
        for uid in ("1", "2"):
            datasets = phantom.phantom_series(uid=f"{patient[1]}{uid}")
            for dataset in datasets:
                dataset.PatientID = patient
                dataset.StudyInstanceUID = f"1.2.{patient[1]}"
            phantom.write_series(root / patient / "study" / f"ct{uid}", datasets)
    (root / "README").write_text("from the archive")
    (root / "P1" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    return root


def test_patients_studies_and_series_are_found(tree: Path) -> None:
    index = scan(tree)
    assert [(s.patient, s.study, s.uid[-2:]) for s in index.series] == [
        ("P1", "1.2.1", "11"), ("P1", "1.2.1", "12"), ("P2", "1.2.2", "21"), ("P2", "1.2.2", "22"),
    ]  # fmt: skip
    assert all(len(series.paths) == phantom.SLICES for series in index.series)
    assert "2 patient(s), 4 series (4 CT); 2 file(s) in none" in str(index)


def test_a_series_is_read_from_the_index(tree: Path) -> None:
    volume = scan(tree).one("21").read()
    expected = read_series(tree / "P2" / "study" / "ct1")
    np.testing.assert_array_equal(volume.array, expected.array)
    with pytest.raises(KeyError, match="of 4 series"):
        scan(tree).one("nothing")


def test_broken_files_are_listed_and_end_nothing(tree: Path) -> None:
    index = scan(tree)
    assert set(index.problems) == {"README", "P1/broken.dcm"}
    assert index.problems["README"] == "not_dicom"


def test_only_what_changed_is_read_again(tree: Path) -> None:
    first = scan(tree)
    assert first.read == 4 * phantom.SLICES + 2
    assert scan(tree, known=first).read == 0
    changed = tree / "P1" / "study" / "ct1" / "slice_003.dcm"
    changed.write_bytes(changed.read_bytes() + b"\0\0")
    (tree / "P2" / "study" / "ct2" / "slice_000.dcm").unlink()
    again = scan(tree, known=first)
    assert again.read == 1
    assert len(again.files) == len(first.files) - 1


def test_a_saved_index_serves_another_process(tree: Path, tmp_path: Path) -> None:
    kept = tmp_path / "index.json"
    first = scan(tree, known=kept)
    assert first.read > 0
    again = scan(tree, known=kept)
    assert again.read == 0
    assert again.series == first.series
    kept.write_text('{"version": 1, "files": ')
    assert scan(tree, known=kept).read == first.read


def test_the_manifest_holds_each_files_hash_and_is_taken_once(tree: Path) -> None:
    index = scan(tree)
    manifest = index.manifest(progress=False)
    path = "P1/study/ct1/slice_000.dcm"
    assert manifest[path] == hashlib.sha256((tree / path).read_bytes()).hexdigest()
    assert len(manifest) == 4 * phantom.SLICES
    (tree / path).write_bytes(b"x" * os.path.getsize(tree / path))
    assert index.manifest(progress=False) == manifest
    assert index.digest() == scan(tree, known=index).digest() or scan(tree, known=index).read == 1


def test_another_byte_is_another_digest(tree: Path) -> None:
    before = scan(tree).digest()
    path = tree / "P1" / "study" / "ct1" / "slice_000.dcm"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert scan(tree).digest() != before


def test_links_in_circles_and_to_nothing_are_survived(tmp_path: Path) -> None:
    CASES["links"].write(tmp_path)
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere")
    assert len(scan(tmp_path).series[0].paths) == phantom.SLICES + 1


def test_a_file_is_no_tree(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        scan(tmp_path / "nowhere")
