"""What a notebook is: short, clean, with knobs that explain themselves, and it runs as a job."""

from __future__ import annotations

import ast
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from medkit.jobs.notebook import read_notebook
from medkit.jobs.parameters import read_parameters
from medkit.jobs.watch import descendants
from medkit.record.results import read_metrics

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CPU_S = {  # of a quick run, imports included
    "01_first_training": 40,
    "02_missing_and_rare": 40,
    "03_kill_and_resume": 90,
    "04_three_traps": 40,
    "05_one_seed_is_an_anecdote": 40,
    "06_which_practice_matters": 40,
    "07_dicom_you_can_trust": 40,
    "08_three_hospitals": 60,
    "09_rare_nodules": 60,
    "10_saliency_under_test": 60,
    "11_report_vlm": 60,
    "12_adapters_and_packing": 60,
    "13_preferences": 60,
    "14_survival_between_hospitals": 40,
}

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[Any]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def lines(cell: Any) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


def tagged(path: Path, tag: str) -> list[Any]:
    return [c for c in cells(path, "code") if tag in c.metadata.get("tags", [])]


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 2


@each
def test_a_notebook_is_valid_and_its_cells_keep_their_ids(path: Path) -> None:
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    ids = [cell.id for cell in nb.cells]
    assert len(set(ids)) == len(ids)
    assert all(name.replace("-", "").isalnum() and not _is_drawn(name) for name in ids), ids


def _is_drawn(name: str) -> bool:
    """Whether an id is one that Jupyter drew: eight hexadecimal digits, or longer ones."""
    return len(name) >= 8 and all(c in "0123456789abcdef-" for c in name)


@each
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    for cell in cells(path, "code"):
        assert cell.outputs == []
        assert cell.execution_count is None


@each
def test_a_notebook_carries_nobodys_settings(path: Path) -> None:
    nb = nbformat.read(path, as_version=4)
    assert set(nb.metadata) <= {"kernelspec", "language_info"}
    assert nb.metadata.kernelspec.name == "python3"
    for cell in nb.cells:
        assert set(cell.metadata) <= {"alt", "jupyter", "tags"}  # alt describes a figure


@each
def test_a_notebook_installs_nothing_and_names_no_machine(path: Path) -> None:
    text = path.read_text()
    for word in ("pip install", "conda install", "/home/", "/root/", "cuda"):
        assert word not in text


@each
def test_a_notebook_is_short_and_says_more_than_it_computes(path: Path) -> None:
    code = [len(lines(cell)) for cell in cells(path, "code")]
    words = sum(len(cell.source.split()) for cell in cells(path, "markdown"))
    assert len(nbformat.read(path, as_version=4).cells) <= 30
    assert sum(code) <= 150
    assert statistics.median(code) <= 8
    assert max(code) <= 25
    assert 6 <= words / sum(code) <= 10


@each
def test_a_class_stands_only_in_a_cell_that_teaches_it(path: Path) -> None:
    for cell in cells(path, "code"):
        has_class = any(line.startswith("class ") for line in lines(cell))
        assert not has_class or "teaches" in cell.metadata.get("tags", []), cell.id


@each
def test_a_notebook_opens_with_a_question_and_what_it_takes(path: Path) -> None:
    first = cells(path, "markdown")[0].source
    assert first.startswith(f"# {path.stem[:2]} - ")
    for word in ("**Question.**", "**You will**", "**Needs.**", "**Takes**"):
        assert word in first
    assert any(cell.source.startswith("## What to keep") for cell in cells(path, "markdown"))


@each
def test_each_knob_has_a_type_a_default_and_a_help_text(path: Path) -> None:
    known = read_parameters(read_notebook(path))
    written = {name: (knob.annotation, knob.default) for name, knob in known.items()}
    assert written["seed"][0] == "int"
    assert written["quick"] == ("bool", False)
    assert written["run_dir"] == ("str", "")
    for knob in known.values():
        assert knob.annotation
        assert knob.help, knob.name
        assert knob.literal, knob.name


