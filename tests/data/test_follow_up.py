from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from medkit.data.follow_up import read_follow_up
from medkit.data.tables import TableSpec

SPEC = TableSpec("died", site="site")


def clinic(**changes: Any) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "patient_id": ["a", "b", "c", "d"],
        "site": ["A", "A", "B", "B"],
        "age": [50.0, 61.0, np.nan, 70.0],
        "seen": [10.0, 10.0, 12.0, 20.0],
        "days": [110.0, 40.0, 12.0, 300.0],
        "died": [1, 0, 0, 1],
    }
    return pd.DataFrame(columns | changes)


def test_time_is_no_feature() -> None:
    found = read_follow_up(clinic(), SPEC, time="days")
    assert found.table.features == ("age", "seen")
    assert found.time.tolist() == [110, 40, 12, 300]
    assert found.table.y.tolist() == [1, 0, 0, 1]


def test_follow_up_may_begin_at_a_date_of_its_own() -> None:
    found = read_follow_up(clinic(), SPEC, time="days", start="seen")
    assert found.table.features == ("age",)
    assert found.time.tolist() == [100, 30, 0, 280]


def test_new_patients_need_no_times() -> None:
    new = clinic().drop(columns=["days", "died", "site"])
    found = read_follow_up(new, SPEC, time="days", features=["age"])
    assert np.isnan(found.time).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"days": [110.0, np.nan, np.nan, np.nan]},
            r"must have a time in 'days'.*missing in 3 rows \(first: row 2.*\), 1 of them with an "
            r"event. Fill in",
        ),
        (
            {"days": [110.0, 40.0, -12.0, 300.0]},
            r"time must be 0 or more.*found -12 in 1 row .*row 3",
        ),
        ({"died": [1, 0, np.nan, 1]}, r"target 'died' must be 0 or 1.*row 3"),
        ({"died": [1, 0, 2, 1]}, r"target 'died' must be 0 or 1.*'2'.*row 3"),
        (
            {"patient_id": ["a", "b", "b", "d"]},
            r"one row a patient; 1 have more, in 2 rows .*row 2",
        ),
        ({"days": [110.0, 40.0, np.inf, 300.0]}, r"'days' must hold finite numbers.*row 3"),
        ({"days": [1.7e9, 40.0, 12.0, 300.0]}, r"at most 16,777,216.*reaches 1.7e\+09 in 1 row"),
    ],
    ids=["no time", "negative", "no event", "third event", "two rows", "infinite", "seconds"],
)
def test_bad_follow_up_is_refused_and_the_rows_are_named(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_follow_up(clinic(**changes), SPEC, time="days")
    assert "'b'" not in str(caught.value)  # rows are named, patients are not


def test_follow_up_that_ends_before_it_begins_is_refused() -> None:
    backwards = clinic(seen=[10.0, 41.0, 12.0, 20.0])
    with pytest.raises(ValueError, match=r"must not end before it begins; 'days' is before 'seen'"):
        read_follow_up(backwards, SPEC, time="days", start="seen")


def test_a_missing_column_of_times_is_named() -> None:
    with pytest.raises(ValueError, match=r"no column \['weeks'\] beside its roles, found \['age'"):
        read_follow_up(clinic(), SPEC, time="weeks")
