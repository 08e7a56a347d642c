"""Two DDP processes on the CPU: the samples of one, and exact after a kill or a signal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks._kills import differing, outcome

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "_subjects.py"


def train(run_dir: Path, devices: int, *kill: str) -> int:
    command = [sys.executable, str(SCRIPT), "ehr", "plain", str(run_dir), "0", str(devices), *kill]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr[-3000:]
    return done.returncode


def rows(run_dir: Path, rank: int) -> list[Any]:
    return list(json.loads((run_dir / f"rows-{rank}.json").read_text()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("two") / "whole"
    assert train(run_dir, 2) == 0
    return run_dir


@pytest.mark.slow
def test_each_step_sees_the_samples_that_one_process_would_see(whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "one", 1)
    alone = [[step, sorted(seen)] for step, seen in rows(tmp_path / "one", 0)]
    pairs = zip(rows(whole, 0), rows(whole, 1), strict=True)
    assert [[a[0], sorted(a[1] + b[1])] for a, b in pairs] == alone


@pytest.mark.slow
def test_a_kill_leaves_no_trace(whole: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "cut", 2, "backward", "20") == -signal.SIGKILL
    assert train(tmp_path / "cut", 2) == 0
    assert differing(outcome(whole), outcome(tmp_path / "cut")) == []
    assert [rows(tmp_path / "cut", rank) for rank in (0, 1)] == [rows(whole, r) for r in (0, 1)]
