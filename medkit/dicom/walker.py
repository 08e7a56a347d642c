"""The header of a plain DICOM file, read without an object per element.

A parser that makes an object of each of a hundred elements takes three times as long as the pixels
of a slice. This one steps over what is not asked for. It knows files with preamble in little-endian
transfer syntaxes, compressed ones too, and returns None for anything else: that is pydicom's.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct, error
from typing import NamedTuple

__all__ = ["Span", "Walked", "walk"]

# DICOM PS3.5 annex A
_IMPLICIT_SYNTAX, _EXPLICIT_SYNTAX = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
_ENCAPSULATED = b"1.2.840.10008.1.2.4.", b"1.2.840.10008.1.2.5"  # JPEG of all kinds; run lengths
_LONG = frozenset(b"OB OW OF OD OL OV SQ UC UN UR UT SV UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_EXPLICIT, _LENGTH, _IMPLICIT = Struct("<I2sH"), Struct("<I"), Struct("<II")
# a tag is one number: its group in the lower half, as the bytes lie in the file
_PIXELS, _SYNTAX = 0x00107FE0, 0x00100002
_ITEM, _ITEM_END, _END = 0xE000FFFE, 0xE00DFFFE, 0xE0DDFFFE
_UNDEFINED = 0xFFFFFFFF
Span = tuple[int, int]


class Walked(NamedTuple):
    """What was found.

    Attributes:
        spans: Where the elements asked for have their values, by name.
        syntax: Transfer syntax UID.
        pixels: Where the pixel data begin in the file; None: there are none.
        length: Their bytes; -1: as many fragments as there are (PS3.5 A.4).
        steps: What the way through the file depended on: tags, kinds and lengths. A file with
            the same bytes there has the same elements at the same places.
    """

    spans: dict[str, Span]
    syntax: str
    pixels: int | None
    length: int
    steps: list[Span]


class _UnusualError(Exception):
    """Leave it to pydicom."""


def walk(data: bytes, wanted: Mapping[int, str], *, whole: bool) -> Walked | None:
    """Read the header at the beginning of a file.

    Args:
        data: The file's first bytes.
        wanted: Tag -> name; the tag as its four bytes in the file, read as one number.
        whole: Whether ``data`` are all there is.

    Returns:
        None for what is not plain.

    Raises:
        EOFError: Where more bytes are needed.
    """
    if len(data) < 132 or data[128:132] != b"DICM":
        return None
    try:
        return _walk(data, wanted, whole)
    except _UnusualError:
        return None
    except error:  # a number behind the last byte
        if whole:
            return None
        raise EOFError from None


def _walk(data: bytes, wanted: Mapping[int, str], whole: bool) -> Walked:
    spans: dict[str, Span] = {}
    steps, at, syntax = [(128, 132)], 132, b""
    while data[at : at + 2] == b"\x02\x00":  # file meta information: explicit in all syntaxes
        tag, size, start = _element(data, at, True)
        steps.append((at, start))
        at = start + size
        if tag == _SYNTAX:
            syntax = data[start:at].rstrip(b"\0 ")
            steps.append((start, at))
    fragments = syntax.startswith(_ENCAPSULATED)
    explicit = fragments or syntax == _EXPLICIT_SYNTAX
    if not explicit and syntax != _IMPLICIT_SYNTAX:
        raise _UnusualError
    end, group = len(data), 0
    while at < end or not whole:
        tag, size, start = _element(data, at, explicit)
        steps.append((at, start))
        if tag == _PIXELS:
            if fragments != (size == _UNDEFINED):
                raise _UnusualError
            return Walked(spans, syntax.decode("latin-1"), start, -1 if fragments else size, steps)
        if tag & 0xFFFF < group:  # elements ascend; these do not, so a length was wrong
            raise _UnusualError
        group = tag & 0xFFFF
        if size == _UNDEFINED:
            at = _behind_sequence(data, start, explicit, steps)
            if tag in wanted:
                spans[wanted[tag]] = start, start  # that it is there
            continue
        at = start + size
        if tag in wanted:
            if at > end:
                raise _UnusualError if whole else EOFError
            spans[wanted[tag]] = start, at
    if at != end:
        raise _UnusualError
    return Walked(spans, syntax.decode("latin-1"), None, 0, steps)


def _element(data: bytes, at: int, explicit: bool) -> tuple[int, int, int]:
    """Return tag, length of the value and where it begins."""
    if not explicit:
        tag, size = _IMPLICIT.unpack_from(data, at)
        return tag, size, at + 8
    tag, vr, size = _EXPLICIT.unpack_from(data, at)
    if vr in _SHORT:
        return tag, size, at + 8
    if vr not in _LONG:
        raise _UnusualError
    return tag, _LENGTH.unpack_from(data, at + 8)[0], at + 12


def _behind_sequence(data: bytes, at: int, explicit: bool, steps: list[Span]) -> int:
    """Return where a sequence of undefined length ends, whatever lies in it."""
    depth = 1  # items and sequences that are open
    while depth:
        tag, size = _IMPLICIT.unpack_from(data, at)
        if tag in (_ITEM, _ITEM_END, _END):
            start = at + 8
            if tag != _ITEM:
                depth, size = depth - 1, 0
        else:
            tag, size, start = _element(data, at, explicit)
        steps.append((at, start))
        if size == _UNDEFINED:
            depth, at = depth + 1, start
        else:
            at = start + size
    return at
