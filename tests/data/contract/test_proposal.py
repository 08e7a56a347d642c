from __future__ import annotations

import csv
import dataclasses
import pydoc
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkit.data.contract.proposal import audit_csv, propose
from medkit.data.contract.schema import Column, Contract
from medkit.synth.ehr import dictionary_csv, make_hospitals

SAMPLES = Path(__file__).parents[3] / "data_samples" / "ehr"


def by_site(text: str) -> dict[str, str]:
    return dict(part.split(": ") for part in text.split("; ") if part)


def truth() -> dict[str, dict[str, str]]:
    """Return the rows of the data dictionary that are features."""
    rows = csv.DictReader(StringIO(dictionary_csv()))
    return {row["column"]: row for row in rows if row["unit"] and row["column"] != "died"}


def check_against_truth(contract: Contract) -> None:
    assert list(contract.columns) == list(truth())
    for name, row in truth().items():
        rule = contract.columns[name]
        codes = {site: (int(code),) for site, code in by_site(row["missing_codes"]).items()}
        assert rule.missing_at == codes, name
        assert rule.missing == (), name
        assert rule.units_at == by_site(row["unit_by_site"]), name
        assert (rule.unit or "0/1") == row["unit"], name
        assert rule.kind == ("binary" if row["unit"] == "0/1" else "number"), name
        assert rule.recorded is None, name


def test_every_planted_code_and_unit_of_the_sample_hospitals_is_found() -> None:
    contract = propose(SAMPLES / "encounters.csv")
    check_against_truth(contract)
    roles = {"target": "died", "patient": "patient_id", "site": "site"}
    assert contract.roles == roles
    assert contract.sites == ("A", "B", "C")


@pytest.mark.parametrize("seed", [1, 2])
def test_other_patients_of_those_hospitals_give_the_same_codes_and_units(seed: int) -> None:
    drawn = make_hospitals(seed=seed).encounters_csv()
    check_against_truth(propose(pd.read_csv(StringIO(drawn), dtype={"patient_id": str})))


def test_a_proposal_repairs_its_own_table_and_breaks_little_of_it() -> None:
    frame = pd.read_csv(SAMPLES / "encounters.csv")
    got, broken = propose(frame).apply(frame)
    breaches = sum(b.count for b in broken if not b.expected)
    assert breaches < 0.001 * got.notna().sum().sum()
    medians = got.groupby(frame["site"])[["creatinine", "glucose"]].median()
    assert (medians.max() / medians.min() < 1.3).all()


def test_the_yaml_holds_the_evidence_and_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "contract.yaml"
    text = audit_csv(SAMPLES / "encounters.csv", out)
    assert out.read_text() == text
    assert Contract.from_yaml(out) == propose(SAMPLES / "encounters.csv")
    assert "# A: 284 of 788 cells are 0; the others there begin at 0.37" in text
    assert "# C: median 111 against 1.28 at A, ratio 86.7" in text
    assert "# C: nothing measured in 600 rows" in text


def test_an_edited_contract_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "contract.yaml"
    out.write_text("mine")
    with pytest.raises(ValueError, match=r"must not replace one .*Name another file"):
        audit_csv(SAMPLES / "encounters.csv", out)
    assert out.read_text() == "mine"


def test_cholesterol_of_0_is_the_one_code_of_uci_heart(real_data: Path) -> None:
    contract = propose(real_data / "uci_heart4" / "heart4.csv", target="num")
    found = {n: rule.missing_at for n, rule in contract.columns.items() if rule.missing_at}
    assert found == {"chol": {"switzerland": (0,), "va": (0,)}}
    assert not any(rule.missing for rule in contract.columns.values())
    assert "switzerland: nothing measured in 123 rows" in contract.remarks["chol"]
    assert not any(rule.units_at for rule in contract.columns.values())
    assert contract.target_above == 0


def test_question_marks_of_uci_hungary_are_codes(real_data: Path) -> None:
    names = list(pd.read_csv(real_data / "uci_heart4" / "heart4.csv", nrows=0))[:-1]
    path = real_data / "uci_heart4" / "processed.hungarian.data"
    contract = propose(pd.read_csv(path, names=names), target="num")
    raw = path.read_text().splitlines()
    with_mark = {n for i, n in enumerate(names) if any(r.split(",")[i] == "?" for r in raw)}
    assert {n for n, rule in contract.columns.items() if "?" in rule.missing} == with_mark


