"""What broke a contract is said at set-up, in a line of the log each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from medkit.data.contract.breaches import Broken, summary, warn_once
from medkit.data.ehr import EHRDataModule
from tests.data.leakage.cases import ENCOUNTERS

ROLES = {"target": "died", "patient": "patient_id", "site": "site"}
TABLE = pd.read_csv(ENCOUNTERS)
AMONG = [name for name in TABLE if name not in ROLES.values()]


@pytest.fixture(autouse=True)
def _nothing_was_said() -> Iterator[None]:
    warn_once.cache_clear()
    yield
    warn_once.cache_clear()


def said(
    caplog: pytest.LogCaptureFixture, columns: dict[str, Any], *, times: int = 1, **others: Any
) -> list[str]:
    contract = {**ROLES, "columns": columns, "tolerance": 1, **others}
    with caplog.at_level(logging.WARNING):
        for _ in range(times):
            EHRDataModule(ENCOUNTERS, target="died", site="site", contract=contract).setup()
    return [record.getMessage() for record in caplog.records]


def test_columns_that_a_contract_forgot_are_named_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (line,) = said(caplog, {"age": {"kind": "number"}, "bnp": {"kind": "text"}})
    count = len(AMONG) - 2
    assert line.startswith(
        f"{count} of {len(AMONG)} columns of encounters.csv are not in the contract and are no "
        "features: heart_rate, sbp, "
    )
    assert f"and {count - 8} more. Add them to it" in line


def test_cells_that_broke_a_contract_are_counted_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    columns: dict[str, Any] = {name: {} for name in AMONG}
    columns |= {"age": {"high": 80}, "sodium": {"missing_at": {"A": [-1]}, "low": 130}}
    (line,) = said(caplog, columns)
    low = TABLE[(TABLE["sodium"] < 130) & (TABLE["sodium"] != -1)].groupby("site").size()
    old = TABLE[TABLE["age"] > 80].groupby("site").size()
    worst = max([*low, *old])
    assert f"encounters.csv breaks the contract in {low.sum() + old.sum()} cells of 2 " in line
    assert f"at {old.idxmax()}, {worst} cells above 80, set missing. See dm.table.broken" in line


def test_a_site_that_a_contract_does_not_know_is_named(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = said(caplog, {name: {} for name in AMONG}, sites=["A", "B"])
    rows = int((TABLE["site"] == "C").sum())
    said_of_c = f"1 site of encounters.csv that the contract does not name: C ({rows} rows); codes"
    assert line.startswith(said_of_c)


def test_the_same_is_said_once_however_often_the_table_is_set_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert len(said(caplog, {"age": {"high": 80}}, times=2)) == 2


def test_a_contract_that_was_kept_is_not_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    codes = {"missing_at": {"A": [-1]}}
    assert said(caplog, {name: codes if name == "sodium" else {} for name in AMONG}) == []


def test_the_log_holds_no_text_of_a_cell() -> None:
    broken = [Broken("note", "", "not a number: 'Jane Doe'", 1, (3,), "set missing")]
    (line,) = summary(broken, where="table.csv", features=1)
    assert "table.csv breaks the contract in 1 cell of 1 column, most: note, 1 cell not a" in line
    assert "Jane" not in line


def test_a_suspicious_column_is_logged_as_leaks_are(
    caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    table = TABLE.sort_values("died").assign(patient_id=TABLE["patient_id"].tolist())
    table.insert(0, "Unnamed: 0", range(len(table)))
    table.to_csv(tmp_path / "table.csv", index=False)
    with caplog.at_level(logging.WARNING):
        for fold in range(2):
            EHRDataModule(
                tmp_path / "table.csv", target="died", folds=5, fold=fold, ignore=["site"]
            ).setup()
    lines = [record.getMessage() for record in caplog.records]
    assert sum("suspicious: order and ids: the row order" in line for line in lines) == 1
