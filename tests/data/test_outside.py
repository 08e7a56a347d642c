from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medkit import keyed
from medkit.data import preprocessing
from medkit.data.contract import Column, Contract
from medkit.data.outside import Outside, extended
from medkit.data.tables import Table, TableSpec, read_table

SPEC = TableSpec("died", None, "site")
CONTRACT = Contract(
    {"lab": Column(unit="mg/dL", low=0, high=50, units_at={"B": "g/L"}), "age": Column()},
    target="died",
    site="site",
    sites=("A", "B"),
)


def rows(count: int = 1000, *, seed: int = 0, site: str = "A") -> pd.DataFrame:
    """Draw rows: lab about 5 (sd 1, a fifth missing), age about 60 (sd 10, never missing)."""
    draw = keyed.generator(seed, "outside")
    lab = np.where(draw.random(count) < 0.2, np.nan, draw.normal(5, 1, count))
    return pd.DataFrame({"site": site, "lab": lab, "age": draw.normal(60, 10, count)})


def read(frame: pd.DataFrame, contract: Contract | None = None) -> Table:
    return read_table(frame, SPEC, features=["lab", "age"], contract=contract)


def outside(contract: Contract | None = None, **changes: Any) -> Outside:
    train = read(rows())
    fitted = preprocessing.fit(train.values, train.features, fitted_on="")
    return Outside(contract, fitted, **({"sites": ["A", "B"]} | changes))


def reasons(frame: pd.DataFrame, judge: Outside | None = None) -> list[str]:
    judge = judge or outside()
    table = read(frame, judge.contract)
    judge.see(table)
    return judge.reasons(frame, table).tolist()


def test_rows_of_the_same_kind_are_hardly_ever_outside() -> None:
    assert sum(reason != "" for reason in reasons(rows(5000, seed=1))) == 0


@pytest.mark.parametrize(("lab", "far"), [(9.9, False), (14.0, True), (-4.0, True)])
def test_a_value_far_from_all_of_training_is_named(lab: float, far: bool) -> None:
    frame = rows(20, seed=1)
    frame.loc[4, "lab"] = lab
    found = reasons(frame)
    assert found[4] == ("lab far from all of training" if far else "")
    assert set(found[:4] + found[5:]) == {""}


def test_a_column_that_was_never_missing_is_named_where_it_is() -> None:
    frame = rows(20, seed=1).assign(lab=5.0)
    frame.loc[4, "age"] = np.nan
    assert reasons(frame)[4] == "age missing, never so in training"
    assert reasons(frame.assign(lab=np.nan))[4].endswith("more missing than in any row of training")


@pytest.mark.parametrize("factor", [1 / 18, 88.4])
def test_a_site_in_another_unit_is_named_even_where_each_value_is_plausible(factor: float) -> None:
    there = rows(40, seed=1, site="B")
    frame = pd.concat([rows(40), there.assign(lab=there["lab"] * factor)], ignore_index=True)
    way = "below" if factor < 1 else "above"
    found = [f"lab of the whole site far {way} training" in reason for reason in reasons(frame)]
    assert found == [False] * 40 + [True] * 40


def test_what_is_known_of_a_site_does_not_depend_on_the_parts_it_is_read_in() -> None:
    frame = rows(40, seed=1, site="B")
    frame["lab"] *= 88.4
    judge = outside()
    parts = [frame[:25].reset_index(drop=True), frame[25:].reset_index(drop=True)]
    for part in parts:
        judge.see(read(part))
    found = [reason for part in parts for reason in judge.reasons(part, read(part))]
    assert found == reasons(frame)
    assert judge.flagged == judge.rows == 40


def test_a_column_that_a_new_site_lacks_is_named_and_a_training_sites_is_noted() -> None:
    frame = pd.concat([rows(20, site="Z"), rows(20)], ignore_index=True).assign(lab=np.nan)
    judge = outside()
    found = reasons(frame, judge)
    assert all("lab missing in the whole site" in reason for reason in found[:20])
    assert set(found[20:]) == {""}
    assert judge.absent_at_trained_sites() == {"A": ["lab"]}


def test_sites_without_rows_in_training_are_counted() -> None:
    frame = pd.concat([rows(3, site=site) for site in "AABZ"], ignore_index=True)
    judge = outside(held_out="B")
    found = reasons(frame, judge)
    assert dict(judge.new_sites) == {"B": 3, "Z": 3}
    assert ["site not in training" in reason for reason in found] == [False] * 9 + [True] * 3


def test_cells_that_break_the_contract_are_named_in_the_contracts_unit() -> None:
    frame = pd.concat([rows(20, seed=1), rows(20, seed=1, site="B")], ignore_index=True)
    frame.loc[20:, "lab"] /= 100  # g/L
    frame.loc[[2, 22], "lab"] = 3.0  # 300 mg/dL at B
    found = reasons(frame, outside(CONTRACT))
    assert [row for row, reason in enumerate(found) if reason] == [22]
    assert found[22] == "lab 3 g/L above 50 mg/dL"


AGED = Contract(
    {
        "lab": Column(unit="mg/dL", low=20, high=400, analyte="glucose"),
        "age": Column(unit="years", low=0, high=110),
        "pain": Column(kind="category", levels=("none", "some", "much")),
        "iron": Column(kind="binary"),
    },
    target="died",
    site="site",
    sites=("A", "B"),
)


