from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import medkit.start
from medkit.callbacks.fingerprint import SettingsChangedError
from medkit.record.files import write_json
from medkit.record.folder import RunFolder
from medkit.record.lock import RunBusyError, RunLock, is_locked
from medkit.record.pseudonym import pseudonym
from medkit.record.results import Metric
from medkit.run import Run, StageFinishedError
from medkit.start import start_run
from medkit.study.runs import from_runs

pytestmark = pytest.mark.usefixtures("_as_before_a_run")


def record(path: Path) -> dict[str, Any]:
    return json.loads((path / "run.json").read_text())


def cut(path: Path, **options: Any) -> None:
    """Leave a run behind whose only stage was begun and not ended."""
    run = start_run(path, **({"seed": 7} | options))
    run.stage_begun("fit")
    run.finish()


# ---- a new run ---------------------------------------------------------------------------------


def test_a_run_says_what_it_is(tmp_path: Path) -> None:
    run = start_run(tmp_path / "a", seed=7, split_seed=3, quick=True)
    content = record(run.dir)
    assert run.dir == tmp_path / "a"
    assert (content["seed"], content["split_seed"], content["quick"]) == (7, 3, True)
    assert content["status"] == "running"
    assert content["exact"] is True
    assert content["inexact_reasons"] == []
    assert content["hardware_class"]["threads"] == torch.get_num_threads()
    assert content["environment"]["torch"].startswith("2.")
    assert not run.resumed


def test_a_run_holds_its_folder_until_it_is_finished(tmp_path: Path) -> None:
    run = start_run(tmp_path / "a", seed=7)
    assert is_locked(run.dir)
    run.finish()
    assert not is_locked(run.dir)
    content = record(run.dir)
    assert content["status"] == "done"
    assert content["end"] >= content["start"]
    assert {"wall_s", "cpu_s", "peak_memory_mb", "steps_wasted"} <= content["cost"].keys()


def test_a_run_with_a_stage_that_has_not_ended_was_interrupted(tmp_path: Path) -> None:
    cut(tmp_path / "a")
    assert record(tmp_path / "a")["status"] == "interrupted"


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"must be new or empty.*thesis\.tex"):
        start_run(tmp_path, seed=7)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_started_again_in_the_same_process_it_closes_the_run_before(tmp_path: Path) -> None:
    first = start_run(tmp_path / "a", seed=1)
    second = start_run(tmp_path / "b", seed=2)
    assert record(first.dir)["status"] == "done"
    assert not is_locked(first.dir)
    assert record(second.dir)["status"] == "running"


def test_a_run_whose_folder_was_removed_stands_in_nobodys_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = start_run(tmp_path / "a", seed=7)
    shutil.rmtree(tmp_path / "a")
    start_run(tmp_path / "b", seed=7)
    assert f"{tmp_path / 'a'} is gone" in caplog.text
    assert first.finish() == "interrupted"
    assert record(tmp_path / "b")["status"] == "running"


@pytest.mark.parametrize("status", ["done", "failed", "interrupted"])
def test_how_a_run_ended_is_returned_for_an_exit_code(tmp_path: Path, status: str) -> None:
    run = start_run(tmp_path / "a", seed=7)
    assert run.finish(status) == status
    assert run.finish() == status


def test_without_a_folder_two_runs_get_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    first, second = start_run(seed=1), start_run(seed=1)
    assert first.dir != second.dir
    assert first.dir.parent == second.dir.parent
    assert first.dir.parent.parent == tmp_path / "runs"


def test_a_relative_folder_is_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert start_run("out/a", seed=1).dir == tmp_path / "out" / "a"


def test_the_thread_count_is_set_and_written_down(tmp_path: Path) -> None:
    run = start_run(tmp_path / "a", seed=1, threads=2)
    assert torch.get_num_threads() == 2
    assert record(run.dir)["hardware_class"]["threads"] == 2


# ---- going on ----------------------------------------------------------------------------------


