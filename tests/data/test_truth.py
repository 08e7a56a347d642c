"""A known truth is laid on the rows it belongs to, or on none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkit.data.tables import Table, TableSpec, read_table
from medkit.data.truth import read_truth

ROWS = pd.DataFrame({"patient_id": ["007", "008", "008"], "age": [50, 60, 61], "died": [0, 1, 0]})


@pytest.fixture
def table() -> Table:
    return read_table(ROWS, TableSpec("died"))


def written(path: Path, **columns: list[object]) -> Path:
    pd.DataFrame(columns).to_csv(path / "truth.csv", index=False)
    return path / "truth.csv"


@pytest.mark.parametrize("ids", [[0, 1, 2], ["007", "008", "008"]], ids=["numbers", "patients"])
def test_a_truth_of_the_same_rows_is_read(tmp_path: Path, table: Table, ids: list[object]) -> None:
    path = written(tmp_path, row=ids, prob=[0.1, 0.25, 1], other=[5, 6, 7])
    assert np.array_equal(read_truth(path, table), [0.1, 0.25, 1.0])


def test_the_samples_truth_belongs_to_the_sample() -> None:
    folder = Path(__file__).parents[2] / "data_samples/ehr"
    spec = TableSpec("died", site="site", ignore=("bnp",))
    table = read_table(pd.read_csv(folder / "encounters.csv"), spec)
    prob = read_truth(folder / "truth.csv", table)
    assert abs(prob.mean() - table.y.mean()) < 0.02


def test_a_truth_of_more_rows_is_refused_and_the_way_out_is_said(
    tmp_path: Path, table: Table
) -> None:
    path = written(tmp_path, row=list(range(2000)), prob=[0.5] * 2000)
    with pytest.raises(ValueError, match=r'has 2,000 rows, the table 3\. .*-p truth_path ""'):
        read_truth(path, table)


@pytest.mark.parametrize(
    ("ids", "where"),
    [
        ([1, 2, 3], "in 3 rows .first: row 1"),
        ([0, 2, 1], "in 2 rows .first: row 2"),
        (["008", "007", "008"], "in 2 rows"),
        (["7", "008", "008"], "in 1 row "),
    ],
    ids=["counted from 1", "other order", "other patients", "an id that lost its zeros"],
)
def test_a_truth_of_other_rows_is_refused(
    tmp_path: Path, table: Table, ids: list[object], where: str
) -> None:
    path = written(tmp_path, row=ids, prob=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=rf"'row' must hold the row's number.*{where}.*another t"):
        read_truth(path, table)


def test_a_truth_without_rows_names_is_refused(tmp_path: Path, table: Table) -> None:
    with pytest.raises(ValueError, match=r"must have two columns.*found \['prob'\]"):
        read_truth(written(tmp_path, prob=[0.1, 0.2, 0.3]), table)


@pytest.mark.parametrize("cell", [1.5, "high", None])
def test_a_truth_that_is_no_probability_is_refused(
    tmp_path: Path, table: Table, cell: object
) -> None:
    path = written(tmp_path, row=[0, 1, 2], prob=[0.1, cell, 0.2])
    with pytest.raises(ValueError, match=r"'prob' must hold prob.*not in 1 row .first: row 2"):
        read_truth(path, table)
