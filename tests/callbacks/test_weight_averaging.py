"""Averaged weights keep right statistics, wait for a first step, and resume to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import binary_auroc

from benchmarks import _spikes
from benchmarks._kills import Kill
from medkit.callbacks.spike_guard import SpikeGuard
from medkit.callbacks.weight_averaging import AveragedWeights
from medkit.data.loader import keyed
from tests.callbacks.small import Net, after_kills, training

Batch = list[Tensor]


def rows(count: int = 512) -> TensorDataset:
    """Far from mean 0 and variance 1, where BatchNorm's statistics begin."""
    made = torch.Generator().manual_seed(3)
    x = 20 + 6 * torch.randn(count, 4, generator=made)
    far = (x[:, :2] - 20).norm(dim=1) + 2 * torch.randn(count, generator=made)
    y = (far > far.median()).long()  # inside or outside of a circle
    return TensorDataset(x, y)


class Normed(pl.LightningModule):
    """A small net with BatchNorm that notes its weights and its validation AUROC."""

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            parts = [(nn.Linear(n, 16), nn.BatchNorm1d(16), nn.ReLU()) for n in (4, 16)]
            self.net = nn.Sequential(*parts[0], *parts[1])
            self.head = nn.Linear(16, 1)
        self.lr = lr
        self.auroc: list[float] = []
        self.seen: list[Tensor] = []
        self._prob: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))[:, 0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen.append(self.head.weight.detach().clone())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._prob.append(torch.cat([self(batch[0])[:, None], batch[1][:, None]], 1))

    def on_validation_epoch_end(self) -> None:
        score, y = torch.cat(self._prob).T
        self.auroc.append(float(binary_auroc(score, y.long())))
        self._prob.clear()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class ByHand(EMAWeightAveraging):
    """What is often written: the parameters are averaged, the buffers forgotten."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        averaged = self._average_model.module.parameters()
        for mean, now in zip(averaged, pl_module.parameters(), strict=True):
            mean.data.lerp_(now.data, 0.02)


def fit(
    quiet: dict[str, Any], *callbacks: pl.Callback, plain: bool = False, **options: Any
) -> tuple[Normed, pl.Trainer]:
    net = Normed()
    trainer = pl.Trainer(
        **quiet,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **{"max_epochs": 4, "enable_checkpointing": False} | options,
    )
    torch.manual_seed(1)
    train: Any = DataLoader(rows(), 16, shuffle=True)
    trainer.fit(net, train if plain else keyed(train, seed=1), DataLoader(rows(), 64))
    return net, trainer


def test_stale_statistics_cost_what_averaging_cannot_bring_and_are_cured(
    quiet: dict[str, Any],
) -> None:
    live = fit(quiet)[0].auroc[-1]
    assert live > 0.9
    assert fit(quiet, ByHand())[0].auroc[-1] < 0.7
    assert fit(quiet, EMAWeightAveraging())[0].auroc[-1] < 0.7  # averages the first ones with them
    assert fit(quiet, AveragedWeights())[0].auroc[-1] > live - 0.02
    assert fit(quiet, AveragedWeights(buffers="reestimate"))[0].auroc[-1] > live - 0.02


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("buffers", ["copy", "reestimate"])
def test_the_training_goes_on_with_its_own_bits(
    buffers: Any, plain: bool, quiet: dict[str, Any]
) -> None:
    without, _ = fit(quiet, plain=plain)
    averaged, _ = fit(quiet, AveragedWeights(buffers=buffers), plain=plain)
    assert all(torch.equal(a, b) for a, b in zip(averaged.seen, without.seen, strict=True))


def test_a_decay_of_one_gives_the_mean_of_all_weights(quiet: dict[str, Any]) -> None:
    net, _ = fit(quiet, AveragedWeights(1.0), max_epochs=2)
    mean = torch.stack(net.seen).double().mean(0).float()
    torch.testing.assert_close(net.head.weight.detach(), mean, rtol=1e-5, atol=1e-6)


def test_a_smaller_one_forgets_from_the_step_on_where_it_could(quiet: dict[str, Any]) -> None:
    net, _ = fit(quiet, AveragedWeights(0.9, start=3, every_n_steps=2), max_epochs=2)
    counted = net.seen[3::2]
    mean = torch.stack(counted[:10]).mean(0)
    for weight in counted[10:]:
        mean = 0.9 * mean + 0.1 * weight
    torch.testing.assert_close(net.head.weight.detach(), mean, rtol=1e-5, atol=1e-6)


def test_before_the_first_weights_count_the_net_itself_is_validated(quiet: dict[str, Any]) -> None:
    """Lightning's own callback validates the net as it was initialised."""
    live, _ = fit(quiet)
    late, _ = fit(quiet, AveragedWeights(start=70))
    assert late.auroc[:2] == live.auroc[:2]
    assert late.auroc[2:] != live.auroc[2:]
    never, _ = fit(quiet, AveragedWeights(start=10_000))
    assert torch.equal(never.head.weight, live.head.weight)


def test_statistics_are_those_that_torch_gathers(quiet: dict[str, Any]) -> None:
    net, trainer = fit(quiet, AveragedWeights(buffers="reestimate", batches=None))
    mine = {name: value.clone() for name, value in net.named_buffers()}
    again = keyed(DataLoader(rows(), 16, shuffle=True), seed=1)
    again.set_epoch(trainer.current_epoch)
    update_bn(again, net)
    assert {name for name in mine if name.endswith("_var")}
    for name, value in net.named_buffers():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=0)


