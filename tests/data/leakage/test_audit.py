from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medkit.data.contract.schema import Column, Contract
from medkit.data.ehr import EHRDataModule
from medkit.data.leakage import audit as leakage
from medkit.data.leakage.audit import after_setup, audit, split_digests
from medkit.data.leakage.findings import Finding, more_than_chance, report
from medkit.data.leakage.split import normal_id
from medkit.data.preprocessing import digest_ids
from medkit.data.splits import Split
from medkit.record.folder import RunFolder
from medkit.record.lock import RunLock
from tests.data.leakage.cases import (
    ENCOUNTERS,
    alarms,
    clean,
    fitted,
    hospitals,
    of,
    split_of,
    with_column,
)


def test_a_clean_split_raises_no_alarm() -> None:
    assert alarms(audit(*clean())) == []


def test_an_audit_says_the_same_twice_and_leaves_the_table_alone() -> None:
    table, split, medians = clean()
    before = table.values.copy()
    assert audit(table, split, medians) == audit(table, split, medians)
    np.testing.assert_array_equal(table.values, before)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("P00974", "p974"),
        ("P-0974 ", "P974"),
        ("\uff30\uff10\uff10\uff19\uff17\uff14", "P974"),
        ("974.0", "00974"),
        ("Müller 3", "müller_03"),
    ],
)
def test_one_id_written_in_two_ways_is_one(one: str, other: str) -> None:
    assert normal_id(one) == normal_id(other)


@pytest.mark.parametrize(
    ("one", "other"), [("1-23", "12-3"), ("P10", "P1"), ("0", "00-0"), ("A1", "B1")]
)
def test_ids_of_two_patients_stay_two(one: str, other: str) -> None:
    assert normal_id(one) != normal_id(other)


def test_an_id_without_letters_and_digits_stays_as_it_is() -> None:
    assert normal_id(" -- ") == "--"


def test_a_patient_on_two_sides_under_two_spellings_is_found_and_not_named() -> None:
    table, split, medians = clean()
    patient = table.patient.astype("<U12")
    row = next(r for r in split.val if table.site[r] == table.site[split.train[0]])
    patient[row] = "p" + table.patient[split.train[0]][1:].lstrip("0")
    found = of(audit(replace(table, patient=patient), split, medians), "patient ids")
    assert [(f.severity, f.evidence["patients"]) for f in found] == [("leak", 1)]
    assert str(table.patient[split.train[0]]) not in str(found[0])
    assert f"{row + 1} below the header" in found[0].sentence


def test_the_same_number_at_two_hospitals_is_only_suspicious() -> None:
    table, split, medians = clean()
    patient = table.patient.astype("<U12")
    row = next(r for r in split.val if table.site[r] != table.site[split.train[0]])
    patient[row] = patient[split.train[0]].lower()
    found = of(audit(replace(table, patient=patient), split, medians), "patient ids")
    assert [f.severity for f in found] == ["suspicious"]


def test_a_row_in_two_parts_is_found() -> None:
    table, split, medians = clean()
    both = Split(split.train, np.sort(np.append(split.val, split.test[0])), split.test)
    assert of(audit(table, both, medians), "rows in two parts")[0].evidence["rows"] == 1


def test_test_rows_of_the_split_column_that_are_trained_on_are_found() -> None:
    table, split, medians = clean()
    words = np.full(len(table.y), "train")
    words[split.val], words[split.test] = "val", "test"
    words[split.train[:3]] = "test"
    found = of(audit(replace(table, split=words), split, medians), "split column")
    assert [(f.severity, f.evidence) for f in found] == [("leak", {"used": "train", "rows": 3})]


def test_folds_may_deal_training_and_validation_rows_of_a_split_column_anew() -> None:
    table, split, medians = clean()
    words = np.full(len(table.y), "val")
    words[split.val], words[split.test] = "train", "test"
    assert alarms(audit(replace(table, split=words), split, medians)) == []


def test_an_external_hospital_written_in_two_ways_is_found() -> None:
    table = hospitals()
    site = table.site.astype("<U3")
    site[np.flatnonzero(site == "C")[:40]] = "c "
    table = replace(table, site=site)
    inside, outside = np.flatnonzero(site != "C"), np.flatnonzero(site == "C")
    split = Split(inside[::2], inside[1::2], outside)
    assert of(audit(table, split, None), "external site")[0].severity == "leak"


def test_validating_on_the_external_hospital_is_suspicious() -> None:
    table = hospitals()
    c = np.flatnonzero(table.site == "C")
    split = Split(np.flatnonzero(table.site != "C"), c[:300], c[300:])
    found = of(audit(table, split, None), "external site")
    assert [f.severity for f in found] == ["suspicious"]


