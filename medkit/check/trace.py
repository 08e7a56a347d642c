"""Which line of somebody's code was the first to come out otherwise.

Two passes over the same code are recorded line by line (``sys.settrace``), restricted to files
that belong to neither Python, nor an installed package, nor the kit: at each line a digest of every
variable that can be told. The first record that differs gives the line before it.
"""

from __future__ import annotations

import inspect
import linecache
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from torch import nn

import medkit
from medkit.check.digest import digest
from medkit.keyed import get_globals

_MOST = 50_000  # records of one pass
_SKIPPED = frozenset({"trainer", "_trainer", "_fabric", "__class__"})


@dataclass(frozen=True)
class Record:
    """What stood in the variables when a line was about to run, or a function to return."""

    event: str  # "call", "line", "return"
    frame: int  # counts functions entered; 0 for a named object in a library
    file: str
    line: int
    function: str
    label: str  # the transform that is running, where one was named
    values: Mapping[str, str] = field(compare=False)


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


class Tracer:
    """Records one pass.

    Args:
        named: Objects whose ``__call__`` is worth a name in the records (MONAI's transforms), by
            ``id``.
        roots: Folders whose files are somebody's own although they are installed.
    """

    def __init__(self, named: Mapping[int, str] | None = None, roots: tuple[str, ...] = ()) -> None:
        self.records: list[Record] = []
        self.named = dict(named or {})
        self.roots = roots
        self._theirs: dict[CodeType, bool] = {}
        self._frames: dict[int, tuple[CodeType, int]] = {}
        self._labels: list[str] = []
        self._count = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what runs inside the block, in this thread."""
        before = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code not in self._theirs:
            self._theirs[code] = is_theirs(code.co_filename, self.roots)
        if self._theirs[code]:
            if len(self.records) >= _MOST:
                return None
            if (
                self._frames.get(id(frame), (None, 0))[0] is not code
            ):  # not a generator's coming back
                self._count += 1
                self._frames[id(frame)] = (code, self._count)
                self._record("call", frame)
            return self._on_event
        if self.named and code.co_name == "__call__":
            label = self.named.get(id(frame.f_locals.get("self")))
            if label is not None:
                self._labels.append(label)
                return self._on_named
        return None

    def _on_event(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self._record("line", frame)
        elif event == "return":
            self._record("return", frame, {"return": arg})
            if not frame.f_code.co_flags & inspect.CO_GENERATOR:  # such a frame comes back
                self._frames.pop(id(frame), None)
        return self._on_event if len(self.records) < _MOST else None

    def _on_named(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "return" and self._labels:
            value = {"return": digest(arg, quick=True)}
            told = {name: text for name, text in value.items() if text is not None}
            self.records.append(Record("return", 0, "", 0, "__call__", self._labels[-1], told))
            self._labels.pop()
        return self._on_named

    def _record(self, event: str, frame: FrameType, more: Mapping[str, Any] | None = None) -> None:
        code = frame.f_code
        label = self._labels[-1] if self._labels else ""
        values = {}
        for name, value in [*_variables(frame), *(more or {}).items()]:
            text = digest(value, quick=True, depth=4)
            if text is not None:
                values[name] = text
        number = self._frames[id(frame)][1]
        self.records.append(
            Record(event, number, code.co_filename, frame.f_lineno, code.co_name, label, values)
        )


def _variables(frame: FrameType) -> Iterator[tuple[str, Any]]:
    """Yield a frame's locals, attributes of ``self``, and global state that its code names."""
    making = frame.f_code.co_name in ("__init__", "configure_model", "setup")
    for name, value in frame.f_locals.items():
        if name in _SKIPPED:
            continue
        if name != "self":
            if not isinstance(value, nn.Module):
                yield f"closure {name}" if name in frame.f_code.co_freevars else name, value
            continue
        kept = dict(vars(value)) if hasattr(value, "__dict__") else {}
        if isinstance(value, nn.Module) and "_parameters" in kept:  # else it is not made yet
            if making:  # weights are looked at where they are made
                yield from ((f"self.{k}", v) for k, v in value._parameters.items())
                yield from ((f"self.{k}", v) for k, v in value._modules.items())
            for own in ("_parameters", "_modules", "_buffers"):
                kept.pop(own, None)
        for key, part in kept.items():
            if key not in _SKIPPED and not isinstance(part, nn.Module):
                yield f"self.{key}", part
    yield "global generators", get_globals()
    for name in frame.f_code.co_names:
        value = frame.f_globals.get(name)
        if isinstance(value, int | float | list | dict) or type(value).__module__.startswith(
            "numpy.random"
        ):
            yield f"global {name}", value


def is_theirs(file: str, roots: tuple[str, ...] = ()) -> bool:
    """Whether a file is somebody's own code: not Python's, not installed, not the kit's."""
    if not Path(file).is_absolute():  # "<string>", torch's made-up modules
        return False
    if roots and file.startswith(roots):
        return True
    return not file.startswith(_not_theirs())


def _not_theirs() -> tuple[str, ...]:
    if not _PLACES:
        paths = sysconfig.get_paths()
        places = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
        places |= {*site.getsitepackages(), str(Path(medkit.__file__).parent)}
        _PLACES.extend(sorted(f"{place.rstrip('/')}/" for place in places))
    return tuple(_PLACES)


_PLACES: list[str] = []


def first_difference(first: list[Record], second: list[Record]) -> Culprit:
    """Return the line after which two passes differ for the first time.

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
        else:
            found = _line_before(first, number, news)
        read = [name for name in carried if name.split(".")[-1].split()[-1] in found.source]
        return _where_it_changes(first, carried[read[0]], read[0]) if read else found
    if carried:
        name = min(carried, key=lambda name: (name == "global generators", carried[name]))
        number = carried[name]
        return _where_it_changes(first, number, name)
    if len(first) != len(second):
        shorter = min(len(first), len(second))
        return _line_before(first if len(first) > shorter else second, shorter, ())
    return Culprit()


def _line_before(records: list[Record], number: int, names: tuple[str, ...]) -> Culprit:
    """Return the line that ran before a record: of its own function, else of its caller."""
    at = records[number]
    for past in reversed(records[:number]):
        if past.frame == 0 or past.event == "return":
            continue
        if at.event == "call" or (past.frame == at.frame and past.event == "line"):
            return _culprit(past, names, label=past.label or at.label)
    return _culprit(at, names)


def _where_it_changes(records: list[Record], number: int, name: str) -> Culprit:
    """Return the line that changes what differed on the way into a function."""
    last: dict[int, Record] = {}
    for record in records[number:]:
        past = last.get(record.frame)
        if past is not None and past.values.get(name) != record.values.get(
            name, past.values.get(name)
        ):
            return _culprit(past, (name,), carried=True)
        last[record.frame] = record
    at = records[number]
    return _culprit(at, (name,), carried=True)


def _culprit(
    at: Record, names: tuple[str, ...], *, carried: bool = False, label: str = ""
) -> Culprit:
    return Culprit(at.file, at.line, names, carried, label or at.label, at.function)