def aged(frame: pd.DataFrame) -> tuple[Outside, list[str]]:
    """Judge rows by the contract that has categories too."""
    kinds = {"pain": np.resize(["none", "some", "much"], 60), "iron": np.resize([0, 1], 60)}
    train = rows(60, seed=2).assign(**kinds)
    train["lab"] *= 20
    features = ["lab", "age", "pain=none", "pain=some", "pain=much", "iron"]
    values = read_table(train, SPEC, features=features, contract=AGED)
    fitted = preprocessing.fit(values.values, values.features, fitted_on="")
    judge = Outside(AGED, fitted, ["A", "B"])
    table = read_table(frame, SPEC, features=features, contract=AGED)
    judge.see(table)
    return judge, judge.reasons(frame, table).tolist()


def new(count: int = 20) -> pd.DataFrame:
    return rows(count, seed=1).assign(lab=100.0, pain="some", iron=1)


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("age", 630, "age 630 above 110 years"),
        ("age", -3, "age -3 below 0 years"),
        ("age", "1,5", "age '1,5' is not a number"),
        ("age", "inf", "age inf is not finite"),
        ("pain", "dull", "pain 'dull' is none of its levels"),
        ("iron", 2, "iron '2' is none of its levels"),
    ],
)
def test_a_cell_that_breaks_the_contract_is_quoted_and_that_is_all(
    column: str, cell: Any, said: str
) -> None:
    frame = new().astype({column: object})
    frame.loc[4, column] = cell
    assert aged(frame)[1] == [""] * 4 + [said] + [""] * 15


def test_a_category_that_is_missing_is_one_reason() -> None:
    frame = new()
    frame.loc[4, "pain"] = None
    assert aged(frame)[1][4].split("; ") == [
        "pain missing, never so in training",
        "more missing than in any row of training",
    ]


def test_what_the_contract_itself_empties_is_not_missing_as_well() -> None:
    frame = new()
    frame.loc[4, ["age", "pain", "iron"]] = [630, "dull", 7]
    found = aged(frame)[1][4]
    assert "missing" not in found
    assert len(found.split("; ")) == 3


def test_the_unit_in_which_a_whole_column_would_fit_is_named() -> None:
    judge, _ = aged(new().assign(site="B", lab=np.linspace(3, 8, 20)))
    said = judge.why("lab breaks the contract")
    assert said.startswith(": 20 below 20 mg/dL; as mmol/L at 'B' they would fit: convert them, or")
    assert "--contract FILE" in said


@pytest.mark.parametrize("lab", [[5.0] * 3 + [100.0] * 17, [-5.0] * 20])
def test_no_unit_is_named_where_few_cells_are_outside_or_none_would_fit(lab: list[float]) -> None:
    judge, _ = aged(new().assign(lab=lab))
    assert "would fit" not in judge.why("lab breaks the contract")


def test_decimal_commas_are_shown_by_one_of_them_and_words_are_not() -> None:
    judge, _ = aged(new().assign(age="61,5"))
    said = ": 20 not a number; such as '61,5'"
    assert judge.why("age breaks the contract") == said
    judge, _ = aged(new().assign(age="Smith"))
    assert judge.why("age breaks the contract") == ": 20 not a number"


def test_a_site_whose_units_nobody_has_said_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"has sites \['A', 'B'\]; found 'Z', and \['lab'\] are .*--contract"
    ):
        reasons(rows(20, site="Z"), outside(CONTRACT))


def test_a_checkpoint_that_does_not_know_what_training_reached_judges_by_scales() -> None:
    judge = outside()
    judge.preprocessing = replace(
        judge.preprocessing, low=(), high=(), missing=(), most_missing=1.0
    )
    frame = rows(20, seed=1).assign(lab=88.4)
    frame.loc[4, "age"] = np.nan
    assert set(reasons(frame, judge)) == {"lab of the whole site far above training"}


def test_a_contract_may_gain_sites() -> None:
    plain = CONTRACT.to_mapping() | {"sites": ["A", "B", "Z"]}
    plain["columns"]["lab"]["units_at"] = {"B": "g/L", "Z": "mg/L"}
    judge = outside(extended(CONTRACT, Contract.of(plain)))
    frame = rows(20, seed=1, site="Z").assign(lab=50.0)  # 5 mg/dL
    assert set(reasons(frame, judge)) == {""}


@pytest.mark.parametrize(
    "change",
    [
        {"low": 1},
        {"units_at": {"B": "mg/L"}},
        {"units_at": {}},
        {"kind": "text", "low": None, "high": None, "unit": "", "units_at": {}},
    ],
)
def test_a_contract_may_not_change_what_was_agreed(change: dict[str, Any]) -> None:
    plain = CONTRACT.to_mapping()
    plain["columns"]["lab"] |= change
    with pytest.raises(ValueError, match=r"differs in \['lab'\]\. The net knows .* or train anew"):
        extended(CONTRACT, Contract.of(plain))


def test_a_contract_may_not_gain_columns() -> None:
    plain = CONTRACT.to_mapping()
    plain["columns"]["new"] = {"kind": "number"}
    with pytest.raises(ValueError, match=r"differs in \['new'\]"):
        extended(CONTRACT, Contract.of(plain))
