"""A study's jobs in processes of their own, which share the machine and end with it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from medkit.jobs.plan import device_environment
from medkit.jobs.processes import Command, Queue, Slot
from medkit.study.study_job import LOGS, NOT_AS_ASKED, PARENT, Job, Train, TrainError


def spec_of(train: Train) -> str:
    """Return ``module:name``, by which another process finds the function.

    Raises:
        TrainError: Where it can't be found by that.
    """
    module, name = getattr(train, "__module__", ""), getattr(train, "__qualname__", "")
    if module in {"", "__main__"} or not name.isidentifier():
        raise TrainError(
            "other processes must be able to import train, as a function of a module; got "
            f"{module or '?'}:{name or repr(train)}. Move it into a file of its own and import it "
            "from there, or say jobs=1 and repeats=0."
        )
    return f"{module}:{name}"


def run_apart(study: Path, todo: Sequence[Job], train: str, slots: list[Slot[Job]]) -> None:
    """Train in processes of their own.

    What a process that died owes is tried one by one; a member that dies alone has failed. After a
    signal, which is passed on to the processes, nothing is stored for those it stopped.

    Args:
        study: The study's folder.
        todo: The jobs.
        train: From :func:`spec_of`.
        slots: Of the machine.

    Raises:
        TrainError: Where ``train`` yields other than it must.
    """
    (study / LOGS).mkdir(exist_ok=True)
    refused: list[str] = []

    def log_of(job: Job) -> Path:
        return study / LOGS / f"{job.name}.log"

    def command(job: Job, slot: Slot[Job]) -> Command:
        said = json.dumps(asdict(job) | {"train": train})
        words = [sys.executable, "-m", "medkit.study.study_job", str(study), said]
        modules = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        mine = {"PYTHONPATH": modules, PARENT: str(os.getpid())}
        device = device_environment(slot.device, os.environ)
        return Command(words, log_of(job), Path.cwd(), tuple((mine | device).items()))

    def ended(job: Job, code: int) -> list[Job]:
        left = job.left(study)
        if not left or queue.stop is not None:
            return []
        if code == NOT_AS_ASKED:
            refused.append(_last_line(log_of(job)))
            queue.waiting.clear()
        elif len(job.seeds) > 1:
            return [job.of((seed,)) for seed in left]
        else:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
            reason = f"its process ended by {how}: {_last_line(log_of(job))}"
            job.failed(left[0], reason).save(job.folder(study, left[0]))
        return []

    queue = Queue(slots, label=lambda job: job.name, command=command, ended=ended)
    queue.run(todo)
    if queue.stop is not None:
        signal.raise_signal(queue.stop)
    if refused:
        raise TrainError(refused[0])


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1][:300] if lines else "it said nothing"