def test_another_split_than_the_stored_one_is_found() -> None:
    table, split, medians = clean()
    assert (
        of(audit(table, split, medians, stored=split_digests(table, split)), "stored split") == []
    )
    stored = split_digests(table, split_of(table, seed=1))
    found = of(audit(table, split, medians, stored=stored), "stored split")
    assert found[0].evidence["parts"] == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("all", "all rows, before the split was drawn"),
        ("train and val", "training and validation rows together"),
        ("val", "the validation rows"),
        ("other", "other rows than those of this split"),
    ],
)
def test_medians_that_know_other_rows_are_found_and_it_is_said_which(rows: str, words: str) -> None:
    table, split, _ = clean()
    which: dict[str, Any] = {
        "all": np.arange(len(table.y)),
        "train and val": np.concatenate([split.train, split.val]),
        "val": split.val,
        "other": split.train[::2],
    }
    found = of(audit(table, split, fitted(table, which[rows])), "fitted on training rows")
    assert [f.severity for f in found] == ["leak"]
    assert words in found[0].sentence


def test_medians_of_all_rows_under_the_digest_of_the_training_rows_are_found() -> None:
    table, split, medians = clean()
    wrong = replace(fitted(table, np.arange(len(table.y))), fitted_on=medians.fitted_on)
    found = of(audit(table, split, wrong), "fitted on training rows")
    assert [f.severity for f in found] == ["leak"]
    assert "although their digest names the training rows" in found[0].sentence


def test_medians_of_a_table_that_was_changed_since_are_suspicious() -> None:
    table, split, medians = clean()
    wrong = replace(medians, fill=(medians.fill[0] + 3.3, *medians.fill[1:]))
    found = of(audit(table, split, wrong), "fitted on training rows")
    assert [(f.severity, f.evidence["columns"]) for f in found] == [("suspicious", ["age"])]


def test_another_transformer_is_held_to_its_digest() -> None:
    table, split, medians = clean()
    right = digest_ids(table.patient[split.train])
    assert alarms(audit(table, split, medians, transformers={"pca": right})) == []
    found = audit(table, split, medians, transformers={"pca": digest_ids(table.patient)})
    assert of(found, "fitted on training rows")[0].sentence.startswith(
        "pca were fitted on all rows"
    )


def test_draws_of_held_out_rows_are_found_by_the_sampler_check() -> None:
    table, split, medians = clean()
    drawn = np.concatenate([np.repeat(split.train, 2), split.test[:5]])
    found = of(audit(table, split, medians, sampler_rows=drawn), "sampler")
    assert (found[0].evidence["outside"], found[0].evidence["test"]) == (5, 5)
    assert of(audit(table, split, medians, sampler_rows=split.train[::3]), "sampler") == []


def test_a_feature_that_the_contract_puts_after_the_outcome_is_a_leak() -> None:
    found = of(audit(*clean(), recorded_after=["bnp", "not here"]), "recorded after the outcome")
    assert [(f.severity, f.evidence["columns"]) for f in found] == [("leak", ["bnp"])]


@pytest.mark.parametrize(
    "name",
    [
        "discharge_unit",
        "DischargeCode",
        "icd_at_discharge",
        "death_time",
        "dod",
        "LOS",
        "outcome 30d",
    ],
)
def test_a_name_that_speaks_of_the_end_is_suspicious_until_somebody_vouches(name: str) -> None:
    table, split, _ = clean()
    table = with_column(table, name, np.arange(len(table.y)) % 7)
    medians = fitted(table, split.train)
    found = of(audit(table, split, medians), "recorded after the outcome")
    assert [f.severity for f in found] == ["suspicious"]
    assert alarms(audit(table, split, medians, known=[name])) == []


@pytest.mark.parametrize("name", ["lost_weight", "nasal_discharge", "family_death", "glossitis"])
def test_a_name_that_only_sounds_like_it_is_not(name: str) -> None:
    table, split, _ = clean()
    table = with_column(table, name, np.arange(len(table.y)) % 7)
    assert alarms(audit(table, split, None)) == []


def test_the_worst_comes_first_in_findings_and_report() -> None:
    table, split, _ = clean()
    table = with_column(table, "discharge_code", np.arange(len(table.y)) % 7)
    found = audit(table, split, fitted(table, np.arange(len(table.y))))
    assert [f.severity for f in found] == ["leak", "suspicious", "note"]
    assert report(found).splitlines()[0] == "1 leak, 1 suspicious, 1 note"


def test_a_finding_of_an_unknown_severity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of \['leak', 'suspicious', 'note'\], got 'bad'\. "):
        Finding("bad", "check", "sentence")


