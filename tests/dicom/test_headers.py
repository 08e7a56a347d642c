"""The two ways to read a header agree on every file, and layouts never guess."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from medkit.dicom import DicomError, header, layouts
from medkit.dicom.header import _by_pydicom, read_header
from medkit.dicom.walker import walk
from medkit.synth.broken_series import CASES

BUNDLED = sorted(
    path for path in (Path(pydicom.__file__).parent / "data").rglob("*") if path.is_file()
)


def walked(path: Path) -> header.Header | None:
    data = path.read_bytes()
    found = layouts.Layouts(header._WANTED).read(data, whole=True)
    return None if found is None else header._header(str(path), found)


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.name)
def test_a_bundled_file_says_the_same_by_walker_and_by_pydicom(path: Path) -> None:
    fast = walked(path)
    if fast is None:
        return  # left to pydicom
    if not {"SOPClassUID", "Rows"} & {*fast.values}:  # a DICOMDIR, or a data set alone
        with pytest.raises(DicomError, match="another object"):
            _by_pydicom(str(path))
        with pytest.raises(DicomError, match="another object"):
            read_header(path)
        return
    slow = _by_pydicom(str(path))
    assert fast.syntax == slow.syntax
    for name in {*fast.values, *slow.values}:
        assert fast.text(name) == slow.text(name), name


def test_most_bundled_files_take_the_fast_way() -> None:
    taken = sum(walked(path) is not None for path in BUNDLED)
    assert taken > len(BUNDLED) / 2


@pytest.mark.parametrize(
    "name",
    ["good", "implicit VR", "sequences of undefined length", "the same in implicit VR",
     "200 KB of private elements", "padding by a range"],
)  # fmt: skip
def test_a_made_file_takes_the_fast_way_and_says_the_same(name: str, tmp_path: Path) -> None:
    for path in CASES[name].write(tmp_path):
        fast, slow = walked(path), _by_pydicom(str(path))
        assert fast is not None
        assert {n: fast.text(n) for n in fast.values} == {n: slow.text(n) for n in slow.values}
        assert path.read_bytes()[fast.pixels :][: fast.length] == pydicom.dcmread(path).PixelData


def test_a_known_layout_is_taken_only_where_every_length_is_the_same(tmp_path: Path) -> None:
    paths = CASES["good"].write(tmp_path)
    known = layouts.Layouts(header._WANTED)
    first = paths[0].read_bytes()
    assert known.read(first, whole=True) is not None
    assert not known.known, "what is met once is not worth preparing for"
    assert known.read(first, whole=True) is not None
    assert known.known[0].read(first) is not None
    at = first.index(b"\x18\0\x60\0DS") + 6  # KVP says it is two bytes longer
    longer = bytearray(first)
    longer[at] += 2
    assert known.known[0].read(bytes(longer)) is None
    other_kind = bytearray(first)
    other_kind[at - 2 : at] = b"LO"
    assert known.known[0].read(bytes(other_kind)) is None
    sequence = bytearray(first)
    sequence[at - 6 : at - 2] = b"\x18\0\x61\0"
    assert known.known[0].read(bytes(sequence)) is None


def test_layouts_and_walk_agree_on_all_slices(tmp_path: Path) -> None:
    known = layouts.Layouts(header._WANTED)
    for path in CASES["oblique"].write(tmp_path):
        data = path.read_bytes()
        found, alone = known.read(data, whole=True), walk(data, header._WANTED, whole=True)
        assert found is not None
        assert alone is not None
        assert found.values == {n: data[a:b] for n, (a, b) in alone.spans.items()}
        assert (found.pixels, found.length) == (alone.pixels, alone.length)
    assert 0 < len(known.known) < 12


def test_a_long_header_is_read_on(tmp_path: Path) -> None:
    (path, *_) = CASES["200 KB of private elements"].write(tmp_path)
    found = read_header(path)
    assert found.pixels is not None
    assert found.pixels > 200_000


@pytest.mark.parametrize(
    ("text", "said"),
    [("1", 1.0), (" -1.5e1 ", -15.0), ("+2", 2.0), ("", None)],
)
def test_decimal_strings_are_read_as_the_standard_writes_them(
    text: str, said: float | None
) -> None:
    one = header.Header("a.dcm", {"KVP": text.encode()}, "", None, 0, True)
    assert one.number("KVP") == said


@pytest.mark.parametrize("text", ["1,5", "nan", "inf", "1\\2", "abc", "1e999"])
def test_a_number_that_is_none_is_refused_by_name(text: str) -> None:
    one = header.Header("a.dcm", {"KVP": text.encode()}, "", None, 0, True)
    with pytest.raises(DicomError, match="KVP must be 1 finite decimal"):
        one.number("KVP")
