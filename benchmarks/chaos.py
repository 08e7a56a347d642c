"""Faults of every kind in two small trainings, over seeds: what ends by itself, and with what?

A net for a table and a CNN with BatchNorm are disturbed as ``medkit chaos`` does: seventeen faults,
each at a place drawn from the seed. Most runs are forks of one warm process that go through the
notebook's cells and are started again as ``medkit run --retries`` would; a share of every kind is
started by ``medkit run`` itself. Compared are final weights and metrics, bit for bit, with the
undisturbed run of the same seed where a fault is to be recovered from; else the validation AUROC
with the 99 % prediction interval of undisturbed seeds. Tables whose truth is changed must be
flagged in the ledger. Beside it stock Lightning, seeded, clipped, with a checkpoint every ten steps
and started again as often, on the same faults.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import _chaos_recipes as recipes
import pandas as pd
import torch
from report import Report, wilson

import medkit.start
from medkit.data.ehr import EHRDataModule
from medkit.jobs.causes import worker_died
from medkit.jobs.plan import Request
from medkit.record import identity
from medkit.study import faults_tables
from medkit.study.chaos import Suite
from medkit.study.chaos_command import RETRIES, chaos_command
from medkit.study.chaos_table import Row, rows
from medkit.study.chaos_trial import CLEAN, Ended, Trial, read_ended, witnessed
from medkit.study.faults import FAULTS, FLAGGED, INSIDE, RECOVERED, RESUMED
from medkit.study.faults_inject import inject
from medkit.study.faults_reference import compare_with
from medkit.synth.ehr import make_hospitals

CLEAN_SEEDS, SEEDS = 40, 11
STOCK_CLEAN, STOCK_SEEDS = 20, 3
ONLY = {  # what can happen to one of the two alone
    "table": {fault.name for fault in FAULTS.values() if fault.must == FLAGGED},
    "images": {"dead_worker", "corrupt_file"},
}
FRESH, LIKE = 1000, 20  # first seed of further tables; how many of them are left as they are
AGAIN = 75  # exit code of a process whose worker died: `medkit run` starts it again
REAL = ("sigkill", "sigterm", "truncated_checkpoint", "dead_worker", "disk_full", "nan_sample",
        "duplicated_patients")  # fmt: skip
STOPPED = (-signal.SIGKILL, AGAIN)

# read once, so that all forks agree though somebody edits the sources meanwhile
identity.code_digest()
identity.environment()


def main() -> int:
    """Print the figures; 1 when a bar falls short."""
    for name in ("pytorch_lightning", "lightning", "medkit"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ["MEDKIT_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    report = Report(__doc__)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    began = time.monotonic()
    try:
        paths = recipes.write_tables(folder / "tables")
        plans = [(recipe, stock) for recipe in recipes.RECIPES for stock in (False, True)]
        suites = {plan: _suite(report, folder, *plan) for plan in plans}
        # a process a recipe; what is over is read back
        work = [partial(_run_all, suites, recipe, paths) for recipe in recipes.RECIPES]
        pids = [_start(one, folder / "log") for one in work]
        if any([os.waitpid(pid, 0)[1] for pid in pids]):
            report.note((folder / "log").read_text()[-2000:])
            return 1
        for suite in suites.values():
            missing = [t for t in (*suite.clean_trials(), *suite.trials()) if not suite.is_over(t)]
            if missing:
                raise RuntimeError(f"not run: {missing[:3]}")
        kit = {recipe: suite for (recipe, stock), suite in suites.items() if not stock}
        stock = {recipe: suite for (recipe, stock), suite in suites.items() if stock}
        report.note(f"{(time.monotonic() - began) / 60:.1f} min for all forks, 2 at a time")
        _print(report, kit, stock)
        _unchanged(report, folder, paths)
        _by_medkit_run(report, folder, paths)
    finally:
        if "CHAOS_KEEP" not in os.environ:
            shutil.rmtree(folder, ignore_errors=True)
    return report.finish()


# ---- forks ---------------------------------------------------------------------------------------


def _suite(report: Report, out: Path, recipe: str, stock: bool) -> Suite:
    """Return what is to be run."""
    faults = [fault for fault in FAULTS.values() if fault.name not in _others(recipe)]
    clean, seeds = (3, 1) if report.quick else (CLEAN_SEEDS, SEEDS)
    if stock:
        faults = [fault for fault in faults if fault.must != FLAGGED]
        clean, seeds = (3, 1) if report.quick else (STOCK_CLEAN, STOCK_SEEDS)
    name = "stock" if stock else "kit"
    return Suite(out / name / recipe, faults, seeds, clean, protected=not stock, metric="val/auroc")


def _others(recipe: str) -> set[str]:
    """Return the faults that can only happen to the other recipe."""
    return ONLY["images" if recipe == "table" else "table"]


def _run_all(suites: dict[tuple[str, bool], Suite], recipe: str, paths: dict[str, str]) -> None:
    """Run the trials of a recipe, by the kit and by stock Lightning."""
    for stock, work in ((False, _kit), (True, _stock)):
        suite = suites[recipe, stock]
        for trials in (suite.clean_trials(), suite.trials()):
            for trial in trials:
                _follow(suite, trial, recipe, paths, work)


def _follow(
    suite: Suite, trial: Trial, recipe: str, paths: dict[str, str], work: Callable[..., None]
) -> None:
    """Run a trial to its end, as ``medkit run --retries`` and a scheduler would."""
    trial.folder.mkdir(parents=True)
    order = suite.order(trial)
    paths = paths | _changed(trial)
    restarts = 0
    while True:
        code = _fork(partial(_disturbed, order, work, recipe, trial, paths), trial.folder / "log")
        if code in STOPPED and restarts < RETRIES:
            restarts += 1
        elif trial.next_start(code):
            trial = replace(trial, again=1)
        else:
            break
    left = trial.folder / "stock.json"
    if work is _stock:
        found = json.loads(left.read_text()) if left.exists() else {"weights": "", "metrics": {}}
        ended = Ended(**witnessed(trial), code=code, ledger=[], restarts=restarts, **found)
    else:
        ended = read_ended(trial, code)
    suite.note(ended, trial.folder)


def _disturbed(order: Any, work: Callable[..., None], *arguments: Any) -> None:
    inject(order)
    work(*arguments)


def _changed(trial: Trial) -> dict[str, str]:
    """Write a table of other patients whose truth is changed, where that is the fault."""
    if trial.fault == CLEAN or FAULTS[trial.fault].must != FLAGGED:
        return {}
    path = trial.folder / "table.csv"
    table = pd.read_csv(io.StringIO(make_hospitals(seed=FRESH + trial.seed).encounters_csv()))
    roles = {"target": "died", "patient": "patient_id"}
    faults_tables.change(table, trial.fault, seed=trial.seed, **roles).to_csv(path, index=False)
    (trial.folder / "witness.jsonl").write_text('{"event": "happened"}\n')
    return {"table": str(path)}


def _kit(recipe: str, trial: Trial, paths: dict[str, str]) -> None:
    """Go through a notebook's cells."""
    knobs, *rest = recipes.cells(recipe, paths)
    names: dict[str, Any] = {"__name__": "__main__"}
    for source in (knobs, f"seed, run_dir = {trial.seed}, {str(trial.run_dir)!r}", *rest):
        exec(source, names)
    medkit.start._finish_active()


