"""Strangers' Lightning projects, five lines added: killed and resumed to the same bits?

The three projects in tests/foreign/ know nothing of the kit. ``train_medkit.py`` is ``train.py``
with five lines of the kit in it. Each training runs in a process of its own and is killed by
SIGKILL again and again: as an optimizer step begins, as it ends, or a random moment later
(validation, logging, writing a resume point). Then the same script is run until it is done.
Beside it the project as it was, resumed the way a competent person writes it
(``ModelCheckpoint(every_n_train_steps, save_last=True)``, ``ckpt_path="last"``,
``seed_everything(seed, workers=True)``). Last, ``medkit check`` on clean and on planted code.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import json
import linecache
import os
import random
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before torch: no thread may exist when a training is forked

import pytorch_lightning as pl
import torch
from report import Report
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = ROOT / "tests" / "foreign"
PROJECTS = {"icu": "icu_risk", "lesions": "lesion_seg", "films": "film_classifier"}
CLEAN = [
    ("icu", "RiskNet", "ICUDataModule"),
    ("lesions", "LesionSegmenter", "LesionDataModule"),
    ("films", "FilmNet", "FilmData"),
]
KILLS = 20
KILLS_A_RUN = 2
PLAIN_KILLS = 10
STUCK_S = 300.0


@dataclass(frozen=True)
class Kill:
    """When a training dies: at which optimizer step, and where in it."""

    step: int
    moment: str  # "before", "after" or "later"
    delay_s: float = 0.0
    alone: bool = False  # its loader's workers are left to notice by themselves


def main() -> int:
    """Print the figures; 1 when a bar falls short."""
    report = Report(__doc__)
    for name, module in PROJECTS.items():  # imported once; every training is forked from here
        sys.path.insert(0, str(FOREIGN / name))
        __import__(module)
    sys.path.insert(0, str(FOREIGN))
    # not a TemporaryDirectory: a forked training that ends as a script ends would remove it
    folder = Path(tempfile.mkdtemp(prefix="medkit-foreign-"))
    os.chdir(folder)
    for name in PROJECTS:
        _project(report, name, folder)
    _check(report, folder)
    os.chdir(ROOT)
    shutil.rmtree(folder)
    return report.finish()


def _project(report: Report, name: str, folder: Path) -> None:
    draw = random.Random(f"kills of {name}")
    ours, stock = FOREIGN / name / "train_medkit.py", FOREIGN / name / "train.py"
    began = time.monotonic()
    whole = _train_whole(ours, folder / f"{name}-whole")  # makes the project's data
    work = [lambda: _train_whole(stock, folder / f"{name}-plain")]
    if not report.quick:
        work.append(lambda: _train_whole(stock, folder / f"{name}-plain-again"))
        work.append(lambda: _train_whole(ours, folder / f"{name}-again"))
    plain, *repeated = _side_by_side(work)
    steps = whole["step"]
    killed: list[dict[str, Any]] = []
    plain_killed: list[dict[str, Any]] = []
    wanted, plain_wanted = (KILLS_A_RUN, 1) if report.quick else (KILLS, PLAIN_KILLS)
    while (
        _kills(killed) < wanted or _kills(plain_killed) < plain_wanted
    ):  # a kill may come too late
        work.clear()
        for n in range(-(-(wanted - _kills(killed)) // KILLS_A_RUN)):
            out = folder / f"{name}-k{len(killed) + n}"
            plan = _plan(draw, steps, KILLS_A_RUN, alone=name == "lesions" and n == 0)
            work.append(lambda out=out, plan=plan: _train_killed(ours, out, plan) | {"ours": True})
        for n in range(plain_wanted - _kills(plain_killed)):
            out = folder / f"{name}-p{len(plain_killed) + n}"
            plan = _plan(draw, steps, 1)
            work.append(lambda out=out, plan=plan: _train_killed(stock, out, plan))
        for result in _side_by_side(work):
            (killed if "ours" in result else plain_killed).append(result)

    # a run that ends in other bits counts all its kills as failed
    kills = _kills(killed)
    exact = _kills([r for r in killed if r["weights"] == whole["weights"]])
    same_csv = _kills([r for r in killed if r["metrics_csv"] == whole["metrics_csv"]])
    stock_exact = _kills([r for r in plain_killed if r["weights"] == plain["weights"]])
    stock_text = f"stock Lightning {stock_exact}/{_kills(plain_killed)}"
    report.share(
        f"{name}/kills with the same weights", exact, kills, at_least=1.0, peers=stock_text
    )
    report.share(f"{name}/kills with the same metrics.csv", same_csv, kills, at_least=1.0)
    if not report.quick:
        plain_again, again = repeated
        stock_word = "repeats" if plain["weights"] == plain_again["weights"] else "does not repeat"
        fresh = _fresh_processes(ours, folder / f"{name}-fresh", steps // 2)
        for what, other, peers in (
            ("repeated", again, f"stock Lightning {stock_word}"),
            ("fresh processes, one kill", fresh, ""),
        ):
            same = all(other[key] == whole[key] for key in ("weights", "metrics_csv"))
            report.share(f"{name}/{what}, same bits", int(same), 1, at_least=1.0, peers=peers)
    moved = sum(r["resumed_at"] > 0 for r in killed)
    report.note(
        f"{name}: {steps} steps, {kills} kills, {moved}/{len(killed)} runs last resumed from a "
        f"point after the start, {time.monotonic() - began:.0f} s"
    )


def _kills(results: Sequence[Mapping[str, Any]]) -> int:
    return sum(result["kills"] for result in results)


def _plan(draw: random.Random, steps: int, kills: int, *, alone: bool = False) -> list[Kill]:
    """Choose steps at random; none before a first resume point could exist."""
    at = sorted(draw.sample(range(3, steps - 1), kills))
    return [
        Kill(step, draw.choice(["before", "after", "later"]), draw.uniform(0.0, 0.1), alone)
        for step in at
    ]


# ---- one training in a process of its own -----------------------------------------------------


def _train_whole(script: Path, out: Path) -> dict[str, Any]:
    code = _train(script, out, None)
    if code != 0:
        raise RuntimeError(f"{script} ended with {code}:\n{_tail(out)}")
    return _outcome(out)


def _train_killed(script: Path, out: Path, plan: Sequence[Kill]) -> dict[str, Any]:
    """Run ``script`` until it is done, killing it as planned; the same command each time."""
    kills = 0
    for kill in [*plan, None]:
        code = _train(script, out, kill)
        if code == -signal.SIGKILL and _is_done(out):
            break  # it came too late, and does not count
        if code == -signal.SIGKILL:
            kills += 1
        elif code != 0:
            raise RuntimeError(f"{script} ended with {code} after {kills} kills:\n{_tail(out)}")
        else:
            break
    return _outcome(out) | {"kills": kills}


def _is_done(out: Path) -> bool:
    run = out / "run.json"
    return run.exists() and json.loads(run.read_text())["status"] == "done"


def _train(script: Path, out: Path, kill: Kill | None) -> int:
    """Fork, run the script as ``python script OUT`` would, and return its exit status."""
    out.mkdir(parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _be_the_training(script, out, kill, write_end)
    os.close(write_end)
    if kill is not None and kill.moment == "later":
        ready, _, _ = select.select([read_end], [], [], STUCK_S)
        if ready and os.read(read_end, 1):  # an empty read: it ended before
            time.sleep(kill.delay_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL) if kill.alone else os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(read_end)
    if kill is not None and not kill.alone:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # workers of a training that killed itself
    return os.waitstatus_to_exitcode(status)


def _be_the_training(script: Path, out: Path, kill: Kill | None, pipe: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if kill is not None:
            _die_at(kill, pipe)
        # the folder is the project's: what it makes for itself (data) is shared by its runs
        home = out.parent / f"home-{script.parent.name}"
        home.mkdir(exist_ok=True)
        os.chdir(home)
        sys.argv = [str(script), str(out)]
        runpy.run_path(str(script), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # the status is what the parent looks at
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_at(kill: Kill, pipe: int) -> None:
    """Kill this process at an optimizer step, or tell the parent that it was reached."""
    trainers: list[pl.Trainer] = []
    make = pl.Trainer.__init__

    def remember(trainer: pl.Trainer, *args: Any, **options: Any) -> None:
        trainers.append(trainer)
        make(trainer, *args, **options)

    pl.Trainer.__init__ = remember  # type: ignore[method-assign]

    def reached(*_: Any) -> None:
        if not trainers or trainers[-1].global_step != kill.step:
            return
        if kill.moment == "later":
            os.write(pipe, b"x")
        elif kill.alone:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            os.killpg(os.getpid(), signal.SIGKILL)

    if kill.moment == "after":
        register_optimizer_step_post_hook(reached)
    else:
        register_optimizer_step_pre_hook(reached)


def _outcome(out: Path) -> dict[str, Any]:
    """Read what a finished training left; stock Lightning leaves its weights only."""
    weights = torch.load(out / "final.pt", weights_only=True)
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode() + weights[key].contiguous().numpy().tobytes())
    found: dict[str, Any] = {"weights": digest.hexdigest(), "metrics_csv": "", "step": 0}
    if (out / "run.json").exists():
        run = json.loads((out / "run.json").read_text())
        if run["status"] != "done" or not run["exact"]:
            raise RuntimeError(
                f"{out}: {run['status']}, exact {run['exact']}: {run['inexact_reasons']}"
            )
        found["weights"] = run["weights_sha256"] + found["weights"]
        found["step"] = run["stages"]["fit"]["step"]
        csv = (out / "logs" / "fit" / "metrics.csv").read_bytes()
        found["metrics_csv"] = hashlib.sha256(csv).hexdigest()
    log = out.with_suffix(".log").read_text()
    found["resumed_at"] = log.count("Restoring states from the checkpoint path")
    return found


def _tail(out: Path) -> str:
    return "\n".join(out.with_suffix(".log").read_text().splitlines()[-25:])


def _fresh_processes(script: Path, out: Path, step: int) -> dict[str, Any]:
    """The same with whole interpreters: nothing hangs on the trainings being forked."""
    home = out.parent / f"home-{script.parent.name}"
    command = [sys.executable, str(script), str(out)]
    with out.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=home, stdout=log, stderr=log, start_new_session=True
        )
        end = time.monotonic() + STUCK_S
        while _step_seen(out) < step and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError(f"{script} was done before it could be killed")
        subprocess.run(command, cwd=home, stdout=log, stderr=log, check=True)
    return _outcome(out)


def _step_seen(out: Path) -> int:
    try:
        return int(json.loads((out / "logs" / "progress.json").read_text())["step"])
    except (OSError, ValueError):
        return -1


def _side_by_side(work: Sequence[Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Do the work in forked processes, as many at a time as there are cores."""
    results: list[dict[str, Any] | None] = [None] * len(work)
    waiting = list(enumerate(work))
    running: dict[int, tuple[int, str]] = {}
    while waiting or running:
        while waiting and len(running) < min(2, len(os.sched_getaffinity(0))):
            number, job = waiting.pop(0)
            handle, path = tempfile.mkstemp(prefix="result-")
            os.close(handle)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    Path(path).write_text(json.dumps(job()))
                    code = 0
                except BaseException:  # the status is what the parent looks at
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            running[pid] = (number, path)
        pid, status = os.wait()
        number, path = running.pop(pid)
        if status != 0:
            raise RuntimeError("a training could not be brought to its end; its log is above")
        results[number] = json.loads(Path(path).read_text())
        Path(path).unlink()
    return [result for result in results if result is not None]


