"""Stored pixels -> numbers that mean something: HU for CT."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.decoding import Decoder
from medkit.dicom.errors import DicomError
from medkit.dicom.frames import Frame
from medkit.dicom.header import DEFLATED, Header, parsing, read_dataset

__all__ = ["AIR_HU", "read_slices"]

AIR_HU = -1000.0
_NATIVE = {
    "1.2.840.10008.1.2": "<",
    "1.2.840.10008.1.2.1": "<",
    DEFLATED: "<",
    "1.2.840.10008.1.2.2": ">",
}


class Padding:
    """Counts the pixels that were never measured.

    Attributes:
        declared: Those that the header tells apart.
    """

    def __init__(self) -> None:
        self.declared = 0


def read_slices(frames: Sequence[Frame], out: NDArray[np.float32], *, air: float) -> Padding:
    """Read frames into ``out``, ``(D, H, W)``: stored value x slope + intercept.

    Pixels that the header calls padding become ``air`` before anything is done with them.

    Args:
        frames: D of one size.
        out: Where to, contiguous.
        air: What padding becomes, in the unit of the result.

    Raises:
        DicomError: For pixels that are not all there or cannot be decoded.
    """
    padding = Padding()
    buffer = np.empty(out.shape[1:], np.int16)  # stays in the cache
    into = memoryview(buffer.data).cast("B")
    later: list[int] = []
    for number, frame in enumerate(frames):
        if not _read_plain(frame, into):
            later.append(number)
            continue
        _scale(frame, buffer, out[number], air, padding)
    for number, stored in _unusual([(n, frames[n]) for n in later]):
        _scale(frames[number], stored, out[number], air, padding)
    return padding


def _read_plain(frame: Frame, into: memoryview) -> bool:
    """Read 16 signed bits a pixel; return False where they are something else."""
    header = frame.header
    values = header.values
    if (
        header.pixels is None
        or header.length != into.nbytes
        or values.get("BitsAllocated") != b"\x10\0"
        or values.get("PixelRepresentation") != b"\1\0"
        or values.get("BitsStored") != b"\x10\0"
        or values.get("HighBit") != b"\x0f\0"
    ):
        return False
    fd = os.open(header.path, os.O_RDONLY)
    try:
        got = os.preadv(fd, [into], header.pixels)
    finally:
        os.close(fd)
    if got != into.nbytes:
        raise _truncated(header, got, into.nbytes)
    return True


def _scale(
    frame: Frame, stored: NDArray[Any], out: NDArray[np.float32], air: float, padding: Padding
) -> None:
    """Write stored values into ``out`` as slope and intercept have it."""
    outside = _padded(frame.header, stored)
    if frame.slope == 1 and frame.intercept.is_integer() and stored.dtype.itemsize <= 2:
        np.add(stored, np.float32(frame.intercept), out=out, casting="unsafe")  # exact
    else:
        out[:] = stored * np.float64(frame.slope) + frame.intercept  # rounded once
    if outside is not None:
        out[outside] = air
        padding.declared += int(outside.sum())


def _padded(header: Header, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return which pixels are padding: a value or a range of them (PS3.3 C.7.5.1.1.2)."""
    raw = header.values.get("PixelPaddingValue")
    if not raw or len(raw) != 2:
        return None
    signed = stored.dtype.kind == "i"
    value = int.from_bytes(raw, "little", signed=signed)
    other = header.values.get("PixelPaddingRangeLimit", b"")
    limit = int.from_bytes(other, "little", signed=signed) if len(other) == 2 else value
    low, high = min(value, limit), max(value, limit)
    outside: NDArray[np.bool_] = (
        stored == low if low == high else (stored >= low) & (stored <= high)
    )
    return outside if outside.any() else None


def _unusual(
    wanted: list[tuple[int, Frame]],
) -> Iterable[tuple[int, NDArray[Any]]]:
    """Yield stored values of frames that are not plain, decoded in a process of its own."""
    compressed = [(n, f) for n, f in wanted if f.header.syntax not in _NATIVE]
    for number, frame in wanted:
        if frame.header.syntax in _NATIVE:
            yield number, _native(frame)
    if compressed:
        decoder = Decoder.here()
        for (number, frame), stored in zip(
            compressed, decoder.decode([f for _, f in compressed]), strict=True
        ):
            yield number, _stored(frame.header, stored)


def _native(frame: Frame) -> NDArray[Any]:
    """Read an uncompressed frame, whatever its bits and byte order."""
    header = frame.header
    bits = header.whole("BitsAllocated")
    if bits not in (8, 16, 32):
        raise header.bad("bits", f"BitsAllocated must be 8, 16 or 32, found {bits}")
    size = frame.rows * frame.columns * bits // 8
    start = frame.number * size
    if header.pixels is not None:
        if header.length < start + size:
            raise _truncated(header, header.length, start + size)
        fd = os.open(header.path, os.O_RDONLY)
        try:
            data = os.pread(fd, size, header.pixels + start)
        finally:
            os.close(fd)
    else:
        with parsing(header.path):
            dataset = read_dataset(header.path, pixels=True)
            element = dataset.get_item((0x7FE0, 0x0010)) if "PixelData" in dataset else None
            whole = getattr(element, "value", None)
        if not isinstance(whole, bytes):
            raise header.bad("no_pixels", "an image must have PixelData, and has none")
        data = whole[start : start + size]
    if len(data) != size:
        raise _truncated(header, len(data), size)
    kind = f"{_NATIVE[header.syntax]}u{bits // 8}"
    stored = np.frombuffer(data, kind).reshape(frame.rows, frame.columns)
    return _stored(header, stored)


def _stored(header: Header, raw: NDArray[Any]) -> NDArray[Any]:
    """Return the bits that are a pixel's value, with their sign; others may hold overlays."""
    bits = raw.dtype.itemsize * 8
    stored = header.whole("BitsStored") or bits
    high = header.whole("HighBit")
    high = stored - 1 if high is None else high
    sign = header.whole("PixelRepresentation")
    if sign not in (0, 1):
        raise header.bad("bits", f"PixelRepresentation must be 0 or 1, found {sign}")
    if not (1 <= stored <= bits and stored - 1 <= high < bits):
        raise header.bad("bits", f"{stored} bits up to bit {high} do not fit into {bits}")
    kind = np.dtype(f"{'i' if sign else 'u'}{bits // 8}")
    value = raw.astype(f"u{bits // 8}", copy=False).view(kind)
    if stored == bits:
        return value
    if high != bits - 1:
        value = value << (bits - 1 - high)
    return value >> (bits - stored)


def _truncated(header: Header, found: int, wanted: int) -> DicomError:
    return header.bad(
        "truncated", f"a frame must have {wanted:,} bytes of pixels, and {found:,} are there"
    )
