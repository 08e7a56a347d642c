"""Mortality risk from the first 24 h on the ICU. MLP on a CSV, SMOTE-ish balancing, MixUp."""

import os
import random

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, Dataset, Subset, random_split

FEATURES = ["age", "heart_rate", "sbp", "lactate", "creatinine", "platelets", "gcs", "spo2"]


def make_csv(path, n=240):
    """A stand-in for the real extract, which we can't share."""
    rng = np.random.RandomState(1234)
    df = pd.DataFrame({f: rng.randn(n) * 10 + 50 for f in FEATURES})
    risk = 0.08 * (df.lactate - 50) - 0.06 * (df.gcs - 50) + 0.05 * (df.age - 50)
    df["died"] = (risk + rng.randn(n) > 1.0).astype(int)
    df.loc[rng.rand(n) < 0.2, "lactate"] = np.nan
    df.to_csv(path, index=False)


class AverageMeter:
    """Computes and stores the average and current value"""

    def __init__(self):
        self.reset()

    def reset(self):
        self.val = 0
        self.avg = 0
        self.sum = 0
        self.count = 0

    def update(self, val, n=1):
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


class ICUDataset(Dataset):
    def __init__(self, df, train=True, p_drop=0.1, p_smote=0.5):
        self.X = df[FEATURES].values.astype(np.float32)
        self.y = df["died"].values
        self.train = train
        self.p_drop = p_drop
        self.p_smote = p_smote
        self.minority = np.where(self.y == 1)[0]

    def __len__(self):
        return len(self.X)

    def __getitem__(self, idx):
        x = self.X[idx].copy()
        y = self.y[idx]
        if self.train:
            if y == 1 and random.random() < self.p_smote:
                other = self.X[np.random.choice(self.minority)]
                x = x + np.random.rand() * (other - x)
            x = x + np.random.normal(0, 0.05, size=x.shape)
            for j in range(len(x)):
                if random.random() < self.p_drop:
                    x[j] = 0.0
        return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


class ICUDataModule(pl.LightningDataModule):
    def __init__(self, csv_path="icu.csv", batch_size=16):
        super().__init__()
        self.csv_path = csv_path
        self.batch_size = batch_size

    def prepare_data(self):
        if not os.path.exists(self.csv_path):
            make_csv(self.csv_path)

    def setup(self, stage=None):
        df = pd.read_csv(self.csv_path)
        df[FEATURES] = df[FEATURES].fillna(df[FEATURES].median())
        df[FEATURES] = StandardScaler().fit_transform(df[FEATURES])
        n_val = len(df) // 4
        train, val = random_split(range(len(df)), [len(df) - n_val, n_val])
        self.train_ds = ICUDataset(df.iloc[list(train)], train=True)
        self.val_ds = Subset(ICUDataset(df, train=False), list(val))

    def train_dataloader(self):
        return DataLoader(self.train_ds, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_ds, batch_size=64)


class RiskNet(pl.LightningModule):
    def __init__(self, lr=3e-3, hidden=32, mixup_alpha=0.4):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(len(FEATURES), hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(hidden, 1),
        )
        self.train_loss = AverageMeter()
        self.smoothed = None
        self.train_preds, self.val_preds, self.val_targets = [], [], []
        self.best_auc = 0.0

    def forward(self, x):
        return self.net(x).squeeze(1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        # mixup on two batches out of three
        if random.random() < 0.66:
            lam = np.random.beta(self.hparams.mixup_alpha, self.hparams.mixup_alpha)
            perm = torch.randperm(x.size(0))
            x = lam * x + (1 - lam) * x[perm]
            y = lam * y + (1 - lam) * y[perm]
        logits = self(x + 0.01 * torch.randn_like(x))
        loss = F.binary_cross_entropy_with_logits(logits, y)
        self.train_loss.update(loss.item(), x.size(0))
        self.smoothed = (
            loss.item() if self.smoothed is None else 0.95 * self.smoothed + 0.05 * loss.item()
        )
        self.train_preds.append(torch.sigmoid(logits).detach())
        self.log("loss_smoothed", self.smoothed, prog_bar=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def on_train_epoch_start(self):
        # harder every epoch
        self.trainer.datamodule.train_ds.p_drop = 0.05 * (1 + self.current_epoch)

    def on_train_epoch_end(self):
        self.log("train_loss", self.train_loss.avg)
        self.log("train_mean_pred", torch.cat(self.train_preds).mean())
        self.train_loss.reset()
        self.train_preds.clear()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, y))
        self.val_preds.append(torch.sigmoid(logits))
        self.val_targets.append(y)

    def on_validation_epoch_end(self):
        preds = torch.cat(self.val_preds).cpu().numpy()
        targets = torch.cat(self.val_targets).cpu().numpy()
        if len(np.unique(targets)) > 1:
            auc = roc_auc_score(targets, preds)
            self.best_auc = max(self.best_auc, auc)
            self.log("val_auc", auc, prog_bar=True)
            self.log("best_auc", self.best_auc)
        self.val_preds.clear()
        self.val_targets.clear()

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=1e-2)
        sched = torch.optim.lr_scheduler.OneCycleLR(
            opt,
            max_lr=self.hparams.lr * 5,
            total_steps=int(self.trainer.estimated_stepping_batches),
        )
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}
