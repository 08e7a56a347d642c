from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from medkit.data.follow_up import read_follow_up
from medkit.data.survival import SurvivalDataModule
from medkit.data.tables import TableSpec

SPEC = TableSpec("died", site="site")


def agreed(days: dict[str, Any] | None = None, **columns: Any) -> dict[str, Any]:
    clock = {"kind": "number", "unit": "days"} | (days or {})
    age = {"kind": "number", "low": 18, "high": 110}
    roles = {"target": "died", "patient": "patient_id", "site": "site"}
    return {"version": 1, **roles, "columns": {"days": clock, "age": age} | columns}


def clinics() -> pd.DataFrame:
    """Return 80 patients; clinic B counts in months, and has an age nobody reaches."""
    number = np.arange(80)
    columns = {"patient_id": number, "site": np.where(number < 40, "A", "B")}
    columns |= {"age": 40.0 + number % 37, "days": 100.0 + 3 * number, "died": (number % 3 == 0)}
    table = pd.DataFrame(columns).astype({"died": int})
    table.loc[number >= 40, "days"] /= 30.4375
    table.loc[79, "age"] = 700.0
    return table


def make(contract: Any, **changes: Any) -> SurvivalDataModule:
    roles = {"time": "days", "event": "died", "site": "site"}
    dm = SurvivalDataModule(clinics(), **(roles | changes), contract=contract)
    dm.setup()
    return dm


def test_times_of_a_clinic_that_counts_in_months_become_days() -> None:
    dm = make(agreed({"units_at": {"B": "months"}}))
    np.testing.assert_allclose(dm.follow_up.time, 100.0 + 3 * np.arange(80), rtol=1e-6)


def test_what_broke_the_contract_is_repaired_and_listed() -> None:
    dm = make(agreed())
    (broken,) = [b for b in dm.table.broken if b.column == "age"]
    assert (broken.site, broken.rows) == ("B", (79,))
    assert np.isnan(dm.table.values[79]).all()


def test_a_time_recorded_after_the_outcome_is_read_and_is_no_feature() -> None:
    dm = make(agreed({"recorded": "after"}))
    assert dm.table.features == ("age",)
    np.testing.assert_array_equal(dm.rows("train").y[:, 1], dm.table.y[dm.split.train])


def test_what_was_recorded_after_the_outcome_is_no_feature() -> None:
    cause = {"kind": "number", "recorded": "after"}
    table = clinics().assign(cause=clinics()["died"])
    roles = {"time": "days", "event": "died", "site": "site"}
    dm = SurvivalDataModule(table, **roles, contract=agreed(cause=cause))
    dm.setup()
    assert dm.table.features == ("age",)


def test_new_patients_need_no_times_under_a_contract() -> None:
    dm = make(agreed())
    new = dm.apply(clinics().drop(columns=["days", "died"]))
    rows = dm.rows("val")
    np.testing.assert_array_equal(new.x[rows.row], rows.x)
    assert new.y.isnan().all()


def test_going_on_under_another_contract_is_refused() -> None:
    state = make(agreed()).state_dict()
    with pytest.raises(ValueError, match=r"the data contract it was trained under; its digest"):
        make(agreed({"low": 0})).load_state_dict(state)


def test_a_contract_without_the_times_is_refused() -> None:
    contract = agreed()
    del contract["columns"]["days"]
    message = r"no column \['days'\] beside its roles, found \['age'\].*have them in the contract"
    with pytest.raises(ValueError, match=message):
        make(contract)


def test_a_contract_with_another_event_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the same target; the contract says 'relapsed'"):
        make(agreed() | {"target": "relapsed"})


def test_a_time_out_of_range_is_a_time_that_is_missing() -> None:
    with pytest.raises(ValueError, match=r"a time in 'days'.*missing in \d+ rows.*with an event"):
        make(agreed({"low": 150, "units_at": {"B": "months"}}))


def test_without_a_contract_nothing_is_converted() -> None:
    assert read_follow_up(clinics(), SPEC, time="days").time.min() < 10
