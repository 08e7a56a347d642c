"""Rows at fault are found, set aside by row, and written down; a clean training is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._kills import Kill, differing, outcome, until_done
from benchmarks._spikes import BATCHES, Net, loader, rows
from medkit.callbacks.fingerprint import SettingsChangedError
from medkit.callbacks.guard_policy import GuardSettings, TrainingUnstableError
from medkit.callbacks.guard_rows import at_fault, take, total_norm, without
from medkit.callbacks.guard_state import not_finite
from medkit.callbacks.guard_window import Window, threshold
from medkit.callbacks.spike_guard import SpikeGuard
from medkit.data.loader import keyed
from medkit.jobs.control import JobControl
from medkit.jobs.ending import judge
from medkit.jobs.execution import Result
from medkit.record.folder import RunFolder
from medkit.record.ledger import Ledger, rows_named
from medkit.record.pseudonym import pseudonym
from medkit.trainer import stable_trainer, start_run
from tests.callbacks.small import training

pytestmark = pytest.mark.usefixtures("_as_before_a_run")
POISON = {17: torch.nan, 40: torch.inf}


@pytest.fixture(autouse=True)
def _same_nets_in_each_order_of_tests() -> None:
    torch.manual_seed(0)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k != "time"}
        for row in Ledger(run_dir / "ledger.jsonl").read()
    ]


def fit(
    run_dir: Path, net: pl.LightningModule, data: Any = None, *, epochs: int = 3, **options: Any
) -> pl.Trainer:
    run = start_run(run_dir, seed=3)
    options = {"spike_guard": True, "accelerator": "cpu", "enable_progress_bar": False} | options
    trainer = stable_trainer(run, max_epochs=epochs, **options)
    trainer.fit(net, keyed(loader(rows(bad=POISON)) if data is None else data))
    run.finish()
    return trainer


def guard_of(trainer: pl.Trainer) -> SpikeGuard:
    return next(c for c in trainer.callbacks if isinstance(c, SpikeGuard))  # type: ignore[attr-defined]


def test_a_poisoned_row_costs_one_step_and_its_batch_is_trained_on(tmp_path: Path) -> None:
    trainer = fit(tmp_path / "run", Net())
    guard = guard_of(trainer)
    assert guard.policy.set_aside.keys() == set(POISON)
    assert guard.policy.skipped == len({e["batch"] for e in guard.events})
    assert guard.policy.replaced == 2 * 2  # in the second epoch and the third
    assert trainer.global_step == 3 * BATCHES - guard.policy.skipped
    assert not_finite(trainer.lightning_module) == []


def test_every_intervention_is_in_the_ledger_with_pseudonyms(tmp_path: Path) -> None:
    guard = guard_of(fit(tmp_path / "run", Net()))
    found = lines(tmp_path / "run")
    assert [{k: row[k] for k in guard.events[0]} for row in found] == guard.events
    named = {row for line in found if line["action"] == "rows set aside" for row in line["rows"]}
    assert named == {pseudonym(row) for row in POISON}
    assert {line["stage"] for line in found} == {"fit"}


class Rowed(NamedTuple):
    x: Tensor
    y: Tensor
    row: Tensor


def test_the_log_names_rows_as_the_ledger_does_and_they_can_be_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path / "run", Net(), epochs=1)
    found = rows_named(tmp_path / "run", range(len(rows())))
    assert sorted(found.values()) == sorted(POISON)
    assert all(name in caplog.text for name in found)


def test_rows_are_named_by_the_batchs_own_field(quiet: dict[str, Any]) -> None:
    x, y = rows(bad={17: torch.nan}).tensors
    data = [Rowed(*parts) for parts in zip(x, y, 1000 + torch.arange(len(x)), strict=True)]
    guard = SpikeGuard()
    trainer = pl.Trainer(**quiet, max_epochs=2, enable_checkpointing=False, callbacks=[guard])
    trainer.fit(Net(), torch.utils.data.DataLoader(data, 8))
    assert guard.policy.set_aside.keys() == {1017}


def test_where_nobody_knows_the_rows_their_places_are_named(quiet: dict[str, Any]) -> None:
    guard = SpikeGuard()
    trainer = pl.Trainer(**quiet, max_epochs=1, enable_checkpointing=False, callbacks=[guard])
    data = torch.utils.data.DataLoader(rows(bad={17: torch.nan}), 8)
    trainer.fit(Net(), data)
    assert "batch 2, place 1" in guard.events[0]["detail"]
    assert guard.policy.set_aside == {}
    assert guard.policy._unexplained == []


def test_a_row_that_is_only_too_large_is_set_aside_the_second_time(tmp_path: Path) -> None:
    data = loader(rows(bad={17: -1e5}))

    class Heavy(Net):
        """One row counts for ten thousand from the fourth epoch on: limits need a past."""

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            losses = F.cross_entropy(self.net(batch[0].clamp(-5, 5)), batch[1], reduction="none")
            if self.current_epoch >= 3:
                losses = losses * torch.where(batch[0][:, 1] < -1e4, 1e4, 1.0)
            return losses.mean()

    net = Heavy(norm=False)
    guard = guard_of(fit(tmp_path / "run", net, data, epochs=7))
    told = [(e["event"], e["action"], e["epoch"]) for e in guard.events]
    assert [action for _, action, _ in told] == ["step skipped", "step skipped", "rows set aside"]
    assert [epoch for _, _, epoch in told] == [3, 4, 4]
    assert guard.policy.set_aside.keys() == {17}


def test_a_killed_run_ends_in_the_same_bits_and_the_same_ledger(tmp_path: Path) -> None:
    """Faults in a row before and after the kills: rollback, lowered rate, rows set aside."""
    faults = {(0, 3): "nan", (1, 2): "nan", (1, 3): "nan", (1, 4): "nan", (2, 7): "nan"}
    train = training(
        lambda: Net(faults),
        lambda: loader(rows(bad=POISON)),
        spike_guard=GuardSettings(snapshot_every=4),
        epochs=3,
    )
    until_done(train, tmp_path / "whole", [])
    actions = [line["action"] for line in lines(tmp_path / "whole")]
    assert actions.count("rolled back to the last good state") == 1
    assert actions.count("step skipped") == 7
    for number, kill in enumerate(
        [Kill("batch_end", 5), Kill("backward", 16), Kill("batch_start", 19), Kill("batch_end", 30)]
    ):
        run_dir = tmp_path / str(number)
        assert until_done(train, run_dir, [kill]) == 1
        assert differing(outcome(tmp_path / "whole"), outcome(run_dir)) == []
        assert lines(run_dir) == lines(tmp_path / "whole")


def test_without_a_guard_the_run_has_failed(tmp_path: Path) -> None:
    fit(tmp_path / "run", Net(), spike_guard=False)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recorded["status"] == "failed"
    assert "net.0.weight" in recorded["stages"]["fit"]["not_finite"]


def test_a_job_whose_notebook_ends_well_has_failed_with_such_weights(tmp_path: Path) -> None:
    fit(tmp_path / "run", Net(), spike_guard=False)
    ending = judge(Result("done"), RunFolder(tmp_path / "run"), JobControl(), 0)
    assert ending.status == "failed"
    assert "stage 'fit' ended in weights that are not finite: ['net.0.weight'" in ending.error


def test_ones_own_guard_takes_the_place_of_the_kits_and_writes_into_the_ledger(
    tmp_path: Path,
) -> None:
    own = SpikeGuard(GuardSettings(patience=7))
    trainer = fit(tmp_path / "run", Net(), callbacks=[own])
    guards = [c for c in trainer.callbacks if isinstance(c, SpikeGuard)]  # type: ignore[attr-defined]
    assert guards == [own]
    assert len(lines(tmp_path / "run")) == len(own.events) > 0


def test_a_resume_under_other_settings_of_the_guard_is_refused(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", seed=3)
    options: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 1}
    stable_trainer(run, **options, spike_guard=True).fit(Net(), keyed(loader()))
    again = stable_trainer(run, **options)
    with pytest.raises(SettingsChangedError, match="spike_guard"):
        again.fit(
            Net(), keyed(loader()), ckpt_path=str(tmp_path / "run/checkpoints/fit/finished.ckpt")
        )


def test_with_it_the_run_is_done(tmp_path: Path) -> None:
    fit(tmp_path / "run", Net())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"


def test_too_many_bad_rows_stop_the_run(tmp_path: Path) -> None:
    data = loader(rows(bad=dict.fromkeys(range(0, 96, 7), torch.nan)))
    with pytest.raises(
        TrainingUnstableError, match=r"11 of \d+ (steps were void|rows).*Rows at fault"
    ):
        fit(tmp_path / "run", Net(), data)


def test_ledger_lines_of_void_steps_are_cut_by_their_place(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for batch in (3, 4, 5):
        ledger.append(
            "non-finite loss", action="step skipped", stage="fit", epoch=1, batch=batch, step=13
        )
    assert ledger.cut_after("fit", 13, place=(1, 4)) == 2
    assert [row["batch"] for row in ledger.read()] == [3]


# ---- pure functions ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [[3], [0, 7], [1, 2, 30]])
def test_rows_at_fault_are_found_among_halves(bad: list[int]) -> None:
    losses = torch.ones(64)
    losses[bad] = torch.nan
    assert at_fault(lambda part: float(losses[part].mean()), 64, 2.0) == bad
    losses[bad] = 500.0
    assert at_fault(lambda part: float(losses[part].mean()), 64, 2.0) == bad


def test_rows_that_are_too_much_only_together_are_taken_worst_first() -> None:
    losses = torch.ones(8)
    losses[2], losses[5] = 9.0, 8.0
    assert at_fault(lambda part: float(losses[part].mean()), 8, 2.0) == [2]


def test_a_batch_of_which_most_is_at_fault_is_not_its_rows_fault() -> None:
    losses = torch.full((8,), torch.nan)
    assert at_fault(lambda part: float(losses[part].mean()), 8, 2.0) == []


def test_hard_rows_of_a_batch_in_order_are_not_at_fault() -> None:
    losses = torch.ones(64)
    losses[9] = 50.0
    assert at_fault(lambda part: float(losses[part].mean()), 64, 2.0) == []


def test_a_batch_without_a_row_has_another_of_its_rows_instead() -> None:
    x = torch.arange(6.0)
    batch = {"x": x, "names": list("abcdef"), "weight": torch.tensor(2.0)}
    found = without(batch, [10, 11, 12, 13, 14, 15], {12}, 0, 4, seed=1)
    again = without(batch, [10, 11, 12, 13, 14, 15], {12}, 0, 4, seed=1)
    assert found["x"].tolist() == again["x"].tolist()
    assert 2.0 not in found["x"].tolist()
    assert found["x"][[0, 1, 3, 4, 5]].tolist() == [0.0, 1.0, 3.0, 4.0, 5.0]
    assert found["names"] == ["abcdef"[int(at)] for at in found["x"]]
    assert batch["x"].tolist() == x.tolist()
    others = {float(without(batch, range(6), {2}, 0, n, seed=1)["x"][2]) for n in range(20)}
    assert len(others) > 2


def test_parts_of_a_batch_keep_its_types() -> None:
    batch = Rowed(torch.arange(4.0), torch.arange(4), torch.arange(4))
    assert isinstance(take(batch, [1], 4), Rowed)
    assert take([torch.arange(2), torch.tensor(3)], [1], 2)[0].tolist() == [1]


@pytest.mark.parametrize(
    ("size", "kind"), [(3, torch.float32), (400, torch.float32), (3, torch.float16)]
)
def test_the_norm_is_that_of_all_gradients_together(size: int, kind: torch.dtype) -> None:
    parts = [torch.full((size, size), 0.5, dtype=kind), torch.full((size,), 2.0)]
    parts.append(torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (4,)))
    for gradients in (parts, parts[:2]):
        whole = torch.cat([one.to_dense().double().flatten() for one in gradients])
        assert float(total_norm(gradients)) == pytest.approx(float(whole.norm()))


@pytest.mark.parametrize(("count", "rate"), [(32, 1e-3), (128, 1e-3), (128, 1e-4)])
def test_false_alarms_are_as_rare_as_stated(count: int, rate: float) -> None:
    """Chance of a normal value over the limit of a window, exact for each of 4,000 windows."""
    made = torch.Generator().manual_seed(0)
    over = 0.0
    for _ in range(4_000):
        window = Window(rate, 1.0001)
        window._values.extend(torch.randn(count, generator=made).double().exp().tolist())
        limit = torch.tensor(window._new_limit()).double().log()
        over += 0.5 * float(torch.special.erfc(limit / 2**0.5)) / 4_000
    assert rate / 5 < over <= rate


def test_a_window_knows_no_limit_before_it_has_seen_enough() -> None:
    window = Window(1e-6, 3.0)
    for _ in range(31):
        window.add(1.0, 8)
    assert window.limit == float("inf")
    for _ in range(16):
        window.add(1.0, 8)
    assert window.limit == pytest.approx(3.0)
    assert threshold(32, 1e-6) > threshold(128, 1e-6) > 4.75


def test_a_smaller_batch_may_spread_more() -> None:
    window = Window(1e-6, 3.0)
    for _ in range(32):
        window.add(1.0, 64)
    window.add(2.9, 9)
    assert window.limit_for(64) == pytest.approx(3.0)
    assert window.limit_for(16) == pytest.approx(12.0)
    assert window.median == 1.0


def test_losses_without_a_logarithm_have_a_limit_too() -> None:
    window = Window(1e-6, 3.0)
    for number in range(64):
        window.add(-1.0 + 0.01 * (number % 10), 8)
    assert -1.0 < window.limit < 2.0
