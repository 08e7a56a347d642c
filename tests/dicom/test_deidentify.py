"""De-identification: no planted identifier in any byte, equal voxels, the same bytes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from medkit.dicom import read_series
from medkit.dicom.deidentify_profile import Profile
from medkit.dicom.deidentify_values import moved
from medkit.record.pseudonym import pseudonym
from medkit.synth.phantom_series import phantom_series, write_series

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
TEXTS = (  # 36 public elements: 30 texts, 3 dates and 3 UIDs
    *("PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName"),
    *("PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers", "PatientComments"),
    *("MilitaryRank", "EthnicGroup", "Occupation", "AdditionalPatientHistory", "AccessionNumber"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "InstitutionName"),
    *("InstitutionAddress", "InstitutionalDepartmentName", "StationName", "StudyDescription"),
    *("SeriesDescription", "ProtocolName", "StudyID", "DeviceSerialNumber", "ImageComments"),
    *("CommentsOnTheScheduledProcedureStep", "NameOfPhysiciansReadingStudy"),
    "DerivationDescription",
)
DATES = ("PatientBirthDate", "StudyDate", "AcquisitionDate")
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def planted(folder: Path) -> dict[str, str]:
    """Write CT_small with 50 identifiers; return them by place."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    said: dict[str, str] = {}

    def plant(place: str) -> str:
        said[place] = f"ZQ{len(said):02d}XIDENT"
        return said[place]

    for name in TEXTS:
        setattr(dataset, name, plant(name))
    for number, name in enumerate(DATES):
        said[name] = f"193{number}0719"
        setattr(dataset, name, said[name])
    for number, name in enumerate(UIDS):
        said[name] = f"1.2.826.0.1.99887766.{number}"
        setattr(dataset, name, said[name])

    item, deeper = Dataset(), Dataset()  # a sequence that the annex does not name
    item.PersonName, item.TextValue = plant("nested name"), plant("nested text")
    said["nested date"], said["nested UID"] = "19410719", "1.2.826.0.1.99887766.7"
    item.Date, item.UID = said["nested date"], said["nested UID"]
    deeper.PatientID = plant("nested twice")
    item.AcquisitionContextSequence = Sequence([deeper])
    dataset.CTExposureSequence = Sequence([item])
    reference = Dataset()
    reference.ReferencedSOPClassUID = dataset.SOPClassUID
    reference.ReferencedSOPInstanceUID = said["SOPInstanceUID"]
    dataset.ReferencedImageSequence = Sequence([reference])

    block = dataset.private_block(0x0011, "MAKER", create=True)
    block.add_new(0x01, "LO", plant("private text"))
    dataset.file_meta.SourceApplicationEntityTitle = plant("AE title")
    dataset.file_meta.PrivateInformationCreatorUID = UID("1.2.3")
    dataset.file_meta.PrivateInformation = plant("meta private").encode()
    dataset.preamble = plant("preamble").encode().ljust(128, b"\0")
    dataset.add_new(0x60004000, "LT", plant("overlay comments"))
    dataset.add_new(0x60001500, "LO", plant("overlay label"))
    dataset.add_new(0xFFFCFFFC, "OB", plant("trailing padding").encode())
    dataset.PixelData += plant("behind the pixels").encode().ljust(64, b"\0")
    folder.mkdir()
    dataset.save_as(folder / f"{plant('file name')}.dcm")
    return said


def bytes_of(folder: Path) -> bytes:
    """Return names and contents of all files, one behind the other."""
    paths = sorted(folder.rglob("*"))
    names = "\n".join(str(path.relative_to(folder)) for path in paths).encode()
    return names + b"".join(path.read_bytes() for path in paths if path.is_file())


def only_file(folder: Path) -> Any:
    (path,) = folder.rglob("*.dcm")
    return pydicom.dcmread(path)


def test_none_of_50_planted_identifiers_is_in_any_byte(tmp_path: Path, run) -> None:
    said = planted(tmp_path / "in")
    assert len(said) == 50
    before = bytes_of(tmp_path / "in")
    assert not [place for place, text in said.items() if text.encode() not in before]
    assert len(run().written) == 1
    after = bytes_of(tmp_path / "out")
    assert not [place for place, text in said.items() if text.encode() in after]


def test_pixels_stay_bit_for_bit_and_padding_behind_them_goes(tmp_path: Path, run) -> None:
    planted(tmp_path / "in")
    run()
    before = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    assert only_file(tmp_path / "out").PixelData == before.PixelData


def test_a_series_reads_as_the_same_voxels_at_the_same_places(tmp_path: Path, series, run) -> None:
    run()
    before, after = read_series(tmp_path / "in"), read_series(tmp_path / "out")
    np.testing.assert_array_equal(after.array, before.array)
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.unit == before.unit


