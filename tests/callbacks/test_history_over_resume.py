"""What keeps a history, in Lightning or in somebody's own code, is as it was after a resume."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Sampler, Subset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from benchmarks._kills import Kill
from tests.callbacks.small import Data, Films, Net, Train, after_kills, training

FEW = (Kill("batch_end", 9), Kill("validation", 3))


# ---- what Lightning keeps: schedulers, optimizers, loops, callbacks


class Scheduled(Net):
    """Takes its scheduler from ``make``."""

    make: Any

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return {"optimizer": optimizer, "lr_scheduler": self.make(optimizer)}


class OneCycle(Scheduled):
    def make(self, optimizer: Any) -> Any:
        total = int(self.trainer.estimated_stepping_batches)
        return {"scheduler": lr_scheduler.OneCycleLR(optimizer, 1e-2, total), "interval": "step"}


class WarmUp(Scheduled):
    def make(self, optimizer: Any) -> Any:
        parts = [
            lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
            lr_scheduler.CosineAnnealingLR(optimizer, 14),
        ]
        return {"scheduler": lr_scheduler.SequentialLR(optimizer, parts, [4]), "interval": "step"}


class Plateau(Scheduled):
    monitor, interval = "val/loss", "epoch"

    def make(self, optimizer: Any) -> Any:
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7, threshold=0.5)
        return {
            "scheduler": plateau,
            "monitor": self.monitor,
            "interval": self.interval,
            "frequency": 2,
            "strict": False,
        }


class PlateauOnTrainLoss(Plateau):
    monitor = "train/loss"


class PlateauByStep(Plateau):
    monitor, interval = "train/now", "step"

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train/now", loss, on_step=True, on_epoch=False)
        return loss


class ByHand(Net):
    """Two optimizers and schedulers; the first gathers gradients over two batches."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        out = self.net(batch[0])
        self.manual_backward(F.cross_entropy(out, batch[1]) + 0.1 * self.critic(out).mean())
        if batch_idx % 2:
            first.step()
            first.zero_grad()
        second.zero_grad()
        self.manual_backward(self.critic(out.detach()).square().mean())
        second.step()
        self.lr_schedulers()[0].step()

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers()[1].step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam(self.net.parameters(), lr=1e-2)
        second = torch.optim.SGD(self.critic.parameters(), lr=0.1, momentum=0.9)
        schedulers = [lr_scheduler.CosineAnnealingLR(first, 20), lr_scheduler.StepLR(second, 2)]
        return [first, second], schedulers


class SteppedByHand(Net):
    """Keeps a scheduler that Lightning knows nothing of."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        self.rate = lr_scheduler.StepLR(optimizer, 2, gamma=0.8)
        return optimizer

    def on_train_batch_end(self, *_: Any) -> None:
        self.rate.step()


class Frozen(BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=1e-3)


class HeadFirst(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


class LSTM(Net):
    """Its flat weights are a list of parameters, and must stay those."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 2)

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.head(self.lstm(batch[0][:, 0])[0][:, -1]), batch[1])


class SkipsTheRest(Net):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 4 and self.current_epoch == 1 else None


class Pair(Data):
    """Two training loaders of different length."""

    mode = "max_size_cycle"

    def train_dataloader(self) -> Any:
        loaders = {
            "long": DataLoader(Films(), batch_size=8, shuffle=True),
            "short": DataLoader(Films(20), batch_size=8, shuffle=True),
        }
        return CombinedLoader(loaders, self.mode)  # type: ignore[arg-type]


class PairUsedUp(Pair):
    mode = "max_size"


class OfPairs(Net):
    def loss(self, batch: Any) -> Tensor:
        if not isinstance(batch, dict):
            return super().loss(batch)
        short = 0.0 if batch["short"] is None else super().loss(batch["short"])
        return super().loss(batch["long"]) + 0.5 * short


class OtherRowsEachEpoch(Data):
    def train_dataloader(self) -> Any:
        rows = np.random.permutation(48)[:40].tolist()  # noqa: NPY002
        return DataLoader(Subset(Films(), rows), batch_size=8, shuffle=True)