def test_coincidences_are_counted_against_how_many_pairs_there_are() -> None:
    assert more_than_chance([40.0], 2**10, margin=10)[0] == 1
    assert more_than_chance([40.0], 2**20, margin=10)[0] == 0
    assert more_than_chance([40.0] * 4, 2**20, margin=10)[0] == 4  # four of them are no chance
    assert more_than_chance([], 2**20, margin=10) == (0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler_rows": [0.5, 1.0]}, r"must be row numbers of the table.*float64.*not weights"),
        (
            {"sampler_rows": [2000]},
            r"sampler_rows must hold row numbers from 0 to 1999, found 2000",
        ),
        (
            {"split": Split(*[np.array([0, 2500])] * 3)},
            r"train must hold row numbers.*to 2500\. Pass",
        ),
        (
            {"split": Split(*[np.empty(0, np.int64)] * 3)},
            r"needs training rows.*found 0 training rows",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(changes: dict[str, Any], message: str) -> None:
    table, split, medians = clean()
    arguments = {"split": split, "preprocessing": medians} | changes
    with pytest.raises(ValueError, match=message):
        audit(table, **arguments)


def test_a_table_without_labels_is_refused() -> None:
    table, split, medians = clean()
    with pytest.raises(ValueError, match=r"a label 0 or 1 in each row; found .* labels \[-1\]"):
        audit(replace(table, y=np.full(len(table.y), -1)), split, medians)


def test_medians_of_another_table_are_refused() -> None:
    table, split, medians = clean()
    with pytest.raises(ValueError, match=r"knows 20 columns and the table has 21.*Pass the one"):
        audit(with_column(table, "new", table.y), split, medians)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run")
    monkeypatch.setenv("MEDKIT_RUN_DIR", str(folder.path))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    lock = RunLock(folder.path)
    lock.acquire()
    yield folder
    lock.release()


def test_after_setup_a_leak_is_in_the_log_and_once_in_the_ledger(
    running: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    table, split, _ = clean()
    wrong = fitted(table, np.arange(len(table.y)))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # a resumed run sets its data up again
            after_setup(table, split, wrong)
    assert "leak: fitted on training rows" in caplog.text
    lines = running.ledger.read()
    assert [(line["event"], line["action"]) for line in lines] == [
        ("leak: fitted on training rows", "warned")
    ]


def test_after_setup_of_clean_data_nothing_is_said_or_written(
    running: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        after_setup(*clean())
    assert not caplog.records
    assert running.ledger.read() == []


def test_after_setup_nothing_is_written_into_a_run_that_is_over(running: RunFolder) -> None:
    running.update(status="done")
    table, split, _ = clean()
    after_setup(table, split, fitted(table, split.val))
    assert running.ledger.read() == []


def test_a_set_up_of_copied_records_warns_and_keeps_what_was_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pd.read_csv(ENCOUNTERS)
    again = table[:60].assign(patient_id=[f"E{number}" for number in range(60)])
    pd.concat([table, again]).to_csv(tmp_path / "twice.csv", index=False)
    dm = EHRDataModule(tmp_path / "twice.csv", target="died", site="site")
    with caplog.at_level(logging.WARNING):
        dm.setup()
    assert of(dm.findings, "exact duplicates")
    assert "leak: exact duplicates" in caplog.text


def test_a_clean_set_up_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    dm = EHRDataModule(ENCOUNTERS, target="died", site="site", test_site="C")
    with caplog.at_level(logging.WARNING, logger="medkit.data.leakage.audit"):
        dm.setup()
    assert alarms(dm.findings) == []
    assert not caplog.records


def test_a_contract_vouches_for_what_is_recorded_before_the_outcome() -> None:
    table, split, _ = clean()
    table = with_column(table, "death_risk", table.y)
    columns = {"death_risk": Column("number", recorded="before")}
    contract = Contract(columns, target="died", patient="patient_id")
    assert alarms(after_setup(table, split, None)) != []
    assert alarms(after_setup(table, split, None, contract=contract)) == []


def test_a_large_table_is_audited_in_part_and_its_digests_in_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leakage, "AFTER_SETUP_ROWS", 500)
    table, split, medians = clean()
    assert alarms(after_setup(table, split, medians)) == []
    assert of(after_setup(table, split, fitted(table, split.val)), "fitted on training rows")
    telling = with_column(table, "discharge_x", table.y)
    found = after_setup(telling, split, None, sampler_rows=split.val)
    assert {"single feature", "sampler", "recorded after the outcome"} <= {f.check for f in found}


def test_a_table_of_constants_is_audited() -> None:
    table, split, _ = clean()
    same = replace(table, features=("a", "b"), values=np.ones((len(table.y), 2), np.float32))
    assert alarms(audit(same, split, None)) == []
