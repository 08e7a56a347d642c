"""Many runs of one notebook on this machine: a queue of ``medkit run`` processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from medkit.jobs.grid import SWEEP_NAME, SweepRequest, SweepRun, check_earlier, plan_sweep
from medkit.jobs.processes import Command, Queue, Slot, share_out
from medkit.jobs.sweep_table import check_best_by, summarise, table_text, write_csv
from medkit.record.files import safe_name, write_json
from medkit.record.folder import RunFolder, new_run_path, now
from medkit.record.lock import RunLock


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
        self.slots: list[Slot[SweepRun]] = share_out(
            request.jobs,
            at_most=len(self.runs),
            devices=[number for number in request.devices.split(",") if number],
            width=int(self.earlier.get("cores_per_run") or 0),
        )
        self.queue = Queue(
            self.slots,
            label=lambda run: run.label,
            command=self._command,
            ended=self._finished,
        )

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
            self.queue.run(queue)
            return self._close()
        finally:
            lock.release()

    def _command(self, run: SweepRun, slot: Slot[SweepRun]) -> Command:
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
        mine = (("MEDKIT_SWEEP_PID", str(os.getpid())),)
        return Command(words, self._log(run), request.cwd, mine)

    def _log(self, run: SweepRun) -> Path:
        return self.out / "logs" / f"{run.name}-s{run.seed}.log"

    def _finished(self, run: SweepRun, _code: int) -> tuple[()]:
        status, error = _status(run), ""
        if status != "done":
            attempts = _facts(run).get("attempts") or [{}]
            error = str(attempts[-1].get("error") or "")
            if not status:  # refused before its folder was made
                error = self._log(run).read_text(errors="replace").strip().splitlines()[-1]
        self._say(f"{status or 'refused':<12} {run.label}  {error[:200]}".rstrip() + "\n")
        self._write("running")
        return ()

    def _close(self) -> int:
        states, stop = [_status(run) for run in self.runs], self.queue.stop
        whole = all(state == "done" for state in states)
        status = "done" if whole else "interrupted" if stop else "failed"
        summary = self._write(status)
        write_csv(self.out / "sweep.csv", self.runs)
        sys.stdout.write(table_text(summary))
        sys.stdout.write(f"table  {self.out / 'sweep.csv'}\n")
        if stop is not None and not whole:
            return 130 if stop == signal.SIGINT else 143
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

    @staticmethod
    def _say(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _facts(run: SweepRun) -> dict[str, Any]:
    return RunFolder(run.path).read()


def _status(run: SweepRun) -> str:
    folder = RunFolder(run.path)
    return folder.status if folder.exists() else ""


def sweep_command(request: SweepRequest) -> int:
    """Check a sweep, run it, print its table; return the exit code."""
    check_best_by(request.best_by)
    return Sweep(request).run()
