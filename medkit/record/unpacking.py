"""What is inside a file that is packed: archives, checkpoints, tables, pictures, base64."""

from __future__ import annotations

import binascii
import bz2
import io
import lzma
import re
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

__all__ = ["Part", "decoded", "unpacked"]

Part = tuple[str, bytes | None]  # where it lies, and its bytes; None: it could not be opened
MOST_BYTES = 1 << 31  # of one part, unpacked
_CLOSED = {b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\x89HDF": "HDF5, where it is compressed"}
_LINE = rb"[A-Za-z0-9+/]{60,}+(?:\\n|\r?\n)"  # of base64 that is broken into lines
_BASE64 = re.compile(rb"(?:" + _LINE + rb")+[A-Za-z0-9+/]*|[A-Za-z0-9+/_-]{8,}+")
_LONG = 64  # bytes from which something may be packed in base64
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def unpacked(data: bytes) -> Iterator[Part]:
    """Yield what is packed in these bytes, one level of it; nothing for plain ones."""
    head = data[:8]
    try:
        if head[:4] in _CLOSED:
            yield _CLOSED[head[:4]], None
        elif head[:4] in (b"PK\x03\x04", b"PK\x05\x06") or (
            b"PK\x05\x06" in data[-(1 << 16) :] and _is_zip(data)
        ):
            yield from _zip(data)
        elif head[:2] == b"\x1f\x8b":
            yield "gzip", _inflated(data, 31)
        elif head[:3] == b"BZh":
            yield "bzip2", bz2.decompress(data)
        elif head[:6] == b"\xfd7zXZ\0":
            yield "xz", lzma.decompress(data)
        elif head[:4] == b"\x28\xb5\x2f\xfd":
            yield "zstd", _zstd(data)
        elif data[257:262] == b"ustar":
            yield from _tar(data)
        elif head == b"\x89PNG\r\n\x1a\n":
            yield from _png(data)
        elif head[:4] == b"%PDF":
            yield from _pdf(data)
        elif head[:4] in (b"PAR1", b"PARE") or head[:6] == b"ARROW1":
            yield from _table(data)
        elif head[:7] == b"SQLite ":
            yield "sqlite", _sqlite(data)
        elif data[128:132] == b"DICM" and _DEFLATED in data[:1024]:
            start = 144 + int.from_bytes(data[140:144], "little")
            yield "deflated DICOM", _inflated(data[start:], -15)
        elif head[:1] == b"\x78" and int.from_bytes(head[:2], "big") % 31 == 0:
            yield from _zlib(data)
    except Exception as error:  # a broken file of any of these kinds, each with errors of its own
        yield f"broken, or not what it seems ({type(error).__name__})", None


def decoded(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return what base64 there is: all of it in one, and each that may hold something packed."""
    pieces, long = [], []
    for match in _BASE64.finditer(data):
        text = match[0].translate(_URL_SAFE)
        if b"\n" in text or b"\\" in text:
            text = re.sub(rb"\\n|\r?\n", b"", text)
        piece = binascii.a2b_base64(text[: len(text) // 4 * 4] + _rest(text))
        pieces.append(piece)
        if len(piece) >= _LONG:
            long.append(piece)
    return b"\xff\xff".join(pieces), long


def _rest(text: bytes) -> bytes:
    """Return the end of a base64 text, padded; one letter alone is nothing."""
    size = len(text) % 4
    return text[-size:] + b"=" * (4 - size) if size > 1 else b""


def _inflated(data: bytes, window: int) -> bytes | None:
    """Return inflated bytes, of several streams behind each other too."""
    found = b""
    while data:
        stream = zlib.decompressobj(window)
        found += stream.decompress(data, MOST_BYTES)
        if stream.unconsumed_tail or not stream.eof:
            return None
        data = stream.unused_data.lstrip(b"\0")
        if window < 0:
            break
    return found


def _zlib(data: bytes) -> Iterator[Part]:
    try:
        yield "zlib", zlib.decompressobj().decompress(data, MOST_BYTES)
    except zlib.error:
        return  # a text that begins with an x


def _is_zip(data: bytes) -> bool:
    return zipfile.is_zipfile(io.BytesIO(data))


def _zip(data: bytes) -> Iterator[Part]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            too_large = member.file_size > MOST_BYTES
            if too_large or member.flag_bits & 1:
                yield f"{member.filename}, encrypted or too large", None
            else:
                yield member.filename, archive.read(member)


def _tar(data: bytes) -> Iterator[Part]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            handle = archive.extractfile(member) if member.isfile() else None
            if handle is not None:
                yield member.name, handle.read()


def _zstd(data: bytes) -> bytes:
    import pyarrow as pa

    return bytes(pa.CompressedInputStream(pa.BufferReader(data), "zstd").read())


def _png(data: bytes) -> Iterator[Part]:
    at = 8
    while at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        chunk = data[at + 8 : at + 8 + size]
        start = {b"zTXt": 2, b"iCCP": 2, b"iTXt": 3}.get(kind)
        if start == 3 and chunk.partition(b"\0")[2][:1] == b"\1":  # keyword, flags, two languages
            chunk = chunk.partition(b"\0")[2][2:].split(b"\0", 2)[2]
            yield "PNG text", _inflated(chunk, 15)
        elif start == 2:
            yield "PNG text", _inflated(chunk.partition(b"\0")[2][1:], 15)
        at += 12 + size


def _pdf(data: bytes) -> Iterator[Part]:
    found = []
    for match in re.finditer(rb"stream\r?\n", data):
        stream = zlib.decompressobj()
        try:
            found.append(stream.decompress(data[match.end() :], MOST_BYTES))
        except zlib.error:
            continue  # not deflated: in the raw bytes already
    if found:
        yield "PDF streams", b"\n".join(found)


def _table(data: bytes) -> Iterator[Part]:
    import pyarrow as pa
    from pyarrow import feather
    from pyarrow import parquet as pq

    source = pa.BufferReader(data)
    table = feather.read_table(source) if data[:6] == b"ARROW1" else pq.read_table(source)
    for name, column in zip(table.column_names, table.columns, strict=True):
        yield f"column {name}", "\n".join(map(_said, column.to_pylist())).encode()


def _said(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _sqlite(data: bytes) -> bytes:
    with sqlite3.connect(":memory:") as base:
        base.deserialize(data)
        return "\n".join(base.iterdump()).encode("utf-8", "surrogateescape")
