"""Series that a scanner, an archive or a copy has broken, each with what must come of it.

Made from the linear phantom, so that whatever is read can be judged voxel by voxel. Half of the
kinds come from reports against converters, the other half from what scanners export.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medkit.synth import phantom_series as phantom

__all__ = ["CASES", "Case"]

Datasets = list[Any]
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.92387953, 0.38268343, 0.0, -0.27059805, 0.65328148, -0.70710678)


@dataclass(frozen=True)
class Case:
    """One way in which a series is unusual.

    Attributes:
        name: Of the case.
        expect: "ok" where a right volume must be returned, else the ``problem`` of the refusal.
        note: What the volume's notes must say, in part.
        options: Passed to ``read_series``.
        needs: A package without which it cannot be made.
    """

    name: str
    expect: str
    make: Callable[[], Datasets]
    note: str = ""
    after: Callable[[list[Path]], None] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = ""

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the series into a folder of its own."""
        paths = phantom.write_series(folder, self.make())
        if self.after is not None:
            self.after(paths)
        return paths


def _good(**changes: Any) -> Callable[[], Datasets]:
    return lambda: phantom.phantom_series(**changes)


def _changed(change: Callable[[Datasets], Datasets | None]) -> Callable[[], Datasets]:
    def make() -> Datasets:
        datasets = phantom.phantom_series()
        return change(datasets) or datasets

    return make


def _each(**elements: Any) -> Callable[[], Datasets]:
    """Have all slices say these."""

    def change(datasets: Datasets) -> None:
        for dataset in datasets:
            for name, value in elements.items():
                setattr(dataset, name, value)

    return _changed(change)


def _one(at: int = 5, **elements: Any) -> Callable[[], Datasets]:
    """Have one slice say these."""

    def change(datasets: Datasets) -> None:
        for name, value in elements.items():
            setattr(datasets[at], name, value)

    return _changed(change)


def _without(*names: str, at: int | None = None) -> Callable[[], Datasets]:
    def change(datasets: Datasets) -> None:
        for dataset in datasets if at is None else [datasets[at]]:
            for name in names:
                delattr(dataset, name)

    return _changed(change)


def _placed(places: Callable[[int], Any]) -> Callable[[], Datasets]:
    """Put slice n so many steps from the first, its pixels as they are there."""

    def change(datasets: Datasets) -> None:
        first = np.array([float(x) for x in datasets[0].ImagePositionPatient])
        for number, dataset in enumerate(datasets):
            place = first + np.array(places(number)) * [1.0, 1.0, phantom.STEP_MM]
            dataset.ImagePositionPatient = [f"{x:.4f}" for x in place]
            phantom.put_pixels(dataset, phantom.truth_of(dataset))

    return _changed(change)


def _stored_as(*, bits: int, high: int, signed: bool, intercept: float, dirt: int = 0) -> Any:
    """Store pixels in other bits; ``dirt`` is set in those that are no pixel's."""

    def change(datasets: Datasets) -> None:
        for dataset in datasets:
            truth = phantom.truth_of(dataset)
            dataset.BitsStored, dataset.HighBit = bits, high
            dataset.PixelRepresentation, dataset.RescaleIntercept = int(signed), f"{intercept:g}"
            stored = np.round(truth - intercept).astype(np.int64) & ((1 << bits) - 1)
            raw = (stored << (high - bits + 1)) | dirt
            dataset.PixelData = raw.astype("<u2").tobytes()
            dataset["PixelData"].VR = "OW"

    return _changed(change)


def _slopes() -> Datasets:
    datasets = phantom.phantom_series()
    for number, dataset in enumerate(datasets):
        dataset.RescaleSlope = f"{0.25 + number / 8:g}"
        dataset.RescaleIntercept = f"{-1000 - number}"
        phantom.put_pixels(dataset, phantom.truth_of(dataset))
    return datasets


def _mixed_signs() -> Datasets:
    datasets = phantom.phantom_series()
    for dataset in datasets[::2]:
        dataset.PixelRepresentation, dataset.RescaleIntercept = 0, "-2048"
        phantom.put_pixels(dataset, phantom.truth_of(dataset))
    return datasets