def _stock(recipe: str, trial: Trial, paths: dict[str, str]) -> None:
    """Train by stock Lightning."""
    trial.run_dir.mkdir(exist_ok=True)
    found = recipes.stock(recipe, trial.run_dir, trial.seed, paths["table"], paths["contract"])
    digest, finite = hashlib.sha256(), True
    for value in found["state"].values():
        digest.update(value.numpy().tobytes())
        finite &= bool(value.isfinite().all())
    values = found["metrics"] if finite else {}
    left = {"weights": digest.hexdigest(), "metrics": values}
    (trial.folder / "stock.json").write_text(json.dumps(left))


def _fork(work: Callable[[], None], log: Path) -> int:
    """Run ``work`` in a forked child; return its exit code, minus the signal that ended it."""
    _, status = os.waitpid(_start(work, log), 0)
    return os.waitstatus_to_exitcode(status)


def _start(work: Callable[[], None], log: Path) -> int:
    """Begin ``work`` in a forked child; return its process number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            work()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 143  # Lightning's own, on SIGTERM
        except BaseException as error:  # the log says it
            code = AGAIN if worker_died(str(error)) else 1
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # a full disk would refuse it
            traceback.print_exc()
        medkit.start._finish_active("failed" if code == 1 else None)
    finally:
        os._exit(code)


# ---- figures -------------------------------------------------------------------------------------


def _print(report: Report, kit: dict[str, Suite], stock: dict[str, Suite]) -> None:
    """Print what came of all forks."""
    found = {recipe: rows(suite) for recipe, suite in kit.items()}
    theirs = {recipe: rows(suite) for recipe, suite in stock.items()}
    for recipe, of in found.items():
        beside = {row.fault.name: row for row in theirs[recipe]}
        for row in of:
            peer = beside.get(row.fault.name)
            good = min(row.unattended, row.as_they_must)
            said = f"stock {min(peer.unattended, peer.as_they_must)}/{peer.runs}" if peer else ""
            report.share(f"{recipe}/{row.fault.name}", good, row.runs, peers=said)
            for why in row.why[:3]:
                report.note(f"  {row.fault.name}, {why}")
            if row.missed:
                report.note(f"  {row.fault.name} did not strike in {row.missed}")
    everything = [row for of in found.values() for row in of]
    all_theirs = [row for of in theirs.values() for row in of]
    runs = sum(row.runs for row in everything)
    least = 0 if report.quick else 300
    report.figure("chaos/runs with a fault", runs, at_least=least)
    alone = sum(row.unattended for row in everything)
    peers = f"stock {sum(r.unattended for r in all_theirs)}/{sum(r.runs for r in all_theirs)}"
    report.share("chaos/ended unattended", alone, runs, at_least=0.99, peers=peers)
    same, of = _sum(everything, RECOVERED, RESUMED)
    report.share("chaos/recovered, bitwise", same, of, at_least=1.0,
                 peers="stock {}/{}".format(*_sum(all_theirs, RECOVERED, RESUMED)))  # fmt: skip
    inside, of = _sum(everything, INSIDE)
    report.figure(
        "chaos/others inside the clean range", inside / of, wilson(inside, of),
        at_least=0.0 if report.quick else 0.9, on_limit=True,
        peers="{}/{}; stock {}/{}".format(inside, of, *_sum(all_theirs, INSIDE)),
    )  # fmt: skip
    flagged, of = _sum(everything, FLAGGED)
    report.share("chaos/changed truth flagged", flagged, of, at_least=1.0, peers="stock: no ledger")
    written = sum(row.written for row in everything)
    report.share("chaos/written down", written, runs, at_least=1.0)
    clean = [run for suite in kit.values() for run in suite.clean_runs()]
    quiet = sum(not run.ledger or not any("skipped" in li for li in run.ledger) for run in clean)
    report.share("chaos/clean runs left alone", quiet, len(clean), at_least=1.0)
    for recipe, suite in kit.items():
        name, low, high = suite.limits()
        report.note(f"{recipe}: clean {name} {low:.4f} to {high:.4f}")


def _sum(found: list[Row], *must: str) -> tuple[int, int]:
    of = [row for row in found if row.fault.must in must]
    return sum(row.as_they_must for row in of), sum(row.runs for row in of)


def _unchanged(report: Report, folder: Path, paths: dict[str, str]) -> None:
    """Print how often tables of other patients of the same hospitals are flagged."""
    of, quiet = 5 if report.quick else LIKE, 0
    for number in range(of):
        table = folder / "like.csv"
        table.write_text(make_hospitals(seed=FRESH + 500 + number).encounters_csv())
        dm = EHRDataModule(table, target="died", site="site", contract=paths["contract"])
        dm.setup()
        noted = [finding for finding in dm.findings if finding.severity != "note"]
        quiet += not noted and not compare_with(dm, paths["reference"])
    report.share("chaos/like tables not flagged", quiet, of, at_least=1.0)


def _by_medkit_run(report: Report, folder: Path, paths: dict[str, str]) -> None:
    """Print what ``medkit chaos`` itself makes of the notebooks."""
    if report.quick:
        return
    for recipe in recipes.RECIPES:
        own = folder / f"notebook-{recipe}"
        notebook = recipes.write_notebook(recipe, own, paths)
        shutil.copy(recipes.__file__, own)
        names = [name for name in REAL if name not in _others(recipe)]
        request = Request(str(notebook), out=str(folder / f"real-{recipe}"), device="cpu")
        code = chaos_command(request, seeds=3, faults=",".join(names))
        report.figure(f"medkit chaos/{recipe}", code, at_most=0, unit="exit code")


if __name__ == "__main__":
    sys.exit(main())
