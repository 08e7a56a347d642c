from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from torch.utils.data import DataLoader

from medkit import keyed
from medkit.data.batches import Batch, TableDataset
from medkit.models.classifier import LitClassifier, gather

MLP = "medkit.models.nets:mlp"


def rows(count: int = 96, features: int = 5) -> Batch:
    draw = keyed.generator(0, "test")
    x = torch.from_numpy(draw.normal(size=(count, features))).float()
    y = (x[:, 0] + torch.from_numpy(draw.normal(size=count)) > 0.5).long()
    return Batch(x, y, torch.arange(count), torch.zeros(count, dtype=torch.long))


def loader(batch: Batch, size: int = 16) -> DataLoader[Batch]:
    return DataLoader(TableDataset(batch), size, collate_fn=lambda fetched: fetched)


def model(seed: int = 0, **settings: Any) -> LitClassifier:
    with keyed.globals_keyed(seed, "init"):
        return LitClassifier(MLP, {"inputs": 5, "hidden": [8], "dropout": 0.0}, **settings)


def trainer(quiet: dict[str, Any], **settings: Any) -> pl.Trainer:
    return pl.Trainer(**(quiet | {"max_epochs": 2, "num_sanity_val_steps": 0} | settings))


def test_loss_terms_of_the_parts_add_up_to_those_of_the_whole() -> None:
    lit, batch = model(), rows(10)
    parts = [Batch(*(v[at] for v in batch)) for at in (slice(0, 3), slice(3, 10))]
    (one, n), (other, m) = (lit.loss_terms(part) for part in parts)
    total, weight = lit.loss_terms(batch)
    assert n + m == weight == 10
    torch.testing.assert_close(one + other, total)


def test_training_step_is_the_mean_cross_entropy() -> None:
    lit, batch = model(), rows(10)
    want = F.binary_cross_entropy(lit.prob(batch.x), batch.y.float())
    torch.testing.assert_close(lit.training_step(batch, 0), want)


def test_training_loss_is_logged_once_an_epoch_over_all_rows(quiet: dict[str, Any]) -> None:
    batch, lit = rows(40), model(lr=1e-12, weight_decay=0.0)  # so small that nothing moves
    run = trainer(quiet, max_epochs=1)
    run.fit(lit, loader(batch, size=16))  # 16, 16 and 8 rows
    want = F.binary_cross_entropy(lit.prob(batch.x), batch.y.float())
    torch.testing.assert_close(run.callback_metrics["train/loss"], want.detach())


def test_validation_logs_what_scikit_learn_says(quiet: dict[str, Any]) -> None:
    batch, lit = rows(), model()
    logged = trainer(quiet).validate(lit, loader(batch), verbose=False)[0]
    prob = lit.eval().prob(batch.x).detach().numpy()
    y = batch.y.numpy()
    assert logged["val/auroc"] == pytest.approx(roc_auc_score(y, prob), abs=1e-6)
    assert logged["val/auprc"] == pytest.approx(average_precision_score(y, prob), abs=1e-6)
    assert logged["val/brier"] == pytest.approx(brier_score_loss(y, prob), abs=1e-6)
    want = F.binary_cross_entropy(torch.from_numpy(prob), batch.y.float()).item()
    assert logged["val/loss"] == pytest.approx(want, abs=1e-6)


def test_test_logs_under_its_own_name(quiet: dict[str, Any]) -> None:
    logged = trainer(quiet).test(model(), loader(rows()), verbose=False)[0]
    assert set(logged) == {"test/loss", "test/auroc", "test/auprc", "test/brier"}


