"""What a series' data sets may say that is unusual or wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from medkit.synth import phantom_series as phantom

Datasets = list[Any]
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.92387953, 0.38268343, 0.0, -0.27059805, 0.65328148, -0.70710678)


def good(**changes: Any) -> Callable[[], Datasets]:
    """Make a sound series with other settings."""
    return lambda: phantom.phantom_series(**changes)


def changed(change: Callable[[Datasets], Datasets | None]) -> Callable[[], Datasets]:
    """Make a series and change its data sets."""

    def make() -> Datasets:
        datasets = phantom.phantom_series()
        return change(datasets) or datasets

    return make


def each(**elements: Any) -> Callable[[], Datasets]:
    """Have all slices say these."""

    def change(datasets: Datasets) -> None:
        for dataset in datasets:
            for name, value in elements.items():
                setattr(dataset, name, value)

    return changed(change)


def one(at: int = 5, **elements: Any) -> Callable[[], Datasets]:
    """Have one slice say these."""

    def change(datasets: Datasets) -> None:
        for name, value in elements.items():
            setattr(datasets[at], name, value)

    return changed(change)


def without(*names: str, at: int | None = None) -> Callable[[], Datasets]:
    """Leave elements out."""

    def change(datasets: Datasets) -> None:
        for dataset in datasets if at is None else [datasets[at]]:
            for name in names:
                delattr(dataset, name)

    return changed(change)


def placed(places: Callable[[int], Any]) -> Callable[[], Datasets]:
    """Put slice n so many steps from the first, its pixels as they are there."""

    def change(datasets: Datasets) -> None:
        first = np.array([float(x) for x in datasets[0].ImagePositionPatient])
        for number, dataset in enumerate(datasets):
            place = first + np.array(places(number)) * [1.0, 1.0, phantom.STEP_MM]
            dataset.ImagePositionPatient = [f"{x:.4f}" for x in place]
            phantom.put_pixels(dataset, phantom.truth_of(dataset))

    return changed(change)


def stored_as(*, bits: int, high: int, signed: bool, intercept: float, dirt: int = 0) -> Any:
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

    return changed(change)


def slopes() -> Datasets:
    """Give each slice a rescale of its own."""
    datasets = phantom.phantom_series()
    for number, dataset in enumerate(datasets):
        dataset.RescaleSlope = f"{0.25 + number / 8:g}"
        dataset.RescaleIntercept = f"{-1000 - number}"
        phantom.put_pixels(dataset, phantom.truth_of(dataset))
    return datasets


def mixed_signs() -> Datasets:
    """Store each second slice without signs."""
    datasets = phantom.phantom_series()
    for dataset in datasets[::2]:
        dataset.PixelRepresentation, dataset.RescaleIntercept = 0, "-2048"
        phantom.put_pixels(dataset, phantom.truth_of(dataset))
    return datasets


def raw_hu() -> Datasets:
    """Store HU as they are."""
    datasets = phantom.phantom_series(intercept=0)
    for dataset in datasets:
        del dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType
    return datasets


def table(datasets: Datasets) -> None:
    """Put a table in the place of the rescale."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    for dataset in datasets:
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [3, 0, 16], "HU"
        table.add_new((0x0028, 0x3006), "US", [1, 2, 3])
        dataset.ModalityLUTSequence = Sequence([table])
        del dataset.RescaleSlope, dataset.RescaleIntercept


def padded(*, declared: bool = True, limit: int | None = None) -> Callable[[], Datasets]:
    """Put padding around the field of view."""

    def change(datasets: Datasets) -> None:
        for dataset in datasets:
            stored = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, -1).copy()
            stored[:3] = -2000 if limit is None else np.arange(-2000, -2000 + 3)[:, None]
            dataset.PixelData = stored.tobytes()
            if declared:
                dataset.add_new((0x0028, 0x0120), "SS", -2000)
            if limit is not None:
                dataset.add_new((0x0028, 0x0121), "SS", limit)

    return changed(change)


