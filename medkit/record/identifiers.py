"""Names, ids and dates as somebody may have written them, found in any bytes."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import permutations
from pathlib import Path

__all__ = ["Identifier", "blotted", "counts", "read_identifiers"]

_MIN_CHARACTERS = 4
_MOST_ORDERED = 4  # words of a name that are tried in each order
_STEP, _OVERLAP = 1 << 20, 1 << 10  # of bytes looked at a time
# What stands between two words: "DOE^JANE", "Doe, Jane", "doe_jane", "DOE%5EJANE", "Doe\\nJane"
_GAP = rb"(?:[^a-z0-9\x80-\xff]|%[0-9a-f]{2}|\\u00[0-9a-f]{2}|\\[ntr]|&#?\w{1,6};){0,4}"
_BETWEEN = rb"[-./_ \\]{1,2}"  # parts of a date
_NEAR = rb"[-./_ ,']{0,2}"
_MONTHS = [
    *("jan(?:uary)?", "feb(?:ruary)?", "mar(?:ch)?", "apr(?:il)?", "may", "june?", "july?"),
    *("aug(?:ust)?", "sep(?:t|tember)?", "oct(?:ober)?", "nov(?:ember)?", "dec(?:ember)?"),
]


@dataclass(frozen=True)
class Identifier:
    """One line of the list of what must not be found.

    Attributes:
        line: Its number in the list.
        text: As it was written there; never shown in whole.
    """

    line: int
    text: str

    def __str__(self) -> str:
        return f"identifier of line {self.line} ({self.text[0]}..., {len(self.text)} characters)"

    @cached_property
    def pattern(self) -> re.Pattern[bytes]:
        """All the ways to write it."""
        ways = [way for day in _dates(self.text) for way in _ways_of_date(day)]
        if not ways or self.text.isdigit():  # a number may be a date and an id
            ways += _ways_of_words(_words(self.text))
        return re.compile(b"|".join(ways), re.IGNORECASE)

    @cached_property
    def anchors(self) -> tuple[bytes, ...]:
        """What the bytes have, in lower case, wherever the pattern fits: found much faster."""
        runs = re.findall(r"[a-z0-9]+", " ".join(_words(self.text)).lower())
        longest = max(runs, key=len, default="").encode()
        years = {f"{day.year:04d}".encode() for day in _dates(self.text)}
        return tuple({longest, *years})

    def count(self, text: bytes, lowered: bytes, until: int) -> int:
        """Return how often it begins in the first ``until`` bytes."""
        found = 0
        for start, end in _around(self.anchors, lowered, 64 + 16 * len(self.text)):
            found += sum(match.start() < until for match in self.pattern.finditer(text, start, end))
        return found


def read_identifiers(path: str | os.PathLike[str]) -> list[Identifier]:
    """Read a list, one name, id or date a line.

    Raises:
        ValueError: For an empty list, and for a line with less than 4 letters and digits.
    """
    raw = Path(path).read_bytes()
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        lines = raw.decode("latin-1").splitlines()
    found = [Identifier(n, line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{path} must list identifiers, one a line, and is empty. Fill it.")
    for one in found:
        size = sum(map(len, _words(one.text)))
        if size < _MIN_CHARACTERS:
            raise ValueError(
                f"line {one.line} of {path} must have at least {_MIN_CHARACTERS} letters or "
                f"digits, found {size}: less is in any file by chance. Write the whole name."
            )
    return found


def counts(
    data: bytes, identifiers: Sequence[Identifier]
) -> Iterator[tuple[Identifier, bool, int]]:
    """Yield each identifier found, whether two or four bytes a letter, and how often."""
    found: dict[tuple[Identifier, bool], int] = {}
    for start in range(0, len(data), _STEP):
        part = data[start : start + _STEP + _OVERLAP]
        for one, wide, count in _in_part(part, len(part[:_STEP]), identifiers):
            found[one, wide] = found.get((one, wide), 0) + count
    for (one, wide), count in found.items():
        yield one, wide, count


def blotted(text: str, identifiers: Sequence[Identifier]) -> str:
    """Return a text, such as a path, that says none of them."""
    data = text.encode("utf-8", "surrogateescape")
    for one in identifiers:
        data = one.pattern.sub(f"[line {one.line}]".encode(), data)
    return data.decode("utf-8", "replace")


def _in_part(
    part: bytes, end: int, identifiers: Sequence[Identifier]
) -> Iterator[tuple[Identifier, bool, int]]:
    forms = [(False, part, part.lower(), end)]
    if b"\0" in part:
        narrow = _narrow(part)
        forms.append((True, narrow, narrow.lower(), len(_narrow(part[:end]))))
    for one in identifiers:
        plain = 0
        for wide, text, lowered, until in forms:
            count = one.count(text, lowered, until)
            if wide:
                count -= plain  # those are in the narrowed text too
            plain = count
            if count > 0:
                yield one, wide, count


def _around(anchors: Iterable[bytes], lowered: bytes, reach: int) -> list[tuple[int, int]]:
    """Return where to look: so far around each anchor, what overlaps as one."""
    hits = []
    for anchor in anchors:
        at = lowered.find(anchor)
        while at >= 0:
            hits.append(at)
            at = lowered.find(anchor, at + max(1, len(anchor)))
    spans: list[tuple[int, int]] = []
    for at in sorted(hits):
        start, end = max(0, at - reach), at + reach
        if spans and start <= spans[-1][1]:
            start, _ = spans.pop()
        spans.append((start, end))
    return spans


def _narrow(data: bytes) -> bytes:
    """Return UTF-16 and UTF-32 as plain bytes; several zeros part two texts."""
    return re.sub(rb"\0{4,}", b"\1", data).replace(b"\0", b"")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+", unicodedata.normalize("NFC", text))


def _ways_of_words(words: Sequence[str]) -> Iterator[bytes]:
    name = all(not word.isdigit() for word in words)
    orders = permutations(words) if name and len(words) <= _MOST_ORDERED else [tuple(words)]
    for order in orders:
        yield _GAP.join(b"".join(map(_letter, word)) for word in order)


def _letter(letter: str) -> bytes:
    """Return the ways to write a letter, whose case does not count."""
    if letter.isascii():
        return re.escape(letter.encode())
    ways: set[bytes] = set()
    for one in {letter, letter.lower(), letter.upper()}:
        split = unicodedata.normalize("NFD", one)
        ways |= {one.encode(), split.encode(), split.encode("ascii", "ignore")}
        ways |= {one.encode(code).strip(b"\0") for code in ("utf-16-le", "utf-16-be")}
        ways |= {one.encode("latin-1", "ignore"), f"\\u{ord(one[0]):04x}".encode()}
    return b"(?:" + b"|".join(re.escape(way) for way in sorted(ways - {b""}, reverse=True)) + b")"


def _dates(text: str) -> list[date]:
    """Return the days that a text may mean; both, where day and month may be meant either way."""
    if found := re.fullmatch(r"(\d{4})([-./]?)(\d\d?)\2(\d\d?)", text):
        places = [(1, 3, 4)]
    elif found := re.fullmatch(r"(\d\d?)([-./])(\d\d?)\2(\d{4})", text):
        places = [(4, 3, 1), (4, 1, 3)]
    else:
        return []
    days = set()
    for place in places:
        with suppress(ValueError):  # no such day
            days.add(date(*(int(found[n]) for n in place)))
    return sorted(day for day in days if 1850 <= day.year <= 2100)


def _ways_of_date(day: date) -> Iterator[bytes]:
    y, m, d = f"{day.year:04d}".encode(), f"0?{day.month}".encode(), f"0?{day.day}".encode()
    name = _MONTHS[day.month - 1].encode()
    nth = d + rb"(?:st|nd|rd|th)?"
    mm, dd = f"{day.month:02d}".encode(), f"{day.day:02d}".encode()
    for order in ((y, mm, dd), (dd, mm, y), (mm, dd, y)):
        yield rb"(?<!\d)" + b"".join(order)
    for parts in ((y, m, d), (d, m, y), (m, d, y)):
        yield rb"(?<!\d)" + _BETWEEN.join(parts) + rb"(?!\d)"
    for named in ((nth, name, y), (name, nth, y)):
        yield rb"(?<![a-z0-9])" + _NEAR.join(named) + rb"(?!\d)"
