"""Faults and their places, what runs are judged by, and what is said of a suite."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkit.data.ehr import EHRDataModule
from medkit.jobs.notebook import UsageError
from medkit.jobs.plan import Request
from medkit.study.chaos import Suite, prediction_limits
from medkit.study.chaos_command import chaos_command
from medkit.study.chaos_table import in_words, lost, rows
from medkit.study.chaos_trial import CLEAN, Ended, Trial, read_ended
from medkit.study.faults import FAULTS, FLAGGED, batch_of, chosen
from medkit.study.faults_reference import compare_with
from medkit.study.faults_tables import change
from medkit.synth.ehr import contract_yaml, make_hospitals

END = Ended(CLEAN, 0, 0, 0, 0, 100, 0, "abc", {"val/auroc": 0.8}, [], 0)


def ended(fault: str, seed: int, **changed: object) -> Ended:
    """Return what a run that its fault has struck came to."""
    return replace(END, fault=fault, seed=seed, happened=1, **changed)  # type: ignore[arg-type]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Six clean runs with AUROCs around 0.8, none of them alike."""
    found = Suite(tmp_path, list(FAULTS.values()), seeds=2, clean=6)
    for trial, value in zip(found.clean_trials(), (0.80, 0.81, 0.79, 0.80, 0.82, 0.78),
                            strict=True):  # fmt: skip
        metrics = {"val/auroc": value}
        end = replace(END, seed=trial.seed, weights=f"w{trial.seed}", metrics=metrics)
        found.note(end, trial.folder)
    return found


def test_limits_are_students_for_one_more_value() -> None:
    # mean 2, sd 1, n 3: t(0.995, 2) = 9.9248, times sqrt(1 + 1/3) = 11.4602
    low, high = prediction_limits([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 11.4602, 2 + 11.4602), abs=1e-3)


def test_two_runs_have_no_range() -> None:
    assert all(math.isnan(limit) for limit in prediction_limits([1.0, 2.0]))


def test_a_fault_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"faults must be among sigkill.*got sigkil. Leave"):
        chosen("sigkil,sigterm")


def test_a_place_is_a_function_of_fault_and_seed_within_the_training() -> None:
    places = {batch_of(FAULTS["sigkill"], seed, 1000) for seed in range(200)}
    assert batch_of(FAULTS["sigkill"], 7, 1000) == batch_of(FAULTS["sigkill"], 7, 1000)
    assert batch_of(FAULTS["sigkill"], 7, 1000) != batch_of(FAULTS["sigterm"], 7, 1000)
    assert min(places) >= 250
    assert max(places) < 900
    assert len(places) > 100


def test_a_fault_that_lasts_is_over_before_the_training_is() -> None:
    fault = FAULTS["disk_full_for_a_while"]
    assert max(batch_of(fault, seed, 100) for seed in range(300)) + fault.lasts < 100


# ---- verdicts ------------------------------------------------------------------------------------


def test_a_recovered_run_must_have_the_bits_of_its_own_clean_run(suite: Suite) -> None:
    like = {"weights": "w1", "metrics": {"val/auroc": 0.81}, "restarts": 1}
    assert suite.judge(ended("sigkill", 1, **like)).passed
    assert not suite.judge(ended("sigkill", 2, **like)).as_it_must
    other = like | {"metrics": {"val/auroc": 0.811}}
    assert not suite.judge(ended("sigkill", 1, **other)).as_it_must


def test_no_weights_are_no_equal_weights(suite: Suite) -> None:
    suite.note(replace(suite.ended[CLEAN, 1], weights=""), suite.out / "x")
    like = {"weights": "", "metrics": {"val/auroc": 0.81}, "restarts": 1}
    assert not suite.judge(ended("sigkill", 1, **like)).as_it_must


def test_a_run_that_had_to_be_started_by_hand_has_not_ended_unattended(suite: Suite) -> None:
    like = {"weights": "w1", "metrics": {"val/auroc": 0.81}, "restarts": 1, "again": 1}
    assert not suite.judge(ended("sigkill", 1, **like)).unattended
    assert suite.judge(ended("disk_full", 1, **like)).passed


