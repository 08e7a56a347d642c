"""A strength reaches the samples wherever they are fetched, and can be had again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks._kills import Kill
from medkit.callbacks.augmentation_schedule import AugmentationSchedule, ByGap, Ramp
from medkit.callbacks.quarantine import Quarantine
from medkit.data.loader import KeyedLoader, keyed
from tests.callbacks.small import Data, Films, Net, after_kills, training


class Noise:
    """A transform with a strength of its own."""

    def __init__(self) -> None:
        self.strength = 0.5

    def __call__(self, image: Tensor) -> Tensor:
        return image + self.strength * torch.randn(image.shape)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self) -> None:
        self.transforms = [Noise()]

    def __len__(self) -> int:
        return 24

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image = torch.full((1, 6, 6), row / 24)
        for transform in self.transforms:
            image = transform(image)
        return image, torch.tensor(row % 2)


class Seeing(Net):
    """Keeps the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch[0].clone())
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(batch[0].clone())
        super().validation_step(batch, batch_idx)


def fit(
    quiet: dict[str, Any],
    schedule: AugmentationSchedule,
    *,
    data: Dataset[Any] | None = None,
    workers: int = 0,
    net: pl.LightningModule | None = None,
    more: list[pl.Callback] | None = None,
    **options: Any,
) -> tuple[Any, KeyedLoader]:
    data = Noisy() if data is None else data
    settings = {"num_workers": workers, "persistent_workers": workers > 0}
    train = keyed(DataLoader(data, 4, shuffle=True, **settings), seed=2)
    val = keyed(DataLoader(data, 8, **settings), seed=2)
    torch.manual_seed(4)
    net = Seeing() if net is None else net
    trainer = pl.Trainer(
        **quiet,
        callbacks=[*(more or []), schedule],
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        **{"max_epochs": 3} | options,
    )
    trainer.fit(net, train, val)
    return net, train


def noise_of(batches: list[Tensor]) -> float:
    """The spread around a row's own grey."""
    return float(torch.cat([(x - x.mean((2, 3), keepdim=True)).flatten() for x in batches]).std())


