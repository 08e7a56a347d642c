import sys
import warnings

import pytorch_lightning as pl
import torch
from lesion_seg import LesionDataModule, LesionSegmenter
from monai.utils import set_determinism
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

warnings.filterwarnings("ignore")


def main(out, seed=0):
    set_determinism(seed)
    pl.seed_everything(seed, workers=True)
    model = LesionSegmenter()
    dm = LesionDataModule()
    last = ModelCheckpoint(dirpath=f"{out}/last", every_n_train_steps=3, save_last=True)
    best = ModelCheckpoint(dirpath=f"{out}/best", monitor="val_dice", mode="max", save_top_k=2)
    trainer_args = {
        "max_epochs": 6,
        "accelerator": "cpu",
        "precision": "bf16-mixed",
        "deterministic": True,
        "log_every_n_steps": 1,
        "logger": CSVLogger(out, name="", version=""),
        "callbacks": [last, best, LearningRateMonitor(logging_interval="epoch")],
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(**trainer_args)
    trainer.fit(model, datamodule=dm, ckpt_path="last")
    torch.save(model.state_dict(), f"{out}/final.pt")


if __name__ == "__main__":
    main(sys.argv[1], *[int(s) for s in sys.argv[2:]])