def test_the_sanity_check_warns_of_nothing_and_logs_nothing(quiet: dict[str, Any]) -> None:
    batch = rows()
    batch = batch._replace(y=torch.zeros_like(batch.y))
    run = trainer(quiet, max_epochs=0, num_sanity_val_steps=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No positive samples")
        run.fit(model(), loader(batch), loader(batch))
    assert "val/auroc" not in run.callback_metrics


def test_the_net_learns(quiet: dict[str, Any]) -> None:
    batch = rows(400)
    lit = model(lr=1e-2, total_steps=10 * 25)
    before = lit.loss_terms(batch)[0].item()
    trainer(quiet, max_epochs=10).fit(lit, loader(batch))
    assert lit.loss_terms(batch)[0].item() < 0.8 * before


def test_the_rate_rises_then_falls_to_zero_by_the_given_steps(quiet: dict[str, Any]) -> None:
    lit = model(lr=1e-2, total_steps=12, warmup=0.25)
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    run = trainer(quiet, callbacks=[Watch()])
    run.fit(lit, loader(rows()))
    assert rates[:4] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_without_total_steps_the_rate_is_constant(quiet: dict[str, Any]) -> None:
    run = trainer(quiet)
    run.fit(model(lr=3e-4), loader(rows()))
    assert run.optimizers[0].param_groups[0]["lr"] == 3e-4


def test_a_checkpoint_rebuilds_the_net_with_weights_only(
    quiet: dict[str, Any], tmp_path: Path
) -> None:
    lit = model(total_steps=12)
    run = trainer(quiet)
    run.fit(lit, loader(rows()))
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = LitClassifier.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    x = rows().x
    torch.testing.assert_close(again.eval()(x), lit.eval()(x), rtol=0, atol=0)
    assert again.total_steps == 12


def test_a_checkpoint_that_names_something_else_than_a_net_is_refused(tmp_path: Path) -> None:
    trap = {"hyper_parameters": {"net": "os:system", "net_args": {"command": "touch x"}}}
    torch.save(trap | {"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, tmp_path / "trap")
    with pytest.raises(ValueError, match=r"got 'os:system', which is not"):
        LitClassifier.load_from_checkpoint(tmp_path / "trap", weights_only=True)


def test_an_epoch_resumed_in_the_middle_logs_the_loss_of_all_of_it(
    quiet: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "middle.ckpt"

    class SaveInTheMiddle(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(path)

    part = rows(16)  # every batch the same, so that only the number of steps matters
    batches = loader(Batch(*(torch.cat([values] * 6) for values in part)))
    whole = trainer(quiet, max_epochs=1, callbacks=[SaveInTheMiddle()])
    whole.fit(model(lr=0.1), batches)
    resumed = trainer(quiet, max_epochs=1)
    resumed.fit(model(seed=1, lr=0.1), batches, ckpt_path=path, weights_only=True)
    assert resumed.callback_metrics["train/loss"] == whole.callback_metrics["train/loss"]


def test_a_fit_that_was_stopped_does_not_count_in_the_next(quiet: dict[str, Any]) -> None:
    lit, batch = model(lr=1e-12, weight_decay=0.0), rows(32)
    lit.training_step(rows(96)._replace(y=torch.ones(96, dtype=torch.long)), 0)
    run = trainer(quiet, max_epochs=1)
    run.fit(lit, loader(batch))
    want = F.binary_cross_entropy(lit.prob(batch.x), batch.y.float())
    torch.testing.assert_close(run.callback_metrics["train/loss"], want.detach())


def test_predictions_come_back_in_order_with_their_rows(quiet: dict[str, Any]) -> None:
    lit, batch = model(), rows(40)
    found = gather(trainer(quiet).predict(lit, loader(batch)))
    assert found["row"].tolist() == list(range(40))
    assert found["y"].tolist() == batch.y.tolist()
    torch.testing.assert_close(torch.from_numpy(found["prob"]), lit.eval().prob(batch.x).detach())


def test_logit_shift_moves_probabilities_and_not_the_training_loss() -> None:
    plain, shifted, batch = model(), model(logit_shift=-2.0), rows(10)
    torch.testing.assert_close(plain.loss_terms(batch)[0], shifted.loss_terms(batch)[0])
    moved = torch.logit(shifted.prob(batch.x)) - torch.logit(plain.prob(batch.x))
    torch.testing.assert_close(moved, torch.full((10,), -2.0))


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_losses_are_float32_in_any_precision(quiet: dict[str, Any], precision: str) -> None:
    lit = model()
    run = trainer(quiet, max_epochs=1, precision=precision, gradient_clip_val=1.0)
    run.fit(lit, loader(rows()), loader(rows()))
    assert run.callback_metrics["train/loss"].dtype == torch.float32
    assert run.callback_metrics["val/auroc"] > 0


@pytest.mark.gpu
def test_16_mixed_trains_with_clipping(quiet: dict[str, Any]) -> None:
    settings = quiet | {"accelerator": "auto"}
    run = trainer(settings, max_epochs=1, precision="16-mixed", gradient_clip_val=1.0)
    run.fit(model(total_steps=6), loader(rows()), loader(rows()))
    assert run.callback_metrics["train/loss"].isfinite()


def test_same_seed_same_bits_and_other_seed_other_bits(quiet: dict[str, Any]) -> None:
    found = []
    for seed in (0, 0, 1):
        lit = model(seed)
        trainer(quiet).fit(lit, loader(rows()))
        found.append(torch.cat([p.detach().flatten() for p in lit.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_training_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"total_steps must be at least 1 or None, got 0.*epochs"):
        model(total_steps=0)


def test_other_nets_take_their_place(quiet: dict[str, Any]) -> None:
    lit = LitClassifier("medkit.models.nets:cnn2d", {"width": 2})
    batch = rows(32)._replace(x=torch.zeros(32, 1, 8, 8))
    run = trainer(quiet, max_epochs=1)
    run.fit(lit, loader(batch))
    assert run.callback_metrics["train/loss"].isfinite()
