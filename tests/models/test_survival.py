from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from medkit import keyed
from medkit.data.batches import Batch, TableDataset
from medkit.data.cox import CoxBaseline, fit_cox
from medkit.data.hazard import breslow
from medkit.data.survival import SurvivalDataModule
from medkit.metrics.survival import harrell_c, kaplan_meier
from medkit.models import survival
from medkit.models.losses import cox_terms
from medkit.models.survival import LitCox, gather, warm_start

PATIENTS = Path(__file__).parents[2] / "data_samples" / "survival" / "patients.csv"


@pytest.fixture(scope="module")
def dm() -> SurvivalDataModule:
    data = SurvivalDataModule(PATIENTS, time="days", event="died", site="site", test_site="C")
    data.setup()
    return data


@pytest.fixture(scope="module")
def cox(dm: SurvivalDataModule) -> CoxBaseline:
    train = dm.rows("train")
    return fit_cox(train.x, *train.y.numpy().T, l2=0.1)


def model(dm: SurvivalDataModule, *, seed: int = 0, **settings: Any) -> LitCox:
    with keyed.globals_keyed(seed, "init"):
        net_args = {"inputs": dm.num_features, "hidden": [4], "dropout": 0.0}
        return LitCox("medkit.models.nets:mlp", net_args, **settings)


def warm(cox: CoxBaseline, *, seed: int = 0, **settings: Any) -> LitCox:
    with keyed.globals_keyed(seed, "init"):
        return LitCox(**warm_start(cox), **settings)


def trainer(quiet: dict[str, Any], **settings: Any) -> pl.Trainer:
    defaults = {"max_epochs": 2, "num_sanity_val_steps": 0, "enable_checkpointing": False}
    return pl.Trainer(**(quiet | defaults | settings))


def pairs_ordered(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """The c-index in plain loops."""
    hits = total = 0.0
    for i in np.flatnonzero(event):
        for j in range(len(time)):
            if time[j] > time[i] or (time[j] == time[i] and not event[j]):
                total += 1
                hits += (risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])
    return hits / total


def test_it_starts_as_the_penalised_linear_model(dm: SurvivalDataModule, cox: CoxBaseline) -> None:
    x = dm.rows("val").x
    with torch.no_grad():
        eta = warm(cox).eval()(x)
    np.testing.assert_allclose(eta.numpy(), cox.risk(x), atol=1e-5)


def test_a_step_sees_the_likelihood_of_the_whole_training_set(
    dm: SurvivalDataModule, quiet: dict[str, Any]
) -> None:
    lit = model(dm, lr=1e-9, l2=0.0)
    run = trainer(quiet, max_epochs=1)
    run.fit(lit, dm)
    train = dm.rows("train")
    with torch.no_grad():
        total, events = cox_terms(lit(train.x), *train.y.T)
    assert run.global_step == 1
    assert run.callback_metrics["train/loss"].item() == pytest.approx(
        total.item() / events, rel=1e-5
    )


def test_validation_logs_the_c_index_of_plain_loops(
    dm: SurvivalDataModule, quiet: dict[str, Any]
) -> None:
    lit = model(dm)
    logged = trainer(quiet).validate(lit, dm, verbose=False)[0]
    val = dm.rows("val")
    with torch.no_grad():
        eta = lit.eval()(val.x)
    total, events = cox_terms(eta, *val.y.T)
    time, event = val.y.numpy().T
    assert set(logged) == {"val/loss", "val/c_index"}
    assert logged["val/c_index"] == pytest.approx(pairs_ordered(time, event, eta.numpy()), abs=1e-6)
    assert logged["val/loss"] == pytest.approx(total.item() / events, rel=1e-6)


def test_test_logs_under_its_own_name(dm: SurvivalDataModule, quiet: dict[str, Any]) -> None:
    logged = trainer(quiet).test(model(dm), dm, verbose=False)[0]
    assert set(logged) == {"test/loss", "test/c_index"}