# ---- medkit check -----------------------------------------------------------------------------


def _check(report: Report, folder: Path) -> None:
    clean = [("plain_project:PlainNet", "plain_project:PlainData", folder)]
    for name, module, data in CLEAN[:2] if report.quick else CLEAN:
        package = PROJECTS[name]
        clean.append((f"{package}:{module}", f"{package}:{data}", folder / f"home-{name}"))
    planted = importlib.import_module("planted")
    began = time.monotonic()
    passed = _side_by_side(
        [lambda case=case: _findings(*case) for case in clean]
        + [
            lambda m=module, d=data: _findings(f"planted:{m}", f"planted:{d}", folder)
            for module, data, _ in planted.PLANTED.values()
        ]
    )
    wrong = [c for c, r in zip(clean, passed, strict=False) if not r["holds"]]
    for module, data, _ in wrong:
        report.note(f"medkit check does not pass {module} {data}")
    report.share("check/clean projects passed", len(clean) - len(wrong), len(clean), at_least=1.0)
    named = 0
    for (name, (_, _, promise)), result in zip(
        planted.PLANTED.items(), passed[len(clean) :], strict=True
    ):
        first = result["broken"][0] if result["broken"] else ["", "", 0]
        right = first[:2] == [promise, planted.__file__] and result["line"].endswith(f"# {name}")
        named += right
        if not right:
            report.note(f"medkit check did not name {name}: {first}")
    report.share("check/planted draws named, with line", named, len(planted.PLANTED), at_least=1.0)
    report.note(f"check: {len(passed)} checks in {time.monotonic() - began:.0f} s")


def _findings(module: str, data: str, folder: Path) -> dict[str, Any]:
    """Check in ``folder``; return whether all holds, and what is broken where."""
    from medkit.check import check

    os.chdir(folder)
    findings = check(module, data)
    wrong = [finding for finding in findings if finding.holds is False]
    at = [finding.culprit for finding in wrong]
    return {
        "holds": all(finding.holds for finding in findings),
        "broken": [[f.promise, c.file, c.line] for f, c in zip(wrong, at, strict=True) if c],
        "line": linecache.getline(at[0].file, at[0].line).rstrip() if at and at[0] else "",
    }


if __name__ == "__main__":
    sys.exit(main())
