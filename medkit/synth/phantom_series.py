"""A DICOM series whose every voxel can be judged: its HU is a linear function of where it lies.

Whatever a reader does to order, orientation or spacing, a voxel that it puts at a place must have
the value of that place. One line checks the geometry of a whole volume.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.volume import Volume

__all__ = ["hu_at", "phantom_series", "worst_voxel", "write_series"]

SLICES, ROWS, COLUMNS = 12, 24, 20
SPACING_MM, STEP_MM = (0.8, 0.7), 2.5
ORIGIN_LPS = (-40.0, -30.0, -110.0)
# HU a millimetre, LPS: no two of a voxel's neighbours are alike, and none is off by less than 2
_GRADIENT, _AT_ZERO = np.array([9.0, -7.0, 5.0]), 100.0
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_ROOT = "1.2.826.0.1.3680043.10.1519"  # made up below a root for such things


def hu_at(lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the HU of places, ``(..., 3)`` LPS [mm]; about -800 to 1,200 in the phantom."""
    return lps_mm @ _GRADIENT + _AT_ZERO


def worst_voxel(volume: Volume, *, but: NDArray[np.bool_] | None = None) -> float:
    """Return by how much the worst voxel differs from the truth of its place [HU].

    Args:
        volume: Read from a phantom.
        but: Voxels that are not judged, such as padding, ``(H, W, D)``.
    """
    index = np.stack(np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij"), axis=-1)
    lps = volume.world_of(index) * [-1, -1, 1]
    off = np.abs(volume.array - hu_at(lps))
    return float(off.max() if but is None else off[~but].max())


def phantom_series(
    *,
    slices: int = SLICES,
    orientation: Sequence[float] = AXIAL,
    step_lps_mm: Sequence[float] | None = None,
    origin_lps_mm: Sequence[float] = ORIGIN_LPS,
    intercept: float = -1024.0,
    uid: str = "1",
    first_instance: int = 1,
) -> list[Any]:
    """Return a series as pydicom data sets, CT of 16 signed bits, for a test to break.

    Args:
        slices: How many.
        orientation: Direction cosines along a row, then a column, LPS.
        step_lps_mm: From slice to slice; None: ``STEP_MM`` along the normal.
        origin_lps_mm: Of the first voxel.
        intercept: Of the rescale.
        uid: Ends the SeriesInstanceUID.
        first_instance: Number of the first slice.
    """
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    step = np.cross(row, column) * STEP_MM if step_lps_mm is None else np.array(step_lps_mm)
    return [
        _slice(
            np.array(origin_lps_mm) + number * step, row, column, intercept, uid,
            first_instance + number,
        )
        for number in range(slices)
    ]  # fmt: skip


def _slice(
    place: NDArray[np.float64], row: NDArray[np.float64], column: NDArray[np.float64],
    intercept: float, uid: str, instance: int,
) -> Any:  # fmt: skip
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    dataset = Dataset()
    meta = FileMetaDataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.SOPInstanceUID = f"{_ROOT}.2.{uid}.{instance}"
    meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
    meta.ImplementationClassUID = UID(f"{_ROOT}.0")
    dataset.file_meta = meta
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyDate, dataset.StudyTime = "20200102", "101500"
    dataset.Modality, dataset.Manufacturer = "CT", "medkit phantom"
    dataset.SeriesDescription = "linear phantom"
    dataset.PatientName, dataset.PatientID = "PHANTOM^LINEAR", "PHANTOM-1"
    dataset.SliceThickness, dataset.KVP = f"{STEP_MM:g}", "120"
    dataset.ConvolutionKernel, dataset.PatientPosition = "NONE", "HFS"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{_ROOT}.3.1", f"{_ROOT}.4.{uid}"
    dataset.StudyID, dataset.SeriesNumber = "1", "1"
    dataset.InstanceNumber = str(instance)
    dataset.ImagePositionPatient = [f"{x:.4f}" for x in place]
    dataset.ImageOrientationPatient = [f"{x:.8f}" for x in (*row, *column)]
    dataset.FrameOfReferenceUID = f"{_ROOT}.5.1"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    dataset.PixelSpacing = [f"{x:g}" for x in SPACING_MM]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleIntercept, dataset.RescaleSlope = f"{intercept:g}", "1"
    dataset.RescaleType = "HU"
    put_pixels(dataset, truth_of(dataset))
    return dataset


def truth_of(dataset: Any) -> NDArray[np.float64]:
    """Return the HU of each pixel of a slice by its header, ``(H, W)``."""
    place = np.array([float(x) for x in dataset.ImagePositionPatient])
    axes = np.array([float(x) for x in dataset.ImageOrientationPatient])
    rows, columns = (float(x) for x in dataset.PixelSpacing)
    down = np.arange(dataset.Rows)[:, None, None] * rows * axes[3:]
    across = np.arange(dataset.Columns)[None, :, None] * columns * axes[:3]
    return hu_at(place + down + across)


def put_pixels(dataset: Any, hu: NDArray[np.float64]) -> None:
    """Store HU as slope, intercept and bits of the header have it."""
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    kind = f"<{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}"
    stored = np.round((hu - intercept) / slope)
    dataset.PixelData = stored.astype(kind).tobytes()
    dataset["PixelData"].VR = "OW"


def write_series(
    folder: str | os.PathLike[str],
    datasets: Iterable[Any],
    *,
    name: Callable[[int], str] = "slice_{:03d}.dcm".format,
) -> list[Path]:
    """Write data sets as files, in their order."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for number, dataset in enumerate(datasets):
        path = Path(folder) / name(number)
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
