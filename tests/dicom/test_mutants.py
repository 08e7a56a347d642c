"""Files with broken bytes: an image or the kit's own error, no crash and no hang."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from pathlib import Path

import pydicom
import pytest

from medkit.dicom import DicomError, read_image

ROOT = Path(pydicom.__file__).parent / "data"


def images() -> list[bytes]:
    """Return pydicom's bundled images, those with pixels that a reader would decode."""
    found = []
    for path in sorted(ROOT.rglob("*")):
        if not path.is_file() or path.stat().st_size > 400_000:
            continue
        data = path.read_bytes()
        if data[128:132] == b"DICM" and (b"\xe0\x7f\x10\x00" in data or path.suffix == ".dcm"):
            found.append(data)
    return found


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


def outcomes(count: int, seed: int, folder: Path) -> Counter[str]:
    originals, draw, path = images(), random.Random(seed), folder / "mutant.dcm"
    said: Counter[str] = Counter()
    named = 0
    for number in range(count):
        path.write_bytes(mutant(originals[number % len(originals)], draw))
        try:
            read_image(path)
            said["ok"] += 1
        except DicomError as error:  # anything else fails the test
            said[error.problem] += 1
            named += str(path) in str(error)
    assert named == count - said["ok"], "each refusal names its file"
    return said


@pytest.mark.parametrize(
    ("count", "seed"), [(800, 1), pytest.param(10_000, 2, marks=pytest.mark.slow)]
)
def test_a_mutant_is_read_or_refused(count: int, seed: int, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        said = outcomes(count, seed, tmp_path)
    assert said["ok"] > count / 50
    assert len(said) >= 6
    assert sum(said.values()) == count