def test_validation_in_parts_counts_all_rows_together(
    dm: SurvivalDataModule, quiet: dict[str, Any]
) -> None:
    lit, val = model(dm), TableDataset(dm.rows("val"))
    parts = DataLoader(val, 16, collate_fn=lambda fetched: fetched)
    in_parts = trainer(quiet).validate(lit, parts, verbose=False)
    assert in_parts == trainer(quiet).validate(lit, dm, verbose=False)


def test_of_many_validation_rows_only_some_are_compared_pair_by_pair(
    dm: SurvivalDataModule, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survival, "_MOST_RANKED", 100)
    lit, val = model(dm), dm.rows("val")
    logged = trainer(quiet).validate(lit, dm, verbose=False)[0]
    with torch.no_grad():
        eta = lit.eval()(val.x[::2])
    want = pairs_ordered(*val.y[::2].numpy().T, eta.numpy())
    assert 100 < len(val.x) <= 200
    assert logged["val/c_index"] == pytest.approx(want, abs=1e-6)


def test_it_learns(dm: SurvivalDataModule, quiet: dict[str, Any]) -> None:
    lit = model(dm, lr=2e-2, l2=0.01, total_steps=60)
    run = trainer(quiet, max_epochs=60, check_val_every_n_epoch=60)
    run.fit(lit, dm)
    assert run.callback_metrics["val/c_index"] > 0.65


def test_trainings_from_the_warm_start_hardly_differ_between_seeds(
    dm: SurvivalDataModule, cox: CoxBaseline, quiet: dict[str, Any]
) -> None:
    found = []
    for seed in (0, 1):
        lit = warm(cox, seed=seed, l2=0.1, total_steps=40)
        run = trainer(quiet, max_epochs=40, check_val_every_n_epoch=40)
        run.fit(lit, dm)
        found.append(run.callback_metrics["val/c_index"].item())
    assert abs(found[0] - found[1]) < 0.01


def test_the_penalty_stands_in_the_loss_and_not_in_the_log(
    dm: SurvivalDataModule, quiet: dict[str, Any]
) -> None:
    plain, held = model(dm, l2=0.0).eval(), model(dm, l2=0.5).eval()
    batch = dm.rows("train")
    squares = sum(p.square().sum() for p in held.net.parameters() if p.ndim > 1)
    gap = held.training_step(batch, 0) - plain.training_step(batch, 0)
    torch.testing.assert_close(gap, 0.25 * squares, rtol=1e-4, atol=1e-5)
    assert held._train_sum == plain._train_sum


def test_a_batch_without_an_event_moves_nothing_by_its_loss(dm: SurvivalDataModule) -> None:
    lit, train = model(dm, l2=0.0), dm.rows("train")
    nobody = Batch(*(values[train.y[:, 1] == 0][:8] for values in train))
    lit.training_step(nobody, 0).backward()
    assert all(not p.grad.any() for p in lit.parameters())


def test_an_epoch_without_an_event_is_refused(
    dm: SurvivalDataModule, quiet: dict[str, Any]
) -> None:
    train = dm.rows("train")
    nobody = Batch(*(values[train.y[:, 1] == 0] for values in train))
    with pytest.raises(ValueError, match=r"an epoch must hold an event"):
        trainer(quiet).fit(model(dm), DataLoader(TableDataset(nobody), 64, collate_fn=lambda b: b))


def test_survival_is_breslows_at_the_weights_as_they_end(
    dm: SurvivalDataModule, cox: CoxBaseline, quiet: dict[str, Any]
) -> None:
    lit = warm(cox, lr=1e-2)
    trainer(quiet, max_epochs=3).fit(lit, dm)
    train, test = dm.rows("train"), dm.rows("test")
    with torch.no_grad():
        at_train, at_test = lit.eval()(train.x).numpy(), lit(test.x).numpy()
    want = breslow(*train.y.numpy().T, at_train).survival(at_test, 1095)
    np.testing.assert_allclose(lit.survival(test.x, 1095).numpy(), want, rtol=1e-6)
    assert (np.abs(at_train - cox.risk(train.x)) > 1e-3).any()  # it did move


