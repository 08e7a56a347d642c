from __future__ import annotations

from pathlib import Path

import numpy as np

from medkit.metrics.summary import binary
from medkit.record.results import read_metrics, write_metrics


def test_the_four_numbers_go_into_metrics_json_and_come_back(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    prob = draw.random(100)
    found = binary((draw.random(100) < prob).astype(int), prob, stage="test/site_b")
    assert sorted(found) == [f"test/site_b/{n}" for n in ("auprc", "auroc", "brier", "prevalence")]
    write_metrics(tmp_path / "metrics.json", found)
    assert read_metrics(tmp_path / "metrics.json") == found