def _raw_hu() -> Datasets:
    datasets = phantom.phantom_series(intercept=0)
    for dataset in datasets:
        del dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType
    return datasets


def _table(datasets: Datasets) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    for dataset in datasets:
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [3, 0, 16], "HU"
        table.add_new((0x0028, 0x3006), "US", [1, 2, 3])
        dataset.ModalityLUTSequence = Sequence([table])
        del dataset.RescaleSlope, dataset.RescaleIntercept


def _padded(*, declared: bool = True, limit: int | None = None) -> Callable[[], Datasets]:
    def change(datasets: Datasets) -> None:
        for dataset in datasets:
            stored = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, -1).copy()
            stored[:3] = -2000 if limit is None else np.arange(-2000, -2000 + 3)[:, None]
            dataset.PixelData = stored.tobytes()
            if declared:
                dataset.add_new((0x0028, 0x0120), "SS", -2000)
            if limit is not None:
                dataset.add_new((0x0028, 0x0121), "SS", limit)

    return _changed(change)


def _more(make: Callable[[Datasets], Datasets]) -> Callable[[], Datasets]:
    """Add data sets made from copies of a good series."""

    def change(datasets: Datasets) -> Datasets:
        return datasets + make(copy.deepcopy(datasets))

    return _changed(change)


def _like(dataset: Any, suffix: str, **elements: Any) -> Any:
    """Return an instance of its own, otherwise as it was."""
    uid = f"{dataset.SOPInstanceUID}.{suffix}"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def _other_content(datasets: Datasets) -> Datasets:
    other = _like(datasets[5], "9")
    other.PixelData = bytes(len(other.PixelData))
    return [other]


def _same_uid(datasets: Datasets) -> Datasets:
    datasets[5].PixelData = bytes(len(datasets[5].PixelData))
    return [datasets[5]]


def _localizer(datasets: Datasets) -> Datasets:
    scout = phantom.phantom_series(slices=1, orientation=SAGITTAL, first_instance=99)[0]
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return [scout]


def _other_series(datasets: Datasets) -> Datasets:
    return phantom.phantom_series(uid="2", origin_lps_mm=(-40.0, -30.0, -300.0))


def _second(**elements: Any) -> Callable[[Datasets], Datasets]:
    """The same places once more, as another time point or echo."""

    def make(datasets: Datasets) -> Datasets:
        for dataset in datasets:
            stored = np.frombuffer(dataset.PixelData, "<i2") + np.int16(100)
            dataset.PixelData = stored.tobytes()
            _like(dataset, "2", **elements)
        return datasets

    return make


def _times() -> Datasets:
    datasets = phantom.phantom_series()
    later = _second(TemporalPositionIdentifier="2")(copy.deepcopy(datasets))
    for dataset in datasets:
        dataset.TemporalPositionIdentifier = "1"
    return datasets + later


def _one_place() -> Datasets:
    datasets = phantom.phantom_series()
    for number, dataset in enumerate(datasets):
        dataset.ImagePositionPatient = datasets[0].ImagePositionPatient
        dataset.TriggerTime = str(40 * number)
    return datasets


def _order(numbers: Callable[[int], int]) -> Callable[[], Datasets]:
    def change(datasets: Datasets) -> None:
        for number, dataset in enumerate(datasets):
            dataset.InstanceNumber = str(numbers(number))

    return _changed(change)


def _shuffled(datasets: Datasets) -> Datasets:
    return [datasets[i] for i in (7, 2, 11, 0, 5, 9, 1, 10, 4, 8, 3, 6)]


def _flipped() -> Datasets:
    datasets = phantom.phantom_series()
    datasets[5].ImageOrientationPatient = ["-1", "0", "0", "0", "1", "0"]
    return datasets


def _small(datasets: Datasets) -> None:
    datasets[5].Rows = phantom.ROWS // 2
    phantom.put_pixels(datasets[5], phantom.truth_of(datasets[5]))


