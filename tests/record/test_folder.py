from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medkit.record.folder import RunFolder, find_runs, new_run_path
from medkit.record.lock import RunLock


def test_a_new_run_has_a_schema_and_is_running(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs" / "a", seed=3)
    content = folder.read()
    assert (content["schema"], content["seed"], content["stages"]) == (1, 3, {})
    assert content["start"].endswith("+00:00")


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.tex.*or resume the run"):
        RunFolder.create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_holds_nothing_but_its_lock_is_new(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    assert RunFolder.create(tmp_path).exists()
    lock.release()


def test_a_folder_whose_first_moment_was_killed_is_new(tmp_path: Path) -> None:
    (tmp_path / ".run.lock").touch()
    (tmp_path / ".run.json.123.tmp").write_text('{"status": "runn')
    assert RunFolder.create(tmp_path).status != ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock", "run.json"]


def test_a_run_that_says_running_is_so_while_its_lock_lives_and_killed_after(
    tmp_path: Path,
) -> None:
    folder = RunFolder.create(tmp_path / "a")
    lock = RunLock(folder.path)
    lock.acquire()
    assert folder.status == "running"
    lock.release()
    assert folder.status == "killed"


@pytest.mark.parametrize("status", ["done", "failed", "timeout", "interrupted"])
def test_a_run_that_has_ended_stays_what_it_is_without_a_lock(tmp_path: Path, status: str) -> None:
    folder = RunFolder.create(tmp_path / "a")
    folder.update(status=status)
    assert folder.status == status


def test_what_is_no_run_folder_reads_as_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.exists()
    assert folder.read() == {}
    assert folder.status == ""


UPDATE = """
import sys
from medkit.record.folder import RunFolder
folder = RunFolder(sys.argv[1])
for n in range(40):
    with folder.editing() as content:
        content["count"] = content.get("count", 0) + 1
    folder.update(**{f"{sys.argv[2]}{n}": n})
"""


def test_updates_by_two_processes_lose_nothing(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a")
    writers = [
        subprocess.Popen([sys.executable, "-c", UPDATE, str(folder.path), name])
        for name in ("launcher", "kernel")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    content = folder.read()
    assert content["count"] == 80
    assert {f"{name}{n}" for name in ("launcher", "kernel") for n in range(40)} <= content.keys()


def spoil(folder: RunFolder) -> None:
    with folder.editing() as content:
        content["seed"] = 2
        raise KeyError("no such field")


def test_an_edit_that_fails_changes_nothing_and_holds_up_nobody(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a", seed=1)
    before = folder.run_json.read_bytes()
    with pytest.raises(KeyError, match="no such field"):
        spoil(folder)
    assert folder.run_json.read_bytes() == before
    folder.update(seed=3)
    assert folder.read()["seed"] == 3


def test_a_new_run_path_says_notebook_time_and_seed(tmp_path: Path) -> None:
    path = new_run_path(tmp_path, "01_first", 7)
    assert path.parent == tmp_path / "01_first"
    assert len(path.name) == len("20260101T000000Z-s7")
    assert path.name.endswith("Z-s7")
    assert not path.exists()


def test_run_paths_of_the_same_second_differ(tmp_path: Path) -> None:
    paths = []
    for _ in range(4):
        paths.append(new_run_path(tmp_path, "01_first", 7))
        paths[-1].mkdir(parents=True)
    assert len(set(paths)) == 4


def test_a_notebook_cannot_name_a_path_outside_the_base(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without slashes"):
        new_run_path(tmp_path, "../elsewhere", 0)


def test_a_stage_cannot_name_a_path_outside_its_run(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a")
    with pytest.raises(ValueError, match="without slashes"):
        folder.stage_dir("../../elsewhere")
    assert folder.stage_dir("fit") == tmp_path / "a" / "checkpoints" / "fit"


def test_runs_are_found_at_any_depth_oldest_first(tmp_path: Path) -> None:
    late = RunFolder.create(tmp_path / "a", start="2026-02-01T00:00:00+00:00")
    early = RunFolder.create(tmp_path / "deep" / "b", start="2026-01-01T00:00:00+00:00")
    assert [run.path for run in find_runs(tmp_path)] == [early.path, late.path]


def test_what_lies_inside_a_run_folder_is_that_runs_own(tmp_path: Path) -> None:
    outer = RunFolder.create(tmp_path / "a")
    inner = RunFolder.create(outer.path / "lives" / "killed")
    assert [run.path for run in find_runs(tmp_path)] == [outer.path]
    assert [run.path for run in find_runs(inner.path.parent)] == [inner.path]  # asked for there


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\udcff"])
def test_a_damaged_run_is_named_and_does_not_hide_the_others(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    sound, damaged = RunFolder.create(tmp_path / "a"), RunFolder.create(tmp_path / "b")
    damaged.run_json.write_bytes(content.encode(errors="surrogateescape"))
    assert [run.path for run in find_runs(tmp_path)] == [sound.path]
    assert str(damaged.run_json) in caplog.text
    with pytest.raises(ValueError, match="damaged or edited"):
        damaged.read()


def test_a_folder_knows_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create("a")
    os.chdir("/")
    assert folder.read()["status"] == "running"