def test_survival_is_close_to_what_the_clinics_saw(
    dm: SurvivalDataModule, cox: CoxBaseline
) -> None:
    lit, val = warm(cox), dm.rows("val")
    lit.fit_hazard(dm.rows("train"))
    seen = kaplan_meier(*val.y.numpy().T).at(1095)
    assert seen.low < lit.survival(val.x, 1095).mean().item() < seen.high


def test_a_checkpoint_predicts_survival_with_weights_only(
    dm: SurvivalDataModule, cox: CoxBaseline, quiet: dict[str, Any], tmp_path: Path
) -> None:
    lit = warm(cox, total_steps=3)
    run = trainer(quiet, max_epochs=3)
    run.fit(lit, dm)
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = LitCox.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    x = dm.rows("test").x
    torch.testing.assert_close(
        again.eval().survival(x, 900), lit.eval().survival(x, 900), rtol=0, atol=0
    )
    assert again.hparams.total_steps == 3


def test_survival_without_a_baseline_hazard_is_refused(dm: SurvivalDataModule) -> None:
    with pytest.raises(RuntimeError, match=r"needs the baseline hazard.*call fit_hazard"):
        model(dm).survival(dm.rows("val").x, 900)


def test_predictions_lead_back_to_rows(
    dm: SurvivalDataModule, cox: CoxBaseline, quiet: dict[str, Any]
) -> None:
    found = gather(trainer(quiet).predict(warm(cox), dm))
    test = dm.rows("test")
    np.testing.assert_array_equal(found["row"], test.row.numpy())
    np.testing.assert_array_equal(found["time"], test.y[:, 0].numpy())
    np.testing.assert_array_equal(found["event"], test.y[:, 1].numpy())
    np.testing.assert_allclose(found["eta"], cox.risk(test.x), atol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 128])
def test_a_resumed_training_ends_with_the_same_bits(
    quiet: dict[str, Any], tmp_path: Path, batch_size: int | None
) -> None:
    from medkit.callbacks.keyed_steps import KeyedSteps
    from medkit.data.loader import keyed as keyed_data

    path = tmp_path / "middle.ckpt"

    class SaveInTheMiddle(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 7:
                trainer.save_checkpoint(path)

    def fit(*callbacks: pl.Callback, ckpt_path: Path | None = None) -> LitCox:
        data = SurvivalDataModule(
            PATIENTS, time="days", event="died", site="site", batch_size=batch_size
        )
        data.setup()
        lit = model(data, total_steps=12 * data.batches_per_epoch)
        run = trainer(quiet, max_epochs=12, callbacks=[KeyedSteps(seed=0, name="fit"), *callbacks])
        run.fit(lit, keyed_data(data, seed=0), ckpt_path=ckpt_path, weights_only=True)
        return lit

    whole, resumed = fit(SaveInTheMiddle()), fit(ckpt_path=path)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    np.testing.assert_array_equal(whole.hazard.cumulative, resumed.hazard.cumulative)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, r"total_steps must be at least 1 or None, got 0"),
        ({"l2": -1.0}, r"l2 must not be negative, got -1.0"),
        ({"l2": float("nan")}, r"l2 must not be negative, got nan"),
    ],
)
def test_bad_settings_are_refused(
    dm: SurvivalDataModule, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model(dm, **settings)


def test_penalised_cox_ranks_the_real_patients_of_six_regions(real_data: Path) -> None:
    folder = real_data / "fed_tcga_brca"
    split = pd.read_csv(folder / "train_test_split.csv")[["pid", "fold"]]
    table = pd.read_csv(folder / "brca.csv").merge(split, on="pid")
    roles = {"time": "T", "event": "E", "patient": "pid", "split_column": "fold"}
    data = SurvivalDataModule(table, **roles, scale="standard", clip=None)
    data.setup()
    train, test = data.rows("train"), data.rows("test")
    assert (len(train.y), len(test.y)) == (866, 222)
    eta = fit_cox(train.x, *train.y.numpy().T, l2=1.0).risk(test.x)
    assert harrell_c(*test.y.numpy().T, eta).value > 0.8
