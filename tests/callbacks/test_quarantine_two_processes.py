"""Two DDP processes set the same rows aside, whichever of them has found them."""

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
from tests.callbacks.test_quarantine import BAD

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import contextlib, os, sys
from pathlib import Path
from benchmarks._spikes import Ends
from medkit.callbacks.quarantine import Quarantine
from medkit.trainer import keyed, stable_trainer, start_run
from tests.callbacks.test_quarantine import Net, RANGES, plain

with contextlib.suppress(ProcessLookupError, PermissionError):
    os.setpgid(0, int(os.environ.get("LOCAL_GROUP", "0")))
os.environ["LOCAL_GROUP"] = str(os.getpgid(0))
kill = (int(sys.argv[2]), int(sys.argv[3])) if len(sys.argv) > 2 else None
run = start_run(Path(sys.argv[1]), seed=3)
with run.init("fit"):
    net = Net()
trainer = stable_trainer(
    run, max_epochs=3, callbacks=[Ends(run.dir, kill)], checkpoint_every_n_steps=1,
    quarantine=Quarantine(RANGES, budget=0.1), accelerator="cpu", enable_progress_bar=False,
    devices=2, strategy="ddp", limit_val_batches=0,
)
trainer.fit(net, keyed(plain(1)), ckpt_path=run.resume("fit"))
run.finish()
"""


def train(run_dir: Path, *kill: str) -> int:
    script = run_dir.parent / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"LOCAL_GROUP": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(run_dir), *kill]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr[-3000:]
    return done.returncode


def lines(run_dir: Path) -> list[dict[str, Any]]:
    rows = Ledger(run_dir / "ledger.jsonl").read()
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


def test_they_end_alike_name_each_row_once_and_resume_to_the_same_bits(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert train(whole) == 0
    ends = [json.loads((whole / f"end-{rank}.json").read_text()) for rank in (0, 1)]
    assert ends[0] == ends[1]
    named = [row for line in lines(whole) for row in line["rows"]]
    assert sorted(named) == sorted(pseudonym(row) for row in BAD)
    assert train(tmp_path / "cut", "1", "2") == -signal.SIGKILL
    assert train(tmp_path / "cut") == 0
    assert differing(outcome(whole), outcome(tmp_path / "cut")) == []
    assert lines(tmp_path / "cut") == lines(whole)