def more(make: Callable[[Datasets], Datasets]) -> Callable[[], Datasets]:
    """Add data sets made from copies of a good series."""

    def change(datasets: Datasets) -> Datasets:
        return datasets + make(copy.deepcopy(datasets))

    return changed(change)


def like(dataset: Any, suffix: str, **elements: Any) -> Any:
    """Return an instance of its own, otherwise as it was."""
    uid = f"{dataset.SOPInstanceUID}.{suffix}"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def other_content(datasets: Datasets) -> Datasets:
    """Repeat an instance with other pixels."""
    other = like(datasets[5], "9")
    other.PixelData = bytes(len(other.PixelData))
    return [other]


def same_uid(datasets: Datasets) -> Datasets:
    """Have two slices share a UID."""
    datasets[5].PixelData = bytes(len(datasets[5].PixelData))
    return [datasets[5]]


def localizer(datasets: Datasets) -> Datasets:
    """Add a scout."""
    scout = phantom.phantom_series(slices=1, orientation=SAGITTAL, first_instance=99)[0]
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return [scout]


def other_series(datasets: Datasets) -> Datasets:
    """Add another series."""
    return phantom.phantom_series(uid="2", origin_lps_mm=(-40.0, -30.0, -300.0))


def second(**elements: Any) -> Callable[[Datasets], Datasets]:
    """The same places once more, as another time point or echo."""

    def make(datasets: Datasets) -> Datasets:
        for dataset in datasets:
            stored = np.frombuffer(dataset.PixelData, "<i2") + np.int16(100)
            dataset.PixelData = stored.tobytes()
            like(dataset, "2", **elements)
        return datasets

    return make


def times() -> Datasets:
    """Add a second time point."""
    datasets = phantom.phantom_series()
    later = second(TemporalPositionIdentifier="2")(copy.deepcopy(datasets))
    for dataset in datasets:
        dataset.TemporalPositionIdentifier = "1"
    return datasets + later


def one_place() -> Datasets:
    """Put all slices at one place."""
    datasets = phantom.phantom_series()
    for number, dataset in enumerate(datasets):
        dataset.ImagePositionPatient = datasets[0].ImagePositionPatient
        dataset.TriggerTime = str(40 * number)
    return datasets


def order(numbers: Callable[[int], int]) -> Callable[[], Datasets]:
    """Number the slices anew."""

    def change(datasets: Datasets) -> None:
        for number, dataset in enumerate(datasets):
            dataset.InstanceNumber = str(numbers(number))

    return changed(change)


def out_of_order(datasets: Datasets) -> Datasets:
    """Write the slices in no order."""
    return [datasets[i] for i in (7, 2, 11, 0, 5, 9, 1, 10, 4, 8, 3, 6)]


def flipped() -> Datasets:
    """Turn one slice round."""
    datasets = phantom.phantom_series()
    datasets[5].ImageOrientationPatient = ["-1", "0", "0", "0", "1", "0"]
    return datasets


def small(datasets: Datasets) -> None:
    """Give one slice half the rows."""
    datasets[5].Rows = phantom.ROWS // 2
    phantom.put_pixels(datasets[5], phantom.truth_of(datasets[5]))


def enhanced(*, shuffled: bool = False, place: bool = True) -> Callable[[], Datasets]:
    """Write one file with a frame a slice."""

    def make() -> Datasets:
        from pydicom.dataset import Dataset
        from pydicom.sequence import Sequence

        datasets = phantom.phantom_series()
        datasets = out_of_order(datasets) if shuffled else datasets
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


def said(datasets: Datasets, **elements: Any) -> Datasets:
    """Set elements in all data sets."""
    for dataset in datasets:
        for name, value in elements.items():
            setattr(dataset, name, value)
    return datasets


def emptied(datasets: Datasets, at: int) -> None:
    """Take the pixels of one slice away."""
    del datasets[at].PixelData
