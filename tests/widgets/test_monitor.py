"""The training monitor: it looks and does not touch, and shows what the place allows."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import IPython
import IPython.display
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from medkit.callbacks.augmentation_schedule import AugmentationSchedule, Ramp
from medkit.models.stacked_loader import stacked
from medkit.trainer import keyed, stable_trainer, start_run, weights_digest
from medkit.widgets import monitor as monitors
from medkit.widgets.monitor import TrainingMonitor
from tests.models.test_seed_ensemble import Small, ensemble

STEPS = 12  # in 3 epochs


class Net(pl.LightningModule):
    """A net with dropout that logs a loss and a metric in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.seen: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.net(batch[0]).square().mean()
        self.seen.append(loss.item())
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.net(batch[0]).square().mean())
        self.log("val/size", self.net(batch[0]).abs().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopAt(pl.Callback):
    """Ends the training with an error after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("stopped here")


def generator_states() -> list[str]:
    legacy = np.random.get_state()  # noqa: NPY002 - it is the global generator that is asked for
    return [repr(random.getstate()), repr(legacy[1].tolist()), repr(torch.get_rng_state().tolist())]


def loader(**options: Any) -> DataLoader[Any]:
    x = torch.arange(24.0).reshape(8, 3) / 24
    return DataLoader(TensorDataset(x), batch_size=2, **options)


def fit(
    folder: Path,
    *callbacks: pl.Callback,
    end: str | None = None,
    net: Callable[[], Net] = Net,
    **options: Any,
) -> Net:
    run = start_run(folder, seed=3)
    with run.init("fit"):
        lit = net()
    trainer = stable_trainer(
        run,
        max_epochs=3,
        callbacks=callbacks,
        checkpoint_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        **options,
    )
    trainer.fit(lit, keyed(loader(shuffle=True)), loader(), ckpt_path=run.resume("fit"))
    run.finish(end)
    return lit


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Pretend to be in a kernel; collect what is displayed."""
    displayed: list[Any] = []

    def display(thing: Any, **options: Any) -> SimpleNamespace:
        displayed.append(thing)
        return SimpleNamespace(update=displayed.append)

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr(IPython.display, "display", display)
    return displayed


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let the monitor's clock jump so many seconds each time it is looked at."""

    def set_clock(step_s: float) -> None:
        clock = SimpleNamespace(now=0.0)

        def monotonic() -> float:
            clock.now += step_s
            return clock.now

        monkeypatch.setattr(monitors, "time", SimpleNamespace(monotonic=monotonic))

    return set_clock


def test_weights_are_the_same_bits_with_and_without_it(
    tmp_path: Path, shown: list[Any], hasty: Callable[[float], None]
) -> None:
    plain = fit(tmp_path / "plain")
    hasty(100.0)
    monitor = TrainingMonitor()
    watched = fit(tmp_path / "watched", monitor)
    assert monitor.drawings > 1
    assert weights_digest(watched.state_dict()) == weights_digest(plain.state_dict())


def test_drawing_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    monitor = TrainingMonitor()
    fit(tmp_path / "run", monitor)
    before = generator_states()
    monitor.figure().canvas.draw()
    assert generator_states() == before


def test_it_notes_each_loss_and_each_validation(tmp_path: Path) -> None:
    monitor = TrainingMonitor()
    net = fit(tmp_path / "run", monitor)
    history = monitor.history
    assert history.batches.x == list(range(1, STEPS + 1))
    assert history.batches.y == pytest.approx(net.seen)
    assert history.epochs.x == [4, 8, 12]
    assert history.epochs.y[0] == pytest.approx(sum(net.seen[:4]) / 4)
    assert history.logged["val/loss"].x == history.logged["val/size"].x == [4, 8, 12]


def test_accumulated_batches_count_with_their_whole_loss(tmp_path: Path) -> None:
    monitor = TrainingMonitor()
    net = fit(tmp_path / "run", monitor, accumulate_grad_batches=2)
    assert monitor.history.batches.y == pytest.approx(net.seen)


@pytest.mark.parametrize("step", [3, 4, 6])
def test_the_lines_of_a_resumed_training_are_whole(tmp_path: Path, step: int) -> None:
    whole, resumed = TrainingMonitor(), TrainingMonitor()
    fit(tmp_path / "whole", whole)
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(tmp_path / "cut", TrainingMonitor(), StopAt(step))
    fit(tmp_path / "cut", resumed)
    assert resumed.history.state() == whole.history.state()


class Spiking(Net):
    """Its loss is no number at one place."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        bad = (self.trainer.current_epoch, batch_idx) == (1, 2)
        return loss * (float("nan") if bad else 1.0)


@pytest.mark.parametrize("cut", [False, True])
def test_what_a_guard_did_is_marked_also_over_a_resume(tmp_path: Path, cut: bool) -> None:
    monitor = TrainingMonitor()
    if cut:
        with pytest.raises(RuntimeError, match="stopped here"):
            fit(tmp_path / "run", TrainingMonitor(), StopAt(8), net=Spiking, spike_guard=True)
    fit(tmp_path / "run", monitor, net=Spiking, spike_guard=True)
    (legend,) = monitor.figure().legends
    assert legend.get_texts()[0].get_text() == "1 step skipped"
    assert [mark.step for mark in monitor.history.marks] == [6]
    assert all(np.isfinite(monitor.history.epochs.y))  # of the steps that were taken


def test_a_schedule_of_the_augmentation_is_marked_with_its_strengths(tmp_path: Path) -> None:
    class Augmented(Net):
        strength = 0.0

    monitor = TrainingMonitor()
    fit(tmp_path / "run", monitor, AugmentationSchedule(Ramp(2)), net=Augmented)
    panel = monitor.figure().axes[0]
    assert [text.get_text() for text in panel.texts] == ["0", "0.5", "1"]


def test_each_member_of_a_stack_is_drawn_and_its_loss_is_their_mean(tmp_path: Path) -> None:
    seeds, monitor = (0, 1, 2), TrainingMonitor()
    run = start_run(tmp_path / "run", seed=0)
    lit = ensemble("mlp", seeds)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    trainer = stable_trainer(run, max_epochs=2, callbacks=[monitor], **quiet)
    trainer.fit(lit, stacked(keyed(Small()), seeds))
    run.finish()
    assert monitor.history.epochs.y[-1] == pytest.approx(
        float(trainer.callback_metrics["train/loss"]), rel=0.05
    )
    figure = monitor.figure()
    assert [ax.get_title().split()[0] for ax in figure.axes[1:]] == [
        "val/auroc",
        "val/auprc",
        "val/brier",
    ]
    table = lit.table()
    thin = [line for line in figure.axes[1].get_lines() if line.get_linewidth() < 1]
    assert [list(line.get_ydata()) for line in thin] == [
        table[table["seed"] == seed]["auroc"].tolist() for seed in seeds
    ]
    assert figure.axes[1].get_legend().get_texts()[0].get_text() == "ensemble"


def test_outside_a_notebook_nothing_is_drawn(tmp_path: Path) -> None:
    monitor = TrainingMonitor()
    fit(tmp_path / "run", monitor)
    assert monitor.drawings == 0
    assert monitor.figure().axes


def test_a_job_gets_one_picture_and_no_widget(
    tmp_path: Path, shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDKIT_LAUNCHER_PID", "1")
    monkeypatch.setattr(monitors, "_View", None)  # would fail
    monitor = TrainingMonitor(every_s=0.0)
    fit(tmp_path / "run", monitor)
    assert [type(thing) for thing in shown] == [IPython.display.Image]
    assert shown[0].data.startswith(b"\x89PNG")
    assert monitor.drawings == 1


def test_without_ipywidgets_it_shows_a_picture(
    tmp_path: Path, shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    fit(tmp_path / "run", TrainingMonitor())
    assert [type(thing) for thing in shown] == [IPython.display.Image]


def test_the_live_view_gives_way_to_a_picture_also_after_an_error(
    tmp_path: Path, shown: list[Any]
) -> None:
    pytest.importorskip("ipywidgets")
    monitor = TrainingMonitor()
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(tmp_path / "run", monitor, StopAt(5))
    live, picture = shown
    assert type(live).__name__ == "VBox"
    assert type(picture) is IPython.display.Image
    assert live.comm is None  # closed: its state is in no saved notebook


def test_it_draws_no_more_often_than_it_was_told(
    tmp_path: Path, shown: list[Any], hasty: Callable[[float], None]
) -> None:
    pytest.importorskip("ipywidgets")
    hasty(0.001)
    monitor = TrainingMonitor(every_s=1.0)
    fit(tmp_path / "run", monitor)
    assert monitor.drawings == 1  # the one at the end


def test_a_slow_drawing_is_followed_by_a_longer_pause(
    tmp_path: Path, shown: list[Any], hasty: Callable[[float], None]
) -> None:
    pytest.importorskip("ipywidgets")
    hasty(1.0)  # each look at the clock a second later: a drawing seems to take one
    monitor = TrainingMonitor(every_s=0.5)
    fit(tmp_path / "run", monitor)
    assert 1 < monitor.drawings < STEPS / 2


def test_a_finished_stage_that_is_loaded_shows_its_curves_again(
    tmp_path: Path, shown: list[Any]
) -> None:
    fit(tmp_path / "run", TrainingMonitor(), end="killed")
    again = TrainingMonitor()
    fit(tmp_path / "run", again)
    assert again.history.batches.x == list(range(1, STEPS + 1))
    assert type(shown[-1]) is IPython.display.Image