def _enhanced(*, shuffled: bool = False, place: bool = True) -> Callable[[], Datasets]:
    def make() -> Datasets:
        from pydicom.dataset import Dataset
        from pydicom.sequence import Sequence

        datasets = phantom.phantom_series()
        datasets = _shuffled(datasets) if shuffled else datasets
        whole = copy.deepcopy(datasets[0])
        whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
        whole.NumberOfFrames = str(len(datasets))
        shared, measures, plane, scale = Dataset(), Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = whole.PixelSpacing, whole.SliceThickness
        plane.ImageOrientationPatient = whole.ImageOrientationPatient
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = "1", "-1024", "HU"
        shared.PixelMeasuresSequence = Sequence([measures])
        shared.PlaneOrientationSequence = Sequence([plane])
        shared.PixelValueTransformationSequence = Sequence([scale])
        whole.SharedFunctionalGroupsSequence = Sequence([shared])
        each = []
        for dataset in datasets:
            group, position = Dataset(), Dataset()
            position.ImagePositionPatient = dataset.ImagePositionPatient
            if place:
                group.PlanePositionSequence = Sequence([position])
            each.append(group)
        whole.PerFrameFunctionalGroupsSequence = Sequence(each)
        for name in (
            *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
            *("RescaleSlope", "RescaleIntercept", "RescaleType", "SliceThickness"),
        ):
            delattr(whole, name)
        whole.PixelData = b"".join(dataset.PixelData for dataset in datasets)
        return [whole]

    return make


def _syntax(uid: str, encode: Callable[[Any], bytes] | None = None) -> Callable[[], Datasets]:
    """Write in another transfer syntax; compressed by ``encode`` where one is given."""

    def change(datasets: Datasets) -> None:
        from pydicom.encaps import encapsulate

        for dataset in datasets:
            dataset.file_meta.TransferSyntaxUID = uid
            if encode is not None:
                stored = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, -1)
                dataset.PixelData = encapsulate([encode(stored)])
                dataset["PixelData"].is_undefined_length = True
                dataset["PixelData"].VR = "OB"

    return _changed(change)


def _unsigned(encode: Callable[..., bytes], uid: str) -> Callable[[], Datasets]:
    """Compress 12 unsigned bits, as scanners do."""

    def make() -> Datasets:
        datasets = _stored_as(bits=12, high=11, signed=False, intercept=-2048)()
        from pydicom.encaps import encapsulate

        for dataset in datasets:
            stored = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, -1)
            dataset.file_meta.TransferSyntaxUID = uid
            dataset.PixelData = encapsulate([encode(stored)])
            dataset["PixelData"].is_undefined_length = True
            dataset["PixelData"].VR = "OB"
        return datasets

    return make


def _jpegls(stored: Any) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpegls_encode(stored))


def _jpeg2000(stored: Any) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpeg2k_encode(stored, level=0, codecformat="j2k", reversible=True))


def _jpeg_lossless(stored: Any) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.ljpeg_encode(stored, bitspersample=12))


def _rle() -> Datasets:
    datasets = phantom.phantom_series()
    for dataset in datasets:
        dataset.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom")
    return datasets


def _big_endian() -> Datasets:
    datasets = _syntax("1.2.840.10008.1.2.2")()
    for dataset in datasets:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    return datasets


def _open_sequences(uid: str) -> Callable[[], Datasets]:
    """Sequences of undefined length, one in another, before the pixels."""

    def change(datasets: Datasets) -> None:
        from pydicom.dataset import Dataset
        from pydicom.sequence import Sequence

        for dataset in datasets:
            dataset.file_meta.TransferSyntaxUID = uid
            inner, outer = Dataset(), Dataset()
            inner.CodeValue, inner.Rows = "113100", 7  # not the image's rows
            outer.PurposeOfReferenceCodeSequence = Sequence([inner])
            outer.ReferencedSOPInstanceUID = "1.2.3"
            dataset.ReferencedImageSequence = Sequence([outer])
            for holder, name in (
                (outer, "PurposeOfReferenceCodeSequence"),
                (dataset, "ReferencedImageSequence"),
            ):
                holder[name].is_undefined_length = True
                for item in holder[name].value:
                    item.is_undefined_length_sequence_item = True

    return _changed(change)


