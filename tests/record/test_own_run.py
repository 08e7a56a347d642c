from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medkit.record.folder import RunFolder, own_run
from medkit.record.lock import RunLock


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    run = RunFolder.create(tmp_path / "run")
    monkeypatch.setenv("MEDKIT_RUN_DIR", str(run.path))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    lock = RunLock(run.path)
    lock.acquire()
    yield run
    lock.release()


def test_a_process_finds_the_run_it_is_in(folder: RunFolder) -> None:
    found = own_run()
    assert found is not None
    assert found.path == folder.path


def test_a_run_that_is_over_is_nobodys(folder: RunFolder) -> None:
    folder.update(status="done")
    assert own_run() is None


def test_only_the_first_of_several_processes_writes(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_run() is None


def test_without_a_run_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDKIT_RUN_DIR", raising=False)
    assert own_run() is None
