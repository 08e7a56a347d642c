"""Faults injected into a training that knows nothing of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.trainer.connectors.data_connector import _DataLoaderSource
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medkit.study.faults_inject import BIG, inject
from medkit.study.faults_order import Order
from medkit.study.faults_samples import GARBAGE

_PATCHED = {
    Strategy: ("training_step", "optimizer_step"),
    _TrainingEpochLoop: ("advance",),
    _DataLoaderSource: ("dataloader",),
    _FitLoop: ("run",),
}


@pytest.fixture(autouse=True)
def _patched_for_one_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, names in _PATCHED.items():
        for name in names:  # put back as it was when the test is over
            monkeypatch.setattr(owner, name, getattr(owner, name))


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Forty rows of three ones, and labels that are real numbers, too."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.ones(3), torch.tensor(float(index % 2))


class Net(pl.LightningModule):
    """Remembers its batches and losses."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)
        self.batches: list[Tensor] = []
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.batches.append(batch[0])
        loss = nn.functional.mse_loss(self.net(batch[0])[:, 0], batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        self.losses[-1] = float(loss.detach())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder: Path, fault: str, *, batch: int = 0, protected: bool = False) -> Net:
    """Train two epochs of five batches with a fault."""
    inject(Order(fault, 1, batch, str(folder), str(folder), protected))
    net = Net()
    options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, accelerator="cpu",
                         default_root_dir=folder, **options)  # fmt: skip
    trainer.fit(net, DataLoader(Rows(), 8))
    return net


def witness(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "witness.jsonl").read_text().splitlines()]


def test_an_undisturbed_run_is_counted(tmp_path: Path) -> None:
    fit(tmp_path, "")
    assert witness(tmp_path) == [{"event": "batches", "fault": "", "batches": 10, "no_step": 0}]


def test_fits_without_resume_points_are_left_alone_where_only_protected_ones_count(
    tmp_path: Path,
) -> None:
    fit(tmp_path, "oom_forward", protected=True)
    assert not (tmp_path / "witness.jsonl").exists()


@pytest.mark.parametrize("fault", ["oom_forward", "oom_backward", "oom_step"])
def test_memory_runs_out_at_its_batch(tmp_path: Path, fault: str) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        fit(tmp_path, fault, batch=6)
    assert witness(tmp_path)[0]["batch"] == 6


def test_one_loss_explodes_and_no_other(tmp_path: Path) -> None:
    losses = fit(tmp_path, "exploding_batch", batch=7).losses
    assert [number for number, loss in enumerate(losses) if loss > BIG / 100] == [7]


def test_a_nan_row_is_met_in_each_epoch(tmp_path: Path) -> None:
    batches = fit(tmp_path, "nan_sample").batches
    bad = [number for number, batch in enumerate(batches) if batch.isnan().any()]
    assert len(bad) == 2
    assert bad[1] == bad[0] + 5
    assert int(batches[bad[0]].isnan().sum()) == 1


def test_garbage_is_finite_and_leaves_labels_alone(tmp_path: Path) -> None:
    net = fit(tmp_path, "finite_garbage")
    bad = torch.cat(net.batches)[:, 0] == GARBAGE
    assert int(bad.sum()) == 2  # one of forty rows, twice
    assert max(net.losses) < GARBAGE**2 * 10


def test_a_file_that_can_not_be_read_raises_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cut short"):
        fit(tmp_path, "corrupt_file")


def test_a_fault_that_has_struck_does_not_strike_the_restarted_process(tmp_path: Path) -> None:
    (tmp_path / "happened").touch()
    fit(tmp_path, "oom_forward", batch=6)
    assert [line["event"] for line in witness(tmp_path)] == ["batches"]
