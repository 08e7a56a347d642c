"""What a table, its split and its rivals can't be made of: a message, and nothing half done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medkit.data.ehr import EHRDataModule
from medkit.data.learnable import require_learnable
from medkit.data.linear import fit_logistic
from medkit.data.survival import SurvivalDataModule
from medkit.models.baseline import fit_boosting
from medkit.models.ensemble import FoldEnsemble

N = 80
FRAME = pd.DataFrame(
    {
        "patient_id": [f"P{number}" for number in range(N)],
        "site": ["A", "B"] * (N // 2),
        "x": np.arange(N) % 13 / 7,
        "died": np.arange(N) // 2 % 2,
    }
)


def module(folder: Path, frame: pd.DataFrame, **options: Any) -> EHRDataModule:
    frame.to_parquet(folder / "table.parquet")
    options = {"target": "died", "site": "site"} | options
    return EHRDataModule(folder / "table.parquet", **options)


def with_cell(column: str, cell: object) -> pd.DataFrame:
    return FRAME.assign(**{column: FRAME[column].astype(object).where(FRAME.index != 3, cell)})


@pytest.mark.parametrize("column", ["site", "patient_id"])
@pytest.mark.parametrize("cell", [None, "", "   "])
def test_a_blank_site_or_patient_is_refused(tmp_path: Path, column: str, cell: object) -> None:
    dm = module(tmp_path, with_cell(column, cell))
    with pytest.raises(ValueError, match=rf"{column}' must be filled .* 1 row \(first: row 4 "):
        dm.setup()
    assert dm.table is None


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (FRAME.drop(columns="x"), {}, r"at least one feature, and none is left .*Name fewer"),
        (FRAME, {"ignore": ["x"]}, r"at least one feature"),
        (
            FRAME,
            {
                "contract": {
                    "columns": {"x": {"recorded": "after"}},
                    **{"target": "died", "patient": "patient_id", "site": "site"},
                }
            },
            r"at least one feature",
        ),
        (FRAME.assign(patient_id="P"), {}, r"2 parts needs as many patients .* found 1 in 80 rows"),
        (
            FRAME.assign(patient_id=["P", "Q"] * (N // 2)),
            {"test_fraction": 0.2},
            r"3 parts needs as many patients at least, found 2",
        ),
        (
            FRAME.assign(x=pd.to_timedelta(np.arange(N), unit="h")),
            {},
            r"'x' must be numeric; found 80 different texts",
        ),
    ],
)
def test_a_table_that_can_not_be_learnt_from_is_refused(
    tmp_path: Path, frame: pd.DataFrame, options: dict[str, Any], message: str
) -> None:
    dm = module(tmp_path, frame, **options)
    with pytest.raises(ValueError, match=message):
        dm.setup()
    assert dm.table is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 2.5, "fold": 0}, r"folds must be a whole number or None, got 2\.5"),
        ({"folds": 5, "fold": "0"}, r"fold must be a whole number or None, got '0'"),
        ({"test_folds": "5", "test_fold": 0}, r"test_folds must be a whole number .* got '5'"),
        ({"target_above": float("nan")}, r"target_above must be a finite number or None, got nan"),
    ],
)
def test_settings_that_say_nothing_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        module(tmp_path, FRAME, **options)


def test_a_fold_counted_by_numpy_is_a_fold(tmp_path: Path) -> None:
    dm = module(tmp_path, FRAME, folds=4, fold=np.arange(4)[1])
    dm.setup()
    assert len(dm.split.val) == N // 4


def test_survival_without_features_or_with_half_a_patient_in_a_batch_is_refused() -> None:
    frame = FRAME.drop(columns="x").assign(days=np.arange(N) + 1.0)
    dm = SurvivalDataModule(frame, time="days", event="died", site="site")
    with pytest.raises(ValueError, match=r"at least one feature, .* roles .*'days'\]"):
        dm.setup()
    for size in (2.5, "8", 1):
        with pytest.raises(ValueError, match=r"at least 2 or None \(all\), got .* A patient"):
            SurvivalDataModule(frame, time="days", event="died", batch_size=size)  # type: ignore[arg-type]


X = np.column_stack([np.arange(40) % 7, np.arange(40) % 5]).astype(np.float32)
Y = np.arange(40) % 2


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:0], Y[:0], r"labels 0 and 1 among its rows; found \[\] in 0 rows"),
        (X[:, :0], Y, r"F from 1 on.* got shapes \(40, 0\) and \(40,\)\. Pass"),
        (X[:, 0], Y, r"got shapes \(40,\) and \(40,\)"),
        (X[:9], Y, r"got shapes \(9, 2\) and \(40,\)"),
        (X, 0 * Y, r"labels 0 and 1 .* found \[0\] in 40 rows\. Recode"),
        (X, 2 * Y, r"found \[0, 2\]"),
        (X, np.arange(40) % 3, r"found \[0, 1, 2\]"),
        (X, Y * np.nan, r"found \[nan\]"),
        (np.where(X == 4, np.inf, X), Y, r"NaN for missing ones; found inf in row 4 .*column 0"),
    ],
)
def test_boosting_refuses_what_it_can_not_learn_from(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_boosting(x, y)


def test_boosting_learns_from_gaps_and_a_linear_model_does_not() -> None:
    gaps = np.where(X == 4, np.nan, X)
    assert np.isfinite(fit_boosting(gaps, Y).prob(gaps)).all()
    with pytest.raises(ValueError, match=r"needs finite values; found nan in row 4 \(from 0\)"):
        require_learnable(gaps, Y)


def test_rows_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"row numbers from 0 to 39, found 3 to 40\. Pass"):
        require_learnable(X, Y, rows=np.array([3, 40]))


def test_a_gap_far_down_is_found_in_its_row() -> None:
    x = np.zeros((200_000, 1), np.float32)
    x[150_000] = np.nan
    with pytest.raises(ValueError, match=r"found nan in row 150000 "):
        require_learnable(x, np.arange(200_000) % 2)


def test_an_ensemble_of_a_folder_without_members_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold a sound checkpoint .* Resume the run"):
        FoldEnsemble.load(tmp_path)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, :0], Y, r"got shapes \(40, 0\)"),
        (X, 0 * Y, r"labels 0 and 1 among its rows; found \[0\]"),
        (X, np.arange(40) % 3, r"found \[0, 1, 2\]"),
        (np.where(X == 4, np.nan, X), Y, r"needs finite values; found nan in row 4"),
    ],
)
def test_a_linear_model_refuses_what_it_can_not_learn_from(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_logistic(x, y)


@pytest.mark.parametrize("c", [0, -1, float("nan")])
def test_a_penalty_of_no_strength_is_refused(c: float) -> None:
    with pytest.raises(ValueError, match=r"c must be a number above 0 or 'chosen', got "):
        fit_logistic(X, Y, c=c)


def test_one_column_to_ignore_may_be_given_by_its_name(tmp_path: Path) -> None:
    dm = module(tmp_path, FRAME.assign(note="a word"), ignore="note")
    dm.setup()
    assert dm.table.features == ("x",)
