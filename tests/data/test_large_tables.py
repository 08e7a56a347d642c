"""Ten million rows go through as ten thousand do: what they cost grows as they do, no faster."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medkit import keyed
from medkit.data import splits
from medkit.data.ehr import EHRDataModule
from medkit.data.leakage import audit as leakage
from medkit.data.leakage import near
from medkit.data.leakage.audit import audit
from medkit.data.tables import Table

FEW = 40_000
BYTES_A_ROW = 230  # 57 of them the table, its indicators, ids and numbers, which stay


def write(path: Path, rows: int) -> Path:
    draw = keyed.generator(0, "test", "large", rows)
    patient = np.sort(draw.integers(rows // 3, size=rows))
    x = draw.normal(size=(rows, 4)).astype(np.float32)
    frame = pd.DataFrame(np.where(draw.random(x.shape) < 0.3, np.nan, x)).add_prefix("x")
    frame["died"] = (draw.random(rows) < 0.2).astype(np.int8)
    frame["site"] = np.array([*"ABCD"])[patient % 4]
    frame["patient_id"] = np.char.add("P", patient.astype("<U7"))
    frame.to_parquet(path)
    return path


def test_a_set_up_takes_memory_in_proportion_to_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leakage, "AFTER_SETUP_ROWS", FEW // 20)
    peaks = []
    for rows in (FEW, 2 * FEW):
        path = write(tmp_path / "table.parquet", rows)
        # the baseline of so few rows is scikit-learn's, whose copies have a limit of their own
        dm = EHRDataModule(path, target="died", site="site", baseline_c=None)
        tracemalloc.start()
        dm.setup()
        seen = sum(len(batch.y) for batch in dm.train_dataloader())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert seen == len(dm.split.train)
    assert (peaks[1] - peaks[0]) / FEW < BYTES_A_ROW


@pytest.mark.parametrize("kind", ["all different", "few groups", "coarse"])
def test_an_audit_compares_each_row_with_a_few_whatever_the_table(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, columns = 3000, 20
    draw = keyed.generator(0, "test", "pairs")
    different = draw.normal(size=(n, columns))
    values = {
        "all different": different,
        "few groups": draw.normal(size=(40, columns))[draw.integers(40, size=n)] + different / 99,
        "coarse": np.floor(different),
    }[kind].astype(np.float32)
    patient = np.array([f"P{number}" for number in range(n)])
    split = splits.by_patient(patient, val_fraction=0.2, split_seed=0)
    names = tuple(f"x{number}" for number in range(columns))
    table = Table(names, values, np.arange(n) % 2, patient, np.full(n, ""), None)
    neighbours, pairs = near._neighbours, []

    def counted(*given: Any) -> np.ndarray:
        pairs.append(len(neighbours(*given)))
        return neighbours(*given)

    monkeypatch.setattr(near, "_neighbours", counted)
    audit(table, split, None)
    assert len(pairs) == near.BLOCKS
    assert 0 < sum(pairs) <= near.BLOCKS * near.NEIGHBOURS * n  # of 4.5 million pairs there are
