from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from medkit.data.ehr import EHRDataModule
from medkit.data.linear import fit_logistic
from medkit.data.preprocessing import digest_ids
from medkit.models.classifier import LitClassifier
from medkit.synth.ehr import MISSING_CODES

ENCOUNTERS = Path(__file__).parents[2] / "data_samples" / "ehr" / "encounters.csv"


def make(path: Path | str = ENCOUNTERS, **changes: Any) -> EHRDataModule:
    settings: dict[str, Any] = {"target": "died", "site": "site", "missing_codes": MISSING_CODES}
    dm = EHRDataModule(path, **(settings | changes))
    dm.setup()
    return dm


def fit(dm: EHRDataModule, quiet: dict[str, Any]) -> pl.Trainer:
    model = LitClassifier("medkit.models.nets:mlp", {"inputs": dm.num_features, "hidden": [4]})
    trainer = pl.Trainer(**quiet, max_epochs=1)
    trainer.fit(model, dm)
    return trainer


@pytest.fixture
def checkpoint(tmp_path: Path, quiet: dict[str, Any]) -> Path:
    path = tmp_path / "last.ckpt"
    fit(make(), quiet).save_checkpoint(path)
    return path


@pytest.fixture
def small(tmp_path: Path) -> pd.DataFrame:
    """40 patients, four of them with label 1."""
    number = np.arange(40)
    return pd.DataFrame({"patient_id": number, "a": number % 7, "died": (number % 10 == 0) * 1})


def test_batches_are_named_and_complete() -> None:
    dm = make(batch_size=32)
    batch = next(iter(dm.train_dataloader()))
    assert batch._fields == ("x", "y", "row", "site")
    assert batch.x.shape == (32, dm.num_features)
    assert (batch.x.dtype, batch.y.dtype, batch.row.dtype) == (torch.float32, *[torch.int64] * 2)
    assert batch.x.isfinite().all()


def test_rows_and_sites_lead_back_to_the_file() -> None:
    dm, table = make(), pd.read_csv(ENCOUNTERS)
    rows = dm.rows("val")
    at = table.iloc[rows.row.numpy()]
    assert at["died"].tolist() == rows.y.tolist()
    assert at["site"].tolist() == [dm.sites[code] for code in rows.site]
    first = int(rows.row[0])
    assert dm.row_ids(rows.row[:1]) == [f"{table['patient_id'][first]}:{first}"]


def test_no_patient_is_in_training_and_validation() -> None:
    dm = make(test_fraction=0.2)
    parts = [set(dm.table.patient[dm.split.part(name)]) for name in ("train", "val", "test")]
    assert all(parts)
    assert sum(len(part) for part in parts) == len(set().union(*parts))


def test_medians_and_scales_come_from_the_training_rows_alone(tmp_path: Path) -> None:
    dm, table = make(), pd.read_csv(ENCOUNTERS)
    table.loc[dm.rows("val").row.numpy(), "age"] = 1e6
    table.to_csv(tmp_path / "spoilt.csv", index=False)
    assert make(tmp_path / "spoilt.csv").preprocessing == dm.preprocessing


def test_the_digest_says_whose_rows_the_medians_know() -> None:
    dm = make()
    assert dm.preprocessing.fitted_on == digest_ids(dm.table.patient[dm.split.train])


def test_training_rows_are_centred_and_scaled() -> None:
    x = make(indicators=False, clip=None).rows("train").x
    assert x.median(dim=0).values.abs().max() < 0.5
    assert 0.3 < x[:, :16].std(dim=0).min() < x[:, :16].std(dim=0).max() < 3


def test_coded_values_count_as_missing() -> None:
    coded, naive = make().missingness(), make(missing_codes=None).missingness()
    mean = {site: np.mean(list(shares.values())) for site, shares in coded.items()}
    assert set(mean) == {"A", "B", "C"}
    assert coded["C"]["bnp"] == 1.0
    assert naive["C"]["heart_rate"] < 0.1 < coded["C"]["heart_rate"]


def test_setup_reads_once_however_often_it_is_called() -> None:
    dm = make()
    before = dm.table
    dm.setup("fit")
    dm.setup("test")
    assert dm.table is before


