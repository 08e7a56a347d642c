"""Contracts and tables that nothing sensible can be made of: refused, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medkit.data.contract.proposal import audit_csv, propose
from medkit.data.contract.schema import Contract


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns: {x: {}, x: {low: 1}}", r"must be YAML; found: 'x' stands there twice.*Correct"),
        ("columns: {x: {low: 1, low: 2}}", r"'low' stands there twice"),
        ("columns: {x: {high: .inf}}", r"high must be a finite number, got inf\. Write it"),
        ("columns: {x: {low: .nan}}", r"low must be a finite number, got nan\. Write it"),
        ("columns: {x: {}}\ntolerance: half", r"share in \(0, 1\], got half\. 0\.5 is"),
        ("columns: {x: {}}\ntolerance: [1]", r"share in \(0, 1\], got \[1\]"),
        ("columns: {x: {}}\ntarget: y\ntarget_above: .nan", r"finite number, got nan\. Labels"),
        ("columns: {x: {}}\ntarget: y\ntarget_above: a", r"finite number, got 'a'\. Labels above"),
        (
            "columns: {x: {unit: mmol/L, units_at: {A: umol/L}}}",
            r"needs the contract's column of sites, and the contract names none\. Add 'site: COL",
        ),
        ("columns: {x: {missing_at: {A: [0]}}}", r"needs the contract's column of sites"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Contract.from_text(text)


@pytest.mark.parametrize("source", [["x"], 5])
def test_what_is_no_contract_is_refused(source: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a YAML file, plain types or a Contract, got "):
        Contract.of(source)


FRAME = pd.DataFrame({"x": np.arange(60) / 7, "died": np.arange(60) % 2})


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME[:0], r"at least one row and one column .* it has 0 and 2\. Was the export"),
        (pd.DataFrame(index=range(3)), r"it has 3 and 0\. Was the export"),
        (pd.concat([FRAME, FRAME[["x"]]], axis=1), r"name each column once, and \['x'\]"),
    ],
)
def test_no_contract_is_proposed_from_a_table_like_this(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        propose(frame)


def test_a_proposal_for_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(FileNotFoundError, match=r"a folder that exists, and .*no does not\. Make"):
        audit_csv(tmp_path / "a.csv", tmp_path / "no" / "contract.yaml")


def test_infinite_cells_widen_no_proposed_range_and_are_said() -> None:
    plain = propose(FRAME)
    found = propose(FRAME.assign(x=FRAME["x"].where(FRAME.index != 3, np.inf)))
    assert found.columns["x"].high == pytest.approx(plain.columns["x"].high, rel=0.1)
    assert "1 cells are infinite" in " ".join(found.remarks["x"])


def test_columns_of_lists_are_no_features() -> None:
    found = propose(FRAME.assign(notes=[[1, 2]] * 60))
    assert found.columns["notes"].kind == "text"
    assert "lists" in " ".join(found.remarks["notes"])


def test_names_that_are_numbers_are_read_as_text() -> None:
    assert list(propose(FRAME.rename(columns={"x": 0})).columns) == ["0"]
