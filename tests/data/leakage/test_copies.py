from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medkit import keyed
from medkit.data.leakage.audit import audit
from medkit.data.leakage.shuffle import shuffled_auroc
from medkit.data.leakage.surprise import row_hashes
from medkit.data.splits import Split
from medkit.data.tables import Table
from tests.data.leakage.cases import alarms, clean, hospitals, numbers, of, split_of, with_rows


def test_hashes_are_equal_where_rows_are_missing_values_and_signed_zeros_included() -> None:
    rows = np.array([[0.0, np.nan], [-0.0, -np.nan], [np.nan, 0.0], [1.0, np.nan]], np.float32)
    one, same, turned, other = row_hashes(rows).tolist()
    assert one == same
    assert len({one, turned, other}) == 3


def test_different_rows_have_different_hashes() -> None:
    rows = np.array([[a, b] for a in range(300) for b in range(300)], np.float32)
    assert len(np.unique(row_hashes(rows))) == len(rows)


def test_records_exported_twice_are_exact_duplicates() -> None:
    table = with_rows(hospitals(), np.arange(0, 2000, 40))
    split = split_of(table)
    found = of(audit(table, split, None), "exact duplicates")
    part = {row: name for name in ("train", "val", "test") for row in split.part(name).tolist()}
    across = sum(part[row] != part[2000 + i] for i, row in enumerate(range(0, 2000, 40)))
    assert [(f.severity, f.evidence["records"]) for f in found] == [("leak", across)]
    one, other = (row - 1 for row in found[0].evidence["rows"])
    np.testing.assert_array_equal(table.values[one], table.values[other])
    assert part[one] != part[other]


def test_copies_within_one_part_are_no_leak() -> None:
    table, split, _ = clean()
    again = with_rows(table, split.train[:50])
    split = Split(np.append(split.train, np.arange(2000, 2050)), split.val, split.test)
    assert alarms(audit(again, split, None)) == []


@pytest.mark.parametrize("columns", [4, 8, 16])
def test_equal_rows_of_yes_or_no_columns_are_taken_for_chance(columns: int) -> None:
    table = numbers(1500, columns)
    coarse = replace(table, values=(table.values > 0).astype(np.float32))
    found = audit(coarse, split_of(coarse), None)
    assert alarms(found) == []
    assert [f.check for f in found if f.check == "exact duplicates"] == ["exact duplicates"]


def test_columns_that_repeat_others_do_not_make_a_coincidence_a_copy() -> None:
    coarse = (numbers(1500, 10).values > 0).astype(np.float32)
    table = replace(numbers(1500, 60), values=np.tile(coarse, 6))
    assert alarms(audit(table, split_of(table), None)) == []


def test_a_questionnaire_whose_items_all_go_one_way_holds_no_copies() -> None:
    noise = numbers(2000, 26).values
    items = (5 + 2 * (noise[:, :1] + 0.1 * noise[:, 1:])).round()
    table = replace(numbers(2000, 25), values=items)
    assert alarms(audit(table, split_of(table), None)) == []


def test_groups_of_patients_that_are_much_alike_are_no_copies() -> None:
    noise = numbers(2000, 25).values
    centers = 3 * numbers(40, 25, seed=1).values
    table = replace(numbers(2000, 25), values=centers[np.arange(2000) % 40] + 0.15 * noise)
    assert alarms(audit(table, split_of(table), None)) == []


def test_copies_are_found_where_all_columns_hang_together() -> None:
    table = numbers(1000, 12)
    values = 3 * table.values[:, :1] + table.values  # each explains 90 % of the others
    table = with_rows(replace(table, values=values), np.arange(40))
    assert of(audit(table, split_of(table), None), "exact duplicates")


