"""The benchmark on real nodules: what it says, and that it can be run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, data: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/lidc_nodules.py", *arguments]
    set_here = {"MEDKIT_REAL_DATA": data, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | set_here, capture_output=True, text=True, check=False
    )


def test_without_the_data_the_benchmark_says_what_is_missing_and_where(tmp_path: Path) -> None:
    done = run("--quick", data=str(tmp_path))
    assert done.returncode == 2
    assert "without lidc_solid_nodules/images.tar. Set it." in done.stderr


def test_a_quick_look_finds_a_net_that_ranks_and_says_what_a_leak_adds(
    real_data: Path, tmp_path: Path
) -> None:
    if not (real_data / "lidc_solid_nodules/images.tar").is_file():
        pytest.skip("real data: lidc_solid_nodules is not in MEDKIT_REAL_DATA")
    file = tmp_path / "figures.json"
    done = run("--quick", "--json", str(file), data=str(real_data))
    assert done.returncode == 0, done.stderr
    found = {one["name"]: one for one in json.loads(file.read_text())["figures"]}
    assert found["auroc/diameter"]["value"] == pytest.approx(0.87, abs=0.02)
    low, high = found["auroc/net"]["interval"]
    assert 0.7 < low < found["auroc/net"]["value"] < high < 0.95
    assert found["difference/net_minus_diameter/upper_limit"]["at_least"] == 0.0
    assert found["leak/folds_of_slices_minus_exams/slices"]["interval"] is not None
