"""Which line of somebody's code was the first to come out otherwise."""

from __future__ import annotations

import linecache
from dataclasses import dataclass, replace

from medkit.check.trace import Record


@dataclass(frozen=True)
class Culprit:
    """The first line that came out otherwise.

    Attributes:
        file: Its file; empty where no line of somebody's own differs.
        line: Its number.
        names: Variables that differ after it; "self.x" for an attribute.
        carried: Whether they differed on the way in: state that was left by earlier calls.
        label: The transform it ran in.
        function: The function it stands in.
    """

    file: str = ""
    line: int = 0
    names: tuple[str, ...] = ()
    carried: bool = False
    label: str = ""
    function: str = ""

    @property
    def source(self) -> str:
        """The line's text."""
        return linecache.getline(self.file, self.line).strip() if self.file else ""


def first_difference(
    first: list[Record], second: list[Record], skip: tuple[str, ...] = ()
) -> Culprit:
    """Return the line after which two passes differ for the first time.

    Segments are compared one by one: a resumed fit has the later ones only.

    Args:
        first: Records of one pass.
        second: Records of the other, which gives the order of the segments.
        skip: Segments that are left out.
    """
    parts: dict[str, tuple[list[Record], list[Record]]] = {}
    for record in second:
        parts.setdefault(record.segment, ([], []))[1].append(record)
    for record in first:
        if record.segment in parts:
            parts[record.segment][0].append(record)
    for name, (a, b) in parts.items():
        if a and not name.startswith(skip or ("\0",)):
            found = _first_in_segment(a, b, first)
            if found is not None:
                return found
    return Culprit()


def _first_in_segment(
    first: list[Record], second: list[Record], everything: list[Record]
) -> Culprit | None:
    """Return what differs first, None where nothing does.

    State that differs on the way into a function (a counter) is no cause by itself: it may be
    mere book-keeping. It is named when the first line that then comes out otherwise reads it, or
    when nothing else differs.
    """
    carried: dict[str, int] = {}
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        names = tuple(
            name
            for name in sorted(a.values.keys() & b.values.keys())
            if a.values[name] != b.values[name]
        )
        if a.event == b.event == "call":
            state = [name for name in names if name.startswith(("self.", "global ", "closure "))]
            carried |= {name: number for name in state if name not in carried}
        news = tuple(name for name in names if name not in carried)
        if a == b and not news:
            continue
        if a == b and a.frame == 0:
            found = Culprit(names=names, label=a.label)
        elif a == b and a.event == "out":
            found = _culprit(a, ())
        else:
            found = _line_before(first, number, news)
        for name in carried:
            if name.split(".")[-1].split()[-1] in found.source:
                return _where_it_changes(first[carried[name] :] + everything, name) or replace(
                    found, names=(name,), carried=True
                )
        return found
    if carried:
        name = min(carried, key=lambda name: (name == "global generators", carried[name]))
        at = _culprit(first[carried[name]], (name,), carried=True)
        return _where_it_changes(first[carried[name] :] + everything, name) or at
    if len(first) != len(second):
        shorter = min(len(first), len(second))
        return _line_before(first if len(first) > shorter else second, shorter, ())
    return None


def _line_before(records: list[Record], number: int, names: tuple[str, ...]) -> Culprit:
    """Return the line that ran before a record: of its own function, else of its caller."""
    at = records[number]
    for past in reversed(records[:number]):
        if past.frame == 0 or past.event == "return":
            continue
        if at.event == "call" or (past.frame == at.frame and past.event == "line"):
            return _culprit(past, names, label=past.label or at.label)
    return _culprit(at, names)


def _where_it_changes(records: list[Record], name: str) -> Culprit | None:
    """Return the line that changes what differed on the way into a function."""
    last: dict[tuple[str, int], Record] = {}
    for record in records:
        if record.event == "out":
            continue
        place = (record.segment, record.frame)
        was = last[place].values.get(name) if place in last and record.event != "call" else None
        if was is not None and record.values.get(name, was) != was:
            return _culprit(last[place], (name,), carried=True)
        last[place] = record
    return None


def _culprit(
    at: Record, names: tuple[str, ...], *, carried: bool = False, label: str = ""
) -> Culprit:
    return Culprit(at.file, at.line, names, carried, label or at.label, at.function)
