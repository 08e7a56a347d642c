"""What stable_trainer costs: against a lean Trainer, tutorial defaults, a bare loop and torch.

CPU seconds of the whole fit (the thread that writes resume points included), arms in turn in one
process, one intra-op thread; the interval is that of the median over pairs (binomial order
statistics, 95 %), and the bars are on its limit. The lean arm is a Trainer with logger, bar,
checkpoints, summary and sanity check off, fed whole batches by index; the tutorial arm is a Trainer
as it comes (bar, logger, checkpoint every epoch), per-sample dataset, the loss by ``self.log`` on
step, epoch and bar, validation loss and accuracy every epoch; its ratio to a bare loop is printed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import pytorch_lightning as pl
import torch
from report import Interval, Report
from scipy.stats import binom
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from medkit.callbacks.resume import ResumePoints
from medkit.trainer import keyed, stable_trainer, start_run

ROWS, FEATURES, BATCH, EPOCHS = 2_000, 20, 64, 20  # 640 steps
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt
POINT_EVERY = 120  # five resume points inside a run, and the finished one


class Tensors(Dataset[tuple[Tensor, Tensor]]):
    """Rows held in memory, a whole batch fetched by one index operation."""

    draws_nothing = True

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(rows)
        return self.x[index], self.y[index]


class Lean(pl.LightningModule):
    """A net that keeps its losses as tensors and logs their mean once an epoch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.losses: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", torch.stack(self.losses).mean())
        self.losses.clear()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


class Tutorial(pl.LightningModule):
    """The same net as tutorials write it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.val_acc = MulticlassAccuracy(2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.val_acc(logits, batch[1])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]), prog_bar=True)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def rows(count: int = ROWS) -> tuple[Tensor, Tensor]:
    """Random rows: what is learnt does not matter here."""
    made = torch.Generator().manual_seed(0)
    return torch.randn(count, FEATURES, generator=made), torch.randint(2, (count,), generator=made)


def mlp() -> nn.Module:
    """The tiny net of hospital tables."""
    layers = [nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2)]
    return nn.Sequential(*layers)


def cnn3d() -> nn.Module:
    """A small 3-D net of about 20 ms a step of 12 volumes on one core."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2),
        nn.Flatten(), nn.Linear(16 * 6**3, 2),
    )  # fmt: skip


