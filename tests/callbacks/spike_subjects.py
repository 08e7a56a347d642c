"""Small trainings with a fault at a chosen place, and all that a skipped step must not move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks._kills import digest

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


class Watch(pl.Callback):
    """Last in the list: the state before and after every window of micro-batches."""

    def __init__(self) -> None:
        self.before: dict[Place, dict[str, str]] = {}
        self.after: dict[Place, dict[str, str]] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
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
        self.after[self._first] = state(trainer)

    def moved(self, epoch: int, batch: int) -> list[str]:
        """Return what the window that begins there has moved."""
        before, after = self.before[epoch, batch], self.after[epoch, batch]
        return [name for name in before if before[name] != after[name]]
