"""``medkit chaos``: what it refuses, and what it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from medkit.cli import main
from medkit.jobs.notebook import UsageError
from medkit.jobs.plan import Request
from medkit.jobs.processes import Slot
from medkit.study import chaos_command as command
from medkit.study.chaos import Suite
from medkit.study.chaos_command import Runner, Table, chaos_command
from medkit.study.chaos_trial import Ended, Trial
from medkit.study.faults import FAULTS
from medkit.study.faults_order import SITE, VARIABLE

ROOT = Path(__file__).parents[2]
KNOBS = """\
seed: int = 0  # decides all draws
csv_path: str = "table.csv"  # one row per encounter
target: str = "died"  # column of the label
run_dir: str = ""  # where results go
quick: bool = False  # the short path
"""


def write(folder: Path, knobs: str = KNOBS, name: str = "job.ipynb") -> Request:
    """Write a notebook with a table; return a request to disturb it."""
    nb = nbformat.v4.new_notebook()
    nb.cells.append(nbformat.v4.new_code_cell(knobs, metadata={"tags": ["parameters"]}))
    nbformat.write(nb, folder / name)
    table = pd.DataFrame({"died": [0, 1] * 20, "x": range(40)})
    table.to_csv(folder / "table.csv", index=False)
    return Request(str(folder / name), out=str(folder / "out"), cwd=folder)


def nothing_to_do(self: Runner, trials: list[Trial], jobs: int) -> bool:
    """Take the place of the processes: each run ends well, its fault has struck."""
    for trial in trials:
        happened = int(trial.fault != "clean")
        end = Ended(trial.fault, trial.seed, 0, 0, happened, 100, 0, "w", {"val/auroc": 0.8}, [], 1)
        self.suite.note(end, trial.folder)
    return True


def test_a_notebook_without_a_seed_is_refused(tmp_path: Path) -> None:
    request = write(tmp_path, KNOBS.replace("seed: int = 0", "lr: float = 0.1"))
    with pytest.raises(UsageError, match=r"must have a parameter seed: faults .* Add"):
        chaos_command(request, seeds=3)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    request = write(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="must be new, empty or a suite's folder"):
        chaos_command(request, seeds=3)


def test_a_suite_of_other_parameters_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "work", nothing_to_do)
    request = write(tmp_path)
    chaos_command(request, seeds=3, faults="sigkill")
    with pytest.raises(UsageError, match=r"another notebook or of other parameters. Choose"):
        chaos_command(replace(request, given=(("target", "x"),)), seeds=3, faults="sigkill")


def test_the_exit_code_says_whether_something_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Runner, "work", nothing_to_do)
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    assert main(["chaos", "job.ipynb", "--seeds", "3", "--faults", "sigkill", "--out", "a"]) == 0
    assert main(["chaos", "job.ipynb", "--seeds", "3", "--faults", "corrupt_file"]) == 1
    assert main(["chaos", "job.ipynb", "--faults", "gremlins"]) == 2
    said = capsys.readouterr()
    assert "same bits as undisturbed: 3 of 3" in said.out
    assert "not in the ledger" in said.out
    assert "faults must be among" in said.err


def test_undisturbed_runs_that_fail_are_no_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Runner, trials: list[Trial], jobs: int) -> bool:
        for trial in trials:
            self.suite.note(Ended("clean", trial.seed, 1, 0, 0, 0, 0, "", {}, [], 0), trial.folder)
        return True

    monkeypatch.setattr(Runner, "work", fails)
    with pytest.raises(UsageError, match="3 of 3 undisturbed runs ended with code 1"):
        chaos_command(write(tmp_path), seeds=3)


def test_truths_are_changed_only_where_a_table_and_its_target_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Runner, "work", nothing_to_do)
    request = write(tmp_path, KNOBS.replace("target:", "label:"))
    chaos_command(request, seeds=3, faults="label_flips,sigkill")
    assert "label_flips is left out" in capsys.readouterr().err


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A suite of all faults whose clean runs are over."""
    request = write(tmp_path)
    suite = Suite(tmp_path / "out", list(FAULTS.values()), 3, 3)
    suite.out.mkdir()
    table = Table("csv_path", tmp_path / "table.csv", "died", "")
    runner = Runner(suite, request, table)
    nothing_to_do(runner, suite.clean_trials(), 1)
    return runner


def test_a_trial_is_a_medkit_run_with_its_seed_order_and_retries(runner: Runner) -> None:
    trial = next(t for t in runner.suite.trials() if t.fault == "sigkill")
    trial.folder.mkdir(parents=True)
    started = runner._command(trial, Slot())
    words, environment = list(started.words), dict(started.environment)
    assert words[3:5] == ["run", str(runner.request.notebook)]
    assert words[words.index("--retries") + 1] == str(command.RETRIES)
    assert words[words.index("seed") + 1] == str(trial.seed)
    assert "--resume" not in words
    assert Path(environment[VARIABLE]).is_file()
    assert "--resume" in runner._command(replace(trial, again=1), Slot()).words


def test_a_changed_table_takes_the_place_of_the_notebooks(runner: Runner, tmp_path: Path) -> None:
    trial = next(t for t in runner.suite.trials() if t.fault == "label_flips")
    trial.folder.mkdir(parents=True)
    words = list(runner._command(trial, Slot()).words)
    changed = pd.read_csv(words[words.index("csv_path") + 1])
    assert not changed.equals(pd.read_csv(tmp_path / "table.csv"))
    assert (trial.folder / "witness.jsonl").exists()


def test_faults_are_placed_by_clean_runs_that_have_trained(tmp_path: Path) -> None:
    suite = Suite(tmp_path, list(FAULTS.values()), 3, 3)
    with pytest.raises(ValueError, match=r"none was counted. Train by stable_trainer"):
        suite.order(suite.trials()[0])


def test_another_sitecustomize_is_not_hidden(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    (ours / "sitecustomize.py").write_text(SITE.format(folder=str(ours)))
    (theirs / "sitecustomize.py").write_text("print('theirs')\n")
    paths = os.pathsep.join(map(str, (ours, theirs, ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", "import sys; print('torch' in sys.modules)"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.split(), done.stderr) == (["theirs", "False"], "")
