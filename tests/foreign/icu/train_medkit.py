import sys

import pytorch_lightning as pl
import torch
from icu_risk import ICUDataModule, RiskNet
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from medkit.trainer import keyed, stable_trainer, start_run

out = sys.argv[1]
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 42
pl.seed_everything(seed, workers=True)
run = start_run(out, seed=seed)

dm = keyed(ICUDataModule())
with run.init("fit"):
    model = RiskNet()
cfg = dict(
    max_epochs=6,
    accelerator="cpu",
    deterministic=True,
    gradient_clip_val=1.0,
    log_every_n_steps=5,
    logger=CSVLogger(out, name="", version=""),
    callbacks=[
        ModelCheckpoint(f"{out}/last", every_n_train_steps=5, save_last=True),
        ModelCheckpoint(f"{out}/best", monitor="val_auc", mode="max", filename="best"),
    ],
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer = stable_trainer(run, checkpoint_every_n_steps=4, **cfg)
trainer.fit(model, dm, ckpt_path=run.resume("fit"))
torch.save(model.state_dict(), f"{out}/final.pt")
