"""Two small trainings to be disturbed: a net for a table, and a CNN with BatchNorm for images.

Each as cells of a notebook that uses the kit, and as a script of stock Lightning that trains the
same net on the same data as a competent person would write it: seeded, clipped, with checkpoints
every few steps, and going on from the last of them when it is started again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from medkit import keyed as keys
from medkit.data.batches import Batch
from medkit.data.ehr import EHRDataModule
from medkit.models.classifier import LitClassifier
from medkit.synth.ehr import contract_yaml, make_hospitals

RECIPES = ("table", "images")
TABLE_SEED, REFERENCE_SEED = 20, 10  # two draws of the same hospitals
SIDE, BATCH = 12, 32
RANGES = {"table": "", "images": '{"x": (-8, 8)}'}  # a table's are in its contract

KNOBS = """\
{path}
max_epochs: int = {epochs}  # passes over the training rows
seed: int = 0  # initial weights, order, dropout
run_dir: str = ""  # where results go
quick: bool = False  # does nothing here
"""
TABLE_KNOBS = """\
csv_path: str = {table!r}  # one row per encounter
reference_path: str = {reference!r}  # a table of the same hospitals that is trusted
contract_path: str = {contract!r}  # what its columns must be
target: str = "died"  # column of the label
patient: str = "patient_id"  # column of patient ids"""
IMAGES_KNOBS = """\
rows: int = 640  # images to train on"""

SETUP = """\
from medkit.models.classifier import LitClassifier
from medkit.trainer import keyed, stable_trainer, start_run

run = start_run(run_dir, seed=seed, quick=quick, threads=1)
"""
TABLE = """\
from medkit.data.ehr import EHRDataModule
from medkit.study.faults_reference import compare_with

columns = {"target": target, "patient": patient, "site": "site", "contract": contract_path}
data = keyed(EHRDataModule(csv_path, **columns))
data.setup()
run.data(encounters=data.data_sha256)
compare_with(data, reference_path)
steps = max_epochs * data.batches_per_epoch
with run.init("fit"):
    net = {"net": "medkit.models.nets:mlp", "net_args": {"inputs": data.num_features}}
    model = LitClassifier(**net, lr=2e-3, total_steps=steps)
"""
IMAGES = """\
from _chaos_recipes import ImagesModule

data = keyed(ImagesModule(rows))
steps = max_epochs * -(-rows // data.batch_size)
with run.init("fit"):
    net = {"net": "medkit.models.nets:cnn2d", "net_args": {"width": 8}}
    model = LitClassifier(**net, lr=5e-3, total_steps=steps)
"""
FIT = """\
from medkit.callbacks.quarantine import Quarantine

trainer = stable_trainer(
    run, max_epochs=max_epochs, checkpoint_every_n_steps=10, checkpoint_every_s=None,
    gradient_clip_val=1.0, enable_progress_bar=False,
    spike_guard=True, quarantine=Quarantine({ranges}), memory_guard=True,
)
trainer.fit(model, data, ckpt_path=run.resume("fit"))
run.metrics({{name: float(trainer.callback_metrics[name]) for name in ("val/auroc", "val/loss")}})
"""


class Images(Dataset[Batch]):
    """Noisy images, half of them with a faint bright square somewhere."""

    def __init__(self, rows: int, part: str) -> None:
        draw = keys.generator(0, "images", part)
        self.y = (draw.random(rows) < 0.5).astype(np.int64)
        self.x = draw.normal(size=(rows, 1, SIDE, SIDE)).astype(np.float32)
        for row in np.flatnonzero(self.y):
            top, left = draw.integers(0, SIDE - 3, 2)
            self.x[row, 0, top : top + 3, left : left + 3] += 1.3

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Batch:
        x = torch.from_numpy(self.x[index])
        return Batch(x, torch.tensor(self.y[index]), torch.tensor(index), torch.tensor(0))


class ImagesModule(pl.LightningDataModule):
    """Training images by a worker process, validation images without."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.batch_size = BATCH
        self.train, self.val = Images(rows, "train"), Images(600, "val")

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled."""
        workers = {"num_workers": 1, "persistent_workers": True}
        return DataLoader(self.train, BATCH, shuffle=True, **workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return DataLoader(self.val, 300)


def epochs(recipe: str) -> int:
    """Return how long a recipe trains."""
    return 8 if recipe == "table" else 7


def write_tables(folder: Path) -> dict[str, str]:
    """Write the table, the trusted one and the contract; return their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "table.csv": make_hospitals(seed=TABLE_SEED).encounters_csv(),
        "reference.csv": make_hospitals(seed=REFERENCE_SEED).encounters_csv(),
        "contract.yaml": contract_yaml(),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {name.partition(".")[0]: str(folder / name) for name in texts}


def cells(recipe: str, paths: dict[str, str]) -> list[str]:
    """Return a notebook's code cells, parameters first."""
    path = TABLE_KNOBS.format(**paths) if recipe == "table" else IMAGES_KNOBS
    body = TABLE if recipe == "table" else IMAGES
    fit = FIT.format(ranges=RANGES[recipe])
    return [KNOBS.format(path=path, epochs=epochs(recipe)), SETUP, body, fit]


def write_notebook(recipe: str, folder: Path, paths: dict[str, str]) -> Path:
    """Write a recipe as a notebook."""
    knobs, *rest = cells(recipe, paths)
    nb = nbformat.v4.new_notebook()
    nb.cells.append(nbformat.v4.new_code_cell(knobs, metadata={"tags": ["parameters"]}))
    nb.cells += [nbformat.v4.new_code_cell(source) for source in rest]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, folder / f"{recipe}.ipynb")
    return folder / f"{recipe}.ipynb"


def stock(recipe: str, folder: Path, seed: int, csv_path: str, contract: str) -> dict[str, Any]:
    """Train by stock Lightning, from the last checkpoint where there is one."""
    pl.seed_everything(seed, workers=True, verbose=False)
    if recipe == "table":
        data: Any = EHRDataModule(
            csv_path, target="died", patient="patient_id", site="site", contract=contract
        )
        data.setup()
        steps, kind = epochs(recipe) * data.batches_per_epoch, "medkit.models.nets:mlp"
        net: dict[str, Any] = {"inputs": data.num_features}
    else:
        data = ImagesModule(640)
        steps, kind, net = epochs(recipe) * (640 // BATCH), "medkit.models.nets:cnn2d", {"width": 8}
    rate = 2e-3 if recipe == "table" else 5e-3
    model = LitClassifier(kind, net, lr=rate, total_steps=steps)
    keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=10)
    trainer = pl.Trainer(
        max_epochs=epochs(recipe),
        callbacks=[keep],
        logger=False,
        accelerator="cpu",
        deterministic=True,
        gradient_clip_val=1.0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = folder / "last.ckpt"
    trainer.fit(model, data, ckpt_path=str(last) if last.exists() else None)
    values = {n: float(trainer.callback_metrics[n]) for n in ("val/auroc", "val/loss")}
    return {"state": model.state_dict(), "metrics": values}
