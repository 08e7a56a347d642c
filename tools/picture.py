"""Draw docs/resume.svg, the README's picture: what a kill and a resume do to the weights.

One small net (BatchNorm, dropout, random augmentation), five seeds. Each is trained once without a
break and once killed by SIGKILL in mid-epoch and resumed, with stock Lightning (seed_everything,
ModelCheckpoint, ckpt_path) and with the kit's five lines. Drawn is the largest difference of any
weight to the unbroken run, step by step.

    python tools/picture.py
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import matplotlib as mpl
import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib import pyplot as plt
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medkit.trainer import keyed, stable_trainer, start_run

SEEDS, KILL_AT, EVERY, EPOCHS = range(5), 17, 5, 4
ORANGE, BLUE = "#d55e00", "#0072b2"  # Okabe and Ito (2008): told apart by the colour-blind


class Signals(Dataset[tuple[Tensor, Tensor]]):
    """Eighty noisy signals of two kinds, augmented as people do it: from the global generator."""

    def __len__(self) -> int:
        return 80

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        wave = torch.sin(torch.arange(32) * (0.2 + 0.05 * (index % 2)) + index)
        shift = np.random.randn()  # noqa: NPY002 - as people write it
        return (wave + 0.3 * torch.randn(32) + 0.1 * shift)[None], torch.tensor(index % 2)


class Signal(pl.LightningDataModule):
    """A DataModule that knows nothing of the kit."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(Signals(), batch_size=8, shuffle=True)


class Net(pl.LightningModule):
    """A LightningModule that knows nothing of the kit."""

    def __init__(self) -> None:
        super().__init__()
        conv = [nn.Conv1d(1, 8, 5), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)]
        self.net = nn.Sequential(*conv, nn.Linear(8 * 28, 2))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class Trace(pl.Callback):
    """Writes the weights down after each step, and dies by SIGKILL where it is told to."""

    def __init__(self, file: Path, kill_at: int | None) -> None:
        self.file, self.kill_at = file, kill_at

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        weights = torch.cat([p.detach().reshape(-1) for p in pl_module.parameters()]).numpy()
        np.save(self.file.with_suffix(f".{trainer.global_step}.npy"), weights)
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def stock(folder: Path, seed: int, trace: Trace) -> None:
    """Lightning as its documentation says it."""
    pl.seed_everything(seed, workers=True)
    last = folder / "last.ckpt"
    saving = ModelCheckpoint(folder, every_n_train_steps=EVERY, save_last=True, save_top_k=0)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, deterministic=True, logger=False,
        callbacks=[trace, saving], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Net(), Signal(), ckpt_path=last if last.exists() else None)


def kit(folder: Path, seed: int, trace: Trace) -> None:
    """The five lines."""
    run = start_run(folder, seed=seed)
    data = keyed(Signal())
    with run.init("fit"):
        net = Net()
    trainer = stable_trainer(
        run, max_epochs=EPOCHS, checkpoint_every_n_steps=EVERY, accelerator="cpu",
        callbacks=[trace], enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(net, data, ckpt_path=run.resume("fit"))


def in_child(fit: object, folder: Path, seed: int, file: Path, kill_at: int | None) -> None:
    """Train in a forked process, so that a SIGKILL is a real one."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fit(folder, seed, Trace(file, kill_at))  # type: ignore[operator]
            code = 0
        except Exception:  # a forked child must not run on into its parent's code
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != (0 if kill_at is None else -signal.SIGKILL):
        raise RuntimeError(f"{folder}: a training ended with status {status}. See its output.")


def differences(fit: object, root: Path) -> np.ndarray:
    """Return max |w - w_unbroken| of shape (seeds, steps)."""
    steps, rows = EPOCHS * 10, []
    for seed in SEEDS:
        whole, broken = root / f"{seed}-whole.w", root / f"{seed}-broken.w"
        in_child(fit, root / f"{seed}-whole", seed, whole, None)
        in_child(fit, root / f"{seed}-broken", seed, broken, KILL_AT)
        in_child(fit, root / f"{seed}-broken", seed, broken, None)
        pairs = [
            (np.load(whole.with_suffix(f".{s}.npy")), np.load(broken.with_suffix(f".{s}.npy")))
            for s in range(1, steps + 1)
        ]
        rows.append([np.abs(a - b).max() for a, b in pairs])
    return np.array(rows)


def draw(stock_rows: np.ndarray, kit_rows: np.ndarray, path: Path) -> None:
    """Draw both; zero is on the axis, on a symmetric logarithmic scale."""
    mpl.rcParams["svg.hashsalt"] = "medkit"
    figure, axes = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    steps = np.arange(1, stock_rows.shape[1] + 1)
    axes.plot(steps, stock_rows.T, color=ORANGE, lw=1.2)
    axes.plot(steps, kit_rows.T, color=BLUE, lw=2.5)
    axes.axvline(KILL_AT, color="0.4", lw=1, ls=":")
    axes.text(KILL_AT - 0.4, 0.3, "SIGKILL, then resumed", ha="right", color="0.3")
    axes.text(
        steps[-1], np.median(stock_rows[:, -1]) / 4, "stock Lightning", ha="right", color=ORANGE
    )
    axes.text(steps[-1], 3e-6, "medkit: 0, bit for bit", ha="right", color=BLUE)
    axes.set_yscale("symlog", linthresh=1e-5)
    axes.set_ylim(-2e-6, 2)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("largest difference of a weight\nto the unbroken run")
    axes.set_title(
        f"Killed at step {KILL_AT} and resumed from step 15; {len(SEEDS)} seeds each", size=10
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "stock").mkdir(), (root / "kit").mkdir()
        stock_rows, kit_rows = differences(stock, root / "stock"), differences(kit, root / "kit")
    sys.stdout.write(f"stock Lightning, at the end: {stock_rows[:, -1]}\n")
    sys.stdout.write(f"medkit, over all steps: {kit_rows.max()}\n")
    draw(stock_rows, kit_rows, Path(__file__).parent.parent / "docs" / "resume.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
