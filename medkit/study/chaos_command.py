"""``medkit chaos NOTEBOOK``: faults in somebody's own notebook, each run by ``medkit run``."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from medkit.jobs.notebook import Notebook, UsageError, read_notebook
from medkit.jobs.parameters import read_parameters
from medkit.jobs.plan import Request, effective, make_plan
from medkit.jobs.processes import Command, Queue, Slot, share_out
from medkit.record.files import read_json, write_json, write_text
from medkit.study import faults_order, faults_tables
from medkit.study.chaos import Suite
from medkit.study.chaos_table import in_words, lost, rows
from medkit.study.chaos_trial import CLEAN, Trial, read_ended
from medkit.study.faults import FLAGGED, Fault, chosen

RETRIES = 3
FEWEST_CLEAN = 3
_TABLES = (".csv", ".parquet")
_SETTINGS = "chaos.json"


@dataclass(frozen=True)
class Table:
    """The notebook's table, of which changed copies are made.

    Attributes:
        parameter: The parameter that names it.
        path: Where it is.
        target: Column of the label.
        patient: Column of patient ids, or "".
    """

    parameter: str
    path: Path
    target: str
    patient: str


def chaos_command(request: Request, *, seeds: int, faults: str = "", jobs: int = 0) -> int:
    """Disturb a notebook's training and say what came of it; return the exit code.

    Args:
        request: The job; ``out`` is the suite's folder, gone on with where it has content.
        seeds: Runs of each fault, and of none.
        faults: Names, separated by commas; "" for all.
        jobs: Runs at a time; 0: one per core.

    Raises:
        UsageError: For what can't be run.
        ValueError: For unknown faults.
    """
    if seeds < FEWEST_CLEAN:
        raise UsageError(
            f"--seeds must be {FEWEST_CLEAN} or more, got {seeds}: fewer clean runs have no range."
        )
    asked = chosen(faults)
    notebook = read_notebook(request.notebook)
    known = effective(read_parameters(notebook), {})
    if "seed" not in known:
        raise UsageError(
            f"{notebook.shown} must have a parameter seed: faults are tried over several. Add "
            "`seed: int = 0` to the cell tagged parameters."
        )
    make_plan(replace(request, out=None))  # whether -p and -f can be run at all
    out = (request.cwd / (request.out or f"runs/{notebook.path.stem}-chaos")).absolute()
    _begin(out, notebook, request)
    table = _table(notebook, request)
    suite = Suite(out, _possible(asked, table), seeds, seeds)
    for fault in asked:
        if fault not in suite.faults:
            _say(f"{fault.name} is left out: the notebook has no csv_path and target")
    runner = Runner(suite, request, table)
    for trials in (suite.clean_trials(), suite.trials()):
        if not runner.work(trials, jobs):
            sys.stdout.write(f"stopped; the same command goes on: {out}\n")
            return 130
        dead = [e for e in suite.ended.values() if e.fault == CLEAN and e.code]
        if dead:
            raise UsageError(
                f"{len(dead)} of {seeds} undisturbed runs ended with code {dead[0].code}; their "
                f"logs are in {out / CLEAN}. Make `medkit run` of this notebook work first."
            )
    words = in_words(suite)
    write_text(out / "chaos.txt", words)
    sys.stdout.write(f"{words}{out / 'chaos.txt'}\n")
    return int(lost(rows(suite)) > 0)


class Runner:
    """Starts trials by ``medkit run``, each with its order.

    Args:
        suite: What is to be run.
        request: The job.
        table: The notebook's table, if it has one.
    """

    def __init__(self, suite: Suite, request: Request, table: Table | None) -> None:
        self.suite = suite
        self.request = request
        self.table = table
        self._began: dict[Path, float] = {}
        self._site = suite.out / "site"
        self._site.mkdir(exist_ok=True)
        text = faults_order.SITE.format(folder=str(self._site))
        write_text(self._site / "sitecustomize.py", text)

    def work(self, trials: Sequence[Trial], jobs: int) -> bool:
        """Run what is not over yet; return whether all came to their ends."""
        waiting = [trial for trial in trials if not self.suite.is_over(trial)]
        if not waiting:
            return True
        for trial in waiting:
            shutil.rmtree(trial.folder, ignore_errors=True)  # one that was cut off begins anew
            trial.folder.mkdir(parents=True)
        queue: Queue[Trial] = Queue(
            share_out(jobs, at_most=len(waiting)),
            label=lambda trial: f"{trial.fault} s{trial.seed}",
            command=self._command,
            ended=self._ended,
        )
        self.queue = queue
        queue.run(waiting)
        return queue.stop is None

    def _command(self, trial: Trial, slot: Slot[Trial]) -> Command:
        self._began.setdefault(trial.folder, time.monotonic())
        order = trial.folder / "fault.json"
        if trial.again == 0:
            self.suite.order(trial).write(order)
        words = [sys.executable, "-m", "medkit.cli", "run", self.request.notebook]
        words += ["--out", str(trial.run_dir), "--retries", str(RETRIES)]
        words += ["-p", "seed", str(trial.seed)]
        for name, value in self.request.given:
            words += ["-p", name, value]
        words += ["-f", self.request.values_file] if self.request.values_file else []
        words += ["--device", self.request.device] if self.request.device else []
        words += self._changed_table(trial)
        words += ["--resume"] if trial.again else []
        paths = [str(self._site), str(Path(__file__).parents[2])]

        paths += [p for p in [os.environ.get("PYTHONPATH", "")] if p]
        environment = (
            (faults_order.VARIABLE, str(order)),
            ("PYTHONPATH", os.pathsep.join(paths)),
        )
        return Command(words, trial.folder / "log", self.request.cwd, environment)

    def _changed_table(self, trial: Trial) -> list[str]:
        known = {fault.name: fault for fault in self.suite.faults}
        fault = known.get(trial.fault)
        if self.table is None or fault is None or fault.must != FLAGGED:
            return []
        path = trial.folder / f"table{self.table.path.suffix}"
        if not path.exists():
            table = read_table(self.table.path)
            roles = {"target": self.table.target, "patient": self.table.patient}
            changed = faults_tables.change(table, fault.name, seed=trial.seed, **roles)
            write = changed.to_csv if path.suffix == ".csv" else changed.to_parquet
            write(path, index=False)
            witness = trial.folder / "witness.jsonl"
            witness.write_text('{"event": "happened"}\n')
        return ["-p", self.table.parameter, str(path)]

    def _ended(self, trial: Trial, code: int) -> Iterable[Trial]:
        if self.queue.stop is not None:
            return []  # it was cut off by us
        if trial.next_start(code):
            return [replace(trial, again=trial.again + 1)]
        seconds = round(time.monotonic() - self._began[trial.folder], 1)
        ended = read_ended(trial, code, seconds=seconds)
        self.suite.note(ended, trial.folder)
        _say(f"{trial.fault} seed {trial.seed}: code {code}, {seconds:.0f} s")
        return []


def read_table(path: Path) -> pd.DataFrame:
    """Read a table as it is written: what is no number stays text."""
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def _possible(asked: Sequence[Fault], table: Table | None) -> list[Fault]:
    return [fault for fault in asked if fault.must != FLAGGED or table is not None]


def _table(notebook: Notebook, request: Request) -> Table | None:
    """Return the notebook's table where parameters name it, its target and its patients."""
    parameters = make_plan(replace(request, out=None)).parameters
    for name, value in parameters.items():
        if name.endswith("_path") and isinstance(value, str) and value.endswith(_TABLES):
            path = notebook.path.parent / value
            if path.is_file() and parameters.get("target"):
                patient = str(parameters.get("patient") or "")
                return Table(name, path, str(parameters["target"]), patient)
    return None


def _begin(out: Path, notebook: Notebook, request: Request) -> None:
    """Make the suite's folder, or go on in one of the same notebook and parameters."""
    settings = {
        "notebook_sha256": notebook.digest,
        "given": [list(pair) for pair in request.given],
        "values_file": request.values_file or "",
    }
    path = out / _SETTINGS
    if path.exists():
        if read_json(path) != settings:
            raise UsageError(
                f"{out} holds a suite of another notebook or of other parameters. Choose another "
                "--out, or remove it."
            )
        return
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"--out must be new, empty or a suite's folder; {out} is none of these.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
