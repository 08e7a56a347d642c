#!/usr/bin/env python
import argparse

import pytorch_lightning as pl
import torch
from film_classifier import FilmData, FilmNet
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("seed", type=int, nargs="?", default=1)
parser.add_argument("--epochs", type=int, default=8)
args = parser.parse_args()

pl.seed_everything(args.seed, workers=True)
data = FilmData()
net = FilmNet(lr=0.02)

checkpoint = ModelCheckpoint(args.out + "/last", every_n_train_steps=2, save_last=True)
best = ModelCheckpoint(
    args.out + "/best", monitor="val/auroc", mode="max", filename="{epoch}-{step}"
)
stop = EarlyStopping("train/loss_epoch", patience=2, min_delta=0.01)

kwargs = dict(accelerator="cpu", deterministic=True, accumulate_grad_batches=3, log_every_n_steps=2)
kwargs.update(enable_progress_bar=False, enable_model_summary=False)
kwargs["logger"] = CSVLogger(args.out, name="", version="")
kwargs["callbacks"] = [checkpoint, best, stop]
trainer = pl.Trainer(max_epochs=args.epochs, **kwargs)
trainer.fit(net, data, ckpt_path="last")
torch.save(net.state_dict(), args.out + "/final.pt")
trainer.test(net, data, ckpt_path=best.best_model_path)