class NoValidation(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Films(), batch_size=8, shuffle=True)


class TrainOnly(Net):
    validation_step = None  # type: ignore[assignment]


class WaitsToStop(Net):
    """Its metric first gives up and then gets better: an early stop that waits for min_epochs."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/made_up", torch.tensor([5.0, 6.0, 1.0, 0.5, 0.4][self.current_epoch]))


def stop_early(patience: int, **options: Any) -> Any:
    return lambda: [EarlyStopping(patience=patience, **options)]


LIGHTNING: dict[str, Train] = {
    "one cycle by estimated_stepping_batches": training(OneCycle, accumulate_grad_batches=4),
    "a warm-up in two schedulers": training(WarmUp),
    "a plateau scheduler every second epoch": training(Plateau, epochs=4),
    "a plateau scheduler on the mean of a resumed epoch": training(PlateauOnTrainLoss, epochs=4),
    "a plateau scheduler by step": training(PlateauByStep),
    "manual optimisation with gathered gradients": training(ByHand),
    "a scheduler stepped by hand": training(SteppedByHand),
    "layers frozen for an epoch": training(HeadFirst, callbacks=lambda: [Frozen()]),
    "an LSTM": training(LSTM),
    "the rest of an epoch skipped": training(SkipsTheRest),
    "two loaders, the shorter cycled": training(OfPairs, Pair),
    "two loaders, the shorter used up": training(OfPairs, PairUsedUp),
    "loaders made anew each epoch": training(
        data=OtherRowsEachEpoch, reload_dataloaders_every_n_epochs=1
    ),
    "loaders made anew every second epoch": training(
        data=OtherRowsEachEpoch, reload_dataloaders_every_n_epochs=2, epochs=4
    ),
    "validation every second epoch": training(check_val_every_n_epoch=2, epochs=4),
    "validation in mid-epoch": training(val_check_interval=0.5),
    "validation by batches over epochs": training(
        val_check_interval=4, check_val_every_n_epoch=None
    ),
    "accumulation that ends amid an epoch": training(accumulate_grad_batches=4),
    "accumulation on a schedule": training(
        callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})]
    ),
    "clipped gradients": training(gradient_clip_val=0.1),
    "no sanity check": training(num_sanity_val_steps=0),
    "a running mean in bfloat16": training(precision="bf16-mixed"),
    "averaging that begins late": training(
        callbacks=lambda: [EMAWeightAveraging(decay=0.9, update_starting_at_step=4)],
        val_check_interval=0.5,
    ),
    "an early stop that waits for min_epochs": training(
        WaitsToStop,
        callbacks=stop_early(1, monitor="val/made_up"),
        min_epochs=4,
        epochs=5,
    ),
}


@pytest.mark.parametrize("name", LIGHTNING)
def test_lightning_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path) -> None:
    assert after_kills(LIGHTNING[name], tmp_path, FEW) == {}


def test_it_goes_on_without_validation(tmp_path: Path) -> None:
    kills = [Kill("batch_end", 4), Kill("epoch_end", 2)]
    assert after_kills(training(TrainOnly, NoValidation), tmp_path, kills) == {}


@pytest.mark.parametrize(
    "limit", [{"max_steps": 11}, {"limit_train_batches": 4}, {"overfit_batches": 3}]
)
def test_it_stops_where_the_whole_fit_stops(limit: dict[str, int], tmp_path: Path) -> None:
    kills = [Kill("batch_end", 2), Kill("batch_end", 7)]
    assert after_kills(training(**limit), tmp_path, kills) == {}


def test_an_early_stop_comes_at_the_same_epoch(tmp_path: Path) -> None:
    train = training(callbacks=stop_early(1, monitor="val/loss", min_delta=0.01), epochs=12)
    assert after_kills(train, tmp_path, [Kill("batch_end", 4)]) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"monitor": "val/loss"},
        {"monitor": "val/loss", "save_top_k": 2, "filename": "{epoch}-{step}"},
        {"save_top_k": -1, "every_n_train_steps": 1, "save_last": True},
    ],
)
def test_the_best_checkpoints_have_the_same_names(options: dict[str, Any], tmp_path: Path) -> None:
    def names(trainer: pl.Trainer) -> None:
        best: Any = trainer.checkpoint_callback
        there = sorted(path.name for path in Path(best.dirpath).iterdir())
        said = [Path(best.best_model_path).name, *there]
        # into a file that is compared
        with (Path(best.dirpath).parent / "metrics.csv").open("a") as log:
            log.write(",".join(said))

    train = training(callbacks=lambda: [ModelCheckpoint(**options)], ending=names)
    kills = [*FEW, Kill("epoch_end", 1), Kill("epoch_end", 3)]
    assert after_kills(train, tmp_path, kills) == {}


# ---- what people keep in their own modules and callbacks


class RunningLoss(Net):
    """Keeps numbers in every kind of container, and weighs its loss by them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 1.0
        self.array, self.single = np.zeros(3), np.float32(1)
        self.counts: defaultdict[Any, int] = defaultdict(int)
        self.kinds: Counter[str] = Counter()
        self.last: deque[float] = deque(maxlen=4)
        self.all: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        now = float(loss)
        self.seen = 0.9 * self.seen + now
        self.array = 0.9 * self.array + now
        self.single = self.single * np.float32(0.93) + np.float32(now)
        self.counts[batch_idx % 3] += 1
        self.kinds[f"kind {batch_idx}"] += 1
        self.last.append(now)
        self.all.append(loss.detach())
        weight = self.seen + self.array.sum() + float(self.single) + self.counts[batch_idx % 2]
        return loss * float(weight + sum(self.last) + self.kinds["kind 0"] + sum(self.all))