@each
def test_a_default_path_leads_to_sample_data(path: Path) -> None:
    known = read_parameters(read_notebook(path))
    named = [knob.default for name, knob in known.items() if name.endswith("_path")]
    paths = [default for default in named if default]
    made = known.get("series_dir") or known.get("candidates_path")
    # left empty, the notebook makes its data
    assert paths or (made is not None and made.default == "")
    assert all((path.parent / default).is_file() for default in paths)


@each
def test_exercises_have_folded_solutions(path: Path) -> None:
    solutions = tagged(path, "solution")
    assert 2 <= len(solutions) <= 3
    assert all(cell.metadata.jupyter.source_hidden for cell in solutions)


@each
def test_a_cell_that_keeps_a_figure_describes_it_for_who_cannot_see_it(path: Path) -> None:
    for cell in cells(path, "code"):
        if "run.figure(" in cell.source or ".plot(suggest" in cell.source:
            assert len(cell.metadata.get("alt", "").split()) >= 8, cell.id


@each
def test_the_last_cell_writes_the_metrics_and_asserts(path: Path) -> None:
    (check,) = tagged(path, "check")
    tree = ast.parse(check.source)
    assert cells(path, "code")[-1].id == check.id
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    assert "run.metrics(" in check.source


# ---- as jobs -------------------------------------------------------------------------------------


@dataclass
class Job:
    """A finished job: its folder, what it said, and the CPU time of all its processes."""

    run_dir: Path
    said: str
    cpu_s: float

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "run.json").read_text())

    @property
    def outputs(self) -> list[Any]:
        nb = nbformat.read(self.run_dir / "notebook.ipynb", as_version=4)
        return [out for cell in nb.cells for out in cell.get("outputs", [])]


