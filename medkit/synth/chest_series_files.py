"""Slices of a made-up chest as DICOM files, as each hospital's archive would have them.

A: explicit VR, 12 unsigned bits. B: run-length encoded, signed, stored -2000 outside of the circle
that is reconstructed, so -3024 HU after the rescale. C: implicit VR, signed, values are HU. Makers
and models are invented.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAKERS", "PADDED_HU", "ROOT", "Files", "Maker", "write_slices"]

ROOT = "1.2.826.0.1.3680043.10.1519"  # made up below a root for such things
_EXPLICIT, _IMPLICIT, _RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.5"
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_PADDING = -2000  # as stored
PADDED_HU = _PADDING - 1024


@dataclass(frozen=True)
class Maker:
    """How one hospital's scanner writes its files.

    Attributes:
        vendor: Invented.
        model: Invented.
        kernel: Its name for the reconstruction kernel.
        kvp: Peak voltage of the tube.
        syntax: Transfer syntax UID.
        bits: Of a stored value.
        signed: Whether it has a sign.
        intercept: HU of a stored 0.
        padded: Whether pixels outside of the reconstructed circle are marked.
        from_head: Whether instance 1 is nearest to the head.
    """

    vendor: str
    model: str
    kernel: str
    kvp: int
    syntax: str
    bits: int
    signed: bool
    intercept: int
    padded: bool
    from_head: bool


MAKERS: Mapping[str, Maker] = {
    "A": Maker("NORVANE", "Halo 64", "Br36s", 120, _EXPLICIT, 12, False, -1024, False, True),
    "B": Maker("Kestrel Imaging", "Arc VX", "LUNGSHARP", 120, _RLE, 16, True, -1024, True, False),
    "C": Maker("OTOMI", "Rondo 32", "FK51", 100, _IMPLICIT, 16, True, 0, False, True),
}


@dataclass(frozen=True)
class Files:
    """What the headers of one series say.

    Attributes:
        maker: Of the scanner.
        uid: SeriesInstanceUID; the other UIDs end like it.
        patient_id: A pseudonym.
        exam: Name of the exam; the StudyID.
        protocol: Name of the protocol.
        spacing_mm: Of rows, columns and slices.
        origin_mm: Of the first voxel, LPS.
    """

    maker: Maker
    uid: str
    patient_id: str
    exam: str
    protocol: str
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]


def write_slices(folder: Path, slices_hu: NDArray[np.int16], files: Files) -> None:
    """Write slices ``(D, H, W)``, the lowest first, as one file each."""
    for number, hu in enumerate(slices_hu):
        instance = len(slices_hu) - number if files.maker.from_head else number + 1
        dataset = _header(files, number, instance, hu.shape)
        _put_pixels(dataset, hu, files.maker)
        dataset.save_as(folder / f"IM{instance:04d}.dcm", enforce_file_format=True)


def _header(files: Files, number: int, instance: int, shape: tuple[int, ...]) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    maker, end = files.maker, files.uid.rsplit(".", 1)[1]
    day = int(hashlib.sha256(end.encode()).hexdigest()[:6], 16)
    date, time = f"202{day % 4}{1 + day % 12:02d}{1 + day % 28:02d}", f"{8 + day % 9:02d}1500"
    x, y, z = files.origin_mm
    z += number * files.spacing_mm[2]
    dataset, meta = Dataset(), FileMetaDataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID, dataset.SyntheticData = _CT_IMAGE, "YES"
    dataset.SOPInstanceUID = f"{ROOT}.7.{end}.{instance}"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = date
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = time
    dataset.AccessionNumber, dataset.Modality = "", "CT"
    dataset.Manufacturer, dataset.ManufacturerModelName = maker.vendor, maker.model
    dataset.InstitutionName, dataset.ReferringPhysicianName = f"Hospital {files.exam[0]}", ""
    dataset.StudyDescription = "made-up chest, not from any patient"
    dataset.SeriesDescription = f"chest {files.protocol} {files.spacing_mm[2]:g} {maker.kernel}"
    dataset.PatientName = dataset.PatientID = files.patient_id
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.BodyPartExamined = "CHEST"
    dataset.SliceThickness = dataset.SpacingBetweenSlices = f"{files.spacing_mm[2]:g}"
    dataset.KVP, dataset.ProtocolName = str(maker.kvp), f"chest {files.protocol}"
    dataset.GantryDetectorTilt, dataset.ConvolutionKernel = "0", maker.kernel
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT}.8.{end}", files.uid
    dataset.StudyID, dataset.SeriesNumber, dataset.AcquisitionNumber = files.exam, "1", "1"
    dataset.InstanceNumber = str(instance)
    dataset.ImagePositionPatient = [repr(one) for one in (x, y, z)]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.FrameOfReferenceUID = f"{ROOT}.9.{end}"
    dataset.PositionReferenceIndicator, dataset.SliceLocation = "", repr(z)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = shape
    dataset.PixelSpacing = [repr(one) for one in files.spacing_mm[:2]]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, maker.bits, maker.bits - 1
    dataset.PixelRepresentation = int(maker.signed)
    dataset.WindowCenter, dataset.WindowWidth = "-600", "1500"
    dataset.RescaleIntercept, dataset.RescaleSlope = str(maker.intercept), "1"
    dataset.RescaleType = "HU"
    if maker.padded:
        dataset.add_new((0x0028, 0x0120), "SS", _PADDING)
    meta.MediaStorageSOPClassUID = UID(_CT_IMAGE)
    meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    meta.TransferSyntaxUID = UID(maker.syntax)
    meta.ImplementationClassUID = UID(f"{ROOT}.0")
    meta.ImplementationVersionName = "MEDKIT_SYNTH"
    dataset.file_meta = meta
    return dataset


def _put_pixels(dataset: Any, hu: NDArray[np.int16], maker: Maker) -> None:
    """Store HU as the maker does."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.encoders.base import get_encoder

    stored = hu.astype(np.int32) - maker.intercept
    data = stored.astype("<i2" if maker.signed else "<u2").tobytes()
    if maker.syntax == _RLE:  # by one encoder, so that the bytes are the same everywhere
        frame = get_encoder(_RLE).encode(
            data, encoding_plugin="pydicom", rows=hu.shape[0], columns=hu.shape[1],
            samples_per_pixel=1, bits_allocated=16, bits_stored=maker.bits, number_of_frames=1,
            pixel_representation=int(maker.signed), photometric_interpretation="MONOCHROME2",
        )  # fmt: skip
        data = encapsulate([frame])
    dataset.PixelData = data
    dataset["PixelData"].VR = "OB" if maker.syntax == _RLE else "OW"
    dataset["PixelData"].is_undefined_length = maker.syntax == _RLE
