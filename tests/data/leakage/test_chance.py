from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from medkit import keyed
from medkit.data.leakage.audit import audit
from medkit.data.leakage.chance import ranked
from medkit.data.splits import Split
from medkit.data.tables import TableSpec, read_table
from tests.data.leakage.cases import alarms, clean, hospitals, numbers, of, split_of, with_column


def test_ranks_agree_with_scipy_ties_included() -> None:
    draw = keyed.generator(0, "synth", "ranks")
    y = (draw.random(300) < 0.2).astype(np.int64)
    score = (draw.normal(size=300) + y).round(1)
    ones, zeros = score[y == 1], score[y == 0]
    theirs = mannwhitneyu(ones, zeros, method="asymptotic", use_continuity=False)
    ours = ranked(y, score)
    assert ours.auroc == pytest.approx(theirs.statistic / (len(ones) * len(zeros)))
    assert ours.p == pytest.approx(theirs.pvalue)


def test_within_strata_a_difference_between_strata_counts_for_nothing() -> None:
    y = np.array([1, 1, 0, 1, 0, 0])
    score = np.array([9.0, 8.0, 8.5, 1.0, 2.0, 0.0])
    strata = [np.array([0, 1, 2]), np.array([3, 4, 5])]
    assert ranked(y, score, strata).auroc == pytest.approx(2 / 4)
    assert ranked(y, score).auroc == pytest.approx(6 / 9)


def test_strata_of_one_class_say_nothing() -> None:
    assert ranked(np.ones(5, np.int64), np.arange(5.0)).p == 1.0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_column_that_is_the_label_with_noise_is_found_in_either_direction(sign: int) -> None:
    table, split, _ = clean()
    noise = keyed.generator(0, "synth", "telling").normal(size=2000)
    telling = with_column(table, "score", sign * (8 * table.y + noise))
    found = of(audit(telling, split, None), "single feature")
    assert [(f.severity, list(f.evidence["auroc"])) for f in found] == [("leak", ["score"])]
    assert alarms(audit(telling, split, None, known=["score"])) == []


def test_a_column_that_is_missing_for_one_class_is_found() -> None:
    table, split, _ = clean()
    values = keyed.generator(0, "synth", "last").normal(size=2000)
    telling = with_column(table, "last day", np.where(table.y == 1, np.nan, values))
    found = of(audit(telling, split, None), "single feature")
    assert list(found[0].evidence["auroc"]) == ["last day missing"]


def test_a_good_column_is_no_leak() -> None:
    table, split, _ = clean()
    noise = keyed.generator(0, "synth", "good").normal(size=2000)
    good = with_column(table, "score", 2 * table.y + noise)  # AUROC about 0.92
    assert alarms(audit(good, split, None)) == []


def test_a_perfect_column_among_a_handful_of_rows_may_be_chance() -> None:
    table = numbers(30, 40)
    y = np.zeros(30, np.int64)
    y[:2] = 1
    table = replace(table, y=y)
    table.values[:, 0] = -np.arange(30)
    split = Split(np.arange(20), np.arange(20, 30), np.empty(0, np.int64))
    assert of(audit(table, split, None), "single feature") == []


def test_held_out_labels_are_not_looked_at_for_telling_columns() -> None:
    table, split, _ = clean()
    column = np.zeros(2000)
    column[split.test] = table.y[split.test]
    assert of(audit(with_column(table, "test only", column), split, None), "single feature") == []


def test_ids_numbered_by_class_are_suspicious() -> None:
    table, split, _ = clean()
    ids = np.array([f"S{1000 * y + 5 * (r % 1000):07d}{r:05d}" for r, y in enumerate(table.y)])
    found = of(audit(replace(table, patient=ids), split, None), "order and ids")
    assert [f.severity for f in found] == ["suspicious"]
    assert "the number in the patient id" in found[0].sentence


def test_ids_that_begin_with_the_class_are_suspicious_and_not_quoted() -> None:
    table, split, _ = clean()
    ids = np.array([f"{'case' if y else 'ctrl'}_{r}" for r, y in enumerate(table.y)])
    found = of(audit(replace(table, patient=ids), split, None), "order and ids")
    assert found
    assert not any("case" in str(f) for f in found)


def by_class(table_split: tuple) -> np.ndarray:
    """Row numbers sorted by label."""
    return np.argsort(table_split[0].y, kind="stable")


def test_rows_sorted_by_class_are_noted_while_no_column_follows_them() -> None:
    table = hospitals()
    order = np.argsort(table.y, kind="stable")
    parts = {"values": table.values, "y": table.y, "patient": table.patient, "site": table.site}
    table = replace(table, **{name: part[order] for name, part in parts.items()})
    found = audit(table, split_of(table), None)
    assert alarms(found) == []
    assert any("the row order predicts the label" in f.sentence for f in found)
    numbered = with_column(table, "Unnamed: 0", np.arange(2000))
    found = of(audit(numbered, split_of(numbered), None), "order and ids")
    assert [f.evidence["columns"] for f in found] == [["Unnamed: 0"]]


def test_rows_that_stand_site_by_site_are_noted() -> None:
    table = hospitals()
    order = np.argsort(table.site, kind="stable")
    parts = {"values": table.values, "y": table.y, "patient": table.patient, "site": table.site}
    table = replace(table, **{name: part[order] for name, part in parts.items()})
    found = audit(table, split_of(table), None)
    assert alarms(found) == []
    assert any("the rows stand site by site" in f.sentence for f in found)


def test_no_alarm_on_noise_in_twenty_draws() -> None:
    for seed in range(20):
        table = numbers(400, 10, seed=seed)
        assert alarms(audit(table, split_of(table, seed=seed), None)) == []


def test_uci_heart_raises_no_alarm(real_data: Path) -> None:
    spec = TableSpec("num", None, "site", missing_codes={"chol": [0], "*": ["?"]}, target_above=0)
    table = read_table(real_data / "uci_heart4" / "heart4.csv", spec)
    for seed in range(3):
        assert alarms(audit(table, split_of(table, seed=seed), None)) == []