def changed(table: Table, how: str) -> Table:
    """Copy 60 records under new ids, each copy a little different."""
    table = with_rows(table, np.arange(0, 600, 10))
    new, draw = table.values[2000:], keyed.generator(0, "synth", "copy")
    scale = np.nanstd(table.values, axis=0)
    if how == "jittered":
        new += (0.02 * scale * draw.normal(size=new.shape)).astype(np.float32)
    elif how == "rounded":
        new[:] = (new / (0.05 * scale)).round() * (0.05 * scale)
    else:  # three values brought up to date
        for row in new:
            row[draw.choice(16, 3, replace=False)] += scale[0]
    return table


@pytest.mark.parametrize("how", ["jittered", "rounded", "brought up to date"])
def test_records_that_stand_twice_with_small_differences_are_near_duplicates(how: str) -> None:
    table = changed(hospitals(), how)
    split = split_of(table)
    found = of(audit(table, split, None), "near duplicates")
    assert [f.severity for f in found] == ["leak"]
    one, other = sorted(row - 1 for row in found[0].evidence["rows"])
    assert other - 2000 == one // 10  # the very copy of that record


def test_small_differences_within_one_patient_are_no_leak() -> None:
    table = changed(hospitals(), "jittered")
    patient = table.patient.copy()
    patient[2000:] = patient[np.arange(0, 600, 10)]
    table = replace(table, patient=patient)
    assert alarms(audit(table, split_of(table), None)) == []


def test_a_class_that_was_repeated_before_the_split_is_found() -> None:
    table = hospitals()
    deaths = np.flatnonzero(table.y == 1)
    table = with_rows(table, np.concatenate([deaths] * 3))
    found = of(audit(table, split_of(table), None), "oversampled before the split")
    assert [f.severity for f in found] == ["leak"]
    assert found[0].evidence["copies"] == 3 * len(deaths)
    before = hospitals().y.mean()
    assert found[0].evidence["prevalence_without_copies"] == pytest.approx(before)


def test_a_class_repeated_within_parts_is_suspicious() -> None:
    table, split, _ = clean()
    deaths = split.val[table.y[split.val] == 1]
    again = with_rows(table, np.concatenate([deaths] * 3))
    split = Split(split.train, np.append(split.val, np.arange(2000, len(again.y))), split.test)
    found = of(audit(again, split, None), "oversampled before the split")
    assert [f.severity for f in found] == ["suspicious"]


def test_a_table_exported_twice_as_a_whole_is_not_called_oversampled() -> None:
    table = with_rows(hospitals(), np.arange(2000))
    found = audit(table, split_of(table), None)
    assert of(found, "exact duplicates")
    assert of(found, "oversampled before the split") == []


def test_shuffled_labels_are_not_predicted_where_nobody_is_on_two_sides() -> None:
    table, split, medians = clean()
    x = medians.apply(table.values)
    for seed in range(5):
        found = shuffled_auroc(x, np.arange(2000), split.train, split.val, seed=seed)
        assert found.p > 1e-5
        assert abs(found.auroc - 0.5) < 0.01


def test_shuffled_labels_are_predicted_where_held_out_rows_are_drawn_for_training() -> None:
    table, split, medians = clean()
    drawn = np.concatenate([split.train, split.test])
    found = of(audit(table, split, medians, sampler_rows=drawn), "label shuffle")
    assert [f.severity for f in found] == ["leak"]
    assert found[0].evidence["auroc"] > 0.53


def test_shuffled_labels_betray_oversampling_before_the_split() -> None:
    table = hospitals()
    table = with_rows(table, np.concatenate([np.flatnonzero(table.y == 1)] * 6))
    assert of(audit(table, split_of(table), None), "label shuffle")[0].severity == "leak"


def test_another_seed_draws_other_coins_and_the_same_seed_the_same() -> None:
    table, split, medians = clean()
    x = medians.apply(table.values)
    one, same, other = (
        shuffled_auroc(x, np.arange(2000), split.train, split.val, seed=seed) for seed in (0, 0, 1)
    )
    assert one == same
    assert one.auroc != other.auroc


def test_too_few_held_out_rows_are_not_ranked() -> None:
    x = numbers(50, 3).values
    assert shuffled_auroc(x, np.arange(50), np.arange(45), np.arange(45, 50)) is None
