from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkit.data.contract.breaches import Broken, broken_table, to_ledger
from medkit.data.contract.repair import outside
from medkit.data.contract.schema import Column, Contract
from medkit.data.tables import TableSpec, read_table
from medkit.record.ledger import Ledger

CONTRACT = Contract(
    {
        "creatinine": Column(
            unit="mg/dL", units_at={"C": "umol/L"}, missing_at={"A": [0]}, low=0.2, high=15
        ),
        "cp": Column("category", levels=[1, 2], missing=[-9]),
        "smoker": Column("binary", levels=["no", "yes"], missing=["?"]),
        "note": Column("text"),
        "los": Column(recorded="after"),
    },
    target="died",
    patient="patient_id",
    site="site",
    sites=["A", "C"],
)


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient_id": ["1", "2", "3", "4", "5", "6"],
            "site": ["A", "C", "A", "C", "A", "A"],
            "creatinine": ["0", "88.4", "1.5", "0", " 99 ", "high"],
            "cp": [1.0, 2.0, -9.0, np.nan, 7.0, 1.0],
            "smoker": ["no", "yes", "?", None, "no", "perhaps"],
            "note": list("abcdef"),
            "los": [1, 2, 3, 4, 5, 6],
            "ward": list("xxyyzz"),
            "died": [0, 1, 0, 1, 0, 0],
        },
        index=[10, 11, 12, 13, 14, 15],
    )


def test_each_cell_is_what_the_contract_makes_of_it() -> None:
    got, _ = CONTRACT.apply(table())
    assert list(got.columns) == [
        *("died", "patient_id", "site", "creatinine", "cp=1", "cp=2", "smoker"),
    ]
    nan = np.nan
    np.testing.assert_allclose(got["creatinine"], [nan, 1.0, 1.5, nan, nan, nan], rtol=1e-3)
    np.testing.assert_array_equal(got["cp=1"], [1, 0, nan, nan, nan, 1])
    np.testing.assert_array_equal(got["cp=2"], [0, 1, nan, nan, nan, 0])
    np.testing.assert_array_equal(got["smoker"], [0, 1, nan, nan, 0, nan])
    assert got.index.tolist() == [10, 11, 12, 13, 14, 15]


def test_what_was_done_is_counted_by_column_and_site() -> None:
    _, broken = CONTRACT.apply(table())
    assert broken == [
        Broken("note", "", "text", 0, (), "not a feature", True),
        Broken("los", "", "recorded after the outcome", 0, (), "not a feature", True),
        Broken("ward", "", "column is not in the contract", 0, (), "not a feature"),
        Broken("creatinine", "A", "coded as missing (0)", 1, (0,), "set missing", True),
        Broken("creatinine", "A", "not a number: 'high'", 1, (5,), "set missing"),
        Broken("creatinine", "A", "above 15 mg/dL", 1, (4,), "set missing"),
        Broken("creatinine", "C", "in umol/L", 2, (1, 3), "converted to mg/dL", True),
        Broken("creatinine", "C", "below 0.2 mg/dL", 1, (3,), "set missing"),
        Broken("cp", "A", "coded as missing (-9)", 1, (2,), "set missing", True),
        Broken("cp", "A", "none of the levels 1, 2", 1, (4,), "set missing"),
        Broken("smoker", "A", "coded as missing (?)", 1, (2,), "set missing", True),
        Broken("smoker", "A", "none of the levels no, yes", 1, (5,), "set missing"),
    ]


def test_the_table_given_is_left_as_it_was() -> None:
    frame = table().assign(creatinine=[0.0, 88.4, 1.5, 0.0, 99.0, np.inf])
    before = frame.copy()
    CONTRACT.apply(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_no_cell_is_lost_uncounted() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, 0.0, 1.0, 50.0, 999.0, np.inf, np.nan], size=4000)
    frame = pd.DataFrame({"site": rng.choice(["A", "B"], size=4000), "x": values})
    rule = Column(missing=[-1], missing_at={"A": [999]}, low=0.5, high=100)
    contract = Contract({"x": rule}, site="site", tolerance=1)
    got, broken = contract.apply(frame)
    assert frame["x"].notna().sum() - got["x"].notna().sum() == sum(b.count for b in broken)


def test_values_outside_are_cut_to_the_limit_where_the_contract_says_clip() -> None:
    contract = Contract({"x": Column(low=1, high=3, outside="clip")})
    got, broken = contract.apply(pd.DataFrame({"x": [0.0, 2.0, 9.0]}))
    assert got["x"].tolist() == [1, 2, 3]
    assert [b.action for b in broken] == ["set to 1", "set to 3"]


def test_the_site_can_be_told() -> None:
    got, _ = CONTRACT.apply(table().drop(columns="site"), "C", new=True)
    assert got["creatinine"].iloc[1] == pytest.approx(1.0, rel=1e-3)


