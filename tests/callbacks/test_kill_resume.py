"""Killed by SIGKILL and resumed in a new process, a training ends in the bits of the whole one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, WeightedRandomSampler

from benchmarks._kills import Kill, differing, outcome, until_done
from tests.callbacks.small import KILLS, Data, Films, Net, Train, after_kills, training


class Table(Data):
    """Rows of six numbers."""

    def __init__(self, num_workers: int = 0, *, weighted: bool = False) -> None:
        super().__init__(num_workers)
        self.weighted = weighted

    def train_dataloader(self) -> Any:
        rows = [1.0 + row % 3 for row in range(48)]
        sampler = WeightedRandomSampler(rows, 48) if self.weighted else None
        return DataLoader(
            Films(48),
            batch_size=8,
            shuffle=sampler is None,
            sampler=sampler,
            num_workers=self.num_workers,
        )


class MLP(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 2))


def rich(net: type[pl.LightningModule], workers: int) -> Train:
    return training(
        net,
        lambda: Table(workers, weighted=True),
        callbacks=lambda: [EMAWeightAveraging(decay=0.9)],
        accumulate_grad_batches=2,
    )


@pytest.mark.parametrize("net", [MLP, Net])
@pytest.mark.parametrize("variant", ["plain", "rich"])
def test_a_kill_leaves_no_trace(net: type[Net], variant: str, tmp_path: Path) -> None:
    train = training(net, Table) if variant == "plain" else rich(net, 0)
    assert after_kills(train, tmp_path) == {}


@pytest.mark.parametrize("variant", ["plain", "rich"])
def test_nor_with_workers_that_die_with_it(variant: str, tmp_path: Path) -> None:
    train = training(Net, lambda: Table(2)) if variant == "plain" else rich(Net, 2)
    assert after_kills(train, tmp_path, KILLS[2:4]) == {}


def test_the_number_of_workers_may_change_over_a_resume(tmp_path: Path) -> None:
    until_done(training(data=lambda: Data(0)), tmp_path / "whole", [])
    for before, after in ((0, 2), (2, 0)):
        run_dir = tmp_path / f"{before}-{after}"

        def train(path: Path, kill: Kill | None, before: int = before, after: int = after) -> None:
            workers = after if kill is None else before
            training(data=lambda: Data(workers))(path, kill)

        assert until_done(train, run_dir, [Kill("batch_end", 9)]) == 1
        assert differing(outcome(tmp_path / "whole"), outcome(run_dir)) == []


def test_a_run_may_be_killed_again_and_again(tmp_path: Path) -> None:
    train = rich(Net, 0)
    until_done(train, tmp_path / "whole", [])
    kills = [Kill("batch_start", 2), Kill("validation", 1), Kill("backward", 4), Kill("write", 5)]
    assert until_done(train, tmp_path / "cut", kills) == 4
    assert differing(outcome(tmp_path / "whole"), outcome(tmp_path / "cut")) == []


def test_a_kill_inside_the_write_of_a_point_leaves_no_trace(tmp_path: Path) -> None:
    kills = [Kill("write", number) for number in range(2, 8)]  # fsync and rename, one by one
    assert after_kills(training(every=2), tmp_path, kills) == {}


def test_draws_after_a_fit_are_the_same_where_it_was_only_loaded(tmp_path: Path) -> None:
    def drawn_after(trainer: pl.Trainer) -> None:
        drawn = [float(np.random.rand()), random.random(), float(torch.rand(()))]  # noqa: NPY002
        (Path(trainer.default_root_dir) / "metrics.json").write_text(repr(drawn))

    def train(run_dir: Path, kill: Kill | None) -> None:
        def ending(trainer: pl.Trainer) -> None:
            if kill is not None:
                kill.now()  # the fit is over, the run is not
            drawn_after(trainer)

        training(ending=ending)(run_dir, None)

    until_done(train, tmp_path / "whole", [])
    assert until_done(train, tmp_path / "cut", [Kill("after the fit", 1)]) == 1
    assert differing(outcome(tmp_path / "whole"), outcome(tmp_path / "cut")) == []


class AlsoTested(Net):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))


def test_what_a_test_logs_after_a_finished_stage_is_logged_once(tmp_path: Path) -> None:
    def train(run_dir: Path, kill: Kill | None) -> None:
        def ending(trainer: pl.Trainer) -> None:
            for _ in range(2):  # a row each, below those of the fit
                trainer.test(trainer.lightning_module, Data().val_dataloader(), verbose=False)
            if kill is not None:
                kill.now()  # the rows are on the disk, and will be written again

        training(AlsoTested, ending=ending)(run_dir, None)

    log = Path("logs", "fit", "metrics.csv")
    until_done(train, tmp_path / "whole", [])
    assert until_done(train, tmp_path / "cut", [Kill("after the test", 1)] * 2) == 2
    assert (tmp_path / "whole" / log).read_text().count(",test/loss") == 1
    assert (tmp_path / "cut" / log).read_bytes() == (tmp_path / "whole" / log).read_bytes()


def test_another_seed_ends_in_other_bits(tmp_path: Path) -> None:
    for seed in (7, 8):
        until_done(training(seed=seed), tmp_path / str(seed), [])
    assert "weights" in differing(outcome(tmp_path / "7"), outcome(tmp_path / "8"))


def test_a_loss_is_not_the_same_without_the_kit(tmp_path: Path) -> None:
    """The comparison can fail: a net that draws from the system's entropy never comes out alike."""

    class Unkeyed(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            import secrets

            return F.cross_entropy(self.net(batch[0]), batch[1]) * secrets.randbelow(1000)

    assert after_kills(training(Unkeyed), tmp_path, [Kill("batch_end", 4)]) != {}
