"""Two DDP processes skip, set aside and roll back alike, whoever's batch was at fault."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks._kills import differing, outcome
from medkit.record.ledger import Ledger
from medkit.record.pseudonym import pseudonym

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "_spikes.py"
pytestmark = pytest.mark.slow


def train(run_dir: Path, *kill: str) -> int:
    command = [sys.executable, str(SCRIPT), str(run_dir), "2", *kill]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env=os.environ | {"LOCAL_GROUP": "0"}
    )
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr[-3000:]
    return done.returncode


def lines(run_dir: Path) -> list[dict[str, Any]]:
    rows = Ledger(run_dir / "ledger.jsonl").read()
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("two") / "whole"
    assert train(run_dir) == 0
    return run_dir


def test_both_processes_end_in_the_same_weights(whole: Path) -> None:
    ends = [json.loads((whole / f"end-{rank}.json").read_text()) for rank in (0, 1)]
    assert ends[0] == ends[1]
    assert json.loads((whole / "run.json").read_text())["status"] == "done"


def test_a_fault_of_one_process_is_written_down_once(whole: Path) -> None:
    named = [row for x in lines(whole) if x["action"] == "rows set aside" for row in x["rows"]]
    assert sorted(named) == sorted(pseudonym(row) for row in (17, 40))
    actions = [line["action"] for line in lines(whole)]
    assert actions.count("rolled back to the last good state") == 1
    skipped = actions.count("step skipped")
    assert json.loads((whole / "end-0.json").read_text())["step"] == 4 * 6 - skipped


def test_a_kill_leaves_no_trace(whole: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "cut", "2", "1") == -signal.SIGKILL
    assert train(tmp_path / "cut") == 0
    assert differing(outcome(whole), outcome(tmp_path / "cut")) == []
    assert lines(tmp_path / "cut") == lines(whole)
