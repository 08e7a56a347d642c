from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from medkit import cli, keyed
from medkit.jobs.notebook import read_notebook
from medkit.jobs.parameters import read_parameters
from medkit.jobs.plan import effective
from medkit.record.folder import RunFolder

KNOBS = """\
csv_path: str = "table.csv"  # one row per patient
target: str = "died"  # column of the label
patient: str = ""  # each row is another patient
seed: int = 0  # decides all draws
run_dir: str = ""  # where results go
quick: bool = False  # the short path
"""
READ = """\
import os
from pathlib import Path

import pandas as pd

table = pd.read_csv(csv_path)
folder = Path(os.environ["MEDKIT_RUN_DIR"])
"""
WRITE = """\
out = pd.DataFrame({"row": "", "site": "", "y": table[target], "score": score})
(folder / "predictions").mkdir()
out.to_parquet(folder / "predictions" / "test.parquet")
"""
HONEST, LEAKY = (
    "score = table['lab']\n" + WRITE,
    "score = table[target] + 0.1 * table['lab']\n" + WRITE,
)


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a notebook that scores 400 rows, and a run of it as `medkit run` records one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    draw = keyed.generator(0, "table")
    lab = draw.normal(size=400)
    died = (draw.random(400) < 1 / (1 + np.exp(1 - lab))).astype(int)
    pd.DataFrame({"lab": lab, "died": died}).to_csv("table.csv", index=False)

    def write(*cells: str) -> Path:
        nb = nbformat.v4.new_notebook()
        nb.cells = [nbformat.v4.new_code_cell(KNOBS, metadata={"tags": ["parameters"]})]
        nb.cells += [nbformat.v4.new_code_cell(source) for source in (READ, *cells)]
        nbformat.write(nb, tmp_path / "job.ipynb")
        found = read_notebook(tmp_path / "job.ipynb")
        RunFolder.create(
            tmp_path / "run",
            status="done",
            notebook=str(found.path),
            notebook_sha256=found.digest,
            parameters=effective(read_parameters(found), {}),
        )
        return tmp_path / "run"

    return write


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_notebook_that_leaks_predicts_shuffled_labels_and_fails_the_audit(
    notebook: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = notebook(LEAKY)
    before = files(run)
    assert cli.main(["audit", str(run), "--label-shuffle"]) == 1
    assert "leak: label shuffle: AUROC 1 " in capsys.readouterr().out
    assert files(run) == before
    assert list((tmp_path / "tmp").iterdir()) == []  # the shuffled table is gone
    again = json.loads((tmp_path / "run-shuffled" / "run.json").read_text())
    assert again["labels_shuffled_from"] == str(run)


def test_an_honest_notebook_passes_though_a_claim_it_checks_fails(
    notebook: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = notebook(HONEST, "assert table[target].corr(score) > 0.2, 'no longer true'")
    assert cli.main(["audit", str(run), "--label-shuffle", "--out", "again"]) == 0
    said = capsys.readouterr()
    assert "0 leaks" in said.out
    assert "judged by what was predicted before the notebook failed" in said.out
    assert "no longer true" in said.err
    assert (run.parent / "again" / "report.html").is_file()


@pytest.mark.slow
def test_a_notebook_that_predicts_nothing_is_not_judged(
    notebook: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", str(notebook("pass")), "--label-shuffle"]) == 2
    assert "is judged by its predictions" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_the_shuffled_table_is_gone(
    sent: signal.Signals, code: int, notebook: Callable[..., Path], tmp_path: Path
) -> None:
    run = notebook("(folder / 'here').touch()\nimport time\ntime.sleep(60)")
    words = [sys.executable, "-m", "medkit.cli", "audit", str(run), "--label-shuffle"]
    with subprocess.Popen(words, env=os.environ | {"MEDKIT_GRACE_S": "5"}) as process:
        for _ in range(600):
            if (tmp_path / "run-shuffled" / "here").exists():
                break
            time.sleep(0.1)
        assert any((tmp_path / "tmp").glob("medkit-shuffled-*/table.csv"))
        process.send_signal(sent)
        assert process.wait(30) == code
    assert not list((tmp_path / "tmp").glob("medkit-shuffled-*"))


REFUSED = {
    "survival": (
        {"parameters": {"event": "died", "time": "days", "csv_path": "table.csv"}},
        "this run has times and events ('died'), which end together",
    ),
    "script": ({"notebook": "train.py"}, "this one was started by 'train.py'"),
    "JupyterLab": ({"notebook_sha256": None}, "started by `medkit run`"),
    "gone": ({"notebook": "/nowhere/job.ipynb"}, "there is no notebook at '/nowhere/job.ipynb'"),
    "no label": ({"parameters": {"csv_path": "table.csv"}}, "has the parameters `target`"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_run_that_can_not_be_run_on_shuffled_labels_says_why(
    what: str,
    notebook: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields, words = REFUSED[what]
    run = notebook(HONEST)
    RunFolder(run).update(**fields)
    assert cli.main(["audit", str(run), "--label-shuffle"]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run-shuffled").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_folder_without_a_run_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", str(tmp_path), "--label-shuffle"]) == 2
    assert "needs a run folder with a run.json in it" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(
    notebook: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = notebook(HONEST)
    assert cli.main(["audit", str(run), "--label-shuffle", "--out", str(run)]) == 2
    assert "must be new or empty for a new run" in capsys.readouterr().err


def test_a_table_elsewhere_is_not_taken_in_silence(
    notebook: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = notebook(HONEST)
    assert cli.main(["audit", str(run), "--label-shuffle", "--table", "table.csv"]) == 2
    assert "takes the table from the run's parameters" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["01_first_training", "02_missing_and_rare"])
def test_the_notebooks_predict_nothing_of_shuffled_labels(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = Path(__file__).resolve().parents[3] / "notebooks" / f"{name}.ipynb"
    run = tmp_path / "run"
    assert cli.main(["run", str(notebook), "-p", "quick", "true", "--out", str(run)]) == 0
    assert cli.main(["audit", str(run), "--label-shuffle"]) == 0
    assert "0 leaks" in capsys.readouterr().out