def batches(data: Dataset[tuple[Tensor, Tensor]], size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Whole batches by index, shuffled: what both the lean arm and the kit are fed."""
    return DataLoader(data, batch_size=size, shuffle=True, collate_fn=_as_it_is)


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def lean_fit(net: nn.Module, data: Dataset[tuple[Tensor, Tensor]], size: int, epochs: int) -> float:
    """Lightning with everything off that can be off."""
    module, loader = Lean(net), batches(data, size)
    began = time.process_time()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, loader)
    return time.process_time() - began


def kit_fit(
    net: nn.Module, data: Dataset[tuple[Tensor, Tensor]], size: int, epochs: int, every: int
) -> float:
    """The kit: keyed draws, CSV once an epoch, resume points, deterministic algorithms."""
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(Path(folder) / "run", seed=1)
        module, loader = Lean(net), keyed(batches(data, size))
        began = time.process_time()
        trainer = stable_trainer(
            run, max_epochs=epochs, checkpoint_every_n_steps=every, checkpoint_every_s=None,
            accelerator="cpu", enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(module, loader, ckpt_path=run.resume("fit"))
        used = time.process_time() - began
        run.finish()
    torch.use_deterministic_algorithms(False)
    return used


def tutorial_fit(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """A Trainer as it comes; its bar is drawn into the void."""
    module = Tutorial(net)
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as void:
        train = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
        val = DataLoader(TensorDataset(x[:400], y[:400]), batch_size=BATCH)
        shown, sys.stdout = sys.stdout, void
        try:
            began = time.process_time()
            trainer = pl.Trainer(accelerator="cpu", max_epochs=EPOCHS, default_root_dir=folder)
            trainer.fit(module, train, val)
            return time.process_time() - began
        finally:
            sys.stdout = shown


def bare_fit(net: nn.Module, x: Tensor, y: Tensor, size: int, epochs: int) -> float:
    """A loop in plain torch: permute, slice, forward, backward, fused AdamW."""
    began = time.process_time()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x), size):
            index = order[start : start + size]
            loss = nn.functional.cross_entropy(net(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.process_time() - began


def median_interval(values: list[float]) -> tuple[float, Interval]:
    """Median and its distribution-free 95 % interval from order statistics."""
    ordered, n = sorted(values), len(values)
    rank = int(binom.ppf(0.025, n, 0.5))
    return statistics.median(ordered), (ordered[max(rank - 1, 0)], ordered[min(n - rank, n - 1)])


def in_turn(pairs: int, a: Callable[[], float], b: Callable[[], float]) -> list[float]:
    """Return the ratios a/b of alternating runs, after one uncounted run of each."""
    a(), b()
    ratios = []
    for turn in range(pairs):
        if turn % 2:
            second, first = b(), a()
        else:
            first, second = a(), b()
        ratios.append(first / second)
    return ratios


def stalls(pairs: int) -> list[float]:
    """Ratios of the wall seconds the loop stands still: a resume point against save_checkpoint."""
    net = nn.Sequential(*[nn.Linear(1_355, 1_355) for _ in range(6)])  # 11 M parameters
    ratios: list[float] = []

    class Both(pl.Callback):
        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
        ) -> None:
            if trainer.global_step < 2:
                return  # AdamW's moments are there from the first step on; the second warms up
            began = time.perf_counter()
            points._save(trainer, batch_idx, wait=False)
            ours = time.perf_counter() - began
            points._writer.join()  # so that the two do not share the cores
            began = time.perf_counter()
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "theirs.ckpt")
            ratios.append(ours / (time.perf_counter() - began))

    class Sum(Lean):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return self.net(batch[0].new_zeros(1, 1_355)).square().mean()

        def on_train_epoch_end(self) -> None:
            self.losses.clear()

    with tempfile.TemporaryDirectory() as folder:
        points = ResumePoints(Path(folder) / "points", every_n_steps=None, every_s=None)
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=pairs + 3, logger=False, callbacks=[Both(), points],
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(
            Sum(net), DataLoader(Tensors(*rows(10_000)), batch_size=1, collate_fn=_as_it_is)
        )
    return ratios[1:]


def import_cost(name: str) -> float:
    """CPU seconds of a fresh interpreter that imports ``name``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def keep_freed_memory() -> None:
    """Have the heap keep what is freed, in all arms.

    glibc gives memory back and asks for it again as the heap happens to lie: from run to run 0 to
    1,000 page faults a step of the 3-D net, up to 1.6 ms of 17, in whichever arm has bad luck.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def main() -> int:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    report = Report(__doc__)
    x, y = rows()
    data = Tensors(x, y)
    pairs = 15 if report.quick else 25

    ratios = in_turn(
        pairs,
        lambda: kit_fit(mlp(), data, BATCH, EPOCHS, POINT_EVERY),
        lambda: lean_fit(mlp(), data, BATCH, EPOCHS),
    )
    report.figure(
        "mlp/kit_over_lean_trainer", *median_interval(ratios), at_most=1.25, on_limit=True,
        unit="x", peers="lean Trainer 2.0-2.4x a bare loop",
    )  # fmt: skip
    ratios = in_turn(
        15,
        lambda: tutorial_fit(mlp(), x, y),
        lambda: kit_fit(mlp(), data, BATCH, EPOCHS, POINT_EVERY),
    )
    bare = in_turn(
        7,
        lambda: tutorial_fit(mlp(), x, y),
        lambda: bare_fit(mlp(), x, y, BATCH, EPOCHS),
    )
    report.figure("mlp/tutorial_defaults_over_bare_loop", *median_interval(bare), unit="x")
    report.figure(
        "mlp/tutorial_defaults_over_kit", *median_interval(ratios), at_least=3.0, on_limit=True,
        unit="x", peers="tutorial defaults 8-9x a bare loop",
    )  # fmt: skip

    keep_freed_memory()
    steps = 100 if report.quick else 500
    made = torch.Generator().manual_seed(0)
    volumes = torch.randn(300, 1, 24, 24, 24, generator=made)
    labels = torch.randint(2, (300,), generator=made)
    size, epochs = 12, steps // 25  # 25 steps an epoch
    step_ms = bare_fit(cnn3d(), volumes, labels, size, 4) / 100 * 1e3
    report.note(f"3-D CNN: {step_ms:.1f} ms a step in the bare loop, {steps} steps a run")
    ratios = in_turn(
        pairs,
        lambda: kit_fit(cnn3d(), Tensors(volumes, labels), size, epochs, steps // 5 - 1),
        lambda: bare_fit(cnn3d(), volumes, labels, size, epochs),
    )
    report.figure(
        "cnn3d/kit_over_bare_loop", *median_interval(ratios), at_most=1.08, on_limit=True,
        unit="x", peers="Trainer with all off 1.07x",
    )  # fmt: skip

    report.figure(
        "checkpoint/stall_over_lightning", *median_interval(stalls(15)), at_most=0.25,
        on_limit=True, unit="x", peers="save_checkpoint, 11 M parameters + AdamW",
    )  # fmt: skip

    shares = []
    for _ in range(7 if report.quick else 15):
        nothing, torch_s, medkit_s = import_cost("sys"), import_cost("torch"), import_cost("medkit")
        shares.append((medkit_s - nothing) / (torch_s - nothing))
    report.figure(
        "import/medkit_over_torch", *median_interval(shares), at_most=0.05, on_limit=True, unit="x",
        peers="import pytorch_lightning 2.6x",
    )  # fmt: skip
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
