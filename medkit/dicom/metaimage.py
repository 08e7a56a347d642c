"""MetaImage files (.mhd with its data file, .mha), as LUNA16 comes in."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.errors import DicomError
from medkit.dicom.volume import Volume

__all__ = ["read_metaimage"]

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_HEADER_BYTES = 1 << 16


def read_metaimage(path: str | Path) -> Volume:
    """Read a MetaImage volume; its values are taken as they are, in LUNA16 HU.

    Raises:
        DicomError: For a header that does not describe a volume, and data that are cut off.
    """
    path = Path(path)
    with path.open("rb") as handle:
        head = handle.read(_HEADER_BYTES)
    fields, behind = _fields(head, path)
    try:
        size = [int(n) for n in fields["DimSize"].split()]
        kind = np.dtype(_TYPES[fields["ElementType"]])
        spacing = np.array(fields.get("ElementSpacing", "1 1 1").split(), np.float64)
        origin = _numbers(fields, ("Offset", "Origin", "Position"), "0 0 0", 3)
        turn = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), _IDENTITY, 9)
    except (KeyError, ValueError) as error:
        raise _bad(path, f"its header cannot be understood ({error})") from error
    if (
        len(size) != 3 or min(size) < 1 or spacing.shape != (3,) or not (spacing > 0).all()
        or fields.get("ElementNumberOfChannels", "1") != "1"
    ):  # fmt: skip
        raise _bad(
            path, f"it must be one 3-D volume with spacing, found DimSize {size}, ElementSpacing "
            f"{spacing.tolist()}",
        )  # fmt: skip
    if _true(fields, "BinaryDataByteOrderMSB") or _true(fields, "ElementByteOrderMSB"):
        kind = kind.newbyteorder(">")
    data = _data(path, fields, behind, int(np.prod(size, dtype=object)) * kind.itemsize)
    # the first axis of the file runs fastest: (x, y, z) reversed is (z, y, x)
    array = np.frombuffer(data, kind).reshape(size[::-1]).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = turn.reshape(3, 3).T * spacing
    affine[:3, 3] = origin
    affine[:3] = _LPS_TO_RAS @ affine[:3]
    affine[:, [0, 1]] = affine[:, [1, 0]]  # rows (y) come first
    return Volume(array.transpose(1, 2, 0), affine, "", {"format": "MetaImage", "name": path.stem})


_IDENTITY = "1 0 0 0 1 0 0 0 1"


def _fields(head: bytes, path: Path) -> tuple[dict[str, str], int]:
    fields: dict[str, str] = {}
    at = 0
    while b"\n" in head[at:]:
        end = head.index(b"\n", at)
        name, equals, value = head[at:end].decode("latin-1").partition("=")
        at = end + 1
        if not equals:
            break
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":  # the last one; data may follow at once
            return fields, at
    raise _bad(path, "its header does not end in ElementDataFile")


def _numbers(
    fields: dict[str, str], names: tuple[str, ...], otherwise: str, count: int
) -> NDArray[np.float64]:
    text = next((fields[name] for name in names if name in fields), otherwise)
    found = np.array(text.split(), np.float64)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ValueError(f"{names[0]} = {text}")
    return found


def _true(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "False").lower() in ("true", "1")


def _data(path: Path, fields: dict[str, str], behind: int, size: int) -> bytes:
    """Return the voxels' bytes; a data file lies beside its header."""
    name = fields["ElementDataFile"]
    if name == "LOCAL":
        raw = path.read_bytes()[behind:]
    else:
        if Path(name).name != name:
            raise _bad(path, f"its data file must lie beside it, and is called {name!r}")
        beside = path.with_name(name)
        if not beside.is_file():
            raise _bad(path, f"its data file {name} is not there")
        raw = beside.read_bytes()[max(int(fields.get("HeaderSize", "0")), 0) :]
    if _true(fields, "CompressedData"):
        try:
            unpacked: Any = zlib.decompressobj().decompress(raw, size + 1)
        except zlib.error as error:
            raise _bad(path, f"its compressed data are broken ({error})") from error
        raw = unpacked
    if len(raw) != size:
        raise _bad(path, f"there must be {size:,} bytes of voxels, found {len(raw):,}")
    return raw


def _bad(path: Path, found: str) -> DicomError:
    return DicomError("broken_metaimage", f"{path}: {found}. Export or download it again.", path)
