"""A step with a fault moves nothing but the position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from benchmarks._spikes import BATCHES, ROWS, SIZE, Net, Watch, loader, rows
from medkit.callbacks.guard_policy import GuardSettings, TrainingUnstableError
from medkit.callbacks.guard_state import not_finite
from medkit.callbacks.spike_guard import SpikeGuard

SMALL = GuardSettings(snapshot_every=5)


@pytest.fixture(autouse=True)
def _same_nets_in_each_order_of_tests() -> None:
    torch.manual_seed(0)


def fit(
    net: pl.LightningModule,
    quiet: dict[str, Any],
    *,
    guard: SpikeGuard | None = None,
    data: Any = None,
    epochs: int = 4,
    first: tuple[pl.Callback, ...] = (),
    last: tuple[pl.Callback, ...] = (),
    **options: Any,
) -> tuple[SpikeGuard, Watch, pl.Trainer]:
    guard = guard or SpikeGuard(SMALL)
    watch = Watch()
    torch.manual_seed(5)
    trainer = pl.Trainer(
        **quiet,
        max_epochs=epochs,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=[*first, guard, *last, watch],
        **options,
    )
    trainer.fit(net, loader() if data is None else data)
    return guard, watch, trainer


@pytest.mark.parametrize("kind", ["nan", "inf", "loss", "large", "gradient", "big"])
def test_a_void_step_moves_nothing(kind: str, quiet: dict[str, Any]) -> None:
    guard, watch, trainer = fit(Net({(3, 4): kind}, norm=kind != "big"), quiet)
    assert [event["action"] for event in guard.events] == ["step skipped"]
    assert (guard.events[0]["epoch"], guard.events[0]["batch"]) == (3, 4)
    assert watch.moved(3, 4) == []
    assert trainer.global_step == 4 * BATCHES - 1
    assert not_finite(trainer.lightning_module) == []


def test_the_step_after_a_void_one_is_the_one_that_would_have_been(quiet: dict[str, Any]) -> None:
    """Without dropout: its masks are drawn from a history in a plain Trainer."""

    def ends(faults: dict[tuple[int, int], str], cut: bool) -> list[Tensor]:
        torch.manual_seed(2)
        net = Net(faults)
        net.net[3] = nn.Identity()
        kept = [row for row in range(ROWS) if not (cut and row // SIZE == 4)]
        data = DataLoader(Subset(rows(), kept), SIZE)
        _, _, trainer = fit(net, quiet, data=data, epochs=1)
        return [*net.state_dict().values(), trainer.callback_metrics["train/loss"]]

    for mine, theirs in zip(ends({(0, 4): "nan"}, False), ends({}, True), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_one_bad_micro_batch_voids_its_window(quiet: dict[str, Any]) -> None:
    guard, watch, trainer = fit(Net({(1, 5): "nan"}), quiet, accumulate_grad_batches=4)
    assert [event["batch"] for event in guard.events] == [7]
    assert watch.moved(1, 4) == []
    assert trainer.global_step == 4 * BATCHES // 4 - 1


@pytest.mark.parametrize("before", [True, False])
def test_averaged_weights_stand_still_wherever_the_callback_stands(
    before: bool, quiet: dict[str, Any]
) -> None:
    average = EMAWeightAveraging(decay=0.9)
    where: dict[str, Any] = {"first" if before else "last": (average,)}
    _, watch, _ = fit(Net({(2, 1): "nan"}), quiet, **where)
    assert watch.moved(2, 1) == []
    assert "averaged" in watch.moved(2, 2)


def test_an_undisturbed_training_is_the_one_without_a_guard(quiet: dict[str, Any]) -> None:
    def weights(guarded: bool) -> list[Tensor]:
        torch.manual_seed(3)
        net = Net()
        trainer = pl.Trainer(
            **quiet,
            max_epochs=3,
            enable_checkpointing=False,
            callbacks=[SpikeGuard()] if guarded else [],
        )
        torch.manual_seed(4)
        trainer.fit(net, loader())
        return [*net.state_dict().values()]

    for mine, theirs in zip(weights(True), weights(False), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


class Half(MixedPrecision):
    """16-mixed on the CPU, with a scale that is searched for."""

    def __init__(self, scale: float) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["nan", "large"])
def test_a_void_step_leaves_the_loss_scale(kind: str, fused: bool, quiet: dict[str, Any]) -> None:
    class Mixed(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2, fused=fused)

    guard, watch, _ = fit(Mixed({(3, 4): kind}), quiet, plugins=[Half(2.0**8)])
    assert [event["action"] for event in guard.events] == ["step skipped"]
    assert watch.moved(3, 4) == []
    assert {"weights", "buffers", "optimizers"} <= set(watch.moved(3, 5))


def test_infinities_of_a_scale_that_is_too_large_are_no_fault(quiet: dict[str, Any]) -> None:
    guard, watch, _ = fit(Net(), quiet, plugins=[Half(2.0**40)])
    assert guard.events == []
    assert "weights" not in watch.moved(0, 0)  # the scaler left it out
    assert "scale" in watch.moved(0, 0)
    assert "weights" in watch.moved(3, 0)


class TwoOptimizers(pl.LightningModule):
    """Manual optimization of two nets in turn."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 2), nn.Linear(6, 2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for number, (net, optimizer) in enumerate(
            zip((self.one, self.other), self.optimizers(), strict=True)
        ):
            loss = F.cross_entropy(net(batch[0]), batch[1])
            bad = number == 0 and (self.current_epoch, batch_idx) == (1, 3)
            optimizer.zero_grad()
            self.manual_backward(loss * torch.nan if bad else loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), 0.1, 0.9) for net in (self.one, self.other)]


