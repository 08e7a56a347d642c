"""Lesion segmentation in small 3-D volumes. MONAI dictionary transforms, CacheDataset, U-Net."""

import glob
import os

import numpy as np
import pytorch_lightning as pl
import torch
from monai.data import CacheDataset, DataLoader, decollate_batch, list_data_collate
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscrete,
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandLambdad,
    ScaleIntensityRanged,
)

PATCH = (16, 16, 16)


def make_volumes(data_dir, n=10, size=24):
    """Blobs in noise, until the data agreement is signed."""
    os.makedirs(data_dir, exist_ok=True)
    rng = np.random.RandomState(0)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"))
    for i in range(n):
        center = rng.randint(6, size - 6, size=3).reshape(3, 1, 1, 1)
        label = (((grid - center) ** 2).sum(0) < rng.randint(9, 30)).astype(np.uint8)
        image = rng.randn(size, size, size) * 60 - 100 + 150 * label
        np.save(f"{data_dir}/case_{i:02d}_label.npy", label)
        np.save(f"{data_dir}/case_{i:02d}_image.npy", image.astype(np.float32))


class LesionDataModule(pl.LightningDataModule):
    def __init__(self, data_dir="volumes", batch_size=2, num_workers=2):
        super().__init__()
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.num_workers = num_workers

    def prepare_data(self):
        if len(glob.glob(f"{self.data_dir}/*_image.npy")) < 10:
            make_volumes(self.data_dir)

    def setup(self, stage=None):
        images = sorted(glob.glob(f"{self.data_dir}/*_image.npy"))
        files = [{"image": f, "label": f.replace("_image", "_label")} for f in images]
        np.random.shuffle(files)
        load = [
            LoadImaged(keys=["image", "label"], reader="NumpyReader"),
            EnsureChannelFirstd(keys=["image", "label"], channel_dim="no_channel"),
            ScaleIntensityRanged(keys="image", a_min=-300, a_max=300, b_min=0, b_max=1, clip=True),
        ]
        augment = [
            RandCropByPosNegLabeld(
                keys=["image", "label"],
                label_key="label",
                spatial_size=PATCH,
                pos=2,
                neg=1,
                num_samples=2,
            ),
            RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=0),
            RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=1),
            RandAffined(
                keys=["image", "label"],
                prob=0.5,
                rotate_range=(0.2, 0.2, 0.2),
                scale_range=(0.1, 0.1, 0.1),
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            RandGaussianNoised(keys="image", prob=0.3, std=0.05),
            RandLambdad(keys="image", prob=0.5, func=lambda x: x * np.random.uniform(0.8, 1.2)),
        ]
        self.train_ds = CacheDataset(
            files[:-2],
            Compose([*load, *augment, EnsureTyped(keys=["image", "label"])]),
            progress=False,
        )
        self.val_ds = CacheDataset(files[-2:], Compose(load), progress=False)

    def train_dataloader(self):
        return DataLoader(
            self.train_ds,
            batch_size=self.batch_size,
            shuffle=True,
            num_workers=self.num_workers,
            collate_fn=list_data_collate,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self):
        return DataLoader(self.val_ds, batch_size=1, num_workers=0)


class LesionSegmenter(pl.LightningModule):
    def __init__(self, lr=2e-3):
        super().__init__()
        self.save_hyperparameters()
        self.model = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=2,
            channels=(4, 8, 16),
            strides=(2, 2),
            num_res_units=1,
            norm="batch",
            dropout=0.1,
        )
        self.loss_fn = DiceCELoss(to_onehot_y=True, softmax=True)
        self.post_pred = AsDiscrete(argmax=True, to_onehot=2)
        self.post_label = AsDiscrete(to_onehot=2)
        self.train_dice = DiceMetric(include_background=False, reduction="mean")
        self.val_dice = DiceMetric(include_background=False, reduction="mean")
        self.best_dice, self.best_epoch = 0, 0
        self.dice_values = []

    def forward(self, x):
        return self.model(x)

    def _dice(self, metric, logits, labels):
        preds = [self.post_pred(i) for i in decollate_batch(logits.float())]
        labels = [self.post_label(i) for i in decollate_batch(labels)]
        metric(y_pred=preds, y=labels)

    def training_step(self, batch, batch_idx):
        images, labels = batch["image"], batch["label"]
        logits = self(images)
        loss = self.loss_fn(logits, labels)
        self._dice(self.train_dice, logits.detach(), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=images.shape[0])
        if labels.sum() > 0.02 * labels.numel():
            # most patches hardly hold any lesion
            self.log(
                "train_loss_big_lesion",
                loss,
                on_step=False,
                on_epoch=True,
                batch_size=images.shape[0],
            )
        return loss

    def on_train_epoch_end(self):
        self.log("train_dice", self.train_dice.aggregate().item())
        self.train_dice.reset()

    def validation_step(self, batch, batch_idx):
        logits = sliding_window_inference(batch["image"], PATCH, 4, self.forward)
        self.log("val_loss", self.loss_fn(logits, batch["label"]), batch_size=1)
        self._dice(self.val_dice, logits, batch["label"])

    def on_validation_epoch_end(self):
        dice = self.val_dice.aggregate().item()
        self.val_dice.reset()
        if dice > self.best_dice:
            self.best_dice = dice
            self.best_epoch = self.current_epoch
        self.dice_values.append(dice)
        self.log("val_dice", dice)
        self.log("val_dice_best", self.best_dice)
        self.log("val_dice_mean_last3", float(np.mean(self.dice_values[-3:])))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=0.05
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss_epoch"},
        }
