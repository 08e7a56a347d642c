"""The benchmark on real reports: what it says, and that it can be run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, data: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/report_rewards.py", *arguments]
    set_here = {"MEDKIT_REAL_DATA": data, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | set_here, capture_output=True, text=True, check=False
    )


def test_without_the_data_the_benchmark_says_what_is_missing_and_where(tmp_path: Path) -> None:
    done = run("--quick", data=str(tmp_path))
    assert done.returncode == 2
    assert "without openi_reports/reports_gold14_dev.csv. Set it." in done.stderr


def test_on_unseen_reports_the_labeller_beats_one_rule_and_a_template_earns_less(
    real_data: Path, tmp_path: Path
) -> None:
    if not (real_data / "openi_reports/reports_gold14_dev.csv").is_file():
        pytest.skip("real data: openi_reports is not in MEDKIT_REAL_DATA")
    file = tmp_path / "figures.json"
    done = run("--quick", "--json", str(file), data=str(real_data))
    assert done.returncode == 0, done.stderr
    found = {one["name"]: one for one in json.loads(file.read_text())["figures"]}
    assert found["labeller/macro_f1"]["at_least"] == 0.70
    assert found["labeller/minus_one_rule"]["interval"][0] > 0
    assert found["true minus normal/findings"]["interval"][0] > 0