def test_of_several_optimizers_only_the_one_with_the_fault_stands_still(
    quiet: dict[str, Any],
) -> None:
    net, seen = TwoOptimizers(), []

    class Look(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append([net.one.weight.detach().clone(), net.other.weight.detach().clone()])

    guard, _, trainer = fit(net, quiet, epochs=2, first=(Look(),))
    bad = BATCHES + 3
    assert [event["event"] for event in guard.events] == ["non-finite gradient"]
    torch.testing.assert_close(seen[bad][0], seen[bad - 1][0], rtol=0, atol=0)
    assert not torch.equal(seen[bad][1], seen[bad - 1][1])
    assert trainer.global_step == 2 * 2 * BATCHES - 1


def test_repeated_trouble_goes_back_lowers_the_rate_and_trains_on(quiet: dict[str, Any]) -> None:
    faults = {(1, batch): "nan" for batch in (5, 6, 7)}
    guard, watch, _ = fit(Net(faults), quiet)
    assert [e["action"] for e in guard.events][2:] == [
        "step skipped",
        "rolled back to the last good state",
    ]
    good, back = watch.before[1, 3], watch.after[1, 7]  # 15 good steps before, a snapshot each 5
    assert {name for name in back if back[name] == good[name]} >= {"weights", "buffers"}
    assert watch.before[1, 5]["weights"] != back["weights"]
    assert watch.before[1, 5]["step"] == back["step"]
    assert guard.policy.lr_scale == 0.5
    assert "weights" in watch.moved(1, 8)


def test_lowered_rates_do_not_reach_the_schedule(quiet: dict[str, Any]) -> None:
    def rates(faults: dict[tuple[int, int], str]) -> tuple[list[float], list[float]]:
        shown, used = [], []

        class Look(pl.Callback):
            def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
                shown.append(trainer.optimizers[0].param_groups[0]["lr"])

            def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
                used.append(trainer.optimizers[0].param_groups[0]["lr"])

        torch.manual_seed(1)
        fit(Net(faults), quiet, guard=guard, last=(Look(),), epochs=2)
        return shown, used

    guard = SpikeGuard(SMALL)
    faults = {(0, batch): "nan" for batch in (3, 4, 5)}
    shown, used = rates(faults)
    assert shown[6] == pytest.approx(shown[3])  # three steps were void
    assert used[7] == pytest.approx(0.5 * shown[7])
    assert shown[8] > shown[7] > shown[6]  # warming up as before


def test_over_budget_training_stops_and_names_layers_and_rows(quiet: dict[str, Any]) -> None:
    guard = SpikeGuard(GuardSettings(max_rollbacks=1))
    faults = {(0, batch): "nan" for batch in range(2, BATCHES)}
    with pytest.raises(TrainingUnstableError, match=r"3 more void steps after 1 rollbacks.*Layers"):
        fit(Net(faults), quiet, guard=guard)
    assert guard.events[-1]["action"] == "training stopped"


def test_the_first_layer_that_is_not_finite_is_named(quiet: dict[str, Any]) -> None:
    class Overflows(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            if (self.current_epoch, batch_idx) == (1, 2):
                with torch.no_grad():
                    self.net[4].weight.mul_(torch.inf)
            return super().training_step(batch, batch_idx)

    guard = SpikeGuard(GuardSettings(max_rollbacks=0))
    with pytest.raises(TrainingUnstableError, match=r"net\.4\.weight"):
        fit(Overflows(), quiet, guard=guard)
    assert "net.4 (forward)" in guard.events[0]["detail"]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 < false_alarms < 0\.1.*got.*defaults"):
        GuardSettings(false_alarms=0.0)
    with pytest.raises(ValueError, match=r"of at least 1.*got.*defaults"):
        GuardSettings(patience=0)


@pytest.mark.parametrize("given", [{"factor": "a"}, {"patience": 2.5}, {"budget": None}], ids=repr)
def test_settings_that_are_no_numbers_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"must be numbers, .*got \{.*Leave out"):
        GuardSettings(**given)


@pytest.mark.parametrize("given", [True, 5, {"factor": 3}, GuardSettings], ids=repr)
def test_a_guard_takes_no_other_settings(given: Any) -> None:
    with pytest.raises(TypeError, match=r"must be GuardSettings or None, got .*None takes"):
        SpikeGuard(given)


def test_a_fit_that_cannot_be_guarded_says_so(
    quiet: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Newton(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    guard, _, _ = fit(Newton({(0, 3): "nan"}), quiet, epochs=1)
    assert "LBFGS takes several looks" in caplog.text
    assert guard.events == []


def test_a_masks_minus_infinity_is_not_a_failure() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.full((2, 2), -torch.inf))
    assert not_finite(net) == []
    net.register_buffer("edges", torch.eye(2).to_sparse())
    net.register_buffer("mean", torch.tensor([torch.nan]))
    assert not_finite(net) == ["mean"]


def test_stock_lightning_ends_non_finite(quiet: dict[str, Any], tmp_path: Path) -> None:
    net = Net()
    trainer = pl.Trainer(**quiet, max_epochs=1, enable_checkpointing=False)
    trainer.fit(net, loader(rows(bad={17: torch.nan})))
    assert "net.0.weight" in not_finite(net)