def environment(home: Path) -> dict[str, str]:
    """Ours, without what a job of ours would have put there."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MEDKIT_")}
    return clean | {"MEDKIT_KEY_FILE": str(home / "pseudonym.key"), "PYTHONPATH": str(ROOT)}


def job_command(path: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "medkit.cli", "run", str(path), "--out", str(out), *options]


def run_job(path: Path, out: Path, *options: str) -> Job:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        job_command(path, out, *options),
        cwd=out.parent,
        env=environment(out.parent),
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 0, done.stdout + done.stderr
    return Job(out, done.stdout + done.stderr, cpu_s)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    """Run a notebook with ``quick=True`` as a job, once for all tests that look at it."""
    jobs: dict[str, Job] = {}

    def run(stem: str) -> Job:
        if stem not in jobs:
            out = tmp_path_factory.mktemp(stem) / "run"
            jobs[stem] = run_job(ROOT / "notebooks" / f"{stem}.ipynb", out, "-p", "quick", "true")
        return jobs[stem]

    return run


stems = pytest.mark.parametrize(
    "stem",
    [
        pytest.param(path.stem, marks=[] if path.stem.startswith("01") else [pytest.mark.slow])
        for path in NOTEBOOKS
    ],
)


@stems
def test_a_quick_run_leaves_a_finished_run_folder(
    quick_run: Callable[[str], Job], stem: str
) -> None:
    job = quick_run(stem)
    assert job.facts["status"] == "done"
    assert job.facts["quick"] is True
    assert job.facts["exact"] is True
    assert job.facts["data"]
    assert read_metrics(job.run_dir / "metrics.json")["run/quick"].value == 1
    assert (job.run_dir / "report.html").stat().st_size > 10_000
    assert list((job.run_dir / "figures").glob("*.png"))


@stems
def test_a_quick_run_stays_within_its_cpu_seconds(
    quick_run: Callable[[str], Job], stem: str, record_property: Callable[[str, object], None]
) -> None:
    job = quick_run(stem)
    record_property("cpu_s", round(job.cpu_s, 1))
    assert job.cpu_s <= CPU_S[stem]


@stems
def test_a_job_keeps_no_widgets_and_no_warnings_in_its_notebook(
    quick_run: Callable[[str], Job], stem: str
) -> None:
    job = quick_run(stem)
    nb = nbformat.read(job.run_dir / "notebook.ipynb", as_version=4)
    assert "widgets" not in nb.metadata
    shown = {kind for out in job.outputs for kind in out.get("data", {})}
    assert "image/png" in shown
    assert not any("widget" in kind for kind in shown)
    assert [out.text for out in job.outputs if out.get("name") == "stderr"] == []


def test_the_first_training_ends_with_its_headline_table(quick_run: Callable[[str], Job]) -> None:
    job = quick_run("01_first_training")
    metrics = read_metrics(job.run_dir / "metrics.json")
    for stage in ("val", "test/site_c"):
        for name in ("auroc", "auprc", "brier"):
            for model in ("", "logistic/"):
                metric = metrics[f"{stage}/{model}{name}"]
                assert metric.low < metric.value < metric.high
                assert f"{stage}/{model}{name}" in job.said
    assert "report.html" in job.said


def test_the_first_training_keeps_predictions_without_patient_ids(
    quick_run: Callable[[str], Job],
) -> None:
    job = quick_run("01_first_training")
    table = pd.read_parquet(job.run_dir / "predictions" / "test_site_c.parquet")
    ids = pd.read_csv(ROOT / "data_samples/ehr/encounters.csv").patient_id
    assert list(table.columns) == ["row", "site", "y", "score", "patient"]
    assert set(table.site) == {"C"}
    assert table.score.between(0, 1).all()
    assert not {*ids} & {*table.patient}
    assert not any(table.row.str.contains(ids.iloc[0]))
    for file in job.run_dir.rglob("*"):
        if file.suffix in {".json", ".jsonl", ".ipynb", ".html", ".csv", ".log"}:
            assert ids[0] not in file.read_text(errors="replace"), file


@pytest.mark.slow
def test_no_plain_resume_is_equal_and_each_keyed_one_is(quick_run: Callable[[str], Job]) -> None:
    metrics = read_metrics(quick_run("03_kill_and_resume").run_dir / "metrics.json")
    assert metrics["resume/medkit/equal"].value == 1
    assert metrics["resume/plain/equal"].value == 0


@pytest.mark.slow
def test_missing_and_rare_has_each_number_inside_and_outside_beside_the_best_possible(
    quick_run: Callable[[str], Job],
) -> None:
    job = quick_run("02_missing_and_rare")
    metrics = read_metrics(job.run_dir / "metrics.json")
    for way in ("best", "missing/zeros", "units/as_written", "rare/balanced_draws"):
        for side, rows in (("inside", 1400), ("outside", 600)):
            for name in ("auroc", "brier", "calibration_slope", "calibration_intercept"):
                metric = metrics[f"{way}/{side}/{name}"]
                assert metric.low < metric.value < metric.high
                assert metric.n == rows
    assert "test/auroc" not in metrics  # of one hospital nothing is said twice
    gain = metrics["test/site_c/auroc_minus_logistic"]
    assert gain.low <= 0
    assert [out.text for out in job.outputs if "use logistic regression" in out.get("text", "")]
    ledger = (job.run_dir / "ledger.jsonl").read_text()
    assert "creatinine at C" in ledger


HEART = {
    "01_first_training": {
        "target_above": "0", "patient": "", "test_site": "va", "codes": "", "zero_codes": "chol",
        "factors": "{}",
    },
    "02_missing_and_rare": {
        "target_above": "0", "patient": "", "test_site": "*", "contract_path": "",
        "truth_path": "",
    },
    "03_kill_and_resume": {},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stem", HEART)
def test_real_hospitals_go_through_the_same_notebook(
    stem: str, real_data: Path, tmp_path: Path
) -> None:
    values = {"csv_path": str(real_data / "uci_heart4/heart4.csv"), "target": "num"} | HEART[stem]
    options = [word for name, value in values.items() for word in ("-p", name, value)]
    job = run_job(
        ROOT / "notebooks" / f"{stem}.ipynb", tmp_path / "run", "-p", "quick", "true", *options
    )
    assert job.facts["status"] == "done"
    if stem.startswith("01"):
        metrics = read_metrics(job.run_dir / "metrics.json")
        assert metrics["test/site_va/auroc"].value > 0.6
        assert metrics["test/site_va/auroc"].n == 200
    if stem.startswith("02"):
        metrics = read_metrics(job.run_dir / "metrics.json")
        rows = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
        for site, n in rows.items():
            for rival in ("logistic", "boosting"):
                assert metrics[f"test/site_{site}/auroc_minus_{rival}"].n == n
            table = pd.read_parquet(job.run_dir / "predictions" / f"test_site_{site}.parquet")
            assert set(table.site) == {site}
        assert metrics["test/auroc_minus_logistic"].n == 920
        assert "within 4 places" in metrics["test/auroc_minus_logistic"].method
        assert not any(name.startswith("best/") for name in metrics)


@pytest.mark.slow
def test_hospitals_may_have_any_names_and_are_compared_one_by_one(tmp_path: Path) -> None:
    table = pd.read_csv(ROOT / "data_samples/ehr/encounters.csv")
    table = table[["patient_id", "site", "age", "sbp", "resp_rate", "urea", "died"]]
    table["site"] = table.site.map({"A": "St. Mary/x", "B": "A", "C": "a"})
    table.to_csv(tmp_path / "table.csv", index=False)
    values = {"csv_path": str(tmp_path / "table.csv"), "test_site": "*", "folds": "2"}
    values |= {"contract_path": "", "truth_path": "", "quick": "true"}
    options = [word for name, value in values.items() for word in ("-p", name, value)]
    job = run_job(ROOT / "notebooks/02_missing_and_rare.ipynb", tmp_path / "run", *options)
    metrics = read_metrics(job.run_dir / "metrics.json")
    for place, site in {"a": "A", "st._mary_x": "St. Mary/x", "a_2": "a"}.items():
        rows = pd.read_parquet(job.run_dir / f"predictions/test_site_{place}.parquet")
        assert set(rows.site) == {site}
        assert metrics[f"test/site_{place}/auroc_minus_logistic"].n == len(rows)
    assert "within 3 places" in metrics["test/auroc_minus_logistic"].method


@pytest.mark.slow
def test_the_samples_truth_is_not_laid_on_another_table(tmp_path: Path) -> None:
    table = pd.read_csv(ROOT / "data_samples/ehr/encounters.csv").head(900)
    table.to_csv(tmp_path / "table.csv", index=False)
    values = ["-p", "csv_path", str(tmp_path / "table.csv"), "-p", "quick", "true"]
    path = ROOT / "notebooks/02_missing_and_rare.ipynb"
    done = subprocess.run(
        job_command(path, tmp_path / "run", *values),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert 'has 2,000 rows, the table 900. Where no truth is known, pass -p truth_path ""' in (
        done.stdout + done.stderr
    )


def kill_kernel_of(launcher: subprocess.Popen[str]) -> None:
    """SIGKILL to the kernel that a job has started."""
    for pid in descendants(launcher.pid):
        if "kernel_main.py" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
            return
    pytest.fail("the job has no kernel")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "values", "reached"),
    [
        ("01_first_training", {"max_epochs": "60", "lr": "1e-4"}, "logs/progress.json"),
        ("03_kill_and_resume", {"quick": "true"}, "lives/train_medkit.py-0/weights.txt"),
    ],
    ids=["in the fit", "between lives"],
)
def test_a_killed_job_resumes_to_the_same_bytes(
    tmp_path: Path, stem: str, values: dict[str, str], reached: str
) -> None:
    path = ROOT / "notebooks" / f"{stem}.ipynb"
    options = [word for name, value in values.items() for word in ("-p", name, value)]
    whole = run_job(path, tmp_path / "whole", *options)

    out = tmp_path / "killed"
    launcher = subprocess.Popen(
        job_command(path, out, *options),
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    while launcher.poll() is None and not (out / reached).exists():
        time.sleep(0.02)
    kill_kernel_of(launcher)
    _, said = launcher.communicate()
    assert launcher.returncode == 1, said
    assert not (out / "metrics.json").exists()

    resumed = run_job(path, out, "--resume")
    assert (out / "metrics.json").read_bytes() == (whole.run_dir / "metrics.json").read_bytes()
    assert resumed.facts.get("weights_sha256") == whole.facts.get("weights_sha256")
    assert resumed.facts["exact"] is True
    assert [attempt["how"] for attempt in resumed.facts["attempts"]] == ["killed", "done"]
