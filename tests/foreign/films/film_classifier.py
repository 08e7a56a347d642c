"""Chest film classifier on a folder of PNGs: normal/ and effusion/. Small CNN, balanced sampler."""

import math
import os
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import torchmetrics
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

CLASSES = ["normal", "effusion"]


def make_folder(root, n=(90, 24), size=32):
    rng = np.random.default_rng(7)
    yy, xx = np.mgrid[:size, :size]
    for k, name in enumerate(CLASSES):
        os.makedirs(os.path.join(root, name), exist_ok=True)
        for i in range(n[k]):
            img = 90 + 40 * np.cos((xx - size / 2) / 6) + rng.normal(0, 20, (size, size))
            if k == 1:
                img[yy > size - rng.integers(5, 12)] += 60
            Image.fromarray(img.clip(0, 255).astype(np.uint8)).save(f"{root}/{name}/{i:03d}.png")


def random_erase(img, p=0.5, size=8):
    if torch.rand(1) < p:
        top, left = (torch.randint(0, s - size, (1,)).item() for s in img.shape[-2:])
        img[..., top : top + size, left : left + size] = torch.randn(1)
    return img


def random_augment(img):
    if torch.rand(1).item() > 0.5:
        img = torch.flip(img, dims=[-1])
    dy, dx = torch.randint(-3, 4, (2,)).tolist()
    img = torch.roll(img, (dy, dx), dims=(-2, -1))
    img = img * torch.empty(1).uniform_(0.8, 1.2) + 0.05 * torch.randn_like(img)
    return random_erase(img)


class FilmFolder(Dataset):
    def __init__(self, root, files, transform=None):
        self.root, self.files, self.transform = root, files, transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        path = self.files[i]
        img = np.array(Image.open(path).convert("L"), dtype=np.float32) / 255.0
        img = torch.from_numpy(img)[None]
        if self.transform:
            img = self.transform(img)
        return {"img": img, "label": CLASSES.index(path.parent.name), "path": str(path.name)}


class FilmData(pl.LightningDataModule):
    def __init__(self, root="films", bs=8):
        super().__init__()
        self.root, self.bs = root, bs
        if not os.path.isdir(root):
            make_folder(root)

    def setup(self, stage):
        files = sorted(Path(self.root).rglob("*.png"))
        perm = torch.randperm(len(files)).tolist()
        n_val = len(files) // 5
        if stage == "fit":
            self.train = FilmFolder(self.root, [files[i] for i in perm[n_val:]], random_augment)
        self.val = FilmFolder(self.root, [files[i] for i in perm[:n_val]])

    def train_dataloader(self):
        labels = [CLASSES.index(f.parent.name) for f in self.train.files]
        counts = np.bincount(labels)
        weights = [1.0 / counts[label] for label in labels]
        sampler = WeightedRandomSampler(weights, num_samples=len(weights), replacement=True)
        return DataLoader(self.train, batch_size=self.bs, sampler=sampler, drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=self.bs * 2)

    test_dataloader = val_dataloader


class FilmNet(pl.LightningModule):
    def __init__(self, lr=0.01, warmup=6):
        super().__init__()
        self.lr, self.warmup = lr, warmup
        self.features = nn.Sequential(
            self._block(1, 8), self._block(8, 16), self._block(16, 16), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.4), nn.Linear(16, len(CLASSES)))
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
        metrics = torchmetrics.MetricCollection(
            {
                "acc": torchmetrics.Accuracy("multiclass", num_classes=2),
                "auroc": torchmetrics.AUROC("multiclass", num_classes=2),
            }
        )
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.train_acc = torchmetrics.Accuracy("multiclass", num_classes=2)

    @staticmethod
    def _block(cin, cout):
        return nn.Sequential(
            nn.Conv2d(cin, cout, 3, padding=1),
            nn.BatchNorm2d(cout),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.1),
        )

    def forward(self, x):
        return self.head(self.features(x))

    def shared_step(self, batch, stage):
        logits = self(batch["img"])
        loss = self.criterion(logits, batch["label"])
        self.log(f"{stage}/loss", loss, on_epoch=True, on_step=stage == "train")
        return loss, logits.softmax(-1)

    def training_step(self, batch, batch_idx):
        loss, probs = self.shared_step(batch, "train")
        self.train_acc(probs, batch["label"])
        self.log("train/running_acc", self.train_acc, on_step=True, on_epoch=True)
        self.train_metrics.update(probs, batch["label"])
        return loss

    def on_train_epoch_end(self):
        self.log_dict(self.train_metrics.compute())
        self.train_metrics.reset()

    def validation_step(self, batch, batch_idx):
        _, probs = self.shared_step(batch, "val")
        self.val_metrics.update(probs, batch["label"])
        self.log_dict(self.val_metrics, on_step=False, on_epoch=True)

    def test_step(self, batch, batch_idx):
        self.shared_step(batch, "test")

    def configure_optimizers(self):
        opt = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True)

        def schedule(step):
            return (
                (step + 1) / self.warmup if step < self.warmup else 0.5 + 0.5 * math.cos(step / 9)
            )

        return [opt], [
            {"scheduler": torch.optim.lr_scheduler.LambdaLR(opt, schedule), "interval": "step"}
        ]
