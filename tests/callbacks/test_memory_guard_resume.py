"""A run that was split is split alike after a kill, and its ledger tells each split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from benchmarks._kills import Kill
from benchmarks._memory import Memory, Net, loader, mlp, rows
from medkit.callbacks.memory_guard import MemoryGuard
from medkit.record.ledger import Ledger
from medkit.trainer import keyed, stable_trainer, start_run
from tests.callbacks.small import after_kills, training

KILLS = (Kill("batch_start", 3), Kill("backward", 8), Kill("epoch_end", 1))


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(rows(), 9, shuffle=True)


class Once(Net):
    """Runs out at one batch of the first epoch, in a fit that is not resumed behind it."""

    def __init__(self) -> None:
        super().__init__(mlp(), Memory({(0, 1): ("backward", 3)}))


def test_a_kill_behind_a_split_leaves_no_trace(tmp_path: Path) -> None:
    train = training(Once, Data, epochs=2, memory_guard=True, accumulate_grad_batches=2)
    assert after_kills(train, tmp_path, KILLS) == {}
    lines = [line["action"] for line in Ledger(tmp_path / "whole" / "ledger.jsonl").read()]
    assert lines == [
        "batch split into parts of at most 5 samples",
        "batch split into parts of at most 3 samples",
        "5 batches of this epoch split",
        "6 batches of this epoch split",
    ]
    for number in range(len(KILLS)):
        resumed = Ledger(tmp_path / str(number) / "ledger.jsonl").read()
        assert [line["action"] for line in resumed] == lines


@pytest.mark.usefixtures("_as_before_a_run")
def test_a_run_with_dropout_of_torch_says_that_it_is_not_exact(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", seed=1)
    net = Once()
    net.net[2] = torch.nn.Dropout(0.3)
    trainer = stable_trainer(
        run, max_epochs=1, callbacks=[MemoryGuard()], spike_guard=True, accelerator="cpu",
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(net, keyed(loader(9)))
    run.finish()
    content = run.folder.read()
    assert content["exact"] is False
    assert "swap_dropout" in content["inexact_reasons"][0]
    assert {line["stage"] for line in run.ledger.read()} == {"fit"}