def _long_header(datasets: Datasets) -> None:
    for dataset in datasets:
        block = dataset.private_block(0x0009, "MEDKIT PHANTOM", create=True)
        block.add_new(0x01, "OB", bytes(200_000))


def _private_geometry(datasets: Datasets) -> None:
    for dataset in datasets:
        block = dataset.private_block(0x0021, "MEDKIT PHANTOM", create=True)
        block.add_new(0x01, "DS", list(dataset.ImagePositionPatient))
        del dataset.ImagePositionPatient


def _text_of(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    if old not in data or len(old) != len(new):
        raise ValueError(f"{path}: {old!r} is not there, or {new!r} is of another length")
    path.write_bytes(data.replace(old, new, 1))


def _cut(paths: list[Path]) -> None:
    paths[5].write_bytes(paths[5].read_bytes()[:-200])


def _beside(paths: list[Path]) -> None:
    folder = paths[0].parent
    (folder / "README.txt").write_text("what the scanner says\n")
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "export.zip").write_bytes(b"PK\x03\x04" + bytes(200))
    (folder / "Thumbs.db").write_bytes(bytes(range(256)) * 4)


def _bare(paths: list[Path]) -> None:
    """Take preamble and file meta information away."""
    for path in paths:
        data = path.read_bytes()
        meta = int.from_bytes(data[140:144], "little")
        path.write_bytes(data[144 + meta :])


def _links(paths: list[Path]) -> None:
    (paths[0].parent / "again.dcm").symlink_to(paths[0])
    (paths[0].parent / "round").symlink_to(paths[0].parent)


def _twice(paths: list[Path]) -> None:
    (paths[0].parent / "copy.dcm").write_bytes(paths[5].read_bytes())


def _behind(paths: list[Path]) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes() + bytes(64))


def _bomb(paths: list[Path]) -> None:
    rows = phantom.ROWS.to_bytes(2, "little")
    _text_of(paths[5], b"\x28\0\x10\0US\2\0" + rows, b"\x28\0\x10\0US\2\0\xff\xff")
    columns = phantom.COLUMNS.to_bytes(2, "little")
    _text_of(paths[5], b"\x28\0\x11\0US\2\0" + columns, b"\x28\0\x11\0US\2\0\xff\xff")


def _no_vr(paths: list[Path]) -> None:
    for path in paths:
        _text_of(path, b"\x18\0\x60\0DS", b"\x18\0\x60\0ZZ")


