from __future__ import annotations

import numpy as np
import pytest

from medkit.data.splits import (
    Split,
    by_column,
    by_patient,
    in_folds,
    leave_site_out,
    nested,
    require_both_classes,
)

PATIENT = np.array([f"p{i // 2}" for i in range(400)])  # 200 patients, two rows each
SITE = np.array(["A" if i < 240 else "B" for i in range(400)])


def patients(split: Split, part: str) -> set[str]:
    return set(PATIENT[split.part(part)].tolist())


def test_no_patient_is_on_two_sides_and_no_row_is_lost() -> None:
    split = by_patient(PATIENT, val_fraction=0.2, test_fraction=0.1, split_seed=0)
    train, val, test = (patients(split, part) for part in ("train", "val", "test"))
    assert train.isdisjoint(val | test)
    assert val.isdisjoint(test)
    assert sorted(np.concatenate([split.train, split.val, split.test])) == list(range(400))


def test_shares_are_shares_of_patients() -> None:
    split = by_patient(PATIENT, val_fraction=0.2, test_fraction=0.1, split_seed=0)
    assert len(patients(split, "val")) == pytest.approx(40, abs=1)
    assert len(patients(split, "test")) == pytest.approx(20, abs=1)


def test_each_stratum_is_split_in_the_same_shares() -> None:
    stratum = np.where(np.arange(400) < 40, "rare", "common")
    split = by_patient(PATIENT, val_fraction=0.25, split_seed=3, stratum=stratum)
    assert (stratum[split.val] == "rare").sum() / 2 == pytest.approx(5, abs=1)


def test_the_split_depends_on_its_seed_and_not_on_the_global_generator() -> None:
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
    first = by_patient(PATIENT, val_fraction=0.2, split_seed=0)
    np.random.seed(2)  # noqa: NPY002
    again = by_patient(PATIENT, val_fraction=0.2, split_seed=0)
    other = by_patient(PATIENT, val_fraction=0.2, split_seed=1)
    np.testing.assert_array_equal(again.val, first.val)
    assert patients(other, "val") != patients(first, "val")


def test_the_same_patients_are_chosen_whatever_the_order_of_the_rows() -> None:
    turned = PATIENT[::-1]
    one = by_patient(PATIENT, val_fraction=0.2, split_seed=0)
    other = by_patient(turned, val_fraction=0.2, split_seed=0)
    assert set(turned[other.val].tolist()) == patients(one, "val")


def test_a_split_is_the_same_in_every_version() -> None:
    split = by_patient(np.array(list("abcdefghij")), val_fraction=0.3, split_seed=0)
    assert split.val.tolist() == [3, 6, 7]


def test_a_column_is_taken_at_its_word() -> None:
    column = np.array(["train", "val", "test", "train"])
    split = by_column(column, np.array(["a", "b", "c", "a"]))
    assert (split.train.tolist(), split.val.tolist(), split.test.tolist()) == ([0, 3], [1], [2])


def test_a_patient_on_both_sides_of_a_given_split_is_refused_by_row_and_not_by_name() -> None:
    column = np.array(["train", "val", "train"])
    message = (
        r"must be in one part of the split only; 1 are both in train and in val \(one of them "
        r"in rows 1 and 2 below the header\).*Move all rows"
    )
    with pytest.raises(ValueError, match=message) as caught:
        by_column(column, np.array(["secret", "secret", "b"]))
    assert "secret" not in str(caught.value)


def test_another_word_in_a_split_column_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must say train, val or test.*found \['dev'\] too"):
        by_column(np.array(["train", "dev"]), np.array(["a", "b"]))


def test_the_test_site_is_in_test_and_nowhere_else() -> None:
    split = leave_site_out(SITE, PATIENT, test_site="B", val_fraction=0.2, split_seed=0)
    assert set(SITE[split.test].tolist()) == {"B"}
    assert set(SITE[np.r_[split.train, split.val]].tolist()) == {"A"}
    assert len(split.test) == 160


def test_an_id_that_two_hospitals_share_is_refused() -> None:
    patient = np.array(["1", "2", "3", "1"])
    with pytest.raises(ValueError, match=r"same id to different people, put the hospital into"):
        leave_site_out(
            np.array(["A", "A", "A", "B"]), patient, test_site="B", val_fraction=0.3, split_seed=0
        )


