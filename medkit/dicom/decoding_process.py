"""Decodes frames for :mod:`medkit.dicom.decoding`: what a file does, it does to this process."""

from __future__ import annotations

import json
import mmap
import resource
import socket
import sys
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_MEMORY = 8 << 30
_JPEG = {
    "1.2.840.10008.1.2.4.50": "jpeg8_decode",
    "1.2.840.10008.1.2.4.51": "jpeg8_decode",
    "1.2.840.10008.1.2.4.57": "ljpeg_decode",
    "1.2.840.10008.1.2.4.70": "ljpeg_decode",
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.81": "jpegls_decode",
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.201": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.202": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.203": "jpeg2k_decode",
}
RLE = "1.2.840.10008.1.2.5"
_ITEM = b"\xfe\xff\x00\xe0"


def main() -> None:
    """Serve until the other side is gone."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    shared = mmap.mmap(int(sys.argv[2]), 0)
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        while True:
            size = int.from_bytes(_exactly(channel, 8), "little")
            for one in json.loads(_exactly(channel, size)):
                channel.sendall(_put(shared, *one).encode() + b"\n")


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        more = channel.recv(size - len(parts))
        if not more:
            sys.exit(0)
        parts += more
    return bytes(parts)


def _put(
    shared: mmap.mmap, path: str, syntax: str, pixels: int | None, number: int, rows: int,
    columns: int, width: int, start: int,
) -> str:  # fmt: skip
    """Decode one frame into shared memory; return what went wrong, or nothing."""
    kind = np.dtype(f"u{width}")
    try:
        stored = np.asarray(_decoded(path, syntax, pixels, number, (rows, columns), kind))
        if stored.shape != (rows, columns):
            return f"its header says {rows} x {columns} pixels, the compressed frame {stored.shape}"
        if stored.dtype.itemsize > width:
            if stored.astype(f"i{width}").astype(stored.dtype).tobytes() != stored.tobytes():
                return f"its pixels need more than the {8 * width} bits that its header allows"
            stored = stored.astype(f"i{width}")
        elif stored.dtype.itemsize < width:
            stored = stored.astype(f"{stored.dtype.kind}{width}")
        out = np.frombuffer(shared, kind, rows * columns, start).reshape(rows, columns)
        out[:] = stored.view(kind)
        return ""
    except BaseException as error:  # a decoder written in Rust panics with one that is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _decoded(
    path: str, syntax: str, pixels: int | None, number: int, shape: tuple[int, int],
    kind: np.dtype[Any],
) -> NDArray[Any]:  # fmt: skip
    try:
        import imagecodecs
    except ImportError:
        return _by_pydicom(path, syntax, number)
    if syntax not in _JPEG and syntax != RLE:
        return _by_pydicom(path, syntax, number)
    data = _frame_bytes(path, pixels, number)
    if syntax == RLE:
        return np.frombuffer(imagecodecs.dicomrle_decode(data, kind), kind).reshape(shape)
    return getattr(imagecodecs, _JPEG[syntax])(data)


def _frame_bytes(path: str, pixels: int | None, number: int) -> bytes:
    """Return a frame's compressed bytes: the fragments behind the table of offsets."""
    if pixels is None or number:
        import pydicom
        from pydicom.encaps import get_frame

        dataset = pydicom.dcmread(path, force=True)
        frames = int(dataset.get("NumberOfFrames", 1) or 1)
        return get_frame(dataset.PixelData, number, number_of_frames=frames)
    with open(path, "rb") as handle:
        handle.seek(pixels)
        data = handle.read()
    at, parts = 0, []
    while data[at : at + 4] == _ITEM:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size > len(data):
            raise ValueError("a fragment of its pixels is cut off")
        parts.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    if len(parts) < 2:
        raise ValueError("it has no fragment of pixels")
    return parts[1] if len(parts) == 2 else b"".join(parts[1:])


def _by_pydicom(path: str, syntax: str, number: int) -> NDArray[Any]:
    import pydicom
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(syntax)
        plugins = [name for name in decoder.available_plugins if name != "gdcm"]  # it can abort
    except NotImplementedError:
        plugins = []
    if not plugins:
        raise ImportError(f"no decoder for {syntax} is installed")
    dataset = pydicom.dcmread(path, force=True)
    return decoder.as_array(dataset, index=number, raw=True, decoding_plugin=plugins[0])[0]


if __name__ == "__main__":
    main()