def test_the_same_key_gives_the_same_bytes_and_another_other_names(
    tmp_path: Path, series, run
) -> None:
    for out, key in (("out", KEY), ("again", KEY), ("other", OTHER_KEY)):
        run(out, key=key)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "again")
    one, other = (
        {p.relative_to(tmp_path / out).as_posix() for p in (tmp_path / out).rglob("*.dcm")}
        for out in ("out", "other")
    )
    levels = [{part for path in paths for part in path.split("/")} for paths in (one, other)]
    assert levels[0].isdisjoint(levels[1])


def test_a_uid_has_one_pseudonym_in_all_files_and_references(tmp_path: Path, run) -> None:
    first, second = phantom_series(slices=2)
    reference = Dataset()
    reference.ReferencedSOPClassUID = first.SOPClassUID
    reference.ReferencedSOPInstanceUID = first.SOPInstanceUID
    second.SourceImageSequence = Sequence([reference])
    write_series(tmp_path / "in", [first, second])
    run()
    found = sorted(
        (pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")),
        key=lambda one: one.InstanceNumber,
    )
    (item,) = found[1].SourceImageSequence
    assert item.ReferencedSOPInstanceUID == found[0].SOPInstanceUID
    assert item.ReferencedSOPInstanceUID == found[0].file_meta.MediaStorageSOPInstanceUID
    assert item.ReferencedSOPClassUID == first.SOPClassUID
    assert found[0].FrameOfReferenceUID == found[1].FrameOfReferenceUID
    assert found[0].SOPInstanceUID.startswith("2.25.")
    assert found[0].SOPInstanceUID.is_valid


def test_a_patients_pseudonym_is_that_of_the_kits_tables(tmp_path: Path, series, run) -> None:
    run()
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folder.name == pseudonym("PHANTOM-1", key=KEY)
    assert {pydicom.dcmread(p).PatientID for p in folder.rglob("*.dcm")} == {folder.name}


def test_dates_of_a_patient_keep_their_distance_and_times_stay(tmp_path: Path, write, run) -> None:
    write(
        StudyDate="20200229", ContentDate="20200310", AcquisitionTime="101530.5",
        AcquisitionDateTime="20200301101500.25+0100", PatientBirthDate="19300101",
    )  # fmt: skip
    run()
    after = only_file(tmp_path / "out")
    days = np.datetime64("2020-02-29") - np.datetime64(_iso(after.StudyDate))
    assert days.astype(int) == Profile(KEY).days("PHANTOM-1")
    assert np.datetime64(_iso(after.ContentDate)) - np.datetime64(_iso(after.StudyDate)) == 10
    assert after.AcquisitionDateTime.endswith("101500.25+0100")
    assert (after.AcquisitionTime, after.PatientBirthDate) == ("101530.5", "")


def _iso(text: str) -> str:
    return f"{text[:4]}-{text[4:6]}-{text[6:]}"


@pytest.mark.parametrize(
    ("text", "day_only", "expected"),
    [
        ("20200301", True, "20200229"),
        ("2020.03.01", True, "20200229"),
        ("202001", False, "201912"),
        ("2020", False, "2019"),
        ("00010101", True, ""),
        ("20201301", True, ""),
        ("DOE^JANE", True, ""),
        ("20200301DOE", True, ""),
        ("20200301235959+0200", False, "20200229235959+0200"),
    ],
)
def test_a_date_is_moved_or_emptied(text: str, day_only: bool, expected: str) -> None:
    assert moved(text, 1, day_only=day_only) == expected


@pytest.mark.parametrize(
    ("age", "expected"), [("089Y", "089Y"), ("097Y", "090Y"), ("011M", "011M")]
)
def test_ages_above_89_are_one(age: str, expected: str, tmp_path: Path, write, run) -> None:
    write(PatientAge=age, PatientSex="F", PatientWeight="61")
    run()
    after = only_file(tmp_path / "out")
    assert (after.PatientAge, after.PatientSex, str(after.PatientWeight)) == (expected, "F", "61")


def test_what_was_done_is_said_in_the_file(tmp_path: Path, series, run) -> None:
    run()
    after = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
    codes = {item.CodeValue for item in after.DeidentificationMethodCodeSequence}
    assert codes == {"113100", "113107", "113108"}
    assert after.PatientIdentityRemoved == "YES"
    assert after.LongitudinalTemporalInformationModified == "MODIFIED"
    assert after.preamble == bytes(128)


def test_a_kept_text_that_says_the_patients_name_goes(tmp_path: Path, write, run) -> None:
    write(PatientName="DOE^JANE", ManufacturerModelName="scanner of Jane",
          ConvolutionKernel="B30f", BodyPartExamined="CHEST", ScanOptions="OF DOE")  # fmt: skip
    run()
    after = only_file(tmp_path / "out")
    assert "ManufacturerModelName" not in after
    assert "ScanOptions" not in after
    assert (after.ConvolutionKernel, after.BodyPartExamined) == ("B30f", "CHEST")