def test_an_unfinished_run_is_gone_on_with(tmp_path: Path) -> None:
    cut(tmp_path / "a")
    RunFolder(tmp_path / "a").update(interrupted_by="SIGTERM")
    run = start_run(tmp_path / "a", seed=7)
    content = record(run.dir)
    assert run.resumed
    assert content["status"] == "running"
    assert content["interrupted_by"] is None
    assert [attempt["how"] for attempt in content["attempts"]] == ["interrupted", "running"]
    assert content["exact"] is True


def test_cost_adds_up_over_attempts(tmp_path: Path) -> None:
    cut(tmp_path / "a")
    RunFolder(tmp_path / "a").update(cost={"wall_s": 1000.0, "cpu_s": 2000.0, "steps_wasted": 4})
    start_run(tmp_path / "a", seed=7).finish()
    cost = record(tmp_path / "a")["cost"]
    assert cost["wall_s"] >= 1000.0
    assert cost["cpu_s"] >= 2000.0
    assert cost["steps_wasted"] == 4


def test_what_a_killed_script_said_it_had_cost_is_counted(tmp_path: Path) -> None:
    run = start_run(tmp_path / "a", seed=7)
    said = {"stage": "fit", "step": 3, "time": time.time(), "cpu_s": 1000.0}
    write_json(run.folder.subfolder("logs") / "progress.json", said)
    run.abandon()  # as a kill leaves it: nothing is written, and nobody holds the lock
    cut(tmp_path / "a")
    content = record(tmp_path / "a")
    assert [attempt["how"] for attempt in content["attempts"]] == ["killed", "interrupted"]
    assert 1000.0 <= content["cost"]["cpu_s"] < 1100.0
    assert content["cost"]["at_least"] is True
    assert content["last_seen"] == {"stage": "fit", "step": 3}


@pytest.mark.parametrize("left", [b"", b'{\n "step": 3', b"\0" * 200])
def test_a_progress_file_that_a_power_cut_tore_stops_nobody(tmp_path: Path, left: bytes) -> None:
    run = start_run(tmp_path / "a", seed=7)
    (run.folder.subfolder("logs") / "progress.json").write_bytes(left)
    run.abandon()
    assert start_run(tmp_path / "a", seed=7).resumed
    assert "last_seen" not in record(tmp_path / "a")


def test_a_finished_run_is_refused(tmp_path: Path) -> None:
    start_run(tmp_path / "a", seed=7).finish()
    before = record(tmp_path / "a")
    with pytest.raises(
        FileExistsError, match=r"holds a finished run \(weights_sha256 none\)\. Choose"
    ):
        start_run(tmp_path / "a", seed=7)
    assert record(tmp_path / "a") == before
    assert not is_locked(tmp_path / "a")


def test_nothing_is_left_in_the_copy_of_a_finished_run(tmp_path: Path) -> None:
    start_run(tmp_path / "a", seed=7).finish()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "run.json").write_bytes((tmp_path / "a" / "run.json").read_bytes())
    with pytest.raises(FileExistsError, match="holds a finished run"):
        start_run(copy, seed=7)
    assert [path.name for path in copy.iterdir()] == ["run.json"]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[int]:
    """Another process that writes into ``tmp_path/a``."""
    cut(tmp_path / "a")
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock = RunLock(tmp_path / "a")
        lock.acquire()
        os.write(write_end, b"held")
        time.sleep(60)
        os._exit(0)
    assert os.read(read_end, 4) == b"held"
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(read_end)
    os.close(write_end)


def test_a_second_writer_is_refused_and_the_first_is_named(
    tmp_path: Path, writer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medkit.start, "_WAIT_FOR_LOCK_S", 0.0)
    before = record(tmp_path / "a")
    with pytest.raises(RunBusyError, match=rf"in use by process {writer} on"):
        start_run(tmp_path / "a", seed=7)
    assert record(tmp_path / "a") == before


@dataclass
class Other:
    """Another setting under which a run is resumed, and how the error names it."""

    named: str
    options: dict[str, Any]
    patch: Callable[[pytest.MonkeyPatch, Path], None] = lambda *_: None


