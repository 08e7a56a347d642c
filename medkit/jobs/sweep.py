"""Many runs of one notebook on this machine: a queue of ``medkit run`` processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from medkit.jobs.grid import SWEEP_NAME, SweepRequest, SweepRun, check_earlier, plan_sweep
from medkit.jobs.sweep_table import check_best_by, summarise, table_text, write_csv
from medkit.record.files import safe_name, write_json
from medkit.record.folder import RunFolder, new_run_path, now
from medkit.record.lock import RunLock

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_POLL_S = 0.2


@dataclass
class Slot:
    """A share of the machine that one run has at a time."""

    cores: tuple[int, ...] = ()
    device: str = ""
    process: subprocess.Popen[bytes] | None = None
    run: SweepRun | None = None


class Sweep:
    """A sweep's queue.

    Args:
        request: What was asked for.

    Raises:
        UsageError: When it can't be run as it was given.
    """

    def __init__(self, request: SweepRequest) -> None:
        self.request = request
        self.out = self._folder()
        self.notebook, self.runs, self.common = plan_sweep(request, self.out)
        self.earlier = check_earlier(self.out, self.notebook, self.common, self.runs)
        self.stop: signal.Signals | None = None
        self.slots = self._slots()

    def run(self) -> int:
        """Run what is not done yet, print the table, return the exit code."""
        self.out.mkdir(parents=True, exist_ok=True)
        lock = RunLock(self.out)
        lock.acquire(wait_s=1.0)
        try:
            queue = [run for run in self.runs if _status(run) != "done"]
            self._say(
                f"sweep folder: {self.out}\n{len(self.runs)} runs, {len(self.runs) - len(queue)} "
                f"done already, {len(self.slots)} at a time. To go on after a stop, give the same "
                f"command with --out {self.out}\n"
            )
            self._write("running")  # first: from now on the folder is a sweep's
            (self.out / "logs").mkdir(exist_ok=True)
            with self._listening():
                self._work(queue)
            return self._close()
        finally:
            lock.release()

    def _work(self, queue: list[SweepRun]) -> None:
        waiting = list(queue)
        with tqdm(
            total=len(queue), disable=not sys.stderr.isatty(), leave=False, unit="run"
        ) as bar:
            while True:
                for slot in self.slots:
                    if slot.process is not None and slot.process.poll() is not None:
                        self._finished(slot, bar)
                    if slot.process is None and waiting and self.stop is None:
                        self._start(slot, waiting.pop(0))
                running = [slot.run.label for slot in self.slots if slot.process and slot.run]
                if not running:
                    return
                bar.set_postfix_str(", ".join(running), refresh=True)
                time.sleep(_POLL_S)

    def _start(self, slot: Slot, run: SweepRun) -> None:
        environment = dict(os.environ) | {"MEDKIT_SWEEP_PID": str(os.getpid())}
        if slot.cores:
            environment.setdefault("OMP_NUM_THREADS", str(len(slot.cores)))
        with (self.out / "logs" / f"{run.name}-s{run.seed}.log").open("ab") as log, _on(slot.cores):
            slot.process = subprocess.Popen(
                self._command(run, slot),
                cwd=self.request.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C comes to us, who pass it on once
            )
        slot.run = run

    def _command(self, run: SweepRun, slot: Slot) -> list[str]:
        request = self.request
        words = [sys.executable, "-m", "medkit.cli", "run", request.notebook]
        words += ["--out", str(run.path), "--resume"]
        words += ["-f", request.values_file] if request.values_file else []
        given = [*request.given, *run.texts.items()]
        given += [("seed", str(run.seed))] if run.seed is not None else []
        for name, text in given:
            words += ["-p", name, text]
        words += ["--retries", str(request.retries)] if request.retries else []
        words += ["--timeout", str(request.timeout_s)] if request.timeout_s else []
        words += ["--device", slot.device] if slot.device else []
        return words

    def _finished(self, slot: Slot, bar: tqdm) -> None:
        if slot.run is None or slot.process is None:
            return
        status, error = _status(slot.run), ""
        if status != "done":
            attempts = _facts(slot.run).get("attempts") or [{}]
            error = str(attempts[-1].get("error") or "")
            if not status:  # refused before its folder was made
                log = self.out / "logs" / f"{slot.run.name}-s{slot.run.seed}.log"
                error = log.read_text(errors="replace").strip().splitlines()[-1]
        bar.update()
        with bar.external_write_mode(file=sys.stderr):
            self._say(f"{status or 'refused':<12} {slot.run.label}  {error[:200]}".rstrip() + "\n")
        slot.process = slot.run = None
        self._write("running")

    def _close(self) -> int:
        states = [_status(run) for run in self.runs]
        whole = all(state == "done" for state in states)
        status = "done" if whole else "interrupted" if self.stop else "failed"
        summary = self._write(status)
        write_csv(self.out / "sweep.csv", self.runs)
        sys.stdout.write(table_text(summary))
        sys.stdout.write(f"table  {self.out / 'sweep.csv'}\n")
        if self.stop is not None and not whole:
            return 130 if self.stop == signal.SIGINT else 143
        return 0 if whole else 1

    def _write(self, status: str) -> dict[str, Any]:
        """Write ``sweep.json``; the summary in it only at an end."""
        content = {
            "schema": 1,
            "status": status,
            "notebook": str(self.notebook.path),
            "notebook_sha256": self.notebook.digest,
            "parameters": self.common,
            "command": list(self.request.command),
            "start": self.earlier.get("start") or now(),
            "end": None if status == "running" else now(),
            "cores_per_run": len(self.slots[0].cores),
            "runs": [
                {
                    "point": run.point,
                    "seed": run.seed,
                    "path": str(run.path.relative_to(self.out)),
                    "status": _status(run),
                }
                for run in self.runs
            ],
        }
        self.earlier["start"] = content["start"]
        if status != "running":
            content |= summarise(self.runs, self.request.best_by)
        write_json(self.out / SWEEP_NAME, content)
        return content

    def _folder(self) -> Path:
        if self.request.out is not None:
            return (self.request.cwd / Path(self.request.out).expanduser()).absolute()
        stem = safe_name(Path(self.request.notebook).stem)
        base = new_run_path(self.request.cwd / "runs", stem, 0)
        return base.with_name(base.name.replace("-s0", "-sweep"))

    def _slots(self) -> list[Slot]:
        """Share cores and devices out evenly; the thread count decides bits, so it is kept."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        devices = [number for number in self.request.devices.split(",") if number]
        count = self.request.jobs or len(devices) or max(1, len(cores))
        count = min(count, len(self.runs))
        width = int(self.earlier.get("cores_per_run") or len(cores) // count)
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
    def _listening(self) -> Iterator[None]:
        """Pass signals on to the runs, each of which saves and ends; start no further one."""

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

    @staticmethod
    def _say(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


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


def _facts(run: SweepRun) -> dict[str, Any]:
    return RunFolder(run.path).read()


def _status(run: SweepRun) -> str:
    folder = RunFolder(run.path)
    return folder.status if folder.exists() else ""


def sweep_command(request: SweepRequest) -> int:
    """Check a sweep, run it, print its table; return the exit code."""
    check_best_by(request.best_by)
    return Sweep(request).run()
