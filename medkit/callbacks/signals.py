"""What a signal does to a run: in a fit it waits for the next boundary, outside it ends at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class TrainingInterrupted(SystemExit):
    """Training stopped at a step boundary because a signal asked for it; a resume point is there.

    A subclass of SystemExit, so that a plain script ends with exit code 143 (SIGTERM, SIGUSR1) or
    130 (Ctrl-C) and never with 0.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        self.code = 130 if signum == signal.SIGINT else 143


class StopSignals:
    """Remember during a fit that a signal asked for its end.

    Args:
        on_stop: Called with the signal's name before :class:`TrainingInterrupted` is raised.
    """

    def __init__(self, on_stop: Callable[[str], None] | None = None) -> None:
        self.first: int | None = None
        self._on_stop = on_stop
        self._process = 0
        self._handlers: dict[int, Any] = {}

    def listen(self) -> None:
        """Begin, after Lightning's own handlers, which end a run with exit code 0."""
        self.first = None
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._note) for s in _SIGNALS}

    def let_go(self) -> None:
        """Put the handlers back that were there before."""
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def stop(self, how: str) -> NoReturn:
        """End the training by the signal that came first, or by one that another rank received."""
        signum = self.first if self.first is not None else signal.SIGTERM
        if self.first is not None:
            self._tell(signum)
        raise TrainingInterrupted(f"{_name(signum)}: {how}", signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker, forked with this handler
            if signum == signal.SIGTERM:
                _die(signum)  # its pool ends it
            return  # the terminal and SLURM send theirs to all processes: the parent decides
        if self.first is not None and signum == signal.SIGINT:
            self._tell(signum)
            raise TrainingInterrupted("asked twice: stopped at once, without a new point", signum)
        self.first = signum
        _log.warning("%s: a resume point at the next step boundary, then stop", _name(signum))

    def _tell(self, signum: int) -> None:
        if self._on_stop is None:
            return
        try:
            self._on_stop(_name(signum))
        except OSError as error:  # a full disk must not change how the run ends
            _log.warning("could not note %s: %s", _name(signum), error)


def stop_at_once(on_stop: Callable[[str], None]) -> None:
    """Outside a fit there is nothing to save: from now on stop at once, and say what it was."""
    if threading.current_thread() is not threading.main_thread():
        return

    process = os.getpid()

    def stop(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked worker is not the run
            _die(signum)
        name = _name(signum)
        on_stop(name)
        raise TrainingInterrupted(f"{name}: the run was stopped outside a fit", signum)

    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, stop)


def _die(signum: int) -> None:
    """End this process as if nobody had listened."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _name(signum: int) -> str:
    return signal.Signals(signum).name
