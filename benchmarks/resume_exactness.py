"""Killed anywhere and resumed: weights, optimizers and metrics of the whole run, bit for bit?

Trainings in forked children die by SIGKILL at random hooks, in validation, inside the write of a
resume point, before the first point and several times in one run, and are run again until they are
done; also with another number of loader workers, in fresh processes, and as two DDP processes.
Compared bitwise: weights, averaged weights, optimizers, schedulers, metrics.json and metrics.csv.
Beside it the same script under Lightning alone, resumed from ``last.ckpt``.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import _subjects as subjects
import torch
from _kills import Kill, differing, digest, outcome, until_done
from report import Report

SUBJECTS, VARIANTS, WORKERS = ("ehr", "cnn"), ("plain", "rich"), (0, 2)
BATCHES_IN_ALL = {"ehr": 36, "cnn": 27}
SCRIPT = Path(__file__).with_name("_subjects.py")
LEAST_KILLS = 100
STUCK_S = 120


def main() -> int:
    """Print the figures; 1 when a bar falls short."""
    report = Report(__doc__)
    folder = Path(tempfile.mkdtemp(prefix="resume-exactness-"))
    try:
        _kill_all(report, folder)
        _fresh_processes(report, folder)
        _two_processes(report, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report.finish()


def _kill_all(report: Report, folder: Path) -> None:
    kills, equal, bytes_equal, stock_kills, stock_equal, moved, moved_equal = [0] * 7
    for subject, variant, workers in product(SUBJECTS, VARIANTS, WORKERS):
        rich, here = variant == "rich", folder / f"{subject}-{variant}-{workers}"
        here.mkdir()
        rng = random.Random(f"{subject} {variant} {workers}")

        def train(
            run_dir: Path,
            kill: Kill | None,
            subject: str = subject,
            rich: bool = rich,
            workers: int = workers,
        ) -> None:
            subjects.train(subject, run_dir, kill, rich=rich, workers=workers)

        def elsewhere(
            run_dir: Path,
            kill: Kill | None,
            subject: str = subject,
            rich: bool = rich,
            workers: int = workers,
        ) -> None:
            now = workers if kill is not None else 2 - workers  # the other number to go on with
            subjects.train(subject, run_dir, kill, rich=rich, workers=now)

        until_done(train, here / "whole", [])
        whole = outcome(here / "whole")
        mine, good = 0, 0
        for number, plan in enumerate(_plans(rng, BATCHES_IN_ALL[subject], report.quick)):
            happened, found = _killed(train, here / f"{number}", plan, whole, report)
            good += happened * (not [name for name in found if "/" not in name])
            bytes_equal += happened * (not found)
            mine += happened
        for number in range(1 if report.quick else 2):
            plan = [_anywhere(rng, BATCHES_IN_ALL[subject])]
            happened, found = _killed(elsewhere, here / f"moved-{number}", plan, whole, report)
            moved, moved_equal = moved + happened, moved_equal + happened * (not found)
        tried, same = _stock(subject, rich, workers, here, rng, 1 if report.quick else 3)
        report.share(
            f"resume/{subject}/{variant}/{workers} workers",
            good,
            mine,
            at_least=1.0,
            peers=f"stock Lightning {same}/{tried}",
        )
        kills, equal = kills + mine, equal + good
        stock_kills, stock_equal = stock_kills + tried, stock_equal + same
        shutil.rmtree(here)
    report.share("resume/other number of workers", moved_equal, moved, at_least=1.0)
    least = None if report.quick else LEAST_KILLS
    report.figure("resume/kills", kills + moved, at_least=least, unit="kills")
    report.share(
        "resume/weights and optimizers bitwise",
        equal + moved_equal,
        kills + moved,
        at_least=1.0,
        peers=f"stock Lightning {stock_equal}/{stock_kills}",
    )
    report.share(
        "resume/metrics.json and .csv to the byte",
        bytes_equal + moved_equal,
        kills + moved,
        at_least=1.0,
    )


def _killed(
    train: Callable[[Path, Kill | None], None],
    run_dir: Path,
    plan: Sequence[Kill],
    whole: dict[str, str],
    report: Report,
) -> tuple[int, list[str]]:
    """Return how many kills happened and what then differed."""
    happened = until_done(train, run_dir, plan)
    found = differing(whole, outcome(run_dir))
    if found:
        report.note(f"{run_dir.parent.name}: after {list(plan)} there differ {found}")
    return happened, found


def _plans(rng: random.Random, batches: int, quick: bool) -> list[list[Kill]]:
    """Return the kills of each run of one training."""

    def at(place: str, most: int = batches) -> Kill:
        return Kill(place, rng.randint(1, most))

    plans = [
        [Kill(rng.choice(("batch_start", "backward")), 1)],  # before the first point
        [at("batch_start"), at("backward", 9), at("batch_end", 9)],  # thrice in one run
        [at("validation", 3)],
        [at("write", 40)],
    ]
    if quick:
        return plans
    plans += [[at(place)] for place in ("batch_start", "backward", "batch_end") for _ in range(2)]
    plans += [[at("write", 40)], [at("epoch_end", 3)]]
    # the main process alone: its workers notice some seconds later, and hold the folder until then
    return [*plans, [Kill("batch_end", rng.randint(3, batches), group=False)]]


def _anywhere(rng: random.Random, batches: int) -> Kill:
    return Kill(rng.choice(("batch_start", "backward", "batch_end")), rng.randint(3, batches))


def _stock(
    subject: str, rich: bool, workers: int, folder: Path, rng: random.Random, kills: int
) -> tuple[int, int]:
    """Return how many kills stock Lightning had, and how many ended in equal weights."""

    def train(run_dir: Path, kill: Kill | None) -> None:
        run_dir.mkdir(exist_ok=True)
        subjects.train_stock(subject, run_dir, kill, rich=rich, workers=workers)

    def end(run_dir: Path) -> str:
        found = torch.load(run_dir / "end.ckpt", weights_only=False)
        return digest([found["state_dict"], found["optimizer_states"]])

    until_done(train, folder / "stock", [])
    again = folder / "stock-again"
    until_done(train, again, [])
    if end(again) != end(folder / "stock"):
        raise RuntimeError(f"stock Lightning does not repeat on {subject}: nothing to compare")
    tried = same = 0
    for number in range(kills):
        run_dir = folder / f"stock-{number}"
        plan = [Kill("batch_end", rng.randint(10, BATCHES_IN_ALL[subject] - 1))]
        happened = until_done(train, run_dir, plan)
        tried, same = tried + happened, same + happened * (end(run_dir) == end(folder / "stock"))
    return tried, same


def _fresh_processes(report: Report, folder: Path) -> None:
    """Kill and resume whole processes: nothing that the forks share may matter."""
    count = equal = 0
    cases = [("cnn", "rich", 2, ("batch_end", "14")), ("ehr", "plain", 0, ("backward", "20"))]
    for subject, variant, workers, kill in cases[: 1 if report.quick else None]:
        forked, fresh = folder / f"forked-{subject}", folder / f"fresh-{subject}"
        rich = variant == "rich"
        until_done(
            lambda run_dir, kill, s=subject, r=rich: subjects.train(  # type: ignore[misc]
                s, run_dir, kill, rich=r, workers=0
            ),
            forked,
            [],
        )
        if _run(subject, variant, fresh, workers, 1, *kill) == -signal.SIGKILL:
            count += 1
            _run(subject, variant, fresh, workers, 1)
            equal += not differing(outcome(forked), outcome(fresh))
    report.share("resume/in fresh processes", equal, count, at_least=1.0)


def _two_processes(report: Report, folder: Path) -> None:
    """Train as two DDP processes (gloo): the samples of one process, and exact after kills."""
    rng = random.Random("two processes")
    one, two = folder / "one", folder / "two"
    _run("ehr", "plain", one, 0, 1)
    _run("ehr", "plain", two, 0, 2)
    whole = outcome(two)
    alone, ranks = _rows(one, 0), [_rows(two, rank) for rank in range(2)]
    same = sum(
        step == a[0] == b[0] and sorted(rows) == sorted(a[1] + b[1])
        for (step, rows), a, b in zip(alone, *ranks, strict=True)
    )
    report.share("ddp/steps with the samples of one process", same, len(alone), at_least=1.0)
    count = equal = 0
    for number in range(1 if report.quick else 5):
        run_dir = folder / f"two-{number}"
        kill = (rng.choice(("batch_end", "backward")), str(rng.randint(3, 35)))
        code = _run("ehr", "plain", run_dir, 2 * (number % 2), 2, *kill)
        if code == -signal.SIGKILL:
            count += 1
            _run("ehr", "plain", run_dir, 0, 2)
            found = differing(whole, outcome(run_dir))
            equal += not found
            if found:
                report.note(f"two processes: after {kill} there differ {found}")
    report.share("ddp/resumed bitwise", equal, count, at_least=1.0)


def _rows(run_dir: Path, rank: int) -> list[list[Any]]:
    rows: list[list[Any]] = json.loads((run_dir / f"rows-{rank}.json").read_text())
    return rows


def _run(subject: str, variant: str, run_dir: Path, workers: int, devices: int, *kill: str) -> int:
    """Train in a process of its own and return its exit code; raise when it fails."""
    command = [sys.executable, str(SCRIPT), subject, variant, str(run_dir), str(workers)]
    log = run_dir.with_name(run_dir.name + ".log")
    with log.open("a") as out:
        process = subprocess.run(
            [*command, str(devices), *kill], stdout=out, stderr=out, timeout=STUCK_S
        )
    if process.returncode not in {0, -signal.SIGKILL}:
        raise RuntimeError(
            f"a training ended with {process.returncode}:\n{log.read_text()[-3000:]}"
        )
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
