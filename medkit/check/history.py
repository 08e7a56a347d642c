"""Do the same thing twice, under two histories, and say what differs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from medkit import keyed as keys
from medkit.check.compare import Culprit, first_difference
from medkit.check.digest import digest
from medkit.check.trace import Tracer

_LEAST_ROUNDS, _MOST_ROUNDS, _FROZEN_TRIES = 2, 30, 6
_DAY_S = 86_461.5  # a day and a minute, so that day, hour and minute differ


@contextmanager
def history(number: int, *, clock: str = "shifted") -> Iterator[None]:
    """Run a block as if other things had been done before it.

    Args:
        number: Which history: other states of the global generators and, but for the first, a
            later wall time.
        clock: "shifted" moves the wall time; "frozen" makes it the same in every history.
    """
    with keys.globals_keyed(number, "history"), ExitStack() as stack:
        for name, unit in (("time", 1.0), ("perf_counter", 1.0), ("time_ns", 1e9)):
            make = _frozen if clock == "frozen" else _shifted
            kind = float if unit == 1.0 else int
            replacement = make(getattr(time, name), number, unit, kind)
            stack.enter_context(mock.patch.object(time, name, replacement))
        yield


def _shifted(real: Callable[[], Any], number: int, unit: float, kind: type) -> Callable[[], Any]:
    later = kind(number * _DAY_S * unit)
    return lambda: real() + later


def _frozen(real: Callable[[], Any], number: int, unit: float, kind: type) -> Callable[[], Any]:
    ticks = itertools.count()
    return lambda: kind((1e9 + 1e-3 * next(ticks)) * unit)


class Twice:
    """Compares passes.

    Args:
        named: Objects worth a name in what is said (``Tracer``).
        roots: Folders whose files are somebody's own.
        pause_s: Seconds between two passes: for code that reads a clock which cannot be shifted.
    """

    def __init__(
        self,
        *,
        named: Mapping[int, str] | None = None,
        roots: tuple[str, ...] = (),
        pause_s: float = 0.0,
    ) -> None:
        self.named = named
        self.roots = roots
        self.pause_s = pause_s

    def differs(
        self,
        call: Callable[[], Any],
        *,
        between: Callable[[int], None] | None = None,
        budget_s: float = 1.5,
        pause: bool = True,
    ) -> Culprit | None:
        """Return None where ``call`` gives the same under other histories, else what was found.

        Args:
            call: What is done; its result is compared.
            between: Done between two passes, with the round's number.
            budget_s: Rounds are added for so long: a draw that shows in one case of ten is rarely
                seen in the first two.
            pause: Wait between the first two passes, where the code reads such a clock.
        """
        with history(0):
            first = digest(call())
        end = time.monotonic() + budget_s
        for number in range(1, _MOST_ROUNDS + 1):
            time.sleep(self.pause_s if pause and number == 1 else 0.0)
            if between is not None:
                between(number)
            with history(number):
                again = digest(call())
            if again != first:
                return self._name_the_line(call, between)
            if number >= _LEAST_ROUNDS and time.monotonic() > end:
                break
        return None

    def _name_the_line(
        self, call: Callable[[], Any], between: Callable[[int], None] | None
    ) -> Culprit:
        # with a clock that stands still, a line that only takes the time is not mistaken for the
        # cause; where then nothing differs, again and again, the time is the cause
        for number, clock in enumerate(["frozen"] * _FROZEN_TRIES + ["shifted"] * 2, start=1):
            results, tracers = [], [Tracer(self.named, self.roots) for _ in range(2)]
            for which, tracer in zip((0, number), tracers, strict=True):
                if which and between is not None:
                    between(number)
                with history(which, clock=clock), tracer.recording():
                    result = call()
                results.append(digest(result))
            if results[0] != results[1]:
                return first_difference(tracers[0].records, tracers[1].records)
        return Culprit()