class Meter:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: float) -> float:
        self.total, self.count = self.total + value, self.count + 1
        return self.total / self.count


class WithMeters(Net):
    def __init__(self) -> None:
        super().__init__()
        self.meter, self.meters = Meter(), {"odd": Meter(), "even": Meter()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        which = self.meters["odd" if batch_idx % 2 else "even"]
        return loss * self.meter.add(float(loss)) * which.add(float(loss))


class BeginsAnew(Net):
    """Sets itself up as a fit begins, which a resume must not undo."""

    def on_train_start(self) -> None:
        self.seen = 1.0
        self.optimizers().param_groups[0]["lr"] = 2e-2

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.seen = 0.9 * self.seen + float(loss)
        self.optimizers().param_groups[0]["lr"] *= 0.99
        return loss * self.seen


class Teacher(Net):
    """Copies the net into its teacher as a fit begins."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def on_train_start(self) -> None:
        self.teacher.load_state_dict(self.net.state_dict())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch) + F.mse_loss(self.net(batch[0]), self.teacher(batch[0]))

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        for mine, net in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            mine.lerp_(net, 0.1)


class Centred(Net):
    """Keeps a running centre in a buffer that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(2), persistent=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self.net(batch[0])
        self.centre.lerp_(out.detach().mean(dim=0), 0.1)
        return F.cross_entropy(out - self.centre, batch[1])


class OverGraph(Net):
    """Smooths its outputs over a graph of patients, a sparse matrix whose values it learns by."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = torch.eye(100).to_sparse()
        self.register_buffer("rows", torch.eye(8).to_sparse_csr(), persistent=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self.net(batch[0])
        self.graph = self.graph * (1 + 0.01 * float(out.detach().mean()))
        smooth = torch.sparse.mm(self.rows, out) * self.graph._values()[0]
        return F.cross_entropy(smooth, batch[1])


class Hidden(Net):
    """Keeps a metric and a normalisation where no state dict finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics, self.norms = [MeanMetric()], {"last": nn.BatchNorm1d(2)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self.norms["last"](self.net(batch[0]))
        self.metrics[0].update(float(out.abs().sum()))
        return F.cross_entropy(out, batch[1]) * self.metrics[0].compute()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/shift", self.norms["last"].running_mean.sum())


class LogsSometimes(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 0:
            self.log("train/first", loss, on_step=False, on_epoch=True)
        self.log("train/worst", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("train/both", loss, on_step=True, on_epoch=True)
        return loss


class WithMetric(Net):
    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self.net(batch[0])
        self.accuracy(out, batch[1])
        self.log("train/accuracy", self.accuracy, on_step=True, on_epoch=True)
        return F.cross_entropy(out, batch[1])


class LowersTheRate(pl.Callback):
    """Counts batches as they begin: at a boundary it has not done its part in the next."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches += 1
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= 0.97 if self.batches % 2 else 0.99


class KeepsHalf(LowersTheRate):
    """Has a state_dict of its own, that forgets what it counts."""

    def state_dict(self) -> dict[str, Any]:
        return {"something": np.float32(0.1)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.something = state_dict["something"]


class OwnAverage(pl.Callback):
    """Keeps a copy of the net that belongs to no module."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.average = copy.deepcopy(pl_module.net)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        for mine, net in zip(self.average.parameters(), pl_module.net.parameters(), strict=True):
            mine.lerp_(net, 0.2)
            net.lerp_(mine, 0.05)


class OwnNoise(pl.Callback):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, *_: Any
    ) -> None:
        batch[0].add_(0.1 * float(self.rng.normal()))


class NoiseOnTheDevice(Net):
    """Augments the batch once it is moved, which is before its step begins."""

    def __init__(self) -> None:
        super().__init__()
        self.rng, self.own = np.random.default_rng(3), torch.Generator().manual_seed(1)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not self.trainer.training:
            return batch
        noise = torch.randn(batch[0].shape, generator=self.own) + torch.randn_like(batch[0])
        return batch[0] + 0.1 * noise + 0.1 * float(self.rng.normal()), batch[1]


class OwnEpoch(Sampler[int]):
    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 48

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng(self.epoch).permutation(48).tolist())


class SampledByEpoch(Data):
    def train_dataloader(self) -> Any:
        return DataLoader(Films(), batch_size=8, sampler=OwnEpoch())


class MakesItLate(Films):
    """Makes its generator when it is first asked, as many do in a worker."""

    rng: np.random.Generator | None = None

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        if self.rng is None:
            self.rng = np.random.default_rng(torch.initial_seed() % 2**32)
        image, y = super().__getitem__(row)
        return image + float(self.rng.normal()), y


class Late(Data):
    def train_dataloader(self) -> Any:
        return DataLoader(MakesItLate(), batch_size=8, shuffle=True)


PEOPLE: dict[str, Train] = {
    "numbers in every kind of container": training(RunningLoss),
    "helper objects": training(WithMeters),
    "a module that begins anew in on_train_start": training(BeginsAnew),
    "a teacher copied in on_train_start": training(Teacher),
    "a buffer that is not persistent": training(Centred),
    "sparse matrices": training(OverGraph),
    "modules in a list and a dict": training(Hidden),
    "metrics logged at some batches only": training(LogsSometimes),
    "a torchmetric over an epoch": training(WithMetric, accumulate_grad_batches=4),
    "a callback that counts batches as they begin": training(callbacks=lambda: [LowersTheRate()]),
    "a callback with half a state": training(callbacks=lambda: [KeepsHalf()]),
    "a callback with a net of its own": training(callbacks=lambda: [OwnAverage()]),
    "a callback with a generator of its own": training(callbacks=lambda: [OwnNoise()]),
    "augmentation on the device": training(NoiseOnTheDevice),
    "a sampler that wants to know the epoch": training(data=SampledByEpoch),
    "a generator made at the first fetch": training(data=Late),
}


@pytest.mark.parametrize("name", PEOPLE)
def test_other_peoples_code_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path) -> None:
    assert after_kills(PEOPLE[name], tmp_path, FEW) == {}