def test_a_site_the_contract_does_not_know_is_listed() -> None:
    _, broken = CONTRACT.apply(table().assign(site=list("AAAAAZ")))
    assert [(b.column, b.site, b.count, b.rows) for b in broken if "site is" in b.what] == [
        ("site", "Z", 1, (5,))
    ]


def test_rows_that_do_not_say_whose_they_are_are_refused_where_sites_differ() -> None:
    with pytest.raises(ValueError, match=r"of \['creatinine'\] differ between sites.*pass site="):
        CONTRACT.apply(table().drop(columns="site"), new=True)


def test_true_and_false_are_1_and_0() -> None:
    frame = pd.DataFrame({"x": [True, False], "y": pd.array([True, None], "boolean")})
    contract = Contract({"x": Column("binary"), "y": Column()})
    got, broken = contract.apply(frame)
    np.testing.assert_array_equal(got, [[1, 1], [0, np.nan]])
    assert broken == []


def test_a_duration_is_no_number() -> None:
    frame = pd.DataFrame({"x": pd.to_timedelta(["1h", "2h"])})
    _, broken = Contract({"x": Column()}).apply(frame)
    assert [(b.what.split(":")[0], b.count) for b in broken] == [("not a number", 2)]


def test_words_for_missing_are_codes_and_no_breach() -> None:
    frame = pd.DataFrame({"x": ["?", "1", " ? ", "", "two"]})
    _, broken = Contract({"x": Column(missing=["?"])}).apply(frame)
    assert [(b.what, b.count, b.rows) for b in broken] == [
        ("coded as missing (?)", 2, (0, 2)),
        ("not a number: 'two'", 1, (4,)),
    ]


def test_ids_of_sites_are_read_as_text() -> None:
    contract = Contract({"x": Column(missing_at={"2": [0]})}, site="site")
    got, _ = contract.apply(pd.DataFrame({"site": [1, 2], "x": [0, 0]}))
    np.testing.assert_array_equal(got["x"], [0, np.nan])


def test_the_ledger_has_one_line_per_column_and_site_however_often_it_is_told(
    tmp_path: Path,
) -> None:
    _, broken = CONTRACT.apply(table())
    ledger = Ledger(tmp_path / "ledger.jsonl")
    to_ledger(broken, ledger)
    to_ledger(broken, ledger)
    lines = ledger.read()
    assert len(lines) == len({(b.column, b.site) for b in broken}) == 7
    creatinine = next(line for line in lines if "creatinine at A" in line["detail"])
    assert creatinine["event"] == "contract broken"
    assert creatinine["rows"] == [5, 4]
    assert "1 above 15 mg/dL" in creatinine["detail"]
    assert [line["event"] for line in lines if "los" in line["detail"]] == ["contract applied"]


def test_the_ledger_counts_no_rows_of_a_column_as_a_whole(tmp_path: Path) -> None:
    _, broken = CONTRACT.apply(table())
    ledger = Ledger(tmp_path / "ledger.jsonl")
    to_ledger(broken, ledger)
    (ward,) = [line for line in ledger.read() if "ward" in line["detail"]]
    assert (ward["detail"], ward["rows"]) == ("ward: column is not in the contract", [])


def test_the_table_of_breaches_has_a_row_per_entry() -> None:
    _, broken = CONTRACT.apply(table())
    shown = broken_table(broken)
    assert shown["cells"].tolist() == [b.count for b in broken]
    assert broken_table([]).empty


def test_rows_outside_the_contract_are_marked() -> None:
    frame = table()
    assert outside(CONTRACT, frame).tolist() == [False, False, False, True, True, True]
    assert outside(CONTRACT, frame.assign(site=list("ZCACAA"))).tolist()[0]
    _, broken = CONTRACT.apply(frame)
    marked = {row for b in broken if b.site and not b.expected for row in b.rows}
    assert marked == set(np.flatnonzero(outside(CONTRACT, frame)))


SPEC = TableSpec.of(CONTRACT)


def test_a_table_is_read_by_its_contract(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    table().to_csv(path, index=False)
    got = read_table(path, SPEC, contract=CONTRACT)
    assert got.features == ("creatinine", "cp=1", "cp=2", "smoker")
    frame, broken = CONTRACT.apply(pd.read_csv(path))
    np.testing.assert_array_equal(got.values, frame[list(got.features)].to_numpy(np.float32))
    assert list(got.broken) == broken
    assert got.y.tolist() == [0, 1, 0, 1, 0, 0]


def test_new_rows_need_no_target_and_are_flagged_rather_than_refused() -> None:
    frame = pd.DataFrame(
        {"site": ["A"] * 20, "creatinine": [9e3] * 20, "cp": [1] * 20, "smoker": ["no"] * 20}
    )
    got = read_table(frame, SPEC, features=["cp=2", "creatinine"], contract=CONTRACT)
    assert got.features == ("cp=2", "creatinine")
    assert np.isnan(got.values[:, 1]).all()
    assert [(b.what, b.count) for b in got.broken] == [("above 15 mg/dL", 20)]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("los", "was recorded after the outcome, says the contract"),
        ("note", "is of kind 'text' there"),
        ("ward", "is not in the contract"),
    ],
)
def test_a_column_that_must_not_be_a_feature_is_refused_as_one(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"must be one that the contract offers, and .*{why}"):
        read_table(table(), SPEC, features=[name], contract=CONTRACT)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TableSpec("dead", site="site"), r"the same target; the contract says 'died', the arg"),
        (TableSpec("died"), r"the same site; the contract says 'site', the arguments None"),
        (
            TableSpec("died", site="site", missing_codes={"cp": [0]}),
            r"stand in it alone; missing_codes=\{'cp': \[0\]\} was given too\. Move",
        ),
    ],
)
def test_arguments_that_contradict_the_contract_are_refused(spec: TableSpec, message: str) -> None:
    frame = table().assign(dead=0)
    with pytest.raises(ValueError, match=message):
        read_table(frame, spec, contract=CONTRACT)


