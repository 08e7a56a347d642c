"""A schedule ends where the training ends, in anybody's module."""

from __future__ import annotations

import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from medkit.data.loader import keyed
from medkit.models.schedules import optimizer_steps, rate_at, total_steps, warmup_cosine

HIGHEST = 0.1


class Rows(Dataset[Tensor]):
    def __len__(self) -> int:
        return 23

    def __getitem__(self, row: int) -> Tensor:
        return torch.tensor([float(row)])


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        while True:
            yield torch.ones(1)


class Theirs(pl.LightningModule):
    """A module that asks for its steps where it makes its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.asked, self.set_up_too_early = 0, True

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=HIGHEST)
        self.asked = total_steps(self.trainer)
        self.set_up_too_early = self.trainer.train_dataloader is not None
        return warmup_cosine(optimizer, self.asked, warmup=0.25)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Rows(), batch_size=4, shuffle=True)


def fitted(quiet: dict[str, Any], data: Any, **options: Any) -> tuple[Theirs, pl.Trainer]:
    net = Theirs()
    trainer = pl.Trainer(**quiet, enable_checkpointing=False, **options)
    trainer.fit(net, data)
    return net, trainer


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "accumulate_grad_batches": 4},
        {"max_epochs": 2, "limit_train_batches": 3},
        {"max_epochs": 2, "limit_train_batches": 0.7},
        {"max_epochs": 9, "max_steps": 5},
        {"max_epochs": -1, "max_steps": 7},
        {"max_epochs": 2, "overfit_batches": 2},
    ],
)
@pytest.mark.parametrize("kit", [False, True])
def test_the_steps_are_those_the_fit_takes_and_the_rate_ends_at_zero(
    options: dict[str, Any], kit: bool, quiet: dict[str, Any]
) -> None:
    net, trainer = fitted(quiet, keyed(Data(), seed=1) if kit else Data(), **options)
    assert net.asked == trainer.global_step == trainer.estimated_stepping_batches
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_the_loader_is_not_set_up_by_asking(quiet: dict[str, Any]) -> None:
    """Lightning then forgets what a checkpoint says of it."""
    assert not fitted(quiet, Data(), max_epochs=1)[0].set_up_too_early


def test_asking_moves_no_generator(quiet: dict[str, Any]) -> None:
    class Drawing(Data):
        def train_dataloader(self) -> Any:
            torch.rand(3)
            return super().train_dataloader()

    class Watching(Theirs):
        def configure_optimizers(self) -> Any:
            before = torch.get_rng_state()
            made = super().configure_optimizers()
            self.moved = not torch.equal(before, torch.get_rng_state())
            return made

    net = Watching()
    pl.Trainer(**quiet, max_epochs=1, enable_checkpointing=False).fit(net, Drawing())
    assert not net.moved


def test_of_several_loaders_the_longest_counts(quiet: dict[str, Any]) -> None:
    class Two(Theirs):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["a"], batch_idx)

    net = Two()
    loaders = {"a": DataLoader(Rows(), batch_size=4), "b": DataLoader(Rows(), batch_size=2)}
    trainer = pl.Trainer(**quiet, max_epochs=2, enable_checkpointing=False)
    trainer.fit(net, loaders)
    assert net.asked == trainer.global_step == 24


def test_a_training_without_an_end_is_refused(quiet: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"where the training ends.*no length.*max_steps="):
        fitted(quiet, DataLoader(Endless(), batch_size=2), max_epochs=1)
    with pytest.raises(ValueError, match=r"where the training ends.*no limit.*max_steps="):
        fitted(quiet, Data(), max_epochs=-1)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 3}, 21),
        ({"epochs": 3, "accumulate": 2}, 12),
        ({"epochs": 3, "devices": 2}, 12),
        ({"epochs": 3, "accumulate": 3, "devices": 2}, 6),
    ],
)
def test_a_short_last_step_is_a_step(settings: dict[str, int], steps: int) -> None:
    assert optimizer_steps(7, **settings) == steps


def test_the_cosine_is_torchs_after_the_warm_up() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=HIGHEST)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    for step in range(5, 21):
        ours = HIGHEST * rate_at(step, total=20, rising=5)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_the_warm_up_is_a_straight_line_to_the_highest_rate() -> None:
    assert [rate_at(step, total=20, rising=4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_schedule_stays_at_zero_after_its_last_step() -> None:
    assert rate_at(99, total=10, rising=1) == 0.0
    assert math.isclose(rate_at(10, total=10, rising=1), 0.0, abs_tol=1e-12)


def test_a_warm_up_that_is_no_share_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=HIGHEST)
    with pytest.raises(ValueError, match=r"from 0 to below 1, got 500\. 0\.05 is usual"):
        warmup_cosine(optimizer, 1000, warmup=500)
