"""A queue of processes on this machine: each has its share of the cores and devices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_POLL_S = 0.2


@dataclass
class Slot(Generic[Item]):
    """A share of the machine that one process has at a time."""

    cores: tuple[int, ...] = ()
    device: str = ""
    process: subprocess.Popen[bytes] | None = None
    item: Item | None = None


@dataclass(frozen=True)
class Command:
    """A process as it is to be started.

    Attributes:
        words: Program and arguments.
        log: What it prints is appended to this file.
        cwd: Its working directory.
        environment: What it has beside this process's own variables.
    """

    words: Sequence[str]
    log: Path
    cwd: Path
    environment: tuple[tuple[str, str], ...] = ()


class Queue(Generic[Item]):
    """Work through items, one process each.

    Args:
        slots: From :func:`share_out`.
        label: Says an item in a few words.
        command: Returns the process of an item in a slot.
        ended: Is told of each item whose process has ended and with which code; returns items that
            are to be queued in its place. What it says to the user goes beside the bar.

    Attributes:
        stop: The signal that ended it, or None.
        waiting: Items that are not started yet.
    """

    def __init__(
        self,
        slots: list[Slot[Item]],
        *,
        label: Callable[[Item], str],
        command: Callable[[Item, Slot[Item]], Command],
        ended: Callable[[Item, int], Iterable[Item]],
    ) -> None:
        self.slots = slots
        self.stop: signal.Signals | None = None
        self.waiting: list[Item] = []
        self._label, self._command, self._ended = label, command, ended

    def run(self, items: Iterable[Item]) -> None:
        """Return when all have ended, or after a signal those that were running."""
        self.waiting = list(items)
        total, quiet = len(self.waiting), not sys.stderr.isatty()
        with (
            self._listening(),
            tqdm(total=total, disable=quiet, leave=False, unit="run") as bar,
        ):
            while True:
                for slot in self.slots:
                    if slot.process is not None and slot.process.poll() is not None:
                        self.waiting += self._finished(slot, bar)
                    if slot.process is None and self.waiting and self.stop is None:
                        self._start(slot, self.waiting.pop(0))
                running = [self._label(slot.item) for slot in self.slots if slot.item is not None]
                if not running:
                    return
                bar.set_postfix_str(", ".join(running), refresh=True)
                time.sleep(_POLL_S)

    def _start(self, slot: Slot[Item], item: Item) -> None:
        command = self._command(item, slot)
        environment = dict(os.environ) | dict(command.environment)
        if slot.cores:
            environment.setdefault("OMP_NUM_THREADS", str(len(slot.cores)))
        with command.log.open("ab") as log, _on(slot.cores):
            slot.process = subprocess.Popen(
                list(command.words),
                cwd=command.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C comes to us, who pass it on once
            )
        slot.item = item

    def _finished(self, slot: Slot[Item], bar: tqdm) -> list[Item]:
        if slot.item is None or slot.process is None:
            return []
        item, code = slot.item, slot.process.returncode
        slot.process = slot.item = None
        with bar.external_write_mode(file=sys.stderr):
            more = list(self._ended(item, code))
        bar.total = (bar.total or 0) + len(more)
        bar.update()
        return more

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Pass signals on to the processes, each of which saves and ends; start no further one."""

        def on_signal(number: int, _frame: FrameType | None) -> None:
            self.stop = self.stop or signal.Signals(number)
            for slot in self.slots:
                if slot.process is not None:
                    with suppress(ProcessLookupError):
                        slot.process.send_signal(number)

        kept = {number: signal.signal(number, on_signal) for number in _STOPS}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)


def share_out(
    jobs: int, *, at_most: int, devices: Sequence[str] = (), width: int = 0
) -> list[Slot[Item]]:
    """Share cores and devices out evenly.

    Args:
        jobs: Processes at a time; 0 picks one per device, or one per core.
        at_most: As many items as there are.
        devices: Numbers of accelerators, handed out in turn.
        width: Cores of each, where an earlier start had them: the thread count decides bits.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = jobs or len(devices) or max(1, len(cores))
    count = min(count, at_most)
    width = width or len(cores) // count
    if width * count > len(cores):  # an earlier start had more to share out
        count = max(1, len(cores) // width) if width <= len(cores) else count
    pinned = 0 < width * count <= len(cores)
    return [
        Slot(
            cores=tuple(cores[i * width : (i + 1) * width]) if pinned else (),
            device=f"gpu:{devices[i % len(devices)]}" if devices else "",
        )
        for i in range(count)
    ]


@contextmanager
def _on(cores: tuple[int, ...]) -> Iterator[None]:
    """Let a process that is started in this block inherit these cores."""
    if not cores:
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)
