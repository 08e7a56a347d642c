"""Seeds and grids on this machine, ending in one table."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medkit.jobs.grid import SweepRequest, SweepRun, plan_sweep
from medkit.jobs.notebook import UsageError
from medkit.jobs.sweep import Sweep
from medkit.jobs.sweep_table import check_best_by, summarise, table_text, write_csv
from medkit.metrics.spread import mean_over_seeds
from medkit.record.folder import RunFolder
from medkit.record.results import write_metrics


def finished(folder: Path, point: dict[str, Any], seed: int, **metrics: float) -> SweepRun:
    """Make a run that is done, with these numbers."""
    name = ",".join(f"{k}={v}" for k, v in point.items()) or "all"
    run = SweepRun(
        point, {k: str(v) for k, v in point.items()}, name, seed, folder / f"{name}-{seed}"
    )
    status = "done" if metrics else "failed"
    RunFolder.create(run.path, status=status)
    if metrics:
        write_metrics(
            run.path / "metrics.json", {k.replace("__", "/"): v for k, v in metrics.items()}
        )
    return run


def test_a_grid_times_seeds_has_a_folder_for_each(make, tmp_path: Path) -> None:
    make("1")
    request = SweepRequest("job.ipynb", grid=(("lr", "0.1,0.2"),), seeds=2, given=(("seed", "5"),))
    _, runs, common = plan_sweep(request, tmp_path / "out")
    assert [(run.point, run.seed) for run in runs] == [
        ({"lr": 0.1}, 5),
        ({"lr": 0.1}, 6),
        ({"lr": 0.2}, 5),
        ({"lr": 0.2}, 6),
    ]
    assert len({run.path for run in runs}) == 4
    assert runs[0].path == tmp_path / "out" / "lr=0.1" / "s5"
    assert common == {}


def test_a_value_that_can_not_name_a_folder_is_named_by_its_digest(make, tmp_path: Path) -> None:
    make("1")
    request = SweepRequest("job.ipynb", grid=(("csv_path", "../a b.csv,/etc/x"),), seeds=1)
    _, runs, _ = plan_sweep(request, tmp_path)
    for run in runs:
        assert run.path.parent.parent == tmp_path
        assert run.path.parent.name.startswith("csv_path-")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (("lr", "0.1,fast"),)}, "'lr' must be float, got 'fast'"),
        ({"grid": (("lrr", "1"),)}, "has no parameter 'lrr'. Did you mean 'lr'"),
        ({"grid": (("seed", "1,2"),)}, "say --seeds N"),
        ({"grid": (("lr", "1,1.0"),)}, "a value is given twice"),
        ({"grid": (("lr", "1"), ("lr", "2"))}, "each parameter once"),
        ({"grid": (("lr", "1"),), "given": (("lr", "2"),)}, "give it once"),
        ({"given": (("run_dir", "x"),)}, "its own run_dir"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"jobs": -1}, "--jobs must be at least 0"),
        ({"devices": "gpu"}, "--devices must be numbers"),
    ],
)
def test_a_sweep_that_could_not_run_is_refused(
    make, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    make("1")
    with pytest.raises(UsageError, match=message):
        plan_sweep(SweepRequest("job.ipynb", **change), tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("results.csv", "a sweep's folder, it holds results.csv. Choose another"),
        (".git", "a sweep's folder, it holds .git. Choose another"),
        ("sweep.json", "must hold what a sweep wrote, it holds '[1]'. Choose another"),
    ],
)
def test_nothing_is_written_into_a_folder_that_is_no_sweeps(
    make, medkit, tmp_path: Path, name: str, message: str
) -> None:
    make("1")
    file = tmp_path / "out" / name
    file.parent.mkdir()
    file.write_text("[1]")
    refused = medkit("sweep", "job.ipynb", "--seeds", "1", "--out", "out")
    assert refused.code == 2
    assert message in refused.err
    assert list(file.parent.iterdir()) == [file]
    assert file.read_text() == "[1]"


def test_a_file_is_no_folder_for_a_sweep(make, medkit, tmp_path: Path) -> None:
    make("1")
    (tmp_path / "out").touch()
    refused = medkit("sweep", "job.ipynb", "--seeds", "1", "--out", "out")
    assert refused.code == 2
    assert "must be a folder, it is a file" in refused.err


def test_a_sweep_killed_in_its_first_moment_can_be_started_again(make, tmp_path: Path) -> None:
    make("1")
    (tmp_path / "out").mkdir()
    for name in (".lock", ".sweep.json.7.tmp"):
        (tmp_path / "out" / name).touch()
    assert Sweep(SweepRequest("job.ipynb", seeds=1, out="out")).earlier == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (("lr", "0.1,0.3"),)}, r"-g lr was \[0.1, 0.2\], is \[0.1, 0.3\]"),
        ({"grid": (("lr", "0.1,.2"),)}, "-g was written lr=0.2, is lr=.2"),
        ({"grid": ()}, r"-g lr was \[0.1, 0.2\], is None"),
        ({"given": (("quick", "true"),)}, "quick was None, is True"),
        ({"given": (("seed", "1"),)}, "seeds 0 were part of it"),
        ({"seeds": 1}, "seeds 1 were part of it"),
        ({"notebook": "other.ipynb"}, "the notebook was .*job.ipynb, is .*other.ipynb"),
    ],
)
def test_a_folder_with_another_sweep_is_refused_and_left_alone(
    make, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    make("2", name="other.ipynb")
    make("1")
    request = SweepRequest("job.ipynb", grid=(("lr", "0.1,0.2"),), seeds=2, out="out")
    before = begun_sweep(request)
    with pytest.raises(UsageError, match=rf"holds another sweep \({message}.*choose another --out"):
        Sweep(replace(request, **change))
    assert (tmp_path / "out" / "sweep.json").read_bytes() == before


def test_a_sweep_goes_on_with_more_seeds_and_its_values_in_any_order(make) -> None:
    make("1")
    request = SweepRequest("job.ipynb", grid=(("lr", "0.1,0.2"),), seeds=2, out="out")
    begun_sweep(request)
    sweep = Sweep(replace(request, grid=(("lr", "0.2,0.1"),), seeds=3))
    assert sweep.earlier["status"] == "running"
    assert len(sweep.runs) == 6


def begun_sweep(request: SweepRequest) -> bytes:
    """Write what a sweep writes before its first run; return it."""
    sweep = Sweep(request)
    sweep.out.mkdir()
    sweep._write("running")
    return (sweep.out / "sweep.json").read_bytes()


def test_choosing_on_the_test_set_is_refused() -> None:
    with pytest.raises(UsageError, match="must be a validation metric"):
        check_best_by("test/auroc")
    check_best_by("min:val/brier")


def test_the_table_holds_means_with_the_t_interval_over_seeds(tmp_path: Path) -> None:
    values = [0.80, 0.82, 0.85]
    runs = [finished(tmp_path, {}, i, val__auroc=v) for i, v in enumerate(values)]
    (row,) = summarise(runs, "")["table"]
    expected = mean_over_seeds(values)
    got = row["metrics"]["val/auroc"]
    assert (got["value"], got["low"], got["high"], got["n"]) == (
        expected.value,
        expected.low,
        expected.high,
        3,
    )


def test_the_best_point_is_chosen_on_validation_not_on_test(tmp_path: Path) -> None:
    runs = [
        finished(tmp_path, {"lr": 1}, 0, val__auroc=0.8, val__loss=0.1, test__auroc=0.9),
        finished(tmp_path, {"lr": 2}, 0, val__auroc=0.9, val__loss=0.2, test__auroc=0.7),
    ]
    assert summarise(runs, "")["best"] == "lr=2"
    assert summarise(runs, "val/loss")["best"] == "lr=1"
    assert summarise(runs, "max:val/loss")["best"] == "lr=2"


def test_a_point_with_a_dead_seed_is_shown_and_never_the_best(tmp_path: Path) -> None:
    runs = [
        finished(tmp_path, {"lr": 1}, 0, val__auroc=0.7),
        finished(tmp_path, {"lr": 1}, 1, val__auroc=0.7),
        finished(tmp_path, {"lr": 2}, 0, val__auroc=0.9),
        finished(tmp_path, {"lr": 2}, 1),
    ]
    summary = summarise(runs, "")
    assert summary["best"] == "lr=1"
    text = table_text(summary)
    assert "1/2" in text
    assert "not all seeds are done: lr=2" in text


def test_a_number_that_is_not_finite_is_named_and_never_the_best(tmp_path: Path) -> None:
    runs = [
        finished(tmp_path, {"lr": 1}, 0, val__auroc=0.7),
        finished(tmp_path, {"lr": 2}, 0, val__auroc=math.nan),
    ]
    summary = summarise(runs, "")
    assert summary["best"] == "lr=1"
    assert "1 of 1 not finite" in table_text(summary)
    json.dumps(summary, allow_nan=False)


def test_points_that_the_seeds_do_not_tell_apart_are_said_to_be_so(tmp_path: Path) -> None:
    runs = [
        finished(tmp_path, {"lr": lr}, seed, val__auroc=0.8 + 0.01 * seed + lr * 1e-3)
        for lr in (1, 2)
        for seed in range(3)
    ]
    assert "overlaps that of lr=1" in table_text(summarise(runs, ""))


def test_the_csv_holds_every_run_exactly(tmp_path: Path) -> None:
    runs = [
        finished(tmp_path, {"lr": 1}, 0, val__auroc=0.1 + 0.2),
        finished(tmp_path, {"lr": 1}, 1),
    ]
    write_csv(tmp_path / "sweep.csv", runs)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert float(rows[0]["val/auroc"]) == 0.1 + 0.2
    assert rows[1]["val/auroc"] == ""


def test_cores_are_shared_out_evenly_and_devices_in_turn(make, tmp_path: Path) -> None:
    make("1")
    slots = Sweep(SweepRequest("job.ipynb", seeds=4, devices="0,3", out="out")).slots
    assert [slot.device for slot in slots] == ["gpu:0", "gpu:3"]
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        assert len(slots[0].cores) == len(slots[1].cores) == len(cores) // 2
        assert not set(slots[0].cores) & set(slots[1].cores)


SWEPT = """
import os, pathlib
with open(pathlib.Path(run_dir).parent / f"starts-{seed}", "a") as f: f.write("x")
if seed == 1 and not os.path.exists("repaired"): raise ValueError("diverged")
from medkit.record.results import write_metrics
write_metrics(run_dir + "/metrics.json", {"val/auroc": 0.8 + seed / 100, "test/auroc": 0.7})
"""


def test_a_failed_run_is_shown_and_the_same_command_goes_on(make, medkit, tmp_path: Path) -> None:
    make(SWEPT)
    command = ("sweep", "job.ipynb", "--seeds", "2", "--jobs", "2", "--out", "out")
    failed = medkit(*command)
    assert failed.code == 1
    assert "ValueError: diverged" in failed.err
    (tmp_path / "repaired").touch()
    done = medkit(*command)
    assert done.code == 0
    assert "1 done already" in done.err
    assert "0.8050 [0.7415, 0.8685]" in done.out
    starts = {p.name: p.read_text() for p in (tmp_path / "out" / "all").glob("starts-*")}
    assert starts == {"starts-0": "x", "starts-1": "xx"}
    summary = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert summary["status"] == "done"
    assert [run["status"] for run in summary["runs"]] == ["done", "done"]
    refused = medkit(*command, "-p", "lr", "0.5")
    assert refused.code == 2
    assert "holds another sweep (lr was None, is 0.5); choose another --out" in refused.err


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_stopped_sweep_takes_its_runs_with_it(
    make, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    make("import time\nopen(run_dir + '/up', 'w').close()\ntime.sleep(300)")
    sweep = subprocess.Popen(
        [sys.executable, "-m", "medkit.cli", "sweep", "job.ipynb", "--seeds", "1", "--out", "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    run = RunFolder(tmp_path / "out" / "all" / "s0")
    wait_for((run.path / "up").exists)
    sweep.send_signal(number)
    assert sweep.wait(60) == code
    wait_for(lambda: run.status == "interrupted")
    by = "SIGTERM" if number == signal.SIGKILL else number.name
    assert run.read()["interrupted_by"] == by


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)
