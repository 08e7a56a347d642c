from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medkit.data.contract.schema import Column, Contract

TEXT = """\
version: 1
target: died
patient: patient_id
site: site
sites: [A, 'NO']
columns:
  creatinine:
    kind: number
    unit: mg/dL
    units_at: {'NO': umol/L}
    missing_at: {A: [0, '?']}
    low: 0.0
    high: 20
    outside: clip
    recorded: before
  cp:
    kind: category
    missing: [-9]
    levels: [1, 2, 3]
  smoker:
    kind: binary
    levels: ['no', 'yes']
"""


def test_a_contract_survives_yaml_to_the_letter() -> None:
    assert Contract.from_text(TEXT).to_yaml() == TEXT


def test_a_contract_written_in_python_is_the_one_read_from_yaml() -> None:
    made = Contract(
        {
            "creatinine": Column(
                unit="mg/dL",
                units_at={"NO": "umol/L"},
                missing_at={"A": [0, "?"]},
                low=0.0,
                high=20,
                outside="clip",
                recorded="before",
            ),
            "cp": Column("category", levels=[1, 2, 3], missing=-9),
            "smoker": Column("binary", levels=("no", "yes")),
        },
        target="died",
        patient="patient_id",
        site="site",
        sites=["A", "NO"],
    )
    assert made == Contract.from_text(TEXT)
    assert Contract.of(made.to_mapping()) == made


def test_keys_left_blank_are_keys_left_out() -> None:
    text = "version: 1\ntarget:\nsites: A\ncolumns: {x: {missing: , low: , units_at: }}"
    assert Contract.from_text(text) == Contract({"x": Column()}, sites=["A"])


def test_a_contract_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(TEXT)
    assert Contract.of(str(path)) == Contract.from_text(TEXT)


def test_plain_types_hold_nothing_else() -> None:
    def check(value: Any) -> None:
        assert type(value) in {dict, list, str, int, float, type(None)}, value
        for inner in value.values() if isinstance(value, dict) else ():
            check(inner)
        for inner in value if isinstance(value, list) else ():
            check(inner)

    check(Contract.from_text(TEXT).to_mapping())


def test_remarks_are_comments_and_change_no_digest() -> None:
    bare = Contract({"age": Column()})
    said = Contract({"age": Column()}, remarks={"": ["by hand"], "age": ["median 60"]})
    assert said.to_yaml() == (
        "# by hand\nversion: 1\ncolumns:\n  age:\n    # median 60\n    kind: number\n"
    )
    assert said == bare
    assert said.digest == bare.digest
    assert Contract({"age": Column(high=90)}).digest != bare.digest


def test_features_are_named_with_a_column_per_level() -> None:
    contract = Contract(
        {
            "age": Column(),
            "cp": Column("category", levels=[1.0, "2"]),
            "note": Column("text"),
            "los": Column(recorded="after"),
        }
    )
    assert contract.features == ["age", "cp=1", "cp=2"]
    assert contract.recorded_after == ["los"]


COLUMNS_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kind": "nummer"}, r"column 'x': kind must be one of .* got 'nummer'.*Did you mean 'number'"),
    ({"outside": "drop"}, r"outside must be one of \['missing', 'clip'\], got 'drop'"),
    ({"recorded": "afterwards"}, r"recorded must be one of .* got 'afterwards'.*mean 'after'"),
    ({"low": 5, "high": 3}, r"low must be below high, got low 5 and high 3\. Swap"),
    ({"low": "1 mg"}, r"low must be a finite number, got '1 mg'\. Write it without"),
    ({"unit": "mg/dll"}, r"column 'x': a unit must be .* got 'mg/dll'\. Close: mg/dL"),
    ({"units_at": {"A": "mg/dL"}}, r"units_at must come with the unit to convert to.*Add it"),
    (
        {"unit": "mg/dL", "units_at": {"A": "mmol/L"}},
        r"column 'x': a conversion must stay within one quantity.*name the analyte",
    ),
    ({"unit": "mg/dL", "analyte": "glukose"}, r"an analyte must be .* Close: glucose"),
    ({"kind": "category"}, r"a category must list two levels at least, got \[\]"),
    ({"kind": "category", "levels": [1, "1.0", 2]}, r"levels must differ, got \[1, '1.0', 2\]"),
    ({"kind": "binary", "levels": [1, 2, 3]}, r"two levels, the one for 0 first.*category"),
    ({"kind": "binary", "missing": [0]}, r"can't be a level and mean missing, and \['0'\]"),
    ({"kind": "category", "levels": ["a", "b"], "low": 1}, r"neither unit nor range.*\['low'\]"),
    ({"missing": [False]}, r"codes and levels must be text or numbers, got False.*quotes"),
    ({"missing_at": {"Z": [0]}}, r"the contract's sites \['A', 'B'\], and \['Z'\] are not"),
    ({"unit": 1}, r"a unit or analyte must be text, got 1\. Put quotes"),
    ({"units_at": ["mg/dL"]}, r"units_at must say what holds at which site, got \['mg/dL'\]"),
    ({"units_at": {False: "g"}, "unit": "g"}, r"must be text, and False .* is bool.*quotes"),
]


@pytest.mark.parametrize(("rule", "message"), COLUMNS_REFUSED)
def test_what_contradicts_itself_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Contract.from_mapping({"site": "site", "sites": ["A", "B"], "columns": {"x": rule}})


WHOLE_REFUSED: list[tuple[str, str]] = [
    ("columns: [x]", r"columns must be names and what they are, got list"),
    (
        "columns: {x=1: {}, x: {kind: category, levels: [1, 2]}}",
        r"different names, and \['x=1'\] come up twice",
    ),
    ("version: 2\ncolumns: {}", r"must be of version 1, .* is of version 2\. Use the medkit"),
    ("colums: {}", r"no key 'colums'\. Did you mean 'columns'"),
    ("columns: {x: {kid: number}}", r"column 'x' has no key 'kid'\. Did you mean 'kind'"),
    ("columns: {x: number}", r"column 'x' must be keys and values .* got 'number'"),
    ("columns: {x: [", r"must be YAML; found: .* Correct that line"),
    ("- x", r"must be keys and values that begin with 'version: 1', got list"),
    ("target: x\npatient: x", r"one role, and 'x' is target and patient"),
    ("target: x\ncolumns: {x: {}}", r"roles are no features, and 'x' is the target"),
    ("tolerance: 2", r"tolerance must be a share in \(0, 1\], got 2"),
    ("sites: [1, 2]\ncolumns: {x: {}}", r"must be text, and 1 in column 'x' is int"),
]


@pytest.mark.parametrize(("text", "message"), WHOLE_REFUSED)
def test_text_that_is_no_contract_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Contract.from_text(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must be a YAML file.*none\.yaml.*medkit audit"):
        Contract.from_yaml(tmp_path / "none.yaml")