def test_outcomes_of_physionet_2012_are_known_too_late(real_data: Path) -> None:
    contract = propose(real_data / "physionet2012_a" / "Outcomes-a.txt")
    assert contract.target == "In-hospital_death"
    late = {n for n, rule in contract.columns.items() if rule.recorded == "after"}
    assert late == {"Length_of_stay", "Survival"}
    assert all(rule.missing == (-1,) for rule in contract.columns.values())


def noise(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_clean_columns_raise_no_suspicion() -> None:
    for seed in range(20):
        rng = noise(seed=seed)
        frame = pd.DataFrame(
            {
                "site": rng.choice(["A", "B"], 400),
                "normal": rng.normal(0, 1, 400),
                "skewed": np.round(rng.lognormal(0, 1, 400), 2),
                "counts": rng.poisson(2, 400),
                "score": rng.integers(0, 16, 400),
                "share": np.round(rng.beta(0.5, 0.5, 400), 2),
                "zeros": np.where(rng.random(400) < 0.6, 0, np.round(rng.gamma(1, 2, 400), 1)),
                "died": rng.integers(0, 2, 400),
            }
        )
        for name, rule in propose(frame).columns.items():
            assert not rule.missing, (seed, name)
            assert not rule.missing_at, (seed, name)
            assert rule.recorded is None, (seed, name)
            assert rule.kind == "number", (seed, name)


def proposed(cells: object, name: str = "x", **others: object) -> tuple[Column, str]:
    contract = propose(pd.DataFrame({name: cells, **others}))
    return contract.columns[name], " ".join(contract.remarks[name])


def test_a_value_that_is_normal_at_one_site_is_a_code_at_none() -> None:
    rng = noise()
    here, there = rng.integers(30, 60, 200) / 10, rng.integers(0, 60, 200) / 10
    here[:50] = 0
    rule, _ = proposed(np.append(here, there), site=["A"] * 200 + ["B"] * 200)
    assert not rule.missing_at


def test_two_codes_of_one_column_are_both_found() -> None:
    values = np.append(noise().integers(60, 100, 300), [-1] * 20 + [999] * 9)
    assert proposed(values)[0].missing == (-1, 999)


def test_words_become_levels() -> None:
    rule, _ = proposed(["MICU", "SICU", "CCU", "unknown"] * 20, "icu")
    assert (rule.kind, rule.levels, rule.missing) == (
        "category",
        ("CCU", "MICU", "SICU"),
        ("unknown",),
    )


def test_two_words_are_binary() -> None:
    rule, said = proposed(["no", "yes"] * 20)
    assert (rule.kind, rule.levels) == ("binary", ("no", "yes"))
    assert "the first is 0" in said


def test_few_whole_numbers_are_asked_about() -> None:
    assert "labels rather than amounts?" in proposed([1, 2, 3, 4] * 20)[1]


def test_ids_are_no_features() -> None:
    assert proposed([f"s{i}" for i in range(60)], "sample")[0].kind == "text"
    assert proposed(np.arange(60) + 5000, "sample")[0].kind == "text"
    assert proposed([1, 1, 2, 2] * 20, "hadm_id")[0].kind == "text"
    assert proposed(noise().normal(size=60), "sample")[0].kind == "number"
    assert proposed(noise().integers(0, 10**9, 60), "energy")[0].kind == "number"


def test_different_numbers_with_decimal_commas_are_numbers_and_no_ids() -> None:
    rule, said = proposed([f"{i},5" for i in range(60)], "dose")
    assert rule.kind == "number"
    assert "60 different texts that are none (such as '0,5': decimal commas? Write" in said


@pytest.mark.parametrize("written", ["2026-01-0{}", "0{}.01.2026", "1/{}/26 12:30"])
def test_dates_are_no_levels(written: str) -> None:
    rule, said = proposed([written.format(1 + i % 9) for i in range(60)], "seen")
    assert rule.kind == "text"
    assert "dates: not a feature" in said


def test_no_age_above_120_is_plausible() -> None:
    age = noise().integers(18, 100, 200)
    assert proposed(age, "age")[0].high == 120
    days = proposed(age * 365.25, "age")[0]  # a unit nobody guesses is not capped
    assert days.high is not None
    assert days.high > 36_525


def test_a_proposal_says_where_its_keys_are_explained() -> None:
    said = [
        line.split()[-1]
        for line in propose(SAMPLES / "encounters.csv").to_yaml().split("\n")
        if "pydoc" in line
    ]
    assert [pydoc.locate(name) for name in said] == [Column, Contract]
    for cls in (Column, Contract):
        explained = pydoc.getdoc(cls)
        assert all(f"\n    {field.name}: " in explained for field in dataclasses.fields(cls))


def test_a_date_that_only_the_dead_have_is_after_the_outcome() -> None:
    died = [0, 1] * 30
    when = ["2026-01-01" if dead else None for dead in died]
    rule, said = proposed(when, "last_contact", died=died)
    assert rule.recorded == "after"
    assert "that it is missing alone ranks the outcome with AUROC 1.000" in said


def test_a_column_that_ranks_the_outcome_perfectly_is_after_it() -> None:
    died = np.array([0, 1] * 30)
    rule, said = proposed(noise().normal(size=60) + 9 * died, "score", died=died)
    assert rule.recorded == "after"
    assert "known only after the outcome?" in said


def test_fahrenheit_at_one_site_is_found() -> None:
    celsius = noise().normal(37, 0.7, 300)
    values = np.append(celsius[:200], celsius[200:] * 9 / 5 + 32)
    rule, _ = proposed(values, "temp", site=["A"] * 200 + ["B"] * 100)
    assert (rule.unit, rule.units_at) == ("degC", {"B": "degF"})


@pytest.mark.parametrize(
    ("column", "unit", "medians"),
    [("creatinine", "mg/dL", (1.0, 1.8)), ("urea", "mg/dL", (42, 15)), ("hb", "g/dL", (12.1, 8))],
)
def test_a_hospital_of_sicker_patients_has_no_other_unit(
    column: str, unit: str, medians: tuple[float, float]
) -> None:
    spread = np.exp(noise().normal(0, 0.2, 200))
    values = np.append(medians[0] * spread, medians[1] * spread)
    rule, _ = proposed(values, column, site=["A"] * 200 + ["B"] * 200)
    assert (rule.unit, rule.units_at) == (unit, {})


def test_a_difference_that_may_be_a_unit_is_said() -> None:
    spread = np.exp(noise().normal(0, 0.2, 200))
    values = np.append(12.1 * spread, 7.5 * spread)
    _, said = proposed(values, "hb", site=["A"] * 200 + ["B"] * 200)
    assert "from g/dL to mmol/L the factor is 0.621: too near to tell, look it up" in said


def test_unknown_columns_whose_medians_are_far_apart_are_remarked() -> None:
    values = np.append(noise().normal(10, 1, 50), noise().normal(1000, 1, 50))
    rule, said = proposed(values, "marker", site=["A"] * 50 + ["B"] * 50)
    assert rule.units_at == {}
    assert "medians differ fivefold or more" in said


def test_an_empty_column_is_no_feature() -> None:
    assert proposed([None] * 30)[0].kind == "text"


def test_a_target_of_words_is_remarked() -> None:
    contract = propose(pd.DataFrame({"died": ["yes", "no"], "x": [1, 2]}))
    assert "target: died holds no number; it must be 0 or 1 in each row." in contract.remarks[""]


def test_blank_sites_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'site' must be filled in each row.*in 1 row "):
        propose(pd.DataFrame({"site": ["A", None], "x": [1, 2]}))


def test_a_role_that_is_no_column_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the target must be a column .* 'dead' is not among"):
        propose(pd.DataFrame({"x": [1]}), target="dead")


def test_a_file_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("x,x\n1,2\n")
    with pytest.raises(ValueError, match=r"must name each column once, and \['x'\]"):
        audit_csv(path)
