"""Stopping a job from outside: signals, the time limit, and the patience between ask and kill."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from medkit.jobs.watch import kill_tree

log = logging.getLogger(__name__)

GRACE_S = 60.0
STDERR = 2
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class JobControl:
    """Pass signals on to the kernel and see to it that it ends.

    The kernel runs in a session of its own, so a terminal's Ctrl-C reaches the launcher alone. It
    is passed to the kernel's process only (a loader worker has no use for it), which may write a
    checkpoint and raise; when ``grace_s`` have passed, or at a second signal, the kernel and all
    it started are killed.

    Attributes:
        received: The first signal that came, or None.
        timed_out: Whether the time limit stopped the job.
    """

    def __init__(self, *, timeout_s: float | None = None, grace_s: float = GRACE_S) -> None:
        self.received: signal.Signals | None = None
        self.timed_out = False
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._kernel_pid: int | None = None
        self._executing = False
        self._pending: signal.Signals | None = None
        self._timers: list[threading.Timer] = []

    @property
    def stopping(self) -> bool:
        """Whether the job has been asked to end: no further cell is to be started."""
        return self.received is not None or self.timed_out

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals and run the clock inside this block (main thread only)."""
        kept = {
            number: signal.signal(number, self._on_signal)
            for number in FORWARDED
            # nohup sets SIGHUP to be ignored: leave it so
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN)
        }
        if self._timeout_s is not None:
            self._later(self._timeout_s, self._on_timeout)
        try:
            yield
        finally:
            for timer in self._timers:
                timer.cancel()
            for number, handler in kept.items():
                signal.signal(number, handler)

    def kernel_started(self, pid: int) -> None:
        """Say which process signals go to."""
        self._kernel_pid, self._executing = pid, False

    def kernel_ended(self) -> None:
        """Say that there is nothing to signal any more (its number may be given anew)."""
        self._kernel_pid, self._executing = None, False

    def cell_runs(self) -> None:
        """Say that the kernel has begun a cell; a signal that came just before is sent now."""
        self._executing = True
        if self._pending is not None:
            self._send(self._pending)

    def cell_ended(self) -> None:
        """Say that no cell is running; an idle kernel would lose a SIGINT."""
        self._executing = False

    def kill(self) -> None:
        """Kill the kernel and everything it has started."""
        if self._kernel_pid is not None:
            kill_tree(self._kernel_pid)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.stopping:
            self.received = self.received or signal.Signals(number)
            _say("second signal: the kernel is killed")
            self.kill()
            return
        self.received = signal.Signals(number)
        self._ask(self.received)
        again = "; press Ctrl-C again to kill the kernel" if number == signal.SIGINT else ""
        _say(f"stopping at the next step boundary{again}")

    def _on_timeout(self) -> None:
        if not self.stopping:
            self.timed_out = True
            self._ask(signal.SIGTERM)

    def _ask(self, number: signal.Signals) -> None:
        forwarded = signal.SIGTERM if number == signal.SIGHUP else number
        if self._executing:
            self._send(forwarded)
        else:
            self._pending = forwarded
        self._later(self._grace_s, self._on_grace_over)

    def _send(self, number: signal.Signals) -> None:
        self._pending = None
        if self._kernel_pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._kernel_pid, number)

    def _on_grace_over(self) -> None:
        log.warning("the kernel has not ended within %g s of being asked: killed", self._grace_s)
        self.kill()

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)


def _say(text: str) -> None:
    """Write a line to standard error from a signal handler.

    Not by ``sys.stderr`` or ``logging``: the signal may have come while these were writing, and a
    buffer that is entered twice raises.
    """
    with suppress(OSError):  # a terminal that hung up
        start = "\n" if os.isatty(STDERR) else ""  # the line of the progress bar stays whole
        os.write(STDERR, f"{start}medkit: {text}\n".encode())
