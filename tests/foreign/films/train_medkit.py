#!/usr/bin/env python
import argparse

import pytorch_lightning as pl
import torch
from film_classifier import FilmData, FilmNet
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from medkit.trainer import keyed, stable_trainer, start_run

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("seed", type=int, nargs="?", default=1)
parser.add_argument("--epochs", type=int, default=8)
args = parser.parse_args()

pl.seed_everything(args.seed, workers=True)
run = start_run(args.out, seed=args.seed)
data = keyed(FilmData())
with run.init("fit"):
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
trainer = stable_trainer(run, max_epochs=args.epochs, checkpoint_every_n_steps=2, **kwargs)
trainer.fit(net, data, ckpt_path=run.resume("fit"))
torch.save(net.state_dict(), args.out + "/final.pt")
trainer.test(net, data, ckpt_path=best.best_model_path)
