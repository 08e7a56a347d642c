"""The suite on a real notebook, by ``medkit run`` in processes of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import _chaos_recipes as recipes
from medkit.jobs.plan import Request
from medkit.record.folder import RunFolder
from medkit.study.chaos_command import chaos_command


@pytest.mark.slow
def test_a_notebook_comes_through_kills_and_requests_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = recipes.write_notebook("images", tmp_path, {})
    shutil.copy(recipes.__file__, tmp_path)
    request = Request(str(notebook), out=str(tmp_path / "out"), device="cpu", cwd=tmp_path)
    faults = "sigkill,sigterm"
    assert chaos_command(request, seeds=3, faults=faults) == 0
    said = capsys.readouterr().out
    assert "same bits as undisturbed: 6 of 6" in said
    killed = RunFolder(tmp_path / "out" / "sigkill" / "s0" / "run").read()
    assert [attempt["how"] for attempt in killed["attempts"]] == ["killed", "done"]
    asked = RunFolder(tmp_path / "out" / "sigterm" / "s0" / "run").read()
    assert [attempt["how"] for attempt in asked["attempts"]] == ["interrupted", "done"]
    before = sorted((tmp_path / "out").rglob("ended.json"))
    assert chaos_command(request, seeds=3, faults=faults) == 0  # nothing is run again
    assert sorted((tmp_path / "out").rglob("ended.json")) == before