def test_a_checkpoint_holds_what_was_validated(quiet: dict[str, Any], tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, save_last=True)
    average = AveragedWeights(buffers="reestimate")
    net, _ = fit(quiet, average, keep, enable_checkpointing=True)
    seen = net.auroc[-1]
    again = Normed.load_from_checkpoint(keep.last_model_path, weights_only=True)
    pl.Trainer(**quiet).validate(again, DataLoader(rows(), 64), verbose=False)
    assert again.auroc == [seen]


def test_a_callback_that_has_averaged_leaves_another_net_alone(quiet: dict[str, Any]) -> None:
    """Lightning's own would validate the net of the fit before, whichever it is given."""
    _, trainer = fit(quiet, AveragedWeights(), max_epochs=1)
    other = Normed()
    before = other.head.weight.detach().clone()
    trainer.validate(other, DataLoader(rows(), 64), verbose=False)
    plain = Normed()
    pl.Trainer(**quiet).validate(plain, DataLoader(rows(), 64), verbose=False)
    assert torch.equal(other.head.weight, before)
    assert other.auroc == plain.auroc


class Averages(pl.Callback):
    """Note the average after each batch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        (average,) = [c for c in trainer.callbacks if isinstance(c, AveragedWeights)]
        state = average._average_model.state_dict()
        self.seen.append({name: value.clone() for name, value in state.items()})


@pytest.mark.parametrize("first", [True, False])
def test_a_skipped_step_moves_no_average(first: bool, quiet: dict[str, Any]) -> None:
    watch, guards = Averages(), [AveragedWeights(0.9), SpikeGuard()]
    trainer = pl.Trainer(
        **quiet,
        max_epochs=4,
        enable_checkpointing=False,
        callbacks=[*(guards if first else reversed(guards)), watch],
    )
    trainer.fit(_spikes.Net({(2, 1): "nan"}), _spikes.loader())
    bad = 2 * _spikes.BATCHES + 1
    before, after, later = watch.seen[bad - 1 : bad + 2]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(after["module.net.0.weight"], later["module.net.0.weight"])


class Spiking(Net):
    """Its loss is no number at one place."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        bad = (self.trainer.current_epoch, batch_idx) == (1, 2)
        return self.loss(batch) * (float("nan") if bad else 1.0)


@pytest.mark.parametrize("buffers", ["copy", "reestimate"])
def test_a_kill_leaves_no_trace_beside_a_skipped_step(buffers: Any, tmp_path: Path) -> None:
    train = training(
        Spiking, callbacks=lambda: [AveragedWeights(0.9, buffers=buffers), SpikeGuard()]
    )
    kills = [Kill("batch_end", 9), Kill("validation", 3), Kill("epoch_end", 2)]
    assert after_kills(train, tmp_path, kills) == {}


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 <= decay <= 1.*got 1\.5 and 'copy'.*defaults are"):
        AveragedWeights(1.5)
    with pytest.raises(ValueError, match=r"buffers 'copy' or.*got 0\.98 and 'average'.*defaults"):
        AveragedWeights(buffers="average")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"every_n_steps and batches from 1, got 0, 0 and 100"):
        AveragedWeights(every_n_steps=0)


def test_a_batch_whose_inputs_are_not_known_is_refused(quiet: dict[str, Any]) -> None:
    class Named(Normed):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step([batch["image"], batch["label"]], batch_idx)

    data = [{"image": x, "label": y} for x, y in rows(32)]

    def run(average: AveragedWeights) -> None:
        trainer = pl.Trainer(**quiet, max_epochs=1, callbacks=[average], enable_checkpointing=False)
        trainer.fit(Named(), DataLoader(data, 16))

    with pytest.raises(ValueError, match=r"hold one first; found Named and a dict.*forward=lambda"):
        run(AveragedWeights(buffers="reestimate"))
    run(AveragedWeights(buffers="reestimate", forward=lambda net, batch: net(batch["image"])))


@pytest.mark.gpu
@pytest.mark.parametrize("buffers", ["copy", "reestimate"])
def test_the_average_lies_beside_the_net_on_an_accelerator(
    buffers: Any, quiet: dict[str, Any]
) -> None:
    average = AveragedWeights(buffers=buffers)
    net, trainer = fit(quiet | {"accelerator": "auto"}, average)
    assert next(average._averaged().parameters()).device == trainer.strategy.root_device
    assert net.auroc[-1] > 0.88