def _broken_fragment(paths: list[Path]) -> None:
    data = paths[5].read_bytes()
    paths[5].write_bytes(data[: len(data) * 3 // 4])


_J = "imagecodecs"
_VOLUME = "ok"
_CASES = [
    # a good series, however it comes
    Case("good", _VOLUME, _good()),
    Case("shuffled files", _VOLUME, _changed(_shuffled)),
    Case("reversed instance numbers", _VOLUME, _order(lambda n: 12 - n)),
    Case("sagittal", _VOLUME, _good(orientation=SAGITTAL)),
    Case("oblique", _VOLUME, _good(orientation=OBLIQUE)),
    Case("negative step", _VOLUME, _good(step_lps_mm=(0, 0, -2.5))),
    Case("thickness lies", _VOLUME, _each(SliceThickness="7")),
    Case("spacing between slices lies", _VOLUME, _each(SpacingBetweenSlices="-9")),
    Case("slope of each slice its own", _VOLUME, _slopes, note="each its own"),
    Case("no rescale", _VOLUME, _raw_hu, note="taken as HU"),
    Case("rescale of one slice missing", "no_rescale",
         _without("RescaleSlope", "RescaleIntercept", at=5)),
    Case("slope without intercept", "no_rescale", _without("RescaleIntercept")),
    Case("slope of zero", "bad_number", _one(RescaleSlope="0")),
    Case("one slice in another unit", "other_unit", _one(RescaleType="MGML")),
    Case("a table instead of a rescale", "modality_lut", _changed(_table)),
    Case("run lengths", _VOLUME, _rle),
    Case("junk beside", _VOLUME, _good(), after=_beside, note="no DICOM left out"),
    # slices that are not there, or too often
    Case("missing middle slice", "missing_slice", _changed(lambda d: d[:5] + d[6:])),
    Case(
        "missing middle slice, resampled", _VOLUME, _changed(lambda d: d[:5] + d[6:]),
        note="resampled", options={"resample": True},
    ),
    Case(
        "five slices missing, resampled", "missing_slice", _changed(lambda d: d[:3] + d[8:]),
        options={"resample": True},
    ),
    Case(
        "missing end slice", _VOLUME, _changed(lambda d: _said(d, ImagesInAcquisition="12")[:-1]),
        note="an end may be missing",
    ),
    Case("same file twice", _VOLUME, _good(), after=_twice, note="copy"),
    Case("same UID, other content", "same_uid", _more(_same_uid)),
    Case("same position, other content", "same_position", _more(_other_content)),
    Case("uneven spacing", "uneven_spacing", _placed(lambda n: (0, 0, n + 0.3 * (n > 6)))),
    Case(
        "uneven spacing, resampled", _VOLUME, _placed(lambda n: (0, 0, n + 0.3 * (n > 6))),
        note="resampled", options={"resample": True},
    ),
    Case("one slice beside the line", "shifted", _placed(lambda n: (3.0 * (n == 5), 0, n))),
    Case("two slices", _VOLUME, _good(slices=2)),
    Case("single slice", _VOLUME, _good(slices=1), note="one slice"),
    # numbers that nobody should order by
    Case("instance numbers scrambled", _VOLUME, _order(lambda n: n * 5 % 12 + 1)),
    Case("instance numbers missing", _VOLUME, _without("InstanceNumber")),
    Case("instance numbers all equal", _VOLUME, _order(lambda n: 1)),
    # several things in one folder
    Case("two series", "several_series", _more(_other_series)),
    Case("two series, one asked for", _VOLUME, _more(_other_series), options={"series": ".4.1"}),
    Case("localizer in the series", _VOLUME, _more(_localizer), note="localizer"),
    Case("two time points", "stacks", _times),
    Case(
        "two time points, one asked for", _VOLUME, _times,
        options={"stack": "TemporalPositionIdentifier=1"},
    ),
    Case("two acquisitions", "stacks", _more(_second(AcquisitionNumber="2"))),
    Case("two echoes", "stacks", _more(_second(EchoTime="4.6"))),
    Case("all at one position", "same_position", _one_place),
    Case("slice of another patient", "other_patient", _one(PatientID="SOMEBODY-ELSE")),
    Case("slice of another study", "other_study", _one(StudyInstanceUID="1.2.3.4")),
    Case("slice of another modality", "other_modality", _one(Modality="MR")),
    Case(
        "other frame of reference", "other_frame_of_reference", _one(FrameOfReferenceUID="1.2.9")
    ),
    # geometry
    Case("gantry tilt", _VOLUME, _good(step_lps_mm=(0, -0.8, 2.5)), note="gantry tilt"),
    Case(
        "gantry tilt, sheared back", _VOLUME, _good(step_lps_mm=(0, -0.8, 2.5)),
        note="sheared back", options={"deshear": True},
    ),
    Case("one slice flipped", "other_orientation", _flipped),
    Case(
        "orientation drifts", "other_orientation",
        _one(ImageOrientationPatient=["1", "0", "0", "0", "0.99985", "0.01745"]),
    ),
    Case(
        "axes at no right angle", "bad_orientation",
        _each(ImageOrientationPatient=["1", "0", "0", "0.5", "0.866", "0"]),
    ),
    Case("no position and orientation", "no_geometry",
         _without("ImagePositionPatient", "ImageOrientationPatient")),
    Case("geometry in private elements only", "no_geometry", _changed(_private_geometry)),
    Case("position empty", "no_geometry", _one(ImagePositionPatient=None)),
    Case("pixel spacing zero", "bad_spacing", _one(PixelSpacing=["0", "0"])),
    Case("pixel spacing of one slice another", "other_spacing", _one(PixelSpacing=["0.9", "0.7"])),
    Case("comma decimals", "bad_number", _good(),
         after=lambda paths: _text_of(paths[5], b"\\-30.0000\\", b"\\-30,0000\\")),
    Case("position not finite", "bad_number", _good(),
         after=lambda paths: _text_of(paths[5], b"\\-30.0000\\", b"\\nan     \\")),
    Case("feet first", _VOLUME, _each(PatientPosition="FFS")),
    # pixels
    Case("MONOCHROME1", _VOLUME, _each(PhotometricInterpretation="MONOCHROME1"),
         note="not inverted"),
    Case("padding", _VOLUME, _padded(), note="padded pixels"),
    Case("padding by a range", _VOLUME, _padded(limit=-1990), note="padded pixels"),
    Case("one slice of other size", "other_size", _changed(_small)),
    Case("truncated slice", "truncated", _good(), after=_cut),
    Case("signed and unsigned slices", _VOLUME, _mixed_signs, note="PixelRepresentation"),
    Case("12 unsigned bits", _VOLUME,
         _stored_as(bits=12, high=11, signed=False, intercept=-2048)),
    Case("12 signed bits", _VOLUME, _stored_as(bits=12, high=11, signed=True, intercept=0)),
    Case("overlay in the upper bits", _VOLUME,
         _stored_as(bits=12, high=11, signed=False, intercept=-2048, dirt=0x8000)),
    Case("12 bits at the upper end", _VOLUME,
         _stored_as(bits=12, high=15, signed=True, intercept=0, dirt=0x5)),
    Case("signed or not is not said", "bits", _without("PixelRepresentation", at=5)),
    Case("more bits than there are", "bits", _each(BitsStored=20, HighBit=19)),
    Case("no pixels", "no_images", _without("PixelData")),
    Case("no pixels in one", _VOLUME, _changed(lambda d: _emptied(d, 11)), note="without pixels"),
    Case("colour", "colour",
         _each(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)),
    Case("palette", "colour", _each(PhotometricInterpretation="PALETTE COLOR")),
    Case("65,535 rows and columns", "too_large", _good(), after=_bomb),
    # how the file is written
    Case("no preamble and no meta", _VOLUME, _good(), after=_bare, note="no preamble"),
    Case("implicit VR", _VOLUME, _syntax("1.2.840.10008.1.2")),
    Case("big endian", _VOLUME, _big_endian),
    Case("deflated", _VOLUME, _syntax("1.2.840.10008.1.2.1.99")),
    Case("sequences of undefined length", _VOLUME, _open_sequences("1.2.840.10008.1.2.1")),
    Case("the same in implicit VR", _VOLUME, _open_sequences("1.2.840.10008.1.2")),
    Case("200 KB of private elements", _VOLUME, _changed(_long_header)),
    Case("an unknown VR", _VOLUME, _good(), after=_no_vr),
    Case("bytes behind the pixels", _VOLUME, _good(), after=_behind),
    Case("links", _VOLUME, _good(), after=_links, note="copy"),
    Case("enhanced multi-frame", _VOLUME, _enhanced()),
    Case("enhanced, frames shuffled", _VOLUME, _enhanced(shuffled=True)),
    Case("enhanced without positions", "no_geometry", _enhanced(place=False)),
    Case("JPEG-LS", _VOLUME, _unsigned(_jpegls, "1.2.840.10008.1.2.4.80"), needs=_J),
    Case("JPEG 2000", _VOLUME, _unsigned(_jpeg2000, "1.2.840.10008.1.2.4.90"), needs=_J),
    Case("JPEG lossless", _VOLUME, _unsigned(_jpeg_lossless, "1.2.840.10008.1.2.4.70"), needs=_J),
    Case("a compressed slice cut off", "undecodable",
         _unsigned(_jpegls, "1.2.840.10008.1.2.4.80"), after=_broken_fragment, needs=_J),
    Case("an unknown transfer syntax", "no_decoder",
         _syntax("1.2.840.10008.1.2.4.100", lambda stored: stored.tobytes())),
]  # fmt: skip


def _said(datasets: Datasets, **elements: Any) -> Datasets:
    for dataset in datasets:
        for name, value in elements.items():
            setattr(dataset, name, value)
    return datasets


def _emptied(datasets: Datasets, at: int) -> None:
    del datasets[at].PixelData


CASES = {case.name: case for case in _CASES}
