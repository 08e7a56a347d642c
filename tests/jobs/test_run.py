"""A job in its run folder: what it leaves, and what it is refused for."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from datetime import datetime
from pathlib import Path

import papermill
import pytest
from nbclient.exceptions import CellTimeoutError

from medkit.jobs import client, engine, launcher
from medkit.jobs.notebook import read_notebook
from medkit.jobs.parameters import read_parameters
from medkit.jobs.plan import Request, effective, newest_unfinished
from medkit.record.files import write_json
from medkit.record.folder import RunFolder, now
from medkit.record.lock import RunLock
from tests.jobs.conftest import Outcome

# not one long sleep: a signal that comes just before it begins would be handled after it
WAIT = "for _ in range(600): time.sleep(0.1)"
METRICS = """
from medkit.record.results import Metric, write_metrics
write_metrics(run_dir + "/metrics.json", {
    "test/auroc": Metric(0.81, 0.75, 0.86, 0.95, 400, method="DeLong"),
    "val/loss": 0.5 + lr,
    "run/quick": float(quick),
})"""


def test_a_good_run_ends_with_its_numbers_and_its_report(make, medkit) -> None:
    make("print('seed is', seed)", METRICS)
    done = medkit("run", "job.ipynb", "-p", "seed", "7", "-p", "quick", "true")
    assert done.code == 0
    assert "test/auroc  0.8100  95 % [0.7500, 0.8600]  400" in done.out
    assert f"report  {done.run_dir / 'report.html'}" in done.out
    assert "quick run" in done.out
    assert done.run["status"] == "done"
    assert done.run["seed"] == 7
    assert done.run["parameters"] == {
        "seed": 7,
        "lr": 0.001,
        "csv_path": "data.csv",
        "quick": True,
    }
    assert [a["how"] for a in done.run["attempts"]] == ["done"]
    assert done.cell_states == ["completed", "completed"]
    assert "seed is 7" in (done.run_dir / "logs" / "output.log").read_text()
    assert (done.run_dir / "report.html").is_file()


def test_the_kernel_gets_the_folder_the_lock_and_the_notebooks_own_directory(
    make, medkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "books").mkdir()
    make(
        "import os, sys\nfrom medkit.record.lock import is_locked\n"
        "print(os.getcwd(), os.environ['MEDKIT_RUN_DIR'] == run_dir, is_locked(run_dir))\n"
        "held = os.fstat(int(os.environ['MEDKIT_LOCK_FD']))\n"
        "print(os.path.samestat(held, os.stat(run_dir + '/.lock')))\n"
        "print(os.environ['PYTHONHASHSEED'], os.environ['CUBLAS_WORKSPACE_CONFIG'])\n"
        "print(sys.executable, csv_path)",
        name="books/job.ipynb",
    )
    monkeypatch.chdir(tmp_path)
    done = medkit("run", "books/job.ipynb", "-p", "csv_path", "mine.csv")
    lines = done.printed.splitlines()
    assert lines[0] == f"{tmp_path / 'books'} True True"
    assert lines[1] == "True"
    assert lines[2] == "0 :4096:8"
    assert lines[3] == f"{os.sys.executable} {tmp_path / 'mine.csv'}"


def test_an_exception_fails_the_job_and_its_cell_alone(make, medkit) -> None:
    make("print('first')", "1 / 0", "print('never')")
    failed = medkit("run", "job.ipynb")
    assert failed.code == 1
    assert failed.run["status"] == "failed"
    assert failed.cell_states == ["completed", "failed", "pending"]
    assert failed.notebook.metadata.papermill.exception is True
    assert "failed in code cell 3: ZeroDivisionError: division by zero" in failed.err
    assert "| first" in failed.err


def test_a_failure_says_when_to_resume_and_when_to_start_anew(make, medkit) -> None:
    path = make("1 / 0")
    said = medkit("run", "job.ipynb", "-p", "lr", "-3").err.splitlines()
    (again,) = [line for line in said if "--resume" in line]
    assert again.startswith("if code outside the notebook, data or the environment was the cause")
    assert (
        f"to change a parameter or a cell, start a new run: medkit run {path} -p NAME VALUE" in said
    )


def test_an_expected_exception_is_not_a_failure(make, medkit, tmp_path: Path) -> None:
    import nbformat

    path = make("1 / 0", "print('after')")
    nb = nbformat.read(path, as_version=4)
    nb.cells[1].metadata["tags"] = ["raises-exception"]
    nbformat.write(nb, path)
    done = medkit("run", "job.ipynb")
    assert done.code == 0
    assert "after" in done.printed


def test_sys_exit_is_never_success(make, medkit) -> None:
    make("import sys; sys.exit(0)", "print('never')")
    failed = medkit("run", "job.ipynb")
    assert failed.code == 1
    assert failed.run["status"] == "failed"
    assert failed.cell_states == ["failed", "pending"]


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), 9)", "os._exit(0)"])
def test_a_dead_kernel_is_killed_not_completed(make, medkit, death: str) -> None:
    make("print('first')", f"import os\n{death}", "print('never')")
    killed = medkit("run", "job.ipynb")
    assert killed.code == 1
    assert killed.run["status"] == "killed"
    assert killed.cell_states == ["completed", "failed", "pending"]
    assert "likely cause: " in killed.err


def test_retries_go_on_in_the_same_folder_after_a_death_of_the_kernel(
    make, medkit, caplog: pytest.LogCaptureFixture
) -> None:
    make(
        "import os, pathlib\nmark = pathlib.Path(run_dir, 'mark')\n"
        "print('resume', os.environ.get('MEDKIT_RESUME'))\n"
        "if not mark.exists():\n    mark.touch(); os.kill(os.getpid(), 9)"
    )
    done = medkit("run", "job.ipynb", "--retries", "2")
    assert done.code == 0
    assert [a["how"] for a in done.run["attempts"]] == ["killed", "done"]
    assert "resume 1" in done.printed
    assert "from its last checkpoint, or from its start where there is none yet" in caplog.text
    assert (done.run_dir / "logs" / "notebook.attempt1.ipynb").is_file()


def test_retries_do_not_repeat_an_exception(make, medkit) -> None:
    make("raise ValueError('mine')")
    failed = medkit("run", "job.ipynb", "--retries", "2")
    assert failed.code == 1
    assert len(failed.run["attempts"]) == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)]
)
def test_a_signal_reaches_the_kernel_which_may_save_before_it_ends(
    make, medkit, number: signal.Signals, code: int
) -> None:
    make(
        "import os, signal, time\n"
        "def save(signum, frame):\n"
        "    print('saved on', signum, flush=True)\n"
        "    raise SystemExit(1)\n"
        f"signal.signal({int(number)}, save)\n"
        f"os.kill(os.getppid(), {int(number)})\n{WAIT}",
        "print('never')",
    )
    stopped = medkit("run", "job.ipynb")
    assert stopped.code == code
    assert stopped.run["status"] == "interrupted"
    assert stopped.run["interrupted_by"] == number.name
    assert stopped.cell_states == ["failed", "pending"]
    assert f"saved on {int(number)}" in stopped.printed


def test_a_notebook_that_swallows_ctrl_c_is_stopped_before_its_next_cell(make, medkit) -> None:
    make(
        "import os, signal, time\n"
        f"try:\n    os.kill(os.getppid(), signal.SIGINT)\n    {WAIT}\n"
        "except KeyboardInterrupt:\n    print('swallowed')",
        "print('never')",
    )
    stopped = medkit("run", "job.ipynb")
    assert stopped.code == 130
    assert stopped.cell_states == ["completed", "pending"]


def test_a_kernel_that_does_not_listen_is_killed_when_grace_is_over(
    make, medkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDKIT_GRACE_S", "0.5")
    make(
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"os.kill(os.getppid(), signal.SIGTERM)\n{WAIT}"
    )
    stopped = medkit("run", "job.ipynb")
    assert stopped.code == 143
    assert stopped.run["status"] == "interrupted"


def test_the_time_limit_ends_a_job_with_124(make, medkit) -> None:
    make(
        f"import time\n{WAIT}",
        "print('never')",
    )
    late = medkit("run", "job.ipynb", "--timeout", "3")
    assert late.code == 124
    assert late.run["status"] == "timeout"
    assert "completed" not in late.cell_states


def test_a_folder_in_use_is_refused_and_left_alone(make, medkit, tmp_path: Path) -> None:
    make("1")
    (tmp_path / "run").mkdir()
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    refused = medkit("run", "job.ipynb")
    lock.release()
    assert refused.code == 2
    assert f"is in use by process {os.getpid()}" in refused.err
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_folder_with_content_is_refused_without_resume(make, medkit, tmp_path: Path) -> None:
    make("1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.docx").touch()
    refused = medkit("run", "job.ipynb")
    assert refused.code == 2
    assert "must be new or empty" in refused.err
    refused = medkit("run", "job.ipynb", "--resume")
    assert refused.code == 2
    assert "no run.json" in refused.err


def test_nothing_is_left_in_a_folder_of_hidden_files_that_is_refused(
    make, medkit, tmp_path: Path
) -> None:
    make("1")
    (tmp_path / "run" / ".git").mkdir(parents=True)
    for resume in ([], ["--resume"]):
        refused = medkit("run", "job.ipynb", *resume)
        assert refused.code == 2
        assert "must be new or empty for a new run, it holds ['.git']" in refused.err
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".git"]


def test_a_killed_job_is_resumed_in_its_folder_with_its_parameters(make, medkit) -> None:
    make(
        "import os, pathlib\nmark = pathlib.Path(run_dir, 'mark')\n"
        "if not mark.exists():\n    mark.touch(); os.kill(os.getpid(), 9)\n"
        "print('seed', seed, 'lr', lr)"
    )
    assert medkit("run", "job.ipynb", "-p", "seed", "3", "-p", "lr", "inf").code == 1
    refused = medkit("run", "job.ipynb", "--resume", "-p", "seed", "4")
    assert refused.code == 2
    assert "parameter seed was 3, is 4" in refused.err
    done = medkit("run", "job.ipynb", "--resume")
    assert done.code == 0
    assert "seed 3 lr inf" in done.printed
    again = medkit("run", "job.ipynb", "--resume")
    assert again.code == 0
    assert "done already" in again.out


@pytest.mark.parametrize(("said_after_s", "cpu_s"), [(5, 1000.0), (-5, 0.0)])
def test_what_died_with_its_launcher_costs_at_least_what_it_last_said(
    make, medkit, said_after_s: int, cpu_s: float
) -> None:
    make("1 / 0")
    run = RunFolder(medkit("run", "job.ipynb").run_dir)
    start = datetime.fromisoformat(now())
    with run.editing() as content:  # as a launcher that is killed leaves it
        content["attempts"] = [{"start": start.isoformat(), "end": None, "how": "running"}]
        content["status"] = "running"
    said = {"time": start.timestamp() + said_after_s, "cpu_s": 1000.0}
    write_json(run.path / "logs" / "progress.json", said)
    again = medkit("run", "job.ipynb", "--resume").run
    assert [attempt["how"] for attempt in again["attempts"]] == ["killed", "failed"]
    assert again["attempts"][0]["cpu_s"] == cpu_s
    assert cpu_s < again["cost"]["cpu_s"] < cpu_s + 100
    assert again["cost"]["at_least"] is True


def test_a_cost_is_whole_where_the_launcher_lived(make, medkit) -> None:
    make("import os; os.kill(os.getpid(), 9)")
    assert medkit("run", "job.ipynb").run["cost"]["at_least"] is False


def test_an_edited_notebook_is_not_resumed_unless_inexactness_is_allowed(make, medkit) -> None:
    make("raise SystemExit")
    assert medkit("run", "job.ipynb").code == 1
    make("print('edited')")
    refused = medkit("run", "job.ipynb", "--resume")
    assert refused.code == 2
    assert "the notebook's code cells have changed" in refused.err
    done = medkit("run", "job.ipynb", "--resume", "--allow-inexact")
    assert done.code == 0
    assert done.run["exact"] is False
    assert done.run["inexact_reasons"] == ["the notebook's code cells have changed"]


def test_resume_without_a_folder_finds_the_newest_unfinished_run(
    make, medkit, tmp_path: Path
) -> None:
    from medkit import cli

    make(
        "import os, pathlib\nmark = pathlib.Path(run_dir, 'mark')\n"
        "if not mark.exists():\n    mark.touch(); os.kill(os.getpid(), 9)"
    )
    assert cli.main(["run", "job.ipynb", "-p", "seed", "5"]) == 1
    assert cli.main(["run", "job.ipynb", "-p", "seed", "6", "--resume"]) == 2
    assert cli.main(["run", "job.ipynb", "-p", "seed", "5", "--resume"]) == 0
    (run,) = (tmp_path / "runs" / "job").iterdir()
    assert run.name.endswith("-s5")
    assert json.loads((run / "run.json").read_text())["status"] == "done"


def test_a_damaged_run_does_not_stop_the_search_for_the_one_to_resume(
    make, medkit, tmp_path: Path
) -> None:
    path = make("1")
    notebook = read_notebook(str(path))
    values = effective(read_parameters(notebook), {})
    base = tmp_path / "runs" / "job"
    wanted = RunFolder.create(base / "a", status="killed", parameters=values)
    damaged = RunFolder.create(base / "b")
    damaged.run_json.write_text("{")
    assert newest_unfinished(Request(str(path)), notebook, values) == wanted.path
    asked = medkit("run", "job.ipynb", "--resume", "--out", "runs/job/b")
    assert asked.code == 2
    assert f"{damaged.run_json} must be JSON" in asked.err


def test_out_and_run_dir_together_are_refused(make, medkit) -> None:
    make("1")
    refused = medkit("run", "job.ipynb", "-p", "run_dir", "there", "--out", "here")
    assert refused.code == 2
    assert "say the same thing" in refused.err


@pytest.mark.parametrize("out", ["a\x00b", "", "a\nb"])
def test_an_out_that_names_no_folder_is_refused(make, medkit, out: str) -> None:
    make("1")
    refused = medkit("run", "job.ipynb", "--out", out)
    assert refused.code == 2
    assert "must name a folder" in refused.err


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(make, medkit, tmp_path: Path) -> None:
    make("1")
    options = ("--device", "cpu", "--resume", "--dry-run")  # --resume begins what is not there yet
    said = medkit("run", "job.ipynb", "-p", "seed", "3", *options)
    assert said.code == 0
    assert "seed = 3\n" in said.out
    assert "lr = 0.001  (default)" in said.out
    assert "MEDKIT_ACCELERATOR" in said.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job.ipynb"]


def test_a_refused_parameter_writes_nothing(make, medkit, tmp_path: Path) -> None:
    make("1")
    assert medkit("run", "job.ipynb", "-p", "sed", "3").code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job.ipynb"]


def test_a_full_disk_under_the_notebook_is_named_as_the_cause(make, medkit) -> None:
    make(
        "import resource\n"
        "free = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, free[1]))\n"
        "try:\n"
        "    with open(run_dir + '/big', 'wb') as f: f.write(b'0' * 10_000)\n"
        "finally:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, free)"
    )
    failed = medkit("run", "job.ipynb")
    assert failed.code == 1
    assert failed.run["status"] == "failed"
    assert "likely cause: the disk is full" in failed.err


def test_a_full_disk_under_the_launcher_is_said_and_leaves_run_json_whole(
    make, medkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            run.update(status="done")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(launcher, "_close_folder", lambda folder, *_: full(folder))
    make("1")
    failed = medkit("run", "job.ipynb")
    assert failed.code == 1
    assert "could not be written" in failed.err
    assert "the disk is full" in failed.err
    assert failed.run["status"] == "running"  # whole, and read as killed: nobody holds the lock


def test_a_notebook_that_can_not_be_kept_is_no_success(
    make, medkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(client, "write_text", full)
    make("1")
    failed = medkit("run", "job.ipynb")
    assert failed.code == 1
    assert failed.run["status"] == "failed"
    assert "likely cause: the disk is full" in failed.err


def test_start_up_files_in_a_home_do_not_reach_a_job(
    make, medkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("seed_of_evil = 1")
    (tmp_path / "rc.py").write_text("seed_of_evil = 2")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "rc.py"))
    make("print('seed_of_evil' in globals())")
    assert "False" in medkit("run", "job.ipynb").printed


def test_papermill_can_use_the_engine_and_a_cell_timeout_is_told_as_it_is(
    make, tmp_path: Path
) -> None:
    path = make("1", "import time; time.sleep(60)", "2")
    with pytest.raises(CellTimeoutError):
        papermill.execute_notebook(
            path,
            tmp_path / "out.ipynb",
            engine_name=engine.ENGINE_NAME,
            kernel_name="python3",
            language="python",
            execution_timeout=1,
        )
    late = Outcome(1, "", "", tmp_path)
    (tmp_path / "out.ipynb").rename(tmp_path / "notebook.ipynb")
    assert late.cell_states == ["completed", "failed", "pending"]
    assert late.notebook.metadata.papermill.exception is True


def test_what_a_kernel_leaves_behind_dies_with_it(make, medkit) -> None:
    make(
        "import os, subprocess\n"
        "child = subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        "open(run_dir + '/pid', 'w').write(str(child.pid))\n"
        "os.kill(os.getpid(), 9)"
    )
    killed = medkit("run", "job.ipynb")
    pid = int((killed.run_dir / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
