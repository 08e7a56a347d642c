from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from medkit.data.cox import PENALTIES, choose_l2, fit_cox
from medkit.data.leakage.audit import audit
from medkit.data.preprocessing import digest_ids
from medkit.data.survival import SurvivalDataModule
from medkit.models.survival import LitCox

PATIENTS = Path(__file__).parents[2] / "data_samples" / "survival" / "patients.csv"
ROLES = {"time": "days", "event": "died", "site": "site"}


def make(source: Any = PATIENTS, **changes: Any) -> SurvivalDataModule:
    dm = SurvivalDataModule(source, **(ROLES | changes))
    dm.setup()
    return dm


def small(events: int = 8, count: int = 40) -> pd.DataFrame:
    number = np.arange(count)
    died = (number % (count // max(events, 1)) == 0) * 1 if events else 0 * number
    columns = {"patient_id": number, "site": "A", "a": number % 7, "days": 10.0 + number}
    return pd.DataFrame(columns | {"died": died})


def test_a_batch_is_the_whole_training_set_with_time_and_event() -> None:
    dm, table = make(), pd.read_csv(PATIENTS)
    (batch,) = dm.train_dataloader()
    assert batch._fields == ("x", "y", "row", "site")
    assert batch.x.isfinite().all()
    there = table.iloc[batch.row.numpy()]
    np.testing.assert_array_equal(batch.y.numpy(), there[["days", "died"]].to_numpy(np.float32))
    assert [dm.sites[s] for s in batch.site] == there["site"].tolist()
    assert dm.batches_per_epoch == 1


def test_small_batches_are_shuffled() -> None:
    dm = make(batch_size=64)
    first, *rest = dm.train_dataloader()
    assert len(rest) + 1 == dm.batches_per_epoch == -(-len(dm.split.train) // 64)
    assert first.row.tolist() != sorted(first.row.tolist())


def test_medians_know_the_training_patients_only() -> None:
    dm = make(test_site="C")
    assert dm.preprocessing.fitted_on == digest_ids(dm.follow_up.table.patient[dm.split.train])
    train = dm.follow_up.table.values[dm.split.train, 0]
    assert dm.preprocessing.center[0] == pytest.approx(float(np.median(train)))


def test_both_parts_hold_their_share_of_the_events() -> None:
    dm = make(val_fraction=0.25)
    train, val = (dm.rows(part).y[:, 1] for part in ("train", "val"))
    assert abs(train.mean() - val.mean()) < 0.02


def test_a_site_may_be_kept_for_the_test() -> None:
    dm = make(test_site="C")
    assert {dm.sites[s] for s in dm.rows("test").site} == {"C"}
    assert {dm.sites[s] for s in dm.rows("train").site} == {"A", "B"}


def test_a_split_column_may_do_without_validation() -> None:
    table = small().assign(part=["train"] * 30 + ["test"] * 10)
    dm = make(table, split_column="part")
    assert len(dm.rows("val").y) == 0
    assert dm.val_dataloader() == []


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (small(events=0), {}, r"training part must hold at least two events; found 32 .* with 0"),
        (small(events=1), {}, r"part must hold at least two events; found .* with [01]\."),
        (
            small(events=2).assign(part=["train"] * 30 + ["val"] * 10),
            {"split_column": "part"},
            r"validation part must hold at least two events; found 10 patients with 0",
        ),
        (
            small(events=2).assign(part=["train"] * 20 + ["val"] * 20),
            {"split_column": "part"},
            r"training part must hold at least two events; found 20 patients with 1",
        ),
        (small(), {"batch_size": 1}, r"batch_size must be at least 2 or None.*got 1"),
        (small(), {"split_column": "a", "test_site": "A"}, r"leaves one site \(or fold\) out"),
        (small(), {"time": "weeks"}, r"no column \['weeks'\]"),
    ],
    ids=[
        "no events",
        "one event",
        "none in validation",
        "one in training",
        "batch of one",
        "two splits",
        "no time",
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    table: pd.DataFrame, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(table, **settings)


def test_a_checkpoint_prepares_new_patients_as_the_training_did(
    quiet: dict[str, Any], tmp_path: Path
) -> None:
    dm = make(test_site="C")
    model = LitCox("medkit.models.nets:mlp", {"inputs": dm.num_features, "hidden": [4]})
    trainer = pl.Trainer(**quiet, max_epochs=1, log_every_n_steps=1)
    trainer.fit(model, dm)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = SurvivalDataModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    new = pd.read_csv(PATIENTS).query("site == 'C'").drop(columns=["days", "died"])
    batch = kept.apply(new)
    torch.testing.assert_close(batch.x, dm.rows("test").x, rtol=0, atol=0)
    assert batch.y.isnan().all()


def test_a_checkpoint_of_other_patients_is_refused() -> None:
    state = make(split_seed=0).state_dict()
    with pytest.raises(ValueError, match=r"goes on with the patients it was trained on"):
        make(split_seed=1).load_state_dict(state)


def test_rows_before_setup_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"setup\(\) has not run"):
        SurvivalDataModule(PATIENTS, **ROLES).rows("train")


def test_folds_cover_the_development_patients_and_leave_the_test_alone() -> None:
    parts = [make(test_folds=3, test_fold=1, folds=4, fold=k) for k in range(4)]
    test = set(parts[0].split.test)
    held_out = np.concatenate([dm.split.val for dm in parts])
    assert sorted(held_out) == sorted(set(range(1200)) - test)
    assert all(set(dm.split.test) == test for dm in parts)


def test_digests_say_who_is_in_each_part_and_are_in_the_checkpoint() -> None:
    dm = make(test_site="C")
    assert dm.digests["test"] == digest_ids(dm.table.patient[dm.split.test])
    again = SurvivalDataModule(PATIENTS, **ROLES, test_site="C")
    again.load_state_dict(dm.state_dict())
    assert again.digests == dm.digests


def test_a_column_that_knows_the_event_is_found() -> None:
    table = pd.read_csv(PATIENTS).assign(autopsied=lambda t: t["died"] * 2 + 1)
    (leak,) = [f for f in make(table).findings if f.severity == "leak"]
    assert "'autopsied'" in leak.sentence
    assert not [f for f in make().findings if f.severity != "note"]


def test_another_time_of_the_same_follow_up_is_found() -> None:
    table = pd.read_csv(PATIENTS)
    table["disease_free"] = table["days"] - table.index % 20
    (leak,) = [f for f in make(table).findings if f.severity == "leak"]
    assert leak.evidence["columns"] == ["disease_free"]
    assert "follows the time to the event" in leak.sentence


def test_a_time_vouched_for_by_the_contract_is_no_leak() -> None:
    table = pd.read_csv(PATIENTS)[["patient_id", "site", "age", "days", "died"]]
    table["expected"] = table["days"] - table.index % 20
    columns = {n: {"kind": "number"} for n in ("age", "days", "expected")}
    columns["expected"]["recorded"] = "before"
    roles = {"target": "died", "patient": "patient_id", "site": "site"}
    dm = make(table, contract={"version": 1, **roles, "columns": columns})
    assert not [f for f in dm.findings if f.severity == "leak"]


def test_patients_in_the_order_of_their_enrolment_are_no_leak() -> None:
    """Follow-up ends on one day, so who came early was more often seen to have the event."""
    number = np.arange(600)
    days = 2000.0 - 3 * number
    death = np.random.default_rng(0).exponential(1500, 600)
    columns = {"patient_id": number, "a": number % 7, "days": np.minimum(days, death).round()}
    table = pd.DataFrame(columns | {"died": (death < days) * 1})
    dm = make(table, site=None)
    every = audit(dm.table, dm.split, dm.preprocessing)
    assert "order and ids" in {finding.check for finding in every}
    assert "order and ids" not in {finding.check for finding in dm.findings}


def test_the_baseline_is_cox_regression_with_the_penalty_chosen_on_the_training_patients() -> None:
    dm = make(test_site="C", split_seed=3)
    train = dm.rows("train")
    l2, _ = choose_l2(train.x, *train.y.numpy().T, split_seed=3)
    want = fit_cox(train.x, *train.y.numpy().T, l2=l2)
    assert dm.baseline.l2 == l2
    np.testing.assert_array_equal(dm.baseline.coef, want.coef)


def test_a_penalty_that_is_given_is_taken() -> None:
    assert make(baseline_l2=0.7).baseline.l2 == 0.7


def test_of_few_events_the_strongest_penalty_is_taken() -> None:
    dm = make(small().assign(part=["train"] * 30 + ["test"] * 10), split_column="part")
    assert dm.rows("train").y[:, 1].sum() < 10
    assert dm.baseline.l2 == max(PENALTIES)


def test_a_loaded_baseline_is_not_fitted_again(quiet: dict[str, Any], tmp_path: Path) -> None:
    dm = make(test_site="C")
    model = LitCox("medkit.models.nets:mlp", {"inputs": dm.num_features, "hidden": [4]})
    trainer = pl.Trainer(**quiet, max_epochs=1, log_every_n_steps=1)
    trainer.fit(model, dm)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = SurvivalDataModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    x = dm.rows("test").x
    np.testing.assert_array_equal(kept.baseline.survival(x, 900), dm.baseline.survival(x, 900))
    state = kept.state_dict()
    state["baseline"]["coef"][0] += 1e-9  # as another CPU might have fitted it
    before, after = SurvivalDataModule(PATIENTS, **ROLES, test_site="C"), make(test_site="C")
    for one in (before, after):  # Lightning loads after setup, people may do so before
        one.load_state_dict(state)
    before.setup()
    assert before.baseline.coef[0] == after.baseline.coef[0] == state["baseline"]["coef"][0]


def test_a_baseline_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"fitted by setup\(\).* baseline_l2 is None .*Call dm"):
        _ = make(baseline_l2=None).baseline


def test_a_penalty_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a number, 'chosen' or None, got 'best'\."):
        SurvivalDataModule(PATIENTS, **ROLES, baseline_l2="best")
