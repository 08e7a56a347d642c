"""A fit that falls apart while its own score rises is stopped, with the weights of before."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._kills import Kill
from medkit.callbacks.collapse_guard import COLLAPSE, CollapseGuard, Limit
from medkit.record.ledger import Ledger
from tests.callbacks.small import after_kills, training

ROWS, BATCH = 60, 2
FALL = Limit("watched", at_least=-1.0, reason="so said the test")


class Falling(pl.LightningModule):
    """Its one weight counts its steps; what it logs is a function of them."""

    def __init__(self, values: Any = lambda step: 0.0, name: str = "watched") -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))
        self.values, self.name = values, name

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        value = self.values(round(-float(self.w.detach())))
        if value is not None:
            self.log(self.name, torch.tensor(value), on_step=True, on_epoch=False)
        return self.w + 0 * batch[0].sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(ROWS, 1)), BATCH)


def fit(
    quiet: dict[str, Any], values: Any, *limits: Limit, every: int = 1, **options: Any
) -> tuple[CollapseGuard, pl.Trainer, int]:
    """Return the guard, the trainer, and at the weights of which step the fit ended."""
    guard = CollapseGuard(limits or (FALL,), snapshot_every=every)
    module = Falling(values)
    trainer = pl.Trainer(
        **quiet, max_epochs=1, enable_checkpointing=False, callbacks=[guard], **options
    )
    trainer.fit(module, data())
    return guard, trainer, round(-float(module.w.detach()))


def test_a_broken_limit_ends_the_fit_with_the_weights_of_the_last_good_state(
    quiet: dict[str, Any],
) -> None:
    guard, trainer, weights = fit(quiet, lambda step: -0.1 * step)
    assert trainer.global_step == 12  # -1.1 was logged of the weights of step 11
    assert weights == 6  # at -0.5, half the way: the step after that reading
    actions = ["rolled back to the last good state", "training stopped"]
    assert [line["action"] for line in guard.events] == actions
    assert guard.events[0] == {
        "event": "collapse",
        "action": actions[0],
        "epoch": 0,
        "batch": 11,
        "step": 12,
        "rows": [],
        "detail": "watched -1.1, at least -1: so said the test; weights are those of step 6",
    }


def test_what_stays_within_its_limit_is_left_alone(quiet: dict[str, Any]) -> None:
    guard, trainer, weights = fit(quiet, lambda step: -1.0 + 0.5 * math.sin(step) ** 2)
    assert guard.events == []
    assert (trainer.global_step, weights) == (ROWS // BATCH, ROWS // BATCH)


def test_one_bad_batch_is_no_collapse_where_several_are_averaged(quiet: dict[str, Any]) -> None:
    limit = Limit("watched", at_least=-1.0, batches=5, reason="so said the test")
    guard, _, _ = fit(quiet, lambda step: -4.0 if step == 9 else 0.0, limit)
    assert guard.events == []
    guard, trainer, weights = fit(quiet, lambda step: -4.0 if step >= 9 else 0.0, limit)
    assert trainer.global_step == 11  # two of five
    assert weights == 9


def test_a_change_is_judged_from_its_start(quiet: dict[str, Any]) -> None:
    limit = Limit("watched", at_most=0.2, batches=2, from_start=True, reason="so said the test")
    guard, trainer, _ = fit(quiet, lambda step: 7.0 + 0.05 * step, limit)
    assert trainer.global_step == 7  # the mean of two was 7.025, and is 7.275
    assert "watched 0.25 over 2 batches, from its start, at most 0.2" in guard.events[0]["detail"]


def test_what_is_no_number_is_a_collapse(quiet: dict[str, Any]) -> None:
    _, trainer, weights = fit(quiet, lambda step: math.nan if step == 4 else 0.0)
    assert (trainer.global_step, weights) == (5, 4)


def test_a_value_logged_now_and_then_counts_until_the_next(quiet: dict[str, Any]) -> None:
    limit = Limit("watched", at_most=0.999, batches=20, reason="so said the test")
    one_in_five = {0: 0.0, 5: 1.0, 10: 1.0, 15: 1.0, 20: 1.0, 25: 1.0}
    _, trainer, _ = fit(quiet, one_in_five.get, limit)
    assert trainer.global_step == 25  # 20 batches from step 5 on


def test_a_fit_that_begins_beyond_a_limit_is_stopped_where_it_began(quiet: dict[str, Any]) -> None:
    _, trainer, weights = fit(quiet, lambda step: -2.0)
    assert (trainer.global_step, weights) == (1, 0)


def test_optimizers_go_back_too(quiet: dict[str, Any]) -> None:
    class Momentum(Falling):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    module = Momentum(lambda step: -9.0 if step >= 3 else 0.0)
    guard = CollapseGuard([FALL], snapshot_every=1)
    trainer = pl.Trainer(**quiet, max_epochs=1, enable_checkpointing=False, callbacks=[guard])
    seen: list[tuple[float, float]] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            state = trainer.optimizers[0].state[module.w]
            seen.append((module.w.item(), float(state["momentum_buffer"])))

    trainer.callbacks.append(Look())  # type: ignore[attr-defined]
    trainer.fit(module, data())
    assert guard.events
    assert seen[-1] == seen[-2]  # the last good state is that of the step before
    assert seen[-2] != seen[-3]


def test_the_ledger_has_a_line_an_intervention_and_a_kill_leaves_no_trace(tmp_path: Path) -> None:
    train = training(
        lambda: Falling(lambda step: -0.11 * step),
        lambda: Data(),
        callbacks=lambda: [CollapseGuard([FALL], snapshot_every=3)],
    )
    assert after_kills(train, tmp_path, [Kill("batch_end", 2), Kill("backward", 8)]) == {}
    lines = Ledger(tmp_path / "whole" / "ledger.jsonl").read()
    assert [(line["stage"], line["event"], line["action"]) for line in lines] == [
        ("fit", "collapse", "rolled back to the last good state"),
        ("fit", "collapse", "training stopped"),
    ]
    assert Ledger(tmp_path / "1" / "ledger.jsonl").read()[0]["detail"] == lines[0]["detail"]


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return data()


def test_a_resumed_guard_needs_its_limits(tmp_path: Path) -> None:
    saved = CollapseGuard([FALL]).state_dict()
    with pytest.raises(ValueError, match="a resumed guard needs the limits it had"):
        CollapseGuard().load_state_dict(saved)


def test_a_guard_that_sees_nothing_says_so(quiet: dict[str, Any]) -> None:
    trainer = pl.Trainer(
        **quiet, max_epochs=9, enable_checkpointing=False, callbacks=[CollapseGuard()]
    )
    with pytest.raises(ValueError, match=r"a guard must see one of .* none was logged in 100"):
        trainer.fit(Falling(lambda step: 0.0, "another name"), data())


def test_limits_say_which_way_how_far_and_why() -> None:
    for wrong in (
        {"reason": "none"},
        {"at_least": 0.0, "at_most": 1.0, "reason": "both"},
        {"at_least": 0.0},
        {"at_most": math.nan, "reason": "nan"},
        {"at_most": 0.0, "batches": 0, "reason": "no batch"},
    ):
        with pytest.raises(ValueError, match="a limit needs at_least or at_most"):
            Limit("x", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a guard needs limits"):
        CollapseGuard([])
    assert all(one.reason for one in COLLAPSE)


SCRIPT = """
import json, sys
from pathlib import Path
import pytorch_lightning as pl
from medkit.callbacks.collapse_guard import CollapseGuard
from tests.callbacks.test_collapse_guard import FALL, Falling, data

guard = CollapseGuard([FALL], snapshot_every=1)
trainer = pl.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, callbacks=[guard],
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
rank = trainer.global_rank
module = Falling(lambda step: -2.0 if rank == 1 and step == 5 else 0.0)
trainer.fit(module, data())
found = [trainer.global_step, module.w.item(), [line["detail"] for line in guard.events]]
(Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_what_one_process_sees_stops_both(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first[:2] == second[:2] == [6, -5.0]
    assert "in another process" in first[2][0]
    assert "watched -2" in second[2][0]
