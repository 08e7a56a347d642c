"""Run folders listed as they are, pruned only when asked, logs printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkit.record.folder import RunFolder
from medkit.record.lock import RunLock
from medkit.record.results import Metric, write_metrics


def with_points(path: Path, status: str, *names: str) -> RunFolder:
    run = RunFolder.create(path, status=status)
    stage = run.stage_dir("fit")
    for name in names:
        (stage / name).write_bytes(b"weights")
        (stage / f"{name}.sha256").write_text("digest")
    return run


def test_runs_are_listed_with_their_status_as_it_is(medkit, tmp_path: Path) -> None:
    done = RunFolder.create(tmp_path / "runs" / "a", status="done", quick=True, exact=True)
    write_metrics(done.path / "metrics.json", {"test/auroc": Metric(0.8, 0.7, 0.9, 0.95, 10)})
    RunFolder.create(tmp_path / "runs" / "b")  # says running, but nobody holds its lock
    damaged = RunFolder.create(tmp_path / "runs" / "c", status="done")
    damaged.run_json.write_text("{")
    said = medkit("runs", tmp_path / "runs")
    assert said.code == 0
    rows = {line.split()[0]: line for line in said.out.splitlines()[1:]}
    assert "done quick" in rows["a"]
    assert "test/auroc 0.8000 95 % [0.7000, 0.9000]" in rows["a"]
    assert " killed " in rows["b"]
    assert " damaged " in rows["c"]


@pytest.mark.parametrize(
    ("names", "headline"),
    [
        (("test/auprc", "test/auroc"), "test/auroc"),
        (("val/auroc", "test/auroc"), "test/auroc"),
        (("val/auroc", "test/brier"), "val/auroc"),
        (("test/auprc", "train/auroc"), "test/auprc"),
        (("val/site_c/threshold", "test/site_c/brier"), "test/site_c/brier"),
        (("test/a/auroc_minus_b", "test/a/b/auroc", "test/a/auroc"), "test/a/auroc"),
        (("test/a/auroc_minus_b", "test/a/b/auroc", "test/a/brier"), "test/a/brier"),
        (
            ("test/cox/c_index", "test/kit/c_index", "test/kit/c_index_minus_cox"),
            "test/kit/c_index",
        ),
        (("test/site_b/auroc", "test/auroc"), "test/auroc"),
        (("resume/equal", "run/quick"), "resume/equal"),
    ],
)
def test_the_headline_is_what_runs_are_best_compared_by(
    medkit, tmp_path: Path, names: tuple[str, ...], headline: str
) -> None:
    run = RunFolder.create(tmp_path / "runs" / "a", status="done")
    write_metrics(run.path / "metrics.json", dict.fromkeys(names, 0.5))
    assert f" {headline} 0.5" in medkit("runs", tmp_path / "runs").out


def test_a_threshold_alone_is_no_headline(medkit, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs" / "a", status="done")
    write_metrics(run.path / "metrics.json", {"val/threshold": 0.28})
    said = medkit("runs", tmp_path / "runs").out
    assert " done " in said
    assert "0.28" not in said


def test_runs_inside_a_run_folder_are_neither_listed_nor_pruned(medkit, tmp_path: Path) -> None:
    points = ("resume-e000000-b00000001.ckpt", "finished.ckpt")
    outer = with_points(tmp_path / "runs" / "03" / "a", "done", *points)
    inner = with_points(outer.path / "lives" / "train.py-5-0", "done", *points)
    rows = medkit("runs", tmp_path / "runs").out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["03/a"]
    medkit("runs", tmp_path / "runs", "--prune-checkpoints", "--yes")
    assert not (outer.stage_dir("fit") / points[0]).exists()
    assert (inner.stage_dir("fit") / points[0]).exists()


def test_a_missing_folder_is_an_error_that_says_so(medkit) -> None:
    assert medkit("runs", "nowhere").code == 2


def test_pruning_keeps_what_a_run_still_needs(medkit, tmp_path: Path) -> None:
    first, last = "resume-e000000-b00000001.ckpt", "resume-e000000-b00000002.ckpt"
    done = with_points(tmp_path / "runs" / "done", "done", first, "finished.ckpt")
    dead = with_points(tmp_path / "runs" / "dead", "killed", first, last)
    busy = with_points(tmp_path / "runs" / "busy", "running", first, "finished.ckpt")
    lock = RunLock(busy.path)
    lock.acquire()

    asked = medkit("runs", tmp_path / "runs", "--prune-checkpoints")
    assert asked.code == 2
    assert "nothing was removed" in asked.err
    assert (done.stage_dir("fit") / first).exists()

    pruned = medkit("runs", tmp_path / "runs", "--prune-checkpoints", "--yes")
    lock.release()
    assert pruned.code == 0
    assert sorted(p.name for p in done.stage_dir("fit").iterdir()) == [
        "finished.ckpt",
        "finished.ckpt.sha256",
    ]
    assert (dead.stage_dir("fit") / last).exists()
    assert (busy.stage_dir("fit") / first).exists()

    medkit("runs", tmp_path / "runs", "--prune-checkpoints", "--unfinished", "--yes")
    assert list(dead.stage_dir("fit").iterdir()) == []


def test_logs_are_printed_and_followed_to_the_end(medkit, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", status="done")
    (run.subfolder("logs") / "output.log").write_text("epoch 1\nepoch 2\n")
    assert medkit("logs", run.path).out == "epoch 1\nepoch 2\n"
    assert medkit("logs", "-f", run.path).err == "medkit: done\n"


def test_logs_of_a_folder_that_is_no_run_are_refused(medkit, tmp_path: Path) -> None:
    refused = medkit("logs", tmp_path)
    assert refused.code == 2
    assert "is no run folder" in refused.err


@pytest.mark.parametrize("flag", ["--yes", "--unfinished"])
def test_a_pruning_flag_alone_is_refused(medkit, tmp_path: Path, flag: str) -> None:
    assert medkit("runs", tmp_path, flag).code == 2
