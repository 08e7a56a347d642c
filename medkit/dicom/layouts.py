"""Headers of files that are laid out alike: where one was walked through, the next are looked up.

The slices of a series differ in a few values, and in few of their lengths. What a walk depends on,
tags, kinds and lengths, is compared in one go; where all of it is the same, so are the places of
the values. Nothing is guessed: a byte that differs there sends the file on the walk again.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from struct import Struct
from typing import NamedTuple

from medkit.dicom.walker import Span, Walked, walk

__all__ = ["Found", "Layouts"]

_KEPT, _SEEN = 16, 256


class Found(NamedTuple):
    """Raw values of the elements asked for, by name, and where the pixels are; see ``Walked``."""

    values: dict[str, bytes]
    syntax: str
    pixels: int | None
    length: int


class _Layout:
    """Where things are in one kind of file."""

    def __init__(self, data: bytes, walked: Walked) -> None:
        self.walked = walked
        self.last_at = walked.steps[-1][0]
        self.last = data[self.last_at : walked.steps[-1][1]]
        self.names = list(walked.spans)
        spans = sorted([*walked.steps, *(span for span in walked.spans.values())])
        pieces, at = [], 0
        for start, stop in spans:
            pieces.append(f"{start - at}x{stop - start}s")
            at = stop
        self.struct = Struct("<" + "".join(pieces))
        place = {span: number for number, span in enumerate(spans)}
        self.values = itemgetter(*(place[span] for span in walked.spans.values()))
        self.steps = itemgetter(*(place[span] for span in walked.steps))
        self.same = self.steps(self.struct.unpack_from(data))

    def read(self, data: bytes) -> Found | None:
        """Return what a file has, or None where it is laid out in another way."""
        if len(data) < self.struct.size:
            return None
        pieces = self.struct.unpack_from(data)
        if self.steps(pieces) != self.same:
            return None
        walked = self.walked
        values = dict(zip(self.names, self.values(pieces), strict=True))
        return Found(values, walked.syntax, walked.pixels, walked.length)


class Layouts:
    """Reads headers, the latest ways in which they were laid out at hand.

    Args:
        wanted: See :func:`~medkit.dicom.walker.walk`.
    """

    def __init__(self, wanted: Mapping[int, str]) -> None:
        self.wanted = wanted
        self.known: list[_Layout] = []
        self.seen: set[tuple[Span, ...]] = set()

    def read(self, data: bytes, *, whole: bool) -> Found | None:
        """Read the header at the beginning of a file; see :func:`~medkit.dicom.walker.walk`."""
        for layout in self.known:
            if data.startswith(layout.last, layout.last_at):  # most are told apart by this
                found = layout.read(data)
                if found is not None:
                    return found
        walked = walk(data, self.wanted, whole=whole)
        if walked is None:
            return None
        if walked.pixels is not None and len(walked.spans) > 1:
            self._remember(data, walked)
        values = {name: data[start:stop] for name, (start, stop) in walked.spans.items()}
        return Found(values, walked.syntax, walked.pixels, walked.length)

    def _remember(self, data: bytes, walked: Walked) -> None:
        """Keep a layout when it is met again: to prepare it costs as much as the walk."""
        steps = tuple(walked.steps)
        if steps in self.seen:
            self.known = [_Layout(data, walked), *self.known[: _KEPT - 1]]
        elif len(self.seen) < _SEEN:
            self.seen.add(steps)
        else:
            self.seen = {steps}