def test_an_unknown_site_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 'Z'; the table has \['A', 'B'\]"):
        leave_site_out(SITE, PATIENT, test_site="Z", val_fraction=0.2, split_seed=0)


@pytest.mark.parametrize("fractions", [(0.0, 0.0), (0.6, 0.4), (0.2, -0.1)])
def test_fractions_that_leave_nothing_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"their sum below 1, got"):
        by_patient(PATIENT, val_fraction=fractions[0], test_fraction=fractions[1], split_seed=0)


@pytest.mark.parametrize("y", [[0, 0, 1], [1, 1, 0]])
def test_a_part_with_one_class_is_refused(y: list[int]) -> None:
    message = r"the validation part must hold both classes; found 2 rows, \d of them.*val_fraction"
    with pytest.raises(ValueError, match=message):
        require_both_classes(np.array(y), np.array([0, 1]), part="validation")


def test_a_table_of_one_class_is_refused_whatever_the_split() -> None:
    message = r"hold both classes; all 3 rows have label 1\. Is target= the right column"
    with pytest.raises(ValueError, match=message):
        require_both_classes(np.ones(3, np.int64), np.array([0, 1]), part="training")


def test_folds_keep_patients_together_and_lose_no_row() -> None:
    fold = in_folds(PATIENT, folds=5, split_seed=0)
    assert sorted(set(fold.tolist())) == [0, 1, 2, 3, 4]
    assert all(len(set(fold[name == PATIENT])) == 1 for name in set(PATIENT))


def test_each_stratum_is_dealt_evenly_into_the_folds() -> None:
    stratum = np.where(np.arange(400) < 46, "rare", "common")  # 23 patients
    fold = in_folds(PATIENT, folds=5, split_seed=1, stratum=stratum)
    assert sorted(np.bincount(fold[stratum == "rare"]) // 2) == [4, 4, 5, 5, 5]


def test_folds_depend_on_their_seed_and_on_patients_alone() -> None:
    first = in_folds(PATIENT, folds=5, split_seed=0)
    np.testing.assert_array_equal(in_folds(PATIENT[::-1], folds=5, split_seed=0)[::-1], first)
    assert not np.array_equal(in_folds(PATIENT, folds=5, split_seed=1), first)


def test_folds_are_the_same_in_every_version() -> None:
    fold = in_folds(np.array(list("abcdefghij")), folds=3, split_seed=0)
    assert fold.tolist() == [1, 1, 0, 0, 1, 0, 2, 0, 2, 2]


def test_nested_folds_leave_the_test_alone_and_cover_the_rest() -> None:
    outer = leave_site_out(SITE, PATIENT, test_site="B", val_fraction=0.2, split_seed=0)
    inner = [nested(outer, PATIENT, folds=4, fold=k, split_seed=0) for k in range(4)]
    for split in inner:
        np.testing.assert_array_equal(split.test, outer.test)
        assert patients(split, "train").isdisjoint(patients(split, "val"))
        np.testing.assert_array_equal(
            np.sort(np.concatenate([split.train, split.val])), np.flatnonzero(SITE == "A")
        )
    every = np.concatenate([split.val for split in inner])
    assert sorted(every) == np.flatnonzero(SITE == "A").tolist()


def test_other_test_patients_do_not_change_who_is_in_which_fold() -> None:
    few, many = (np.array([f"x{i}" for i in range(n)]) for n in (3, 30))
    folds = []
    for extra in (few, many):
        patient = np.concatenate([PATIENT, extra])
        test = np.arange(400, len(patient))
        split = Split(np.arange(300), np.arange(300, 400), test)
        folds.append(nested(split, patient, folds=5, fold=2, split_seed=0).val)
    np.testing.assert_array_equal(*folds)


@pytest.mark.parametrize("folds", [1, 0, 201])
def test_a_number_of_folds_that_cannot_be_is_refused(folds: int) -> None:
    with pytest.raises(ValueError, match=rf"folds must be at least 2 .* got {folds} for 200"):
        in_folds(PATIENT, folds=folds, split_seed=0)