def test_a_contract_without_target_makes_no_spec() -> None:
    with pytest.raises(ValueError, match=r"must have a target.*Add 'target: COLUMN'"):
        TableSpec.of(Contract({"x": Column()}))


def many(values: list[object], site: str = "B") -> pd.DataFrame:
    return pd.DataFrame({"site": ["A"] * 20 + [site] * 20, "x": [1.1] * 20 + values})


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        (
            Column(unit="mg/dL", low=0.2, high=15),
            [90.0] * 15 + [1.0] * 5,
            r"contradict each other: 'x' at site 'B' breaks it in 15 of 20 cells \(above 15 mg/dL: "
            r"15, first in row 21 .*median as written is 90\).*units_at: \{B: \.\.\.\}",
        ),
        (Column(), ["low"] * 20, r"breaks it in 20 of 20 cells \(not a number: 'low'.*kind"),
        (Column("binary"), [5] * 20, r"breaks it in 40 of|in 20 of 20 cells \(none of the levels"),
    ],
)
def test_a_contract_that_the_data_contradict_is_refused(
    rule: Column, values: list[object], message: str
) -> None:
    frame = many(values)
    if rule.kind == "binary":
        frame.loc[:19, "x"] = 1
    with pytest.raises(ValueError, match=message):
        Contract({"x": rule}, site="site").apply(frame)


def test_tolerance_1_lets_a_contradiction_pass_and_counts_it() -> None:
    contract = Contract({"x": Column(high=15)}, site="site", tolerance=1)
    _, broken = contract.apply(many([90.0] * 20))
    assert [(b.site, b.count) for b in broken] == [("B", 20)]


def test_blank_sites_are_refused() -> None:
    frame = pd.DataFrame({"site": ["A", None, " "], "x": [1, 2, 3]})
    with pytest.raises(
        ValueError, match=r"'site' must be filled .* in 2 rows \(first: row 2 below"
    ):
        Contract({"x": Column()}, site="site").apply(frame)


def test_a_column_named_twice_is_refused() -> None:
    frame = pd.DataFrame([[1, 2]], columns=["x", "x"])
    with pytest.raises(ValueError, match=r"name each column once, and \['x'\]"):
        Contract({"x": Column()}).apply(frame)


def test_a_column_that_is_not_there_is_named_with_a_close_one() -> None:
    with pytest.raises(
        ValueError, match=r"\['lactate'\] are not among \['lactat'\].*mean 'lactat'"
    ):
        Contract({"lactate": Column()}).apply(pd.DataFrame({"lactat": [1.0]}))


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one row .* it has none"):
        Contract({"x": Column()}).apply(pd.DataFrame({"x": []}))


_MEASURE = """
import resource
import numpy as np, pandas as pd
from medkit.data.contract.schema import Column, Contract
from medkit.data.contract.repair import outside
from medkit.data.tables import TableSpec, read_table
rng, rows = np.random.default_rng(0), 10_000_000
site = pd.Categorical.from_codes(rng.integers(0, 3, rows).astype(np.int8), list("ABC"))
frame = pd.DataFrame({"site": site, "died": (np.arange(rows) % 9 == 0).astype(np.int8)})
for number in range(4):
    frame[f"x{number}"] = rng.integers(1, 100, rows).astype(np.float32)
rule = Column(unit="mmol/L", units_at={"B": "umol/L"}, missing_at={"A": [7]}, low=0)
contract = Contract({f"x{n}": rule for n in range(4)}, target="died", site="site")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table = read_table(frame, TableSpec.of(contract), contract=contract)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
coded = sum(b.count for b in table.broken if b.what.startswith("coded"))
print((after - before) / 1024, coded == np.isnan(table.values).sum(), len(table.y))
"""


@pytest.mark.slow
def test_10_million_rows_are_repaired_in_less_than_a_gigabyte() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    megabytes, counted, rows = done.stdout.split()
    assert (counted, rows) == ("True", "10000000")
    assert float(megabytes) < 1000
