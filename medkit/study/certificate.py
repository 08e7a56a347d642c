"""Do fresh processes train the same bits, step by step; and where not, what is to blame?

Each process writes digests of every step (``callbacks.step_hashes``). Where two part at a step,
two more are run with every operation around it recorded, and the first one that took the same and
gave another result is named.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medkit.callbacks.step_hashes import HASH_STEPS
from medkit.study.certificate_steps import FIELDS, Parting, Recorded, parting, read_recorded
from medkit.study.certificate_verdict import (
    AUGMENTATION,
    BETWEEN,
    ENVIRONMENT,
    ORDER,
    SETUP,
    THREADS,
    Verdict,
    compare_ends,
    judge,
    unwritten,
)

_AROUND, _TRIES = 10, 2  # batches before and after; pairs of processes

# Runs the job once, in a process of its own, in this folder and under these further variables
Job = Callable[[Path, Mapping[str, str]], None]


class JobFailedError(RuntimeError):
    """The job that was to be certified did not end well.

    Args:
        message: How it ended.
        code: The exit code that says so.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Certificate:
    """A verdict, and what it rests on.

    Attributes:
        verdict: What the comparison came to.
        runs: What the processes left.
        hash_seeds: PYTHONHASHSEED of each fresh one.
        notes: What could not be compared.
    """

    verdict: Verdict
    runs: list[Recorded]
    hash_seeds: list[str]
    notes: list[str] = field(default_factory=list)


def certify(
    job: Job,
    *,
    repeats: int = 2,
    finished: Path | None = None,
    said: Callable[[str], None] = lambda text: None,
) -> Certificate:
    """Run a job in fresh processes and compare them.

    The processes have different hash seeds: what leans on the order of a set of strings shows.

    Args:
        job: Runs it once; raises :class:`JobFailedError` where it does not end well.
        repeats: Fresh processes; at least 2, or 1 beside a finished run with digests of its steps.
        finished: A finished run folder to compare with as well.
        said: Told what is done next.

    Raises:
        ValueError: For too few repeats, or where nothing was left that can be compared.
        JobFailedError: From the job.
    """
    old = read_recorded(finished) if finished is not None else None
    runs = [old] if old is not None and old.stages else []
    if repeats + len(runs) < 2:
        raise ValueError(
            f"a certificate compares at least 2 processes, and with repeats={repeats} there are "
            f"{repeats + len(runs)}. Give --repeats 2 or more."
        )
    first = len(runs)  # the finished run's hash seed was 0
    seeds = [str(first + number) for number in range(repeats)]
    with tempfile.TemporaryDirectory(prefix="medkit-certify-") as private:

        def run(name: str, number: int, asked: str) -> Recorded:
            said(f"{name}: fresh process {number + 1}")
            folder = Path(private) / f"{name.replace(' ', '-')}-{number}"
            try:
                job(folder, {"PYTHONHASHSEED": str(first + number), HASH_STEPS: asked})
            except JobFailedError:
                if asked == "1":  # one that is traced is cut short
                    raise
            return read_recorded(folder)

        fresh = [run("digests of steps", number, "1") for number in range(repeats)]
        runs += fresh
        if not any(one.stages or one.results for one in fresh):
            raise ValueError(
                "a certificate compares steps of stable_trainer and results of the run, and this "
                "job left neither. Train by stable_trainer(run, ...), or call run.metrics(...)."
            )
        # among fresh ones first: a job that does not repeat parts from the finished run anyway
        pairs = [(fresh[0], other) for other in fresh[1:]] + [
            (one, fresh[0]) for one in runs[:first]
        ]
        verdict, at = Verdict(), None
        for a, b in pairs:
            if verdict.equal:
                verdict, at = judge(a, b), parting(a, b)
        if at is not None and _worth_tracing(verdict):
            verdict = _trace(at, run) or verdict
    notes = []
    if not fresh[-1].stages:
        notes.append("no stage was trained by stable_trainer: only results were compared")
    if old is not None and not old.stages:
        notes.append("the finished run has no digests of its steps: its end was compared")
        verdict = verdict if not verdict.equal else compare_ends(old, fresh[-1])
    return Certificate(verdict, runs, seeds, notes)


def _worth_tracing(verdict: Verdict) -> bool:
    in_step = verdict.differs in (*FIELDS[FIELDS.index("loss") :], "batch")
    return in_step and verdict.component not in (ORDER, THREADS, ENVIRONMENT)


def _trace(at: Parting, run: Callable[[str, int, str], Recorded]) -> Verdict | None:
    """Run two more processes with every operation around a step recorded; what do they show?"""
    window = f"{max(0, at.number - _AROUND)}:{at.number + _AROUND + 1}"
    asked = f"{at.stage.rpartition('/')[2]}:{window}"
    suspect = None
    for number in range(_TRIES):
        a, b = (run(f"operations {number + 1}", which, asked) for which in range(2))
        found = judge(a, b, cut=True)
        if found.where or found.component in (SETUP, AUGMENTATION, BETWEEN):
            return found
        suspect = suspect or unwritten(at, a)  # being watched may change what lies in memory
    return suspect
