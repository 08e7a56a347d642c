"""What is killed: a table and a small CNN, plain and with everything that keeps a history.

Also a script: ``python _subjects.py SUBJECT VARIANT RUN_DIR WORKERS DEVICES [PLACE NUMBER]`` trains
in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before torch: no thread may exist when a training is forked
warnings.filterwarnings("ignore")

import pytorch_lightning as pl
import torch
from _kills import Kill, KillAt
from monai.data import CacheDataset
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandSpatialCropd,
)
from monai.utils import set_determinism
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, WeightedRandomSampler

from medkit import keyed as keys
from medkit.data.ehr import EHRDataModule
from medkit.models.classifier import LitClassifier
from medkit.trainer import keyed, stable_trainer, start_run

for _name in ("pytorch_lightning", "lightning", "medkit"):
    logging.getLogger(_name).setLevel(logging.ERROR)

TABLE = Path(__file__).resolve().parent.parent / "data_samples" / "ehr" / "encounters.csv"
SEED, EPOCHS, BATCHES, POINT_EVERY = 7, 3, 12, 2
IMAGES, BATCH = 96, 8


class Images(pl.LightningDataModule):
    """Made-up images with a bright side, cropped, turned and made noisy by MONAI."""

    def __init__(self, *, rich: bool, num_workers: int) -> None:
        super().__init__()
        self.rich = rich
        self.num_workers = num_workers

    def setup(self, stage: str | None = None) -> None:
        """Make the images, and keep them as ``CacheDataset`` does."""
        rng = keys.generator(0, "synth", "images")
        noise = rng.normal(size=(IMAGES, 1, 14, 14)).astype("float32")
        self.y = [number % 3 == 0 for number in range(IMAGES)]
        for number, positive in enumerate(self.y):
            noise[number, 0, :, :5] += 0.8 * positive
        items = [
            {"image": torch.from_numpy(image), "y": int(positive), "row": number}
            for number, (image, positive) in enumerate(zip(noise, self.y, strict=True))
        ]
        augment = Compose(
            [
                RandFlipd("image", prob=0.5, spatial_axis=0),
                RandAffined("image", prob=0.5, rotate_range=0.3, padding_mode="zeros"),
                RandSpatialCropd("image", (12, 12), random_size=False),
                RandGaussianNoised("image", prob=0.5, std=0.2),
            ]
        )
        self.train_set = CacheDataset(items[:72], augment, progress=False)
        self.val_set = items[72:]

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, or drawn by weight."""
        weights = [3.0 if positive else 1.0 for positive in self.y[:72]]
        sampler = WeightedRandomSampler(weights, 72) if self.rich else None
        return DataLoader(
            self.train_set,
            BATCH,
            sampler=sampler,
            shuffle=not self.rich,
            num_workers=self.num_workers,
            collate_fn=_stack,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return DataLoader(self.val_set, BATCH, collate_fn=_stack)


def _stack(items: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
    # MONAI's tensors carry affine matrices that nobody needs here
    images = torch.stack([torch.as_tensor(item["image"]).as_subclass(Tensor) for item in items])
    return images, torch.tensor([i["y"] for i in items]), torch.tensor([i["row"] for i in items])


class LitCNN(pl.LightningModule):
    """Two convolutions with BatchNorm, dropout, and a rate that moves with every step."""

    def __init__(self, *, dropout: float, total_steps: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.total_steps = total_steps
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(32, 2),
        )

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss, and log its running mean."""
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log the loss."""
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("val/loss", loss, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        """AdamW under one cycle."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class RowsSeen(pl.Callback):
    """Write which rows each optimizer step of this process was made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[list[Any]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the rows."""
        self.seen.append([trainer.global_step, batch[2].tolist()])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write them."""
        path = self.folder / f"rows-{trainer.global_rank}.json"
        path.write_text(json.dumps(self.seen))


def data_of(subject: str, *, rich: bool, workers: int, devices: int = 1) -> pl.LightningDataModule:
    """Return the DataModule of a subject."""
    if subject == "cnn":
        return Images(rich=rich, num_workers=workers)
    return EHRDataModule(
        TABLE,
        target="died",
        site="site",
        draws="balanced" if rich else "shuffled",
        batch_size=64 // devices,
        num_workers=workers,
    )


def module_of(subject: str, data: pl.LightningDataModule, *, rich: bool) -> pl.LightningModule:
    """Return the module of a subject; its data are set up."""
    if subject == "cnn":
        steps = EPOCHS * -(-72 // BATCH) if not rich else EPOCHS * -(-(72 // BATCH) // 4)
        return LitCNN(dropout=0.3 if rich else 0.0, total_steps=steps)
    assert isinstance(data, EHRDataModule)
    arguments = {"inputs": data.num_features, "dropout": 0.3 if rich else 0.0}
    return LitClassifier("medkit.models.nets:mlp", arguments, total_steps=EPOCHS * BATCHES)


def options_of(subject: str, *, rich: bool, devices: int = 1) -> dict[str, Any]:
    """Return Trainer arguments, the same for the kit and for stock Lightning."""
    options: dict[str, Any] = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "devices": devices,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
        "limit_train_batches": BATCHES,
        "accumulate_grad_batches": 4 if rich else 1,
    }
    if devices > 1:
        options["strategy"] = "ddp"
    return options


def train(
    subject: str, run_dir: Path, kill: Kill | None, *, rich: bool, workers: int, devices: int = 1
) -> None:
    """Train with the kit, from the start or from where a kill left it."""
    run = start_run(run_dir, seed=SEED)
    data = keyed(data_of(subject, rich=rich, workers=workers, devices=devices))
    data.setup("fit")
    with run.init("fit"):
        module = module_of(subject, data, rich=rich)
    callbacks: list[pl.Callback] = [EMAWeightAveraging(decay=0.9)] if rich else []
    trainer = stable_trainer(
        run,
        checkpoint_every_n_steps=POINT_EVERY,
        callbacks=[*callbacks, RowsSeen(run.dir), KillAt(kill)],
        **options_of(subject, rich=rich, devices=devices),
    )
    trainer.fit(module, data, ckpt_path=run.resume("fit"))
    if trainer.is_global_zero:
        found = trainer.callback_metrics.items()
        run.metrics({f"end/{name}": float(value) for name, value in found})
    run.finish()


def train_stock(
    subject: str, run_dir: Path, kill: Kill | None, *, rich: bool, workers: int
) -> None:
    """Train with Lightning alone, resumed the way a competent person writes it."""
    pl.seed_everything(SEED, workers=True, verbose=False)
    set_determinism(SEED)  # MONAI's own generators
    data = data_of(subject, rich=rich, workers=workers)
    data.setup("fit")
    module = module_of(subject, data, rich=rich)
    points = ModelCheckpoint(run_dir, every_n_train_steps=POINT_EVERY, save_last=True)
    callbacks: list[pl.Callback] = [EMAWeightAveraging(decay=0.9)] if rich else []
    trainer = pl.Trainer(
        callbacks=[*callbacks, KillAt(kill), points],
        deterministic=True,
        logger=False,
        enable_model_summary=False,
        **options_of(subject, rich=rich),
    )
    last = run_dir / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.exists() else None)
    trainer.save_checkpoint(run_dir / "end.ckpt")


if __name__ == "__main__":
    _, _subject, _variant, _run_dir, _workers, _devices, *_kill = sys.argv
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(0, int(os.environ.get("LOCAL_GROUP", "0")))
    os.environ["LOCAL_GROUP"] = str(os.getpgid(0))  # ranks that Lightning starts die together
    train(
        _subject,
        Path(_run_dir),
        Kill(_kill[0], int(_kill[1])) if _kill else None,
        rich=_variant == "rich",
        workers=int(_workers),
        devices=int(_devices),
    )
