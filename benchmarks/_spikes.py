"""Small trainings with a fault at a chosen place, and all that a skipped step must not move.

Also a script: ``python _spikes.py RUN_DIR DEVICES [EPOCH BATCH]`` trains on poisoned rows in
processes of its own, and is killed there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from medkit.callbacks.bits import bits
from medkit.callbacks.guard_policy import GuardSettings
from medkit.trainer import keyed, stable_trainer, start_run

ROWS, FEATURES, SIZE = 96, 6, 8
BATCHES = ROWS // SIZE
Place = tuple[int, int]  # epoch and batch


def rows(count: int = ROWS, bad: Mapping[int, float] | None = None) -> TensorDataset:
    """Rows of six numbers; ``bad`` puts a value into the first of some."""
    made = torch.Generator().manual_seed(1)
    x = torch.randn(count, FEATURES, generator=made)
    y = (x[:, 0] + 0.5 * torch.randn(count, generator=made) > 0).long()
    for row, value in (bad or {}).items():
        x[row, 1] = value
    return TensorDataset(x, y)


def loader(data: Dataset[Any] | None = None, size: int = SIZE) -> DataLoader[Any]:
    """Batches of them, shuffled."""
    return DataLoader(rows() if data is None else data, size, shuffle=True)


class Net(pl.LightningModule):
    """BatchNorm, dropout, AdamW, a rate that moves with every step, and a mean in an attribute.

    Args:
        faults: What happens where: "nan", "inf", "big" (inputs), "loss", "large", "gradient".
            BatchNorm takes "big" inputs out again.
    """

    def __init__(self, faults: Mapping[Place, str] | None = None, *, norm: bool = True) -> None:
        super().__init__()
        self.faults = dict(faults or {})
        middle: list[nn.Module] = [nn.BatchNorm1d(12)] if norm else []
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 12), *middle, nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 2)
        )
        self.total = torch.zeros(())
        self.seen: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss, or what the fault of this place makes of it."""
        x, y = batch[0], batch[1]
        kind = self.faults.get((self.current_epoch, batch_idx)) if self.training else None
        x = x * {"nan": torch.nan, "inf": torch.inf, "big": 1e6}.get(kind or "", 1.0)
        loss = F.cross_entropy(self.net(x), y)
        loss = loss * {"loss": torch.inf, "large": 1e4}.get(kind or "", 1.0)
        if kind == "gradient":  # the loss is finite, the slope of the square root is not
            loss = loss + (self.net[0].weight[0, 0] * 0).sqrt()
        self.total = self.total + loss.detach()
        self.seen.append(float(loss.detach()))
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW under one cycle."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=200)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def state(trainer: pl.Trainer) -> dict[str, str]:
    """Digest, part by part, what a step may move."""
    module = trainer.lightning_module
    averages = [c for c in trainer.callbacks if isinstance(c, EMAWeightAveraging)]  # type: ignore[attr-defined]
    results = trainer.fit_loop.epoch_loop._results
    parts = {
        "weights": dict(module.named_parameters()),
        "buffers": dict(module.named_buffers()),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "averaged": [dict(c._average_model.state_dict()) for c in averages if c._average_model],
        "scale": trainer.precision_plugin.state_dict(),
        "step": trainer.global_step,
        "attributes": [getattr(module, "total", 0), getattr(module, "seen", [])],
        "logged": {k: [v.value, v.cumulated_batch_size] for k, v in results.items()},
    }
    return {name: digest(part) for name, part in parts.items()}


def digest(value: Any) -> str:
    """Digest tensors, numbers and containers of them, bit for bit."""
    if isinstance(value, Tensor):
        own = b"".join(part.numpy().tobytes() for part in bits(value))
        text = f"{value.dtype}{tuple(value.shape)}".encode() + own
    elif isinstance(value, Mapping):
        text = "".join(f"{key}={digest(part)}" for key, part in value.items()).encode()
    elif isinstance(value, list | tuple):
        text = "".join(map(digest, value)).encode()
    else:
        text = repr(value).encode()
    return hashlib.sha256(text).hexdigest()


class Watch(pl.Callback):
    """Last in the list: the state before and after every window of micro-batches."""

    def __init__(self) -> None:
        self.before: dict[Place, dict[str, str]] = {}
        self.after: dict[Place, dict[str, str]] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the state before the first micro-batch of a window."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._first = (trainer.current_epoch, batch_idx)
            self.before[self._first] = state(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the state after each."""
        self.after[self._first] = state(trainer)

    def still(self) -> list[Place]:
        """Return the windows that no step came of."""
        return [at for at in self.after if self.before[at]["step"] == self.after[at]["step"]]

    def moved(self, epoch: int, batch: int) -> list[str]:
        """Return what the window that begins there has moved."""
        before, after = self.before[epoch, batch], self.after[epoch, batch]
        return [name for name in before if before[name] != after[name]]


class Ends(pl.Callback):
    """Write what each process ends with; die before a batch where told to."""

    def __init__(self, folder: Path, kill: tuple[int, int] | None) -> None:
        self.folder = folder
        self.kill = kill

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Die there."""
        batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
        if (trainer.current_epoch, batch) == self.kill:
            os.killpg(0, signal.SIGKILL)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it."""
        found = {"weights": digest(list(pl_module.parameters())), "step": trainer.global_step}
        path = self.folder / f"end-{trainer.global_rank}.json"
        path.write_text(json.dumps(found))


def train(run_dir: Path, devices: int, kill: tuple[int, int] | None) -> None:
    """Train on two poisoned rows, each in the batch of one process, through one rollback."""
    run = start_run(run_dir, seed=3)
    with run.init("fit"):
        net = Net({(1, batch): "nan" for batch in (2, 3, 4)}, norm=False)
    options: dict[str, Any] = {"devices": devices}
    if devices > 1:
        options["strategy"] = "ddp"
    trainer = stable_trainer(
        run, max_epochs=4, callbacks=[Ends(run.dir, kill)], checkpoint_every_n_steps=1,
        spike_guard=GuardSettings(snapshot_every=2), accelerator="cpu", enable_progress_bar=False,
        **options,
    )  # fmt: skip
    data = keyed(loader(rows(bad={17: math.nan, 40: math.inf})))
    trainer.fit(net, data, ckpt_path=run.resume("fit"))
    run.finish()


if __name__ == "__main__":
    _, _run_dir, _devices, *_kill = sys.argv
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(0, int(os.environ.get("LOCAL_GROUP", "0")))
    os.environ["LOCAL_GROUP"] = str(os.getpgid(0))  # ranks that Lightning starts die together
    train(Path(_run_dir), int(_devices), (int(_kill[0]), int(_kill[1])) if _kill else None)
