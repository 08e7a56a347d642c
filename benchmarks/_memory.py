"""Small trainings that run out of memory at chosen places, on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from medkit.models.keyed_dropout import KeyedDropout

ROWS, FEATURES = 53, 6
CLASS_WEIGHTS = (1.0, 50.0)
Place = tuple[int, int]  # epoch and batch
Trouble = Mapping[Place, tuple[str, int]]  # where memory runs out, above how many samples


def rows(count: int = ROWS) -> TensorDataset:
    """Rows of six numbers, labels and row numbers; one in four is positive."""
    made = torch.Generator().manual_seed(1)
    x = torch.randn(count, FEATURES, generator=made)
    y = (x[:, 0] + 0.5 * torch.randn(count, generator=made) > 0.7).long()
    return TensorDataset(x, y, torch.arange(count))


def loader(size: int, count: int = ROWS) -> DataLoader[Any]:
    """Batches of them, shuffled."""
    return DataLoader(rows(count), size, shuffle=True)


def mlp() -> nn.Module:
    """Dropout keyed by sample behind each layer."""
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.ReLU(), KeyedDropout(0.3),
        nn.Linear(16, 16), nn.ReLU(), KeyedDropout(0.1), nn.Linear(16, 2),
    )  # fmt: skip


def cnn(norm: type[nn.Module] = nn.GroupNorm) -> nn.Module:
    """Convolutions over the row as a signal, normalised by sample or by batch; a whole-map head."""
    layer = nn.GroupNorm(2, 8) if norm is nn.GroupNorm else norm(8)
    return nn.Sequential(
        nn.Unflatten(1, (1, FEATURES)), nn.Conv1d(1, 8, 3, padding=1), layer, nn.ReLU(),
        KeyedDropout(0.3, per_channel=True), nn.Flatten(), nn.Linear(8 * FEATURES, 2),
    )  # fmt: skip


class Memory:
    """Runs out where it is told to, and counts how often.

    ``forward`` and ``backward`` raise while that very batch is worked on with more samples than
    fit; ``step`` raises once, when the optimizer has moved everything already.
    """

    def __init__(self, trouble: Trouble, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.trouble = dict(trouble)
        self.error = error
        self.raised: list[tuple[Place, str]] = []
        self.place: Place = (0, 0)

    def runs_out(self, where: str, samples: int = 0) -> None:
        """Raise if it does so here."""
        place, most = self.trouble.get(self.place, ("", 0))
        if place == where and (samples > most or where == "step"):
            self.raised.append((self.place, where))
            if where == "step":
                del self.trouble[self.place]
            raise self.error(f"injected: no memory for {samples} samples")


class Tight(torch.optim.AdamW):
    """AdamW whose step may run out of memory when all weights have moved."""

    memory: Memory | None = None

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Step, and run out."""
        result = super().step(closure)
        if self.memory is not None:
            self.memory.runs_out("step")
        return result


class Net(pl.LightningModule):
    """Class-weighted loss and a penalty, AdamW under a schedule; gradients of each step are kept.

    The gradient of ``seen`` says how often each row was trained on.

    Args:
        net: Maps ``(B, 6)`` to two logits.
        memory: Runs out where it is told to.
        lr: 0 compares gradients at the same weights, whatever came before.
    """

    def __init__(self, net: nn.Module, memory: Memory | None = None, *, lr: float = 1e-2) -> None:
        super().__init__()
        self.net = net
        self.memory = memory or Memory({})
        self.lr = lr
        self.seen = nn.Parameter(torch.zeros(1024))
        self.gradients: list[list[Tensor]] = []
        self.losses: list[float] = []
        net.register_forward_hook(self._look)

    def _look(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        count = len(inputs[0])
        if not self.training:
            return
        self.memory.runs_out("forward", count)
        if output.requires_grad:
            output.register_hook(lambda _: self.memory.runs_out("backward", count))

    def loss_terms(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the losses, and the sum of the weights."""
        x, y, row = batch
        weight = torch.tensor(CLASS_WEIGHTS, device=x.device)
        total = F.cross_entropy(self.net(x).float(), y, weight, reduction="sum")
        return total + self.seen[row].sum(), weight[y].sum()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the weighted mean and a penalty."""
        total, weight = self.loss_terms(batch)
        loss = total / weight + 1e-3 * sum(p.square().sum() for p in self.net.parameters())
        self.losses.append(float(loss.detach()))
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Tell where we are."""
        self.memory.place = (self.current_epoch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Keep the gradients, where another guard has not voided the step."""
        there = [p.grad.clone() for p in self.parameters() if p.grad is not None]
        self.gradients.append(there)

    def configure_optimizers(self) -> Any:
        """AdamW, its rate moving with every step."""
        optimizer = Tight(self.parameters(), lr=self.lr, weight_decay=0.1)
        optimizer.memory = self.memory
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    net: pl.LightningModule,
    folder: Path | str,
    *,
    callbacks: Sequence[pl.Callback] = (),
    size: int = 9,
    epochs: int = 2,
    seed: int = 5,
    **options: Any,
) -> pl.Trainer:
    """Train; the order of the rows depends on ``seed`` alone."""
    torch.manual_seed(seed)
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), default_root_dir=str(folder),
        **{"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
           "enable_progress_bar": False, "enable_model_summary": False} | options,
    )  # fmt: skip
    trainer.fit(net, loader(size))
    return trainer


def deviation(split: Net, whole: Net) -> float:
    """Return the largest relative difference of a step's gradient, all weights together."""
    found = [
        float((_flat(mine) - _flat(theirs)).norm() / _flat(theirs).norm())
        for mine, theirs in zip(split.gradients, whole.gradients, strict=True)
    ]
    return max(found)


def lost_and_doubled(split: Net, whole: Net) -> tuple[int, int]:
    """Return how many samples a step lost, and how many it took twice."""
    lost = doubled = 0
    at = [name for name, _ in whole.named_parameters()].index("seen")
    for mine, theirs in zip(split.gradients, whole.gradients, strict=True):
        there = theirs[at] != 0
        share = mine[at][there] / theirs[at][there]
        lost += int((share < 0.5).sum())
        doubled += int((share > 1.5).sum()) + int((mine[at][~there] != 0).sum())
    return lost, doubled


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.double().flatten() for gradient in gradients])