def test_split_seed_decides_the_split() -> None:
    one, same, other = (make(split_seed=seed).split.val for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_leave_one_site_out() -> None:
    dm = make(test_site="C")
    c = dm.sites.index("C")
    assert set(dm.rows("test").site.tolist()) == {c}
    assert c not in dm.rows("train").site
    assert dm.prior == pytest.approx(dm.rows("train").y.float().mean().item())


def test_split_column_is_no_feature(tmp_path: Path) -> None:
    table = pd.read_csv(ENCOUNTERS)
    table["part"] = np.where(table["site"] == "B", "val", "train")
    table.to_csv(tmp_path / "given.csv", index=False)
    dm = make(tmp_path / "given.csv", split_column="part")
    assert "part" not in dm.features
    assert set(dm.rows("val").site.tolist()) == {dm.sites.index("B")}


def test_balanced_draws_show_both_classes_equally_often() -> None:
    dm = make(draws="balanced")
    torch.manual_seed(0)
    y = torch.cat([batch.y for batch in dm.train_dataloader()])
    assert len(y) == len(dm.rows("train").y)
    assert 0.45 < y.float().mean() < 0.55
    assert torch.sigmoid(torch.tensor(dm.logit_shift)) == pytest.approx(dm.prior, rel=1e-5)


def test_shuffled_draws_show_each_row_once() -> None:
    dm = make()
    rows = torch.cat([batch.row for batch in dm.train_dataloader()])
    assert sorted(rows.tolist()) == dm.rows("train").row.tolist()
    assert dm.logit_shift == 0.0
    assert len(dm.train_dataloader()) == dm.batches_per_epoch


def test_workers_give_the_same_batches_as_none() -> None:
    dm = make(num_workers=1)
    alone = make()
    torch.manual_seed(0)
    some = [batch.row for batch in alone.train_dataloader()]
    torch.manual_seed(0)
    workers = [batch.row for batch in dm.train_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(some, workers, strict=True))


def test_a_checkpoint_carries_the_preprocessing_and_loads_with_weights_only(
    checkpoint: Path,
) -> None:
    loaded = EHRDataModule.load_from_checkpoint(checkpoint, weights_only=True)
    dm = make()
    assert loaded.preprocessing == dm.preprocessing
    assert (loaded.sites, loaded.prior) == (dm.sites, dm.prior)


def test_new_rows_are_transformed_as_the_training_rows_were(checkpoint: Path) -> None:
    loaded = EHRDataModule.load_from_checkpoint(checkpoint, weights_only=True)
    new = loaded.apply(pd.read_csv(ENCOUNTERS).drop(columns=["died", "site"]))
    rows = make().rows("val")
    assert torch.equal(new.x[rows.row], rows.x)
    assert set(new.y.tolist()) == {-1}
    assert set(new.site.tolist()) == {-1}


def test_new_rows_without_a_feature_are_refused(checkpoint: Path) -> None:
    loaded = EHRDataModule.load_from_checkpoint(checkpoint, weights_only=True)
    with pytest.raises(ValueError, match=r"the table has no column \['urea'\]; found"):
        loaded.apply(pd.read_csv(ENCOUNTERS).drop(columns="urea"))


def test_going_on_with_another_split_is_refused(checkpoint: Path, quiet: dict[str, Any]) -> None:
    dm = make(split_seed=1)
    model = LitClassifier("medkit.models.nets:mlp", {"inputs": dm.num_features, "hidden": [4]})
    with pytest.raises(ValueError, match=r"fitted on 16\d\d rows \(digest .*dm\.apply\(table\)"):
        pl.Trainer(**quiet, max_epochs=2).fit(model, dm, ckpt_path=checkpoint)


def test_a_loaded_preprocessing_is_not_fitted_again(checkpoint: Path) -> None:
    loaded = EHRDataModule.load_from_checkpoint(checkpoint, weights_only=True)
    state = loaded.state_dict()
    state["preprocessing"]["fill"][0] += 1e-9  # as another CPU might have summed it
    dm = make()
    dm.load_state_dict(state)
    assert dm.preprocessing.fill[0] == state["preprocessing"]["fill"][0]


def test_a_path_given_as_a_path_is_kept_as_text() -> None:
    assert isinstance(make().hparams["csv_path"], str)


def test_prediction_takes_the_test_rows_where_there_are_any() -> None:
    assert len(make(test_site="C").predict_dataloader().dataset) == 600
    dm = make()
    assert len(dm.predict_dataloader().dataset) == len(dm.rows("val").y)


def test_a_validation_part_with_one_class_is_refused(tmp_path: Path, small: pd.DataFrame) -> None:
    small["part"] = np.where(small["died"] == 1, "train", "val")
    small.loc[1:5, "part"] = "train"
    small.to_csv(tmp_path / "small.csv", index=False)
    message = r"the validation part must hold both classes; found 31 rows, 0 of them.*val_fraction"
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "small.csv", site=None, missing_codes=None, split_column="part")


def test_a_test_without_test_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a test needs test rows, and this split has none"):
        make().test_dataloader()