def test_a_ramp_rises_in_a_straight_line_and_stays() -> None:
    assert [Ramp(4, start=0.2)(epoch) for epoch in (0, 1, 2, 4, 9)] == pytest.approx(
        [0.2, 0.4, 0.6, 1.0, 1.0]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_its_strength_in_persistent_workers_too(
    workers: int, quiet: dict[str, Any]
) -> None:
    net, _ = fit(quiet, AugmentationSchedule(Ramp(2)), workers=workers)
    for epoch, strength in enumerate((0.0, 0.5, 1.0)):
        assert noise_of(net.seen[6 * epoch : 6 * epoch + 6]) == pytest.approx(
            strength, rel=0.1, abs=1e-6
        )


def test_any_number_of_workers_gives_the_same_bits(quiet: dict[str, Any]) -> None:
    (one, _), (two, _) = (fit(quiet, AugmentationSchedule(Ramp(2)), workers=n) for n in (0, 2))
    assert torch.equal(torch.stack(one.seen), torch.stack(two.seen))
    assert torch.equal(torch.stack(one.validated), torch.stack(two.validated))
    assert torch.equal(one.net[0].weight, two.net[0].weight)


@pytest.mark.parametrize("workers", [0, 2])
def test_so_it_has_where_samples_are_screened(workers: int, quiet: dict[str, Any]) -> None:
    schedule = AugmentationSchedule(Ramp(2))
    net, loader = fit(quiet, schedule, workers=workers, more=[Quarantine()])
    for epoch, strength in enumerate((0.0, 0.5, 1.0)):
        assert noise_of(net.seen[6 * epoch : 6 * epoch + 6]) == pytest.approx(
            strength, rel=0.1, abs=1e-6
        )
    assert torch.equal(loader.batch_at(1, 3)[0], net.seen[9])


def test_validation_keeps_the_strength_it_was_made_with(quiet: dict[str, Any]) -> None:
    data = Noisy()
    net, _ = fit(quiet, AugmentationSchedule(Ramp(2)), data=data)
    assert noise_of(net.validated) == pytest.approx(0.5, rel=0.1)
    assert data.transforms[0].strength == 0.5


def test_a_batch_can_be_had_again_with_its_strength(quiet: dict[str, Any]) -> None:
    net, loader = fit(quiet, AugmentationSchedule(Ramp(2)), workers=2)
    for epoch in (2, 0, 1):
        assert torch.equal(loader.batch_at(epoch, 3)[0], net.seen[6 * epoch + 3])


class Told(Noisy):
    """A dataset that is told its strength, behind a Subset."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def set_strength(self, strength: float) -> None:
        self.told.append(strength)


def test_a_method_is_called_and_what_it_holds_is_left_to_it(quiet: dict[str, Any]) -> None:
    data = Told()
    fit(quiet, AugmentationSchedule(lambda epoch: epoch + 1), data=Subset(data, range(24)))
    assert set(data.told) == {1, 2, 3}
    assert data.transforms[0].strength == 0.5


def test_a_module_that_augments_on_the_device_is_told(quiet: dict[str, Any]) -> None:
    class OnDevice(Net):
        strength = 9.0

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            if self.trainer.training:
                heard.append(self.strength)
            return batch

    heard: list[float] = []
    fit(quiet, AugmentationSchedule(Ramp(2)), data=Films(8), net=OnDevice())
    assert heard == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]


def test_an_unkeyed_loader_without_workers_is_told_as_well(quiet: dict[str, Any]) -> None:
    net, data = Seeing(), Noisy()
    trainer = pl.Trainer(
        **quiet, max_epochs=3, callbacks=[AugmentationSchedule(Ramp(2))], enable_checkpointing=False
    )
    trainer.fit(net, DataLoader(data, 4))
    assert noise_of(net.seen[:6]) == pytest.approx(0.0, abs=1e-6)
    assert noise_of(net.seen[12:]) == pytest.approx(1.0, rel=0.1)


# ---- by the generalisation gap -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "gap", "after"),
    [
        (0.2, 0.5, 0.3),
        (0.2, 0.1, 0.2),
        (0.2, -0.3, 0.1),
        (1.0, 0.9, 1.0),
        (0.05, -1.0, 0.0),
        (0.4, float("nan"), 0.4),
    ],
)
def test_a_gap_above_the_band_raises_below_it_lowers(
    before: float, gap: float, after: float
) -> None:
    assert ByGap().after(before, gap) == pytest.approx(after)


class Given(pl.LightningModule):
    """Losses that are given, epoch by epoch."""

    def __init__(self, train: list[float], val: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.train_losses, self.val_losses = train, val

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.train_losses[self.current_epoch]
        if self.current_epoch == 0 and batch_idx == 1:
            loss = float("nan")
        return self.weight * 0 + loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.val_losses[self.current_epoch])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_strength_follows_the_gap_epoch_by_epoch(
    accumulate: int, quiet: dict[str, Any]
) -> None:
    schedule = AugmentationSchedule(ByGap(start=0.2))
    # gaps: 0.5, 0.1, -1
    net = Given([1.0, 1.8, 4.0, 1.0], [2.0, 2.0, 2.0, 2.0])
    fit(quiet, schedule, net=net, max_epochs=4, accumulate_grad_batches=accumulate)
    assert schedule.strengths == pytest.approx({0: 0.2, 1: 0.3, 2: 0.3, 3: 0.2})
    assert [line["action"] for line in schedule.events] == [
        "set to 0.2",
        "raised to 0.3",
        "lowered to 0.2",
    ]
    assert schedule.events[1]["detail"] == "gap 0.5: training loss 1, validation loss 2"


@pytest.mark.gpu
def test_the_gap_is_the_same_on_an_accelerator(quiet: dict[str, Any]) -> None:
    schedule = AugmentationSchedule(ByGap(start=0.2))
    fit(quiet | {"accelerator": "auto"}, schedule, net=Given([1.0] * 3, [2.0] * 3))
    assert schedule.strengths == pytest.approx({0: 0.2, 1: 0.3, 2: 0.4})


def test_without_a_new_validation_loss_the_strength_stays(quiet: dict[str, Any]) -> None:
    schedule = AugmentationSchedule(ByGap())
    net = Given([1.0] * 4, [2.0] * 4)
    fit(quiet, schedule, net=net, max_epochs=4, check_val_every_n_epoch=2)
    assert schedule.strengths == pytest.approx({0: 0.0, 1: 0.0, 2: 0.1, 3: 0.1})


# ---- the ledger and a resume -------------------------------------------------------------------


class NoisyData(Data):
    def train_dataloader(self) -> Any:
        return DataLoader(
            Noisy(),
            batch_size=4,
            shuffle=True,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def lines(run_dir: Path) -> Iterator[tuple[int, str]]:
    for text in (run_dir / "ledger.jsonl").read_text().splitlines():
        line = json.loads(text)
        yield line["epoch"], line["action"]


@pytest.mark.parametrize(
    ("schedule", "workers"),
    [(Ramp(2), 0), (Ramp(2), 2), (ByGap(low=-9.0, high=-8.0, step=0.25), 0)],
)
def test_a_kill_leaves_no_trace_and_each_change_is_one_line(
    schedule: Any, workers: int, tmp_path: Path
) -> None:
    train = training(
        data=lambda: NoisyData(workers), callbacks=lambda: [AugmentationSchedule(schedule)]
    )
    kills = [Kill("batch_start", 7), Kill("batch_end", 8), Kill("epoch_end", 1)]
    kills = kills if workers == 0 else kills[1:2]
    assert after_kills(train, tmp_path, kills) == {}
    steps = ("0", "0.5", "1") if isinstance(schedule, Ramp) else ("0", "0.25", "0.5")
    expected = [(0, f"set to {steps[0]}"), *((n, f"raised to {steps[n]}") for n in (1, 2))]
    for run_dir in tmp_path.iterdir():
        if run_dir.is_dir():
            assert list(lines(run_dir)) == expected, run_dir.name


# ---- errors ------------------------------------------------------------------------------------


def test_where_nothing_takes_a_strength_the_schedule_is_refused(quiet: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs something that takes.*\(Films\).*set_strength"):
        fit(quiet, AugmentationSchedule(Ramp(2)), data=Films(8))


def test_workers_of_an_unkeyed_loader_are_refused(quiet: dict[str, Any]) -> None:
    trainer = pl.Trainer(**quiet, max_epochs=1, callbacks=[AugmentationSchedule(Ramp(2))])
    with pytest.raises(ValueError, match=r"through a keyed loader.*2 workers.*keyed\(datamodule"):
        trainer.fit(Seeing(), DataLoader(Noisy(), 4, num_workers=2))


def test_a_gap_without_validation_is_refused(quiet: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs validation.*has none.*Ramp\(epochs=20\)"):
        fit(quiet, AugmentationSchedule(ByGap()), limit_val_batches=0)


def test_a_validation_loss_that_is_not_logged_is_refused(quiet: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'val/nll', logged are .*'val/loss'.*monitor="):
        fit(quiet, AugmentationSchedule(ByGap(monitor="val/nll")))


@pytest.mark.parametrize("given", [float("nan"), "a", None], ids=repr)
def test_a_strength_that_is_no_number_is_refused(given: Any, quiet: dict[str, Any]) -> None:
    said = rf"must be a finite number, the schedule gave {given!r} for epoch 0\. Look"
    with pytest.raises(ValueError, match=said):
        fit(quiet, AugmentationSchedule(lambda epoch: given))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 1 epoch, got 0.*none is needed"):
        Ramp(0)
    with pytest.raises(ValueError, match=r"low <= high, step > 0.*got 0\.3, 0\.15.*defaults"):
        ByGap(low=0.3)


@pytest.mark.parametrize("given", [0.5, "x", None])
def test_a_schedule_that_is_no_function_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a function of the epoch.*got .*set it in the tr"):
        AugmentationSchedule(given)