def other_parameters(patch: pytest.MonkeyPatch, path: Path) -> None:
    RunFolder(path).update(parameters={"lr": 0.1})


def other_script(patch: pytest.MonkeyPatch, path: Path) -> None:
    patch.setattr(medkit.start, "script_digest", lambda: "edited")


def other_code(patch: pytest.MonkeyPatch, path: Path) -> None:
    patch.setattr(medkit.start.identities, "code_digest", lambda: "edited")


def other_torch(patch: pytest.MonkeyPatch, path: Path) -> None:
    versions = medkit.start.identities.environment() | {"torch": "2.99.0"}
    patch.setattr(medkit.start.identities, "environment", lambda: versions)


OTHERS = {
    "seed": Other("seed was 7, is 8", {"seed": 8}),
    "split_seed": Other("split_seed was 0, is 1", {"split_seed": 1}),
    "quick": Other("quick was False, is True", {"quick": True}),
    "threads": Other("hardware_class.threads was 1, is 2", {"threads": 2}),
    "parameters": Other("parameters.lr was None, is 0.1", {}, other_parameters),
    "script": Other("notebook_sha256", {}, other_script),
    "code": Other("code_sha256", {}, other_code),
    "torch": Other("environment.torch was '2.", {}, other_torch),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_resume_under_other_settings_is_refused_and_the_setting_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    other, path = OTHERS[what], tmp_path / "a"
    cut(path, threads=1)
    other.patch(monkeypatch, path)
    with pytest.raises(SettingsChangedError, match="must be resumed under the settings") as caught:
        start_run(path, **({"seed": 7, "threads": 1} | other.options))
    assert other.named in str(caught.value)
    assert "allow_inexact=True" in str(caught.value)
    assert record(path)["status"] == "interrupted"
    assert not is_locked(path)


@pytest.mark.parametrize("what", OTHERS)
def test_allowed_to_be_inexact_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    other, path = OTHERS[what], tmp_path / "a"
    cut(path, threads=1)
    other.patch(monkeypatch, path)
    start_run(path, **({"seed": 7, "threads": 1, "allow_inexact": True} | other.options))
    content = record(path)
    assert content["exact"] is False
    assert [reason for reason in content["inexact_reasons"] if other.named in reason]
    assert content["status"] == "running"


def test_a_run_once_marked_inexact_stays_so(tmp_path: Path) -> None:
    cut(tmp_path / "a")
    start_run(tmp_path / "a", seed=8, allow_inexact=True).stage_begun("fit")
    start_run(tmp_path / "a", seed=7, allow_inexact=True)
    assert record(tmp_path / "a")["exact"] is False
    assert len(record(tmp_path / "a")["inexact_reasons"]) == 1


def test_data_that_changed_between_attempts_are_refused(tmp_path: Path) -> None:
    run = start_run(tmp_path / "a", seed=7)
    run.data(encounters="0a1b")
    run.stage_begun("fit")
    again = start_run(tmp_path / "a", seed=7)
    again.data(encounters="0a1b", notes="ffff")
    with pytest.raises(SettingsChangedError, match=r"data\.encounters was '0a1b', is '9999'"):
        again.data(encounters="9999")
    assert record(run.dir)["data"] == {"encounters": "0a1b", "notes": "ffff"}


def test_a_stage_finished_in_this_process_is_not_fitted_again(tmp_path: Path) -> None:
    run = start_run(tmp_path / "a", seed=7)
    run.stage_done("fit", step=3, weights_sha256="00")
    with pytest.raises(StageFinishedError, match=r"'fit' .* is finished\. Run the start_run cell"):
        run.resume("fit")


def test_a_launched_run_joins_its_launchers_folder_and_leaves_lock_and_status_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = RunLock(tmp_path)
    launcher.acquire()
    RunFolder.create(tmp_path, parameters={"lr": 0.1}, notebook="job.ipynb")
    monkeypatch.setenv("MEDKIT_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("MEDKIT_LAUNCHER_PID", str(os.getpid()))
    run = start_run("", seed=7)
    assert run.dir == tmp_path
    assert record(tmp_path)["identity"]["parameters"] == {"lr": 0.1}
    run.finish()
    assert record(tmp_path)["status"] == "running"
    assert is_locked(tmp_path)
    launcher.release()


# ---- what it leaves ----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return start_run(tmp_path / "a", seed=7)


def weight(run: Run, stage: str) -> torch.Tensor:
    with run.init(stage):
        return torch.nn.Linear(3, 3).weight


def test_initial_weights_depend_on_seed_and_stage_and_not_on_earlier_cells(tmp_path: Path) -> None:
    run = start_run(tmp_path / "a", seed=7)
    first, other = weight(run, "fit"), weight(run, "probe")
    torch.manual_seed(99)
    assert torch.equal(weight(run, "fit"), first)
    assert not torch.equal(other, first)
    assert not torch.equal(weight(start_run(tmp_path / "b", seed=8), "fit"), first)


def test_metrics_say_whether_the_run_was_quick(tmp_path: Path) -> None:
    for quick in (False, True):
        run = start_run(tmp_path / str(quick), seed=7, quick=quick)
        run.metrics({"val/auroc": 0.5})
        written = json.loads((run.dir / "metrics.json").read_text())
        assert written["run/quick"]["value"] == float(quick)


def test_metrics_added_bit_by_bit_or_at_once_are_the_same_bytes(tmp_path: Path) -> None:
    auroc, loss = Metric(np.float64(0.1), 0.05, 0.2, 0.95, n=40), 0.1 + 0.2
    one = start_run(tmp_path / "a", seed=7)
    one.metrics({"val/loss": 9.0})
    one.metrics({"val/loss": loss})
    one.metrics({"val/auroc": auroc})
    other = start_run(tmp_path / "b", seed=7)
    other.metrics({"val/auroc": auroc, "val/loss": loss})
    assert (one.dir / "metrics.json").read_bytes() == (other.dir / "metrics.json").read_bytes()


def test_predictions_hold_pseudonyms_and_no_ids(run: Run) -> None:
    ids = ["MRN-000123", "MRN-000456"]
    path = run.predictions("test", row_ids=ids, y=[0, 1], score=[0.25, 0.5], site=["A", "B"])
    table = pd.read_parquet(path)
    assert list(table.columns) == ["row", "site", "y", "score"]
    assert table["row"].tolist() == [pseudonym(name) for name in ids]
    assert table["score"].tolist() == [0.25, 0.5]
    assert not [
        file for file in run.dir.rglob("*") if file.is_file() and b"MRN-" in file.read_bytes()
    ]


def test_predictions_of_patients_with_several_rows_are_compared_by_patient(run: Run) -> None:
    rows, patients = ["p1:0", "p1:1", "p2:2"], ["p1", "p1", "p2"]
    many = {"row_ids": rows, "patient_ids": patients, "y": [0, 1, 1], "score": [0.1, 0.2, 0.3]}
    table = pd.read_parquet(run.predictions("test", **many))
    assert table["patient"].tolist() == [pseudonym(name) for name in patients]
    run.finish()
    read = from_runs(run.dir, [run.folder], None)
    assert read.groups is not None
    assert len(set(read.groups.tolist())) == 2
    assert read.notes == ()


@pytest.mark.parametrize("name", ["../test", "a/b", "", "a\0b"])
def test_predictions_and_stages_cannot_be_named_out_of_the_folder(run: Run, name: str) -> None:
    with pytest.raises(ValueError, match="without slashes"):
        run.predictions(name, row_ids=[1], y=[0], score=[0.5])
    with pytest.raises(ValueError, match="without slashes"):
        run.stage_begun(name)


def test_the_digest_of_all_weights_does_not_depend_on_the_order_of_the_stages(
    tmp_path: Path,
) -> None:
    digests = []
    for number, order in enumerate([("fit", "probe"), ("probe", "fit")]):
        run = start_run(tmp_path / str(number), seed=7)
        for stage in order:
            run.stage_done(stage, step=1, weights_sha256=f"{stage}'s")
        digests.append(record(run.dir)["weights_sha256"])
    assert digests[0] == digests[1]
    run.stage_done("fit", step=2, weights_sha256="other")
    assert record(run.dir)["weights_sha256"] != digests[0]


def test_an_interruption_is_forgotten_once_a_fit_goes_on(run: Run) -> None:
    run.note_signal("SIGINT")  # the Stop button: the notebook's kernel lives on
    assert record(run.dir)["interrupted_by"] == "SIGINT"
    run.stage_begun("fit")
    run.stage_done("fit", step=1, weights_sha256="00")
    run.finish()
    assert record(run.dir)["interrupted_by"] is None
    assert record(run.dir)["status"] == "done"


def test_steps_trained_after_the_last_resume_point_are_counted_once(run: Run) -> None:
    run.folder.update(last_seen={"stage": "fit", "step": 30}, cost={"steps_wasted": 5})
    run.count_wasted("pretrain", from_step=0)  # another stage was cut, not this one
    run.count_wasted("fit", from_step=24)
    run.count_wasted("fit", from_step=24)
    assert record(run.dir)["cost"]["steps_wasted"] == 11


# ---- whole scripts -----------------------------------------------------------------------------

DONE = """
import sys
from medkit.start import start_run
run = start_run(seed=3)
run.metrics({"val/loss": 0.5})
"""
FAILS = """
import sys
from medkit.start import start_run
run = start_run(sys.argv[1], seed=3)
raise RuntimeError("no such column")
"""
WAITS = """
import os, signal, sys
from medkit.start import start_run
run = start_run(sys.argv[1], seed=3)
os.kill(os.getpid(), signal.SIGTERM)
sys.exit("went on")
"""


# Imports cost seconds: they are done once, and each script is run in a fork that ends by itself.
FORKS = """
import os, runpy, sys
import medkit.start
for script in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(script + ".err", os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = [script, script.removesuffix(".py")]
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
Ended = dict[str, tuple[int, str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "pyproject.toml").touch()
    (folder / "experiments").mkdir()
    return folder / "experiments"


@pytest.fixture(scope="module")
def ended(project: Path) -> Ended:
    """Run three scripts, and return with which code each ended and what it said."""
    sources = {"done": DONE, "fails": FAILS, "waits": WAITS}
    for name, source in sources.items():
        (project / f"{name}.py").write_text(source)
    command = [sys.executable, "-c", FORKS, *(str(project / f"{name}.py") for name in sources)]
    codes = subprocess.run(command, cwd=project, stdout=subprocess.PIPE, text=True, check=True)
    return {
        name: (int(code), (project / f"{name}.py.err").read_text())
        for name, code in zip(sources, codes.stdout.split(), strict=True)
    }


def test_a_script_that_ends_is_done_in_a_new_folder_of_its_project(
    project: Path, ended: Ended
) -> None:
    assert ended["done"] == (0, "")
    [path] = (project.parent / "runs" / "done").iterdir()
    assert path.name.endswith("Z-s3")
    content = record(path)
    assert content["status"] == "done"
    assert content["notebook"] == "done.py"
    assert content["command"] == [str(project / "done.py"), str(project / "done")]
    assert not is_locked(path)


def test_a_script_that_fails_has_failed(project: Path, ended: Ended) -> None:
    code, said = ended["fails"]
    assert code == 1
    assert "no such column" in said
    assert record(project / "fails")["status"] == "failed"


def test_a_script_that_is_terminated_outside_a_fit_ends_at_once_with_143(
    project: Path, ended: Ended
) -> None:
    code, said = ended["waits"]
    assert code == 143
    assert "went on" not in said
    content = record(project / "waits")
    assert content["status"] == "interrupted"
    assert content["interrupted_by"] == "SIGTERM"