@pytest.mark.parametrize(("value", "inside"), [(0.79, True), (0.6, False), (math.nan, False)])
def test_other_faults_must_leave_the_metric_in_the_clean_range(
    suite: Suite, value: float, inside: bool
) -> None:
    end = ended("nan_sample", 9, metrics={"val/auroc": value}, ledger=["nan: rows set aside"])
    assert suite.judge(end).as_it_must is inside


def test_a_step_left_out_that_the_ledger_does_not_have_is_not_written_down(suite: Suite) -> None:
    end = ended("exploding_batch", 9, no_step=2, ledger=["spike: step skipped"])
    assert not suite.judge(end).written
    assert suite.judge(replace(end, ledger=end.ledger * 2)).written


def test_changed_data_must_be_flagged(suite: Suite) -> None:
    said = ["suspicious: changed data: warned"]
    assert suite.judge(ended("label_flips", 9, ledger=said)).passed
    assert not suite.judge(ended("label_flips", 9, ledger=["contract applied: repaired"])).passed


def test_a_failed_run_is_lost(suite: Suite) -> None:
    assert not suite.judge(ended("oom_step", 9, code=1)).passed


# ---- a suite -------------------------------------------------------------------------------------


def test_only_faults_to_recover_from_share_seeds_with_clean_runs(suite: Suite) -> None:
    seeds = {fault: {t.seed for t in suite.trials() if t.fault == fault} for fault in FAULTS}
    assert seeds["sigkill"] == {0, 1}
    assert seeds["nan_sample"] == {6, 7}


def test_what_is_over_is_read_back_and_not_run_again(suite: Suite) -> None:
    anew = Suite(suite.out, suite.faults, seeds=2, clean=6)
    assert all(anew.is_over(trial) for trial in anew.clean_trials())
    assert not any(anew.is_over(trial) for trial in anew.trials())
    assert anew.ended == suite.ended


@pytest.mark.parametrize(
    ("fault", "code", "again"),
    [("sigterm", 143, True), ("disk_full", 1, True), ("sigkill", 1, False), ("clean", 143, False)],
)
def test_what_was_asked_to_end_or_had_no_disk_is_started_once_more(
    fault: str, code: int, again: bool
) -> None:
    trial = Trial(fault, 0, Path())
    assert trial.next_start(code) is again
    assert not replace(trial, again=1).next_start(code)


def test_the_witness_says_whether_a_fault_has_struck(tmp_path: Path) -> None:
    trial = Trial("sigkill", 3, tmp_path)
    lines: Sequence[dict[str, object]] = [
        {"event": "happened", "batch": 5},
        {"event": "batches", "batches": 90, "no_step": 1},
    ]
    (tmp_path / "witness.jsonl").write_text("".join(json.dumps(li) + "\n" for li in lines))
    found = read_ended(trial, 1)
    assert (found.happened, found.batches, found.no_step) == (1, 90, 1)
    assert (found.weights, found.metrics, found.struck) == ("", {}, True)


def test_what_was_lost_is_said_seed_by_seed(suite: Suite) -> None:
    for end in (ended("nan_sample", 6, code=1), ended("sigkill", 0, weights="w0", restarts=1,
                metrics={"val/auroc": 0.80}), replace(END, fault="dead_worker")):  # fmt: skip
        suite.note(end, suite.out / f"{end.fault}-x")
    text = in_words(suite)
    assert lost(rows(suite)) == 1
    assert "LOST  nan_sample, seed 6: ended with code 1" in text
    assert "by guards that the notebook switches on" in text
    assert "same bits as undisturbed: 1 of 1, 100.0%" in text
    assert "dead_worker has struck 0 of 1: it needs loader workers" in text


def test_a_lost_run_comes_with_the_reason_from_its_log(suite: Suite) -> None:
    for seed, log in (
        (6, "| trace\nmedkit: failed in code cell 5: nan\nreport: x"),
        (7, "Killed\n"),
    ):
        folder = suite.out / f"nan_sample/s{seed}"
        suite.note(ended("nan_sample", seed, code=1), folder)
        (folder / "log").write_text(log)
    text = in_words(suite)
    assert "seed 6: ended with code 1: failed in code cell 5: nan\n" in text
    assert "seed 7: ended with code 1: Killed\n" in text


def test_too_few_seeds_are_refused(tmp_path: Path) -> None:
    request = Request("nothing.ipynb", cwd=tmp_path)
    with pytest.raises(UsageError, match="--seeds must be 3 or more, got 2: fewer"):
        chaos_command(request, seeds=2)


