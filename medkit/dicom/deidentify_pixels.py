"""Pixels that may show a name, and bytes around them that may hold one."""

from __future__ import annotations

from typing import Any

from medkit.dicom.errors import DicomError

__all__ = ["strip_pixels", "why_risky"]

# Slices that a scanner computes: names are not burned into them.
_COMPUTED = {
    f"1.2.840.10008.5.1.4.1.1.{end}"
    for end in ("2", "2.1", "2.2", "4", "4.1", "4.4", "20", "128", "128.1", "130")
}
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MODALITIES = {"CT", "MR", "PT", "NM"}
_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f"
_BARE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_SHORT = {0xE0: 16, 0xE8: 34, 0xEE: 14}  # APP0, 8, 14: colour; longer ones hold more than that
_ITEM = b"\xfe\xff\x00\xe0"


def why_risky(dataset: Any) -> str:
    """Return why a person must look at an object before it leaves the house; "" for no reason.

    Raises:
        DicomError: For an image without pixels.
    """
    from pydicom.uid import UID

    kind = str(dataset.get("SOPClassUID", ""))
    if kind in _COMPUTED and not any(name in dataset for name in _PIXELS):
        raise DicomError("no_pixels", "an image must have pixels, and has none: is it cut off?")
    if kind not in _COMPUTED:
        return UID(kind).name if kind.startswith("1.2.840.10008.") else "private kind of object"
    if dataset.get("Modality") not in _MODALITIES:
        return "modality other than CT, MR, PT and NM"
    if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
        return "BurnedInAnnotation YES"
    image_type = [str(one).upper() for one in _several(dataset.get("ImageType"))]
    if "SECONDARY" in image_type:
        return "ImageType SECONDARY"
    if "ConversionType" in dataset:
        return "secondary capture"
    if int(dataset.get("SamplesPerPixel", 1) or 1) != 1:
        return "colour"
    for group in range(0x6000, 0x6020, 2):
        if (group, 0x0102) in dataset and dataset[group, 0x0102].value:
            return "overlay in the pixels"
    return ""


def strip_pixels(dataset: Any, syntax: Any) -> None:
    """Cut what follows the last pixel, and blank comments in compressed frames; in place.

    Raises:
        DicomError: For pixels that are cut off.
        ValueError: For frames whose comments can't be told from their pixels.
    """
    if syntax.is_encapsulated:
        if "PixelData" in dataset:
            dataset.PixelData = _without_comments(dataset.PixelData)
        return
    for name in _PIXELS:
        if name not in dataset or "422" in str(dataset.get("PhotometricInterpretation", "")):
            continue
        values = 1
        for count in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"):
            values *= int(dataset.get(count, 1) or 1)
        size = (values * int(dataset.BitsAllocated) + 7) // 8
        data = dataset[name].value
        if len(data) < size:
            raise DicomError("truncated", f"pixels must be {size} bytes, found {len(data)}")
        if len(data) > size:
            dataset[name].value = data[:size] + b"\0" * (size % 2)


def _several(value: Any) -> list[Any]:
    return list(value) if hasattr(value, "append") else [value]


def _without_comments(data: bytes) -> bytes:
    """Blank comments and the like in each fragment; none moves, so offsets stay right."""
    blanked = bytearray(data)
    at = 0
    while data[at : at + 4] == _ITEM:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        start, end = at + 8, at + 8 + size
        if end > len(data):
            raise ValueError("a fragment of its pixels is cut off")
        if data[start : start + 2] in (_JPEG, _JPEG_2000):
            _blank(blanked, start, end)
        at = end
    return bytes(blanked[:at])


def _blank(data: bytearray, start: int, end: int) -> None:
    """Blank what is no picture in one JPEG or JPEG 2000 stream."""
    old = data[start : start + 2] == _JPEG
    at = start + 2
    while at + 4 <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
        elif marker in _BARE:
            at += 2
        elif marker in (0xDA, 0x90):  # scan, tile: the picture itself begins
            break
        else:
            size = int.from_bytes(data[at + 2 : at + 4], "big")
            behind = at + 2 + size
            if behind > end or size < 2:
                raise ValueError("a segment of a compressed frame runs out of its fragment")
            of_others = old and 0xE0 <= marker <= 0xEF and size > _SHORT.get(marker, 0)
            if of_others or marker == (0xFE if old else 0x64):
                first = min(at + (4 if old else 6), behind)
                data[first:behind] = bytes(behind - first)
            at = behind
    find = data.find if old else data.rfind  # only JPEG has it nowhere but at the end
    last = find(b"\xff\xd9", at, end)
    if last >= 0:
        data[last + 2 : end] = bytes(end - last - 2)
