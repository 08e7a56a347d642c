"""Files with broken bytes, made from good ones: a reader must read them or refuse them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

__all__ = ["bundled_images", "mutant", "mutants"]

_LARGEST = 400_000  # bytes of an original


def bundled_images() -> list[bytes]:
    """Return the images that come with pydicom, those with pixels that a reader would decode."""
    import pydicom

    found = []
    for path in sorted((Path(pydicom.__file__).parent / "data").rglob("*")):
        if not path.is_file() or path.stat().st_size > _LARGEST:
            continue
        data = path.read_bytes()
        if data[128:132] == b"DICM" and (b"\xe0\x7f\x10\x00" in data or path.suffix == ".dcm"):
            found.append(data)
    return found


def mutants(originals: list[bytes], count: int, *, seed: int) -> Iterator[bytes]:
    """Yield ``count`` broken copies, of each original in turn."""
    draw = random.Random(seed)
    for number in range(count):
        yield mutant(originals[number % len(originals)], draw)


def mutant(data: bytes, draw: random.Random) -> bytes:
    """Cut, flip, overwrite, drop or repeat bytes."""
    broken, size = bytearray(data), len(data)
    kind = draw.randrange(6)
    at = draw.randrange(size)
    to = min(size, at + draw.randrange(1, 2000))
    if kind == 0:
        return bytes(broken[:at])
    if kind == 1:
        for _ in range(draw.randrange(1, 20)):
            broken[draw.randrange(size)] ^= 1 << draw.randrange(8)
    elif kind == 2:
        broken[at : at + 4] = draw.randbytes(4)
    elif kind == 3:
        del broken[at:to]
    elif kind == 4:
        broken[at:at] = broken[at:to]
    else:  # where the lengths of elements are
        for _ in range(draw.randrange(1, 8)):
            broken[draw.randrange(min(size, 2000))] = draw.randrange(256)
    return bytes(broken)