def test_rows_before_setup_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"setup\(\) has not run\. Call dm\.setup\(\) first"):
        EHRDataModule("nowhere.csv", target="died").rows("train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": "weighted"}, r"draws must be one of \['shuffled', 'balanced'\], got 'weighted'"),
        (
            {"test_site": "C", "split_column": "part"},
            r"leaves one site \(or fold\) out, not both",
        ),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EHRDataModule("nowhere.csv", target="died", **settings)  # type: ignore[arg-type]


def test_uci_heart_loads_by_parameters_alone(real_data: Path) -> None:
    dm = make(
        real_data / "uci_heart4" / "heart4.csv",
        target="num",
        target_above=0,
        patient=None,
        missing_codes={"chol": [0], "*": ["?"]},
        test_site="switzerland",
    )
    assert dm.missingness()["switzerland"]["chol"] == 1.0
    assert dm.rows("test").y.float().mean() == pytest.approx(0.935, abs=0.001)
    assert len(dm.table.y) == 920


def test_inner_folds_cover_the_development_rows_and_leave_the_test_site_alone() -> None:
    parts = [make(test_site="C", folds=5, fold=k) for k in range(5)]
    held_out = np.concatenate([dm.split.val for dm in parts])
    assert sorted(held_out) == np.flatnonzero(parts[0].table.site != "C").tolist()
    for dm in parts:
        np.testing.assert_array_equal(dm.split.test, np.flatnonzero(dm.table.site == "C"))
        assert dm.rows("val").y.float().mean() == pytest.approx(dm.prior, abs=0.02)


def test_outer_folds_are_each_once_the_test() -> None:
    parts = [make(test_folds=3, test_fold=k, folds=4, fold=1) for k in range(3)]
    assert sorted(np.concatenate([dm.split.test for dm in parts])) == list(range(2000))
    for dm in parts:
        inside = {*dm.split.train} | {*dm.split.val}
        assert inside.isdisjoint({*dm.split.test})
        assert len(inside) + len(dm.split.test) == 2000


def test_digests_say_who_is_in_each_part_and_are_in_the_checkpoint(checkpoint: Path) -> None:
    dm = make()
    assert dm.digests == {
        part: digest_ids(dm.table.patient[dm.split.part(part)]) for part in ("train", "val", "test")
    }
    loaded = EHRDataModule.load_from_checkpoint(checkpoint, weights_only=True)
    assert loaded.digests == dm.digests


def test_the_baseline_is_logistic_regression_on_the_training_rows() -> None:
    dm = make()
    train = dm.rows("train")
    assert dm.baseline == fit_logistic(train.x, train.y)


def test_a_loaded_baseline_is_not_fitted_again(checkpoint: Path) -> None:
    loaded = EHRDataModule.load_from_checkpoint(checkpoint, weights_only=True)
    assert loaded.baseline == make().baseline
    state = loaded.state_dict()
    state["baseline"]["intercept"] += 1e-9  # as another CPU might have fitted it
    before, after = EHRDataModule(ENCOUNTERS, target="died"), make()
    for dm in (before, after):  # Lightning loads after setup, people may do so before
        dm.load_state_dict(state)
        assert dm.baseline.intercept == state["baseline"]["intercept"]


def test_a_baseline_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"fitted by setup\(\).* baseline_c is None .*Call dm"):
        _ = make(baseline_c=None).baseline


def test_raw_values_keep_what_is_missing() -> None:
    dm = make()
    values = dm.values("val")
    assert values.shape == (len(dm.split.val), len(dm.table.features))
    assert 0.3 < np.isnan(values).mean() < 0.4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 5}, r"which of them is meant, from 0; got folds=5 and fold=None"),
        ({"folds": 5, "fold": 5}, r"fold must be 0 to 4, as folds=5 are .* got fold=5\. The last"),
        ({"folds": 1, "fold": 0}, r"folds must be at least 2, got 1\. 5 is usual"),
        ({"test_fold": 1}, r"got test_folds=None and test_fold=1"),
        ({"test_site": "C", "test_fraction": 0.2}, r"the test part is one site, .* Keep one"),
        ({"split_column": "part", "test_folds": 3, "test_fold": 0}, r"\(or fold\) out, not both"),
    ],
)
def test_folds_that_contradict_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EHRDataModule("nowhere.csv", target="died", **settings)


def test_rows_are_named_for_predictions_by_row_patient_and_site() -> None:
    dm = EHRDataModule(ENCOUNTERS, target="died", site="site", patient="patient_id")
    dm.setup()
    table = pd.read_csv(ENCOUNTERS)
    at = dm.rows("val").row
    named = dm.whose(at)
    assert named["patient_ids"] == table["patient_id"][at.tolist()].astype(str).tolist()
    assert named["site"] == table["site"][at.tolist()].tolist()
    assert named["row_ids"] == dm.row_ids(at)
