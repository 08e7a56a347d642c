"""What one DICOM file says of itself, without its pixels."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from medkit.dicom.errors import DicomError
from medkit.dicom.layouts import Found, Layouts

__all__ = ["Header", "read_header"]

# What is kept of a header: name -> group and element (DICOM PS3.6).
TAGS: dict[str, tuple[int, int]] = {
    "ImageType": (0x0008, 0x0008),
    "SOPClassUID": (0x0008, 0x0016),
    "SOPInstanceUID": (0x0008, 0x0018),
    "AcquisitionTime": (0x0008, 0x0032),
    "Modality": (0x0008, 0x0060),
    "Manufacturer": (0x0008, 0x0070),
    "ManufacturerModelName": (0x0008, 0x1090),
    "SeriesDescription": (0x0008, 0x103E),
    "PatientID": (0x0010, 0x0020),
    "SliceThickness": (0x0018, 0x0050),
    "KVP": (0x0018, 0x0060),
    "EchoTime": (0x0018, 0x0081),
    "SpacingBetweenSlices": (0x0018, 0x0088),
    "TriggerTime": (0x0018, 0x1060),
    "GantryDetectorTilt": (0x0018, 0x1120),
    "ConvolutionKernel": (0x0018, 0x1210),
    "PatientPosition": (0x0018, 0x5100),
    "DiffusionBValue": (0x0018, 0x9087),
    "StudyInstanceUID": (0x0020, 0x000D),
    "SeriesInstanceUID": (0x0020, 0x000E),
    "SeriesNumber": (0x0020, 0x0011),
    "AcquisitionNumber": (0x0020, 0x0012),
    "InstanceNumber": (0x0020, 0x0013),
    "ImagePositionPatient": (0x0020, 0x0032),
    "ImageOrientationPatient": (0x0020, 0x0037),
    "FrameOfReferenceUID": (0x0020, 0x0052),
    "TemporalPositionIdentifier": (0x0020, 0x0100),
    "ImagesInAcquisition": (0x0020, 0x1002),
    "SamplesPerPixel": (0x0028, 0x0002),
    "PhotometricInterpretation": (0x0028, 0x0004),
    "NumberOfFrames": (0x0028, 0x0008),
    "Rows": (0x0028, 0x0010),
    "Columns": (0x0028, 0x0011),
    "PixelSpacing": (0x0028, 0x0030),
    "BitsAllocated": (0x0028, 0x0100),
    "BitsStored": (0x0028, 0x0101),
    "HighBit": (0x0028, 0x0102),
    "PixelRepresentation": (0x0028, 0x0103),
    "PixelPaddingValue": (0x0028, 0x0120),
    "PixelPaddingRangeLimit": (0x0028, 0x0121),
    "RescaleIntercept": (0x0028, 0x1052),
    "RescaleSlope": (0x0028, 0x1053),
    "RescaleType": (0x0028, 0x1054),
    "ModalityLUTSequence": (0x0028, 0x3000),  # whether it is there
    "Units": (0x0054, 0x1001),
}
_WANTED = {element << 16 | group: name for name, (group, element) in TAGS.items()}
_LAYOUTS = Layouts(_WANTED)
_WHOLE = {  # binary numbers of two bytes; a big-endian file turns them round
    *("SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
}
FIRST_BYTES = 1 << 13
_MOST_BYTES = 1 << 26  # of a header
DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(slots=True)
class Header:
    """Elements of one file, as bytes until they are asked for.

    Attributes:
        path: Of the file.
        values: Raw little-endian bytes by name; those of ``TAGS`` that the file has.
        syntax: Transfer syntax UID.
        pixels: Where pixel data begin, if they can be read from there.
        length: Bytes of these; -1: fragments of compressed frames.
        has_pixels: Whether the file has pixel data, as far as its header says.
        notes: What was unusual and is forgiven.
    """

    path: str
    values: dict[str, bytes]
    syntax: str
    pixels: int | None
    length: int
    has_pixels: bool
    notes: tuple[str, ...] = ()

    def text(self, name: str) -> str:
        """Return an element as text; "" where it is missing."""
        return self.values.get(name, b"").decode("latin-1").strip(" \0")

    def whole(self, name: str) -> int | None:
        """Return a binary number of two bytes; None where it is missing.

        Raises:
            DicomError: For another length.
        """
        raw = self.values.get(name)
        if not raw:
            return None
        if len(raw) != 2:
            raise self.bad("bad_number", f"{name} must be one number of two bytes, found {raw!r}")
        return int.from_bytes(raw, "little")

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """Return an element's decimal numbers; None where it is missing or empty.

        Raises:
            DicomError: For another count, and for what is no finite number.
        """
        raw = self.values.get(name)
        found = decimals(raw) if raw else ()
        if not found:
            return None
        if len(found) != count or not all(map(math.isfinite, found)):
            raise self.bad(
                "bad_number",
                f"{name} must be {count} finite decimal number(s), found {self.text(name)!r}",
            )
        return found

    def number(self, name: str) -> float | None:
        """Return a decimal number; None where it is missing or empty."""
        found = self.numbers(name, 1)
        return None if found is None else found[0]

    def bad(self, problem: str, found: str, remedy: str = "") -> DicomError:
        """Return the error for this file."""
        remedy = remedy or "Export it again from the archive, or leave it out."
        return DicomError(problem, f"{self.path}: {found}. {remedy}", self.path)


@lru_cache(maxsize=1024)  # slices of a series say the same again and again
def decimals(raw: bytes) -> tuple[float, ...]:
    """Return the numbers of a decimal string; NaN for what is none."""
    text = raw.decode("latin-1").strip(" \0")
    try:
        return tuple(float(part) for part in text.split("\\")) if text else ()
    except ValueError:
        return (math.nan,)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read what one file says of itself.

    Raises:
        DicomError: For what is no DICOM file, or a broken one.
        OSError: Where it cannot be read.
    """
    path = os.fspath(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        return header_of(path, fd)
    finally:
        os.close(fd)


def header_of(path: str, fd: int) -> Header:
    """Read the header of an open file."""
    size = FIRST_BYTES
    while True:
        data = os.pread(fd, size, 0)
        try:
            found = _LAYOUTS.read(data, whole=len(data) < size)
            break
        except EOFError:
            if size >= _MOST_BYTES:
                found = None
                break
            size *= 8
    if found is not None and not ("SOPClassUID" in found.values or "Rows" in found.values):
        raise _no_object(path)  # a DICOMDIR, say
    return _by_pydicom(path) if found is None else _header(path, found)


def _header(path: str, found: Found) -> Header:
    return Header(
        path, found.values, found.syntax, found.pixels, found.length, found.pixels is not None
    )


def _by_pydicom(path: str) -> Header:
    """Read the header of a file that is not plain."""
    with parsing(path):
        return _taken(path, read_dataset(path, pixels=False))


def _taken(path: str, dataset: Any) -> Header:
    notes = []
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", "") or "")
    if not getattr(dataset, "preamble", None):
        notes.append("no preamble: read as a bare data set")
    if not syntax:
        implicit, little = dataset.original_encoding
        syntax = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
        syntax = syntax if little else "1.2.840.10008.1.2.2"
        notes.append("no transfer syntax: taken from the encoding")
    values = {}
    for name, tag in TAGS.items():
        if tag not in dataset:
            continue
        element = dataset.get_item(tag)
        value = getattr(element, "value", None)
        if not isinstance(value, bytes):
            value = _encoded(name, value)
        elif name in _WHOLE and not getattr(element, "is_little_endian", True):
            value = value[::-1]
        values[name] = value
    return Header(path, values, syntax, None, 0, "Rows" in values, tuple(notes))


def read_dataset(path: str, *, pixels: bool) -> Any:
    """Read a data set with pydicom; every way it fails becomes one error.

    Raises:
        DicomError: For what cannot be read as DICOM.
        OSError: Where the file cannot be read.
    """
    import pydicom

    with parsing(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values are judged where they are used
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
        if "SOPClassUID" not in dataset and "Rows" not in dataset:
            raise _no_object(path)
        return dataset


def _no_object(path: str) -> DicomError:
    return DicomError(
        "not_dicom", f"{path} must hold a DICOM image or another object, and does not. Leave it "
        "out.", path,
    )  # fmt: skip


@contextmanager
def parsing(path: str) -> Iterator[None]:
    """Turn every way in which pydicom fails into one error; it also converts values when asked."""
    try:
        yield
    except (DicomError, FileNotFoundError, PermissionError, IsADirectoryError, MemoryError):
        raise
    except Exception as error:  # eight kinds were seen with broken files, and a parser has more
        raise DicomError(
            "broken_header",
            f"{path} must be a DICOM file that can be parsed, and is broken "
            f"({type(error).__name__}: {error}). Export it again, or leave it out.",
            path,
        ) from error


def _encoded(name: str, value: Any) -> bytes:
    """Return a value that pydicom has converted as its bytes in a file."""
    if value is None or name.endswith("Sequence"):
        return b""
    several = (
        list(value) if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
    )
    if name in _WHOLE:
        return b"".join(int(one).to_bytes(2, "little", signed=int(one) < 0) for one in several)
    return "\\".join(str(one) for one in several).encode("latin-1", "replace")