# ---- tables --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two draws of the same hospitals, and the contract."""
    folder = tmp_path_factory.mktemp("tables")
    texts = {"now.csv": make_hospitals(seed=2).encounters_csv(),
             "then.csv": make_hospitals(seed=1).encounters_csv(),
             "contract.yaml": contract_yaml()}  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in texts}


def found_in(table: Path, tables: dict[str, Path]) -> set[str]:
    """Return what the comparison with the earlier table finds."""
    dm = EHRDataModule(table, target="died", site="site", contract=tables["contract.yaml"])
    dm.setup()
    return {finding.evidence["what"] for finding in compare_with(dm, tables["then.csv"])}


def test_another_draw_of_the_same_hospitals_is_no_change(tables: dict[str, Path]) -> None:
    assert found_in(tables["now.csv"], tables) == set()


@pytest.mark.parametrize(
    ("fault", "what"),
    [("label_flips", "labels"), ("missingness_jump", "missing"), ("intensity_shift", "values")],
)
def test_changes_of_the_truth_are_found(
    tables: dict[str, Path], tmp_path: Path, fault: str, what: str
) -> None:
    changed = change(pd.read_csv(tables["now.csv"]), fault, seed=1, target="died")
    changed.to_csv(tmp_path / "changed.csv", index=False)
    assert what in found_in(tmp_path / "changed.csv", tables)


def test_a_table_is_compared_after_it_has_been_read(tables: dict[str, Path]) -> None:
    dm = EHRDataModule(tables["now.csv"], target="died", site="site")
    with pytest.raises(RuntimeError, match=r"setup.. has not run. Call dm.setup"):
        compare_with(dm, tables["then.csv"])


def test_each_change_does_what_it_says_and_leaves_the_table_as_it_was(
    tables: dict[str, Path],
) -> None:
    table = pd.read_csv(tables["now.csv"])
    before = table.copy()
    roles = {"seed": 3, "target": "died", "patient": "patient_id"}
    flipped = change(table, "label_flips", **roles)
    assert 0.08 < (flipped["died"] != table["died"]).mean() < 0.12
    emptied = change(table, "missingness_jump", **roles)
    assert (emptied.isna() & table.notna()).any().sum() == 3
    shifted = change(table, "intensity_shift", **roles)
    moved = shifted.select_dtypes("number") != table.select_dtypes("number")
    moved &= table.select_dtypes("number").notna()
    assert moved.any().sum() == 2
    assert not (moved & table.select_dtypes("number").isin([-1, 0, 999])).any().any()
    doubled = change(table, "duplicated_patients", **roles)
    again = doubled[doubled["patient_id"].str.endswith("-2")]
    assert 0.08 < again["patient_id"].nunique() / table["patient_id"].nunique() < 0.12
    assert len(doubled) == len(table) + len(again)
    pd.testing.assert_frame_equal(table, before)


def test_a_change_is_a_function_of_its_seed_alone(tables: dict[str, Path]) -> None:
    table = pd.read_csv(tables["now.csv"])
    np.random.default_rng(1).random()
    a, b, other = (change(table, "label_flips", seed=s, target="died") for s in (4, 4, 5))
    pd.testing.assert_frame_equal(a, b)
    assert not a.equals(other)


def test_a_change_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a table can have label_flips.*got 'sigkill'. Other"):
        change(pd.DataFrame({"y": [0, 1]}), "sigkill", seed=0, target="y")


def test_grades_can_not_be_flipped() -> None:
    with pytest.raises(ValueError, match=r"where there are two, and 'y' has .* Leave label_flips"):
        change(pd.DataFrame({"y": [0, 1, 2]}), "label_flips", seed=0, target="y")


def test_a_table_without_measurements_can_not_be_shifted() -> None:
    with pytest.raises(ValueError, match=r"at least 10 values, and no column.* Leave"):
        change(pd.DataFrame({"y": [0, 1], "sex": [0, 1]}), "intensity_shift", seed=0, target="y")


def test_all_faults_that_change_the_truth_are_ones_of_a_table() -> None:
    table = pd.DataFrame({"y": [0, 1] * 10, "x": np.arange(20.0)})
    for fault in FAULTS.values():
        if fault.must == FLAGGED:
            assert not change(table, fault.name, seed=0, target="y").equals(table)
