"""Small trainings that keep a history wherever they can, to be killed and compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks._kills import Kill, KillAt, differing, outcome, until_done
from medkit.trainer import keyed, stable_trainer, start_run

BATCHES, EPOCHS = 6, 3
Train = Callable[[Path, Kill | None], None]

# a batch's boundaries, its middle, validation, an epoch's end, and before the first point
KILLS = (
    Kill("batch_start", 1),
    Kill("batch_end", 3),
    Kill("backward", 8),
    Kill("validation", 3),
    Kill("epoch_end", 3),
)


class Films(Dataset[tuple[Tensor, Tensor]]):
    """Images made noisy by all three global generators."""

    def __init__(self, rows: int = 8 * BATCHES) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(1, 6, 6) + np.random.rand() + random.random()  # noqa: NPY002
        return torch.full((1, 6, 6), row / 80) + 0.1 * noise, torch.tensor(row % 2)


class Data(pl.LightningDataModule):
    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self) -> Any:
        return DataLoader(Films(), batch_size=8, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> Any:
        return DataLoader(Films(32), batch_size=16)


class Net(pl.LightningModule):
    """BatchNorm, dropout, AdamW, and a train metric averaged over the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(48, 2),
        )

    def loss(self, batch: Sequence[Tensor]) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def training(
    net: Callable[[], pl.LightningModule] = Net,
    data: Callable[[], Any] = Data,
    *,
    callbacks: Callable[[], list[pl.Callback]] = list,
    every: int | None = 1,
    epochs: int = EPOCHS,
    seed: int = 7,
    ending: Callable[[pl.Trainer], None] | None = None,
    **options: Any,
) -> Train:
    """Return a function that trains in a folder, from its start or from where it was cut."""

    def train(run_dir: Path, kill: Kill | None = None) -> None:
        run = start_run(run_dir, seed=seed)
        datamodule = keyed(data())
        with run.init("fit"):
            module = net()
        trainer = stable_trainer(
            run,
            max_epochs=epochs,
            checkpoint_every_n_steps=every,
            checkpoint_every_s=None,
            callbacks=[*callbacks(), KillAt(kill)],
            **{"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 2}
            | options,
        )
        trainer.fit(module, datamodule, ckpt_path=run.resume("fit"))
        found = trainer.callback_metrics.items()
        run.metrics({f"end/{name}": float(value) for name, value in found})
        if ending is not None:
            ending(trainer)
        run.finish()

    return train


def after_kills(train: Train, folder: Path, kills: Sequence[Kill] = KILLS) -> dict[str, list[str]]:
    """Return, for each kill after which something differed from the whole run, what did."""
    until_done(train, folder / "whole", [])
    whole = outcome(folder / "whole")
    wrong = {}
    for number, kill in enumerate(kills):
        happened = until_done(train, folder / str(number), [kill])
        found = differing(whole, outcome(folder / str(number)))
        if found or not happened:
            wrong[f"{kill.place} {kill.number}"] = found or ["it was not killed"]
    return wrong
