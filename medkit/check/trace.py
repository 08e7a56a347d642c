"""Record a pass over somebody's code, line by line.

Restricted to files that belong to neither Python, nor an installed package, nor the kit: at each
line (``sys.settrace``) a digest of every variable that can be told.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from medkit.callbacks.own_code import is_theirs
from medkit.check.digest import digest
from medkit.keyed import get_globals

_MOST = 50_000  # records of one pass
START = "start"  # the segment before a fit has begun
_SKIPPED = frozenset({"trainer", "_trainer", "_fabric", "__class__"})


@dataclass(frozen=True)
class Record:
    """What stood in the variables when a line was about to run, or a function to return."""

    event: str  # "call", "line", "return"; "out" for a call into a library
    frame: int  # counts functions entered; 0 for a named object in a library
    file: str
    line: int
    function: str
    label: str  # the transform that is running, where one was named
    segment: str  # the part of a fit it belongs to, such as "step 0/3"
    values: Mapping[str, str] = field(compare=False)


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
        self._segment = START
        self._counts: dict[str, int] = {}  # functions entered, by segment

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what runs inside the block, in this thread."""
        before = sys.gettrace()
        with _memory_filled():
            sys.settrace(self._on_call)
            try:
                yield
            finally:
                sys.settrace(before)

    def begin(self, segment: str) -> str:
        """Name the part of a fit that begins; return the name of the one that was."""
        before, self._segment = self._segment, segment
        return before

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
                number = self._counts.get(self._segment, 0) + 1
                self._counts[self._segment] = number
                self._frames[id(frame)] = (code, number)
                self._record("call", frame)
            return self._on_event
        back = frame.f_back
        if back is not None and id(back) in self._frames and self._theirs.get(back.f_code):
            self._record_call_out(back, frame)
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
            label, segment = self._labels[-1], self._segment
            self.records.append(Record("return", 0, "", 0, "__call__", label, segment, told))
            self._labels.pop()
        return self._on_named

    def _record_call_out(self, caller: FrameType, frame: FrameType) -> None:
        # numpy's wrappers are handed arrays that are not filled yet
        if not str(frame.f_globals.get("__name__")).startswith("numpy"):
            self._record("out", caller, frame.f_locals)

    def _record(self, event: str, frame: FrameType, more: Mapping[str, Any] | None = None) -> None:
        if len(self.records) >= _MOST:
            return
        code = frame.f_code
        own = () if event == "out" else _variables(frame)
        values = {}
        for name, value in [*own, *(more or {}).items()]:
            text = digest(value, quick=True, depth=2 if event == "out" else 4)
            if text is not None:
                values[name] = text
        self.records.append(
            Record(
                event,
                self._frames[id(frame)][1],
                code.co_filename,
                frame.f_lineno,
                code.co_name,
                self._labels[-1] if self._labels else "",
                self._segment,
                values,
            )
        )


@contextmanager
def _memory_filled() -> Iterator[None]:
    """Fill fresh memory, whose content differs from pass to pass and means nothing."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty then gives NaN
    with (
        mock.patch.object(np, "empty", np.zeros),
        mock.patch.object(np, "empty_like", np.zeros_like),
    ):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


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
