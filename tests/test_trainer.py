from __future__ import annotations

import csv
import importlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from medkit import trainer as trainers
from medkit.callbacks.fingerprint import SettingsChangedError
from medkit.callbacks.guard_policy import GuardSettings, TrainingUnstableError
from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.callbacks.memory_guard import MemoryGuard
from medkit.callbacks.quarantine import Quarantine
from medkit.callbacks.resume import ResumePoints
from medkit.callbacks.signals import TrainingInterrupted
from medkit.callbacks.spike_guard import SpikeGuard
from medkit.record.checkpoints import FINISHED
from medkit.record.ledger import Ledger
from medkit.run import StageFinishedError
from medkit.trainer import Run, keyed, stable_trainer, start_run, weights_digest

pytestmark = [
    pytest.mark.usefixtures("_as_before_a_run"),
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
EPOCHS = 3
BATCHES = 4


class Net(pl.LightningModule):
    """A net with dropout, whose validation loss falls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
        )

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        x, y = batch
        return F.mse_loss(self.net(x).squeeze(1), y)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_epoch=True, on_step=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


class CutError(Exception):
    """The power fails."""


class Cut(pl.Callback):
    """Ends a training before batch ``at``, counted over epochs."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1 == self.at:
            raise CutError


def rows(seed: int = 0, n: int = 32) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=draw)
    return TensorDataset(x, x.sum(dim=1))


def fit(
    run: Run,
    *,
    cut: int | None = None,
    data: TensorDataset | None = None,
    batch_size: int = 32 // BATCHES,
    callbacks: tuple[pl.Callback, ...] = (),
    max_epochs: int = EPOCHS,
    net: type[Net] = Net,
    name: str = "fit",
    **options: Any,
) -> tuple[pl.Trainer, Net]:
    loaders = [
        keyed(DataLoader(data or rows(), batch_size=batch_size, shuffle=True)),
        keyed(DataLoader(rows(1), batch_size=32)),
    ]
    with run.init(name):
        module = net()
    trainer = stable_trainer(
        run,
        name=name,
        max_epochs=max_epochs,
        callbacks=[*callbacks, Cut(cut)],
        checkpoint_every_n_steps=2,
        accelerator="cpu",
        enable_progress_bar=False,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module, *loaders, ckpt_path=run.resume(name))
    return trainer, module


def cut_short(path: Path, **options: Any) -> None:
    """Leave a run behind that ended in the middle of its second epoch."""
    with pytest.raises(CutError):
        fit(start_run(path, seed=7, threads=1), cut=BATCHES + 3, **options)


def go_on(path: Path, *, allow_inexact: bool = False, **options: Any) -> tuple[pl.Trainer, Net]:
    run = start_run(path, seed=7, threads=1, allow_inexact=allow_inexact)
    assert run.resumed
    return fit(run, **options)


def record(path: Path) -> dict[str, Any]:
    return json.loads((path / "run.json").read_text())


def log(path: Path, stage: str = "fit") -> list[dict[str, str]]:
    with (path / "logs" / stage / "metrics.csv").open() as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return start_run(tmp_path / "run", seed=7, threads=1)


# ---- the Trainer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("use_distributed_sampler", True, "keyed loader deals out the batches itself"),
        ("enable_checkpointing", False, "Resume points are the kit's promise"),
        ("barebones", True, "switches callbacks and checkpoints off"),
    ],
)
def test_what_would_break_the_promises_is_refused(
    run: Run, name: str, value: bool, why: str
) -> None:
    with pytest.raises(ValueError, match=rf"stable_trainer needs {name}={not value}, .*{why}"):
        stable_trainer(run, max_epochs=1, **{name: value})
    assert record(run.dir)["stages"] == {}


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_2", ModelParallelStrategy()])
def test_weights_that_are_spread_over_devices_are_refused(run: Run, strategy: Any) -> None:
    with pytest.raises(ValueError, match=r"weights as a whole.*got strategy=.*Take pl\.Trainer"):
        stable_trainer(run, max_epochs=1, strategy=strategy)


def test_what_is_asked_for_as_it_must_be_is_no_error(run: Run) -> None:
    trainer = stable_trainer(run, max_epochs=1, use_distributed_sampler=False, logger=None)
    assert isinstance(trainer, pl.Trainer)


def test_your_callbacks_run_after_the_keys_and_before_the_resume_points(run: Run) -> None:
    mine = Cut(None)
    callbacks = stable_trainer(run, max_epochs=1, callbacks=[mine]).callbacks
    [key] = [n for n, callback in enumerate(callbacks) if isinstance(callback, KeyedSteps)]
    [point] = [n for n, callback in enumerate(callbacks) if isinstance(callback, ResumePoints)]
    assert key < callbacks.index(mine) < point


def test_any_argument_of_lightning_is_passed_on(run: Run) -> None:
    trainer = stable_trainer(run, max_epochs=5, accumulate_grad_batches=3, limit_val_batches=0)
    assert (trainer.max_epochs, trainer.accumulate_grad_batches) == (5, 3)
    assert trainer.limit_val_batches == 0


@pytest.mark.parametrize("name", ["spike_guard", "quarantine", "memory_guard"])
@pytest.mark.parametrize("given", [3, {"factor": 3}, "yes"], ids=repr)
def test_a_guard_that_is_none_is_refused(name: str, given: Any, run: Run) -> None:
    with pytest.raises(TypeError, match=rf"{name} must be True, False or.*, got .*True takes"):
        stable_trainer(run, max_epochs=1, **{name: given})


def test_guards_of_your_own_are_taken(run: Run) -> None:
    own = {
        "spike_guard": SpikeGuard(),
        "memory_guard": MemoryGuard(),
        "quarantine": Quarantine(budget=0.5),
    }
    trainer = stable_trainer(run, max_epochs=1, **own)
    assert all(guard in trainer.callbacks for guard in own.values())
    trainer = stable_trainer(run, name="b", max_epochs=1, spike_guard=GuardSettings(factor=5.0))
    assert [c.settings.factor for c in trainer.callbacks if isinstance(c, SpikeGuard)] == [5.0]


def test_both_guards_train_past_rows_that_are_not_finite(run: Run) -> None:
    broken = rows(n=400)
    broken.tensors[0][[5, 40, 77, 120, 200, 301]] = torch.nan
    trainer, module = fit(run, data=broken, spike_guard=True, memory_guard=True)
    assert trainer.current_epoch == EPOCHS
    assert all(bool(value.isfinite().all()) for value in module.parameters())


def test_a_fit_that_may_vary_is_marked(run: Run) -> None:
    assert record(run.dir)["exact"] is True
    stable_trainer(run, max_epochs=1, deterministic="warn")
    content = record(run.dir)
    assert content["exact"] is False
    assert content["inexact_reasons"] == ["deterministic='warn': operations may vary"]


class Ends(pl.Callback):
    """Ends a training in its first epoch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, *_: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingUnstableError("too often"), "failed"),
        (RuntimeError("no such row"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (TrainingInterrupted("SIGTERM", signal.SIGTERM), "interrupted"),
    ],
    ids=["unstable", "error", "stop button", "signal"],
)
def test_a_fit_that_ended_early_says_how_even_if_somebody_caught_it(
    error: BaseException, status: str, run: Run
) -> None:
    with pytest.raises((type(error), SystemExit)):
        fit(run, callbacks=(Ends(error),))
    run.finish()
    assert record(run.dir)["status"] == status
    assert "no such row" not in (run.dir / "run.json").read_text()


def test_an_error_is_forgotten_once_its_stage_has_gone_on(run: Run) -> None:
    with pytest.raises(RuntimeError):
        fit(run, callbacks=(Ends(RuntimeError("once")),))
    fit(run)
    run.finish()
    assert record(run.dir)["status"] == "done"


def test_a_stage_cannot_be_named_out_of_its_run(run: Run) -> None:
    with pytest.raises(ValueError, match="without slashes"):
        stable_trainer(run, name="../other", max_epochs=1)
    assert record(run.dir)["stages"] == {}


# ---- loggers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("logger", [None, "tensorboard"])
def test_metrics_csv_is_written_whatever_else_logs(run: Run, logger: str | None) -> None:
    fit(run, logger=logger, max_epochs=1)
    written = log(run.dir)
    assert len([row for row in written if row["train/loss_step"]]) == BATCHES
    assert len([row for row in written if row["val/loss"]]) == 1
    events = list((run.dir / "logs").rglob("events.out.tfevents*"))
    assert bool(events) is (logger == "tensorboard")


def test_an_unknown_logger_is_refused_and_the_known_ones_are_named(run: Run) -> None:
    with pytest.raises(
        ValueError, match=r"one of \['mlflow', 'tensorboard', 'wandb'\].*'tensrboard'"
    ):
        stable_trainer(run, max_epochs=1, logger="tensrboard")


@pytest.mark.parametrize(
    ("logger", "package"),
    [("tensorboard", r"'medkit\[tensorboard\]'"), ("mlflow", "mlflow"), ("wandb", "wandb")],
)
def test_a_logger_that_is_not_installed_says_how_to_get_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, logger: str, package: str
) -> None:
    def absent(**_: Any) -> None:
        raise ModuleNotFoundError("Module not found. HINT: Try running `pip install -U x`")

    monkeypatch.setattr(pl.loggers, trainers._LOGGERS[logger], absent)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install {package}, or leave logger out"):
        stable_trainer(run, max_epochs=1, logger=logger)


# ---- cut and joined ----------------------------------------------------------------------------


def test_a_fit_that_was_cut_ends_in_the_same_bits_and_the_same_log(tmp_path: Path) -> None:
    _, whole = fit(start_run(tmp_path / "whole", seed=7, threads=1))
    cut_short(tmp_path / "cut")
    torch.manual_seed(99)
    trainer, joined = go_on(tmp_path / "cut")
    assert weights_digest(joined.state_dict()) == weights_digest(whole.state_dict())
    assert trainer.global_step == EPOCHS * BATCHES
    assert log(tmp_path / "cut") == log(tmp_path / "whole")
    one, other = record(tmp_path / "whole"), record(tmp_path / "cut")
    assert one["weights_sha256"] == other["weights_sha256"]
    assert other["exact"] is True
    assert other["stages"]["fit"]["status"] == "done"


def test_another_seed_ends_in_other_bits(tmp_path: Path) -> None:
    ends = [
        weights_digest(fit(start_run(tmp_path / str(seed), seed=seed))[1].state_dict())
        for seed in (7, 8)
    ]
    assert ends[0] != ends[1]


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "max_epochs": ({"max_epochs": EPOCHS + 1}, "max_epochs was 3, is 4"),
    "precision": ({"precision": "bf16-mixed"}, "precision was '32-true', is 'bf16-mixed'"),
    "clipping": ({"gradient_clip_val": 0.5}, "gradient_clip_val was None, is 0.5"),
    "clipping by": (
        {"gradient_clip_algorithm": "value"},
        "gradient_clip_algorithm was None, is 'value'",
    ),
    "accumulation": (
        {"accumulate_grad_batches": 2},
        "accumulate_grad_batches was 1, is 2",
    ),
    "batch size": ({"batch_size": 4}, "batch_size was [8], is [4]"),
    "rows": ({"data": rows(n=24)}, "rows was [32], is [24]"),
    "values": ({"data": rows(seed=5)}, "samples_sha256"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_resume_under_other_settings_is_refused_and_the_setting_named(
    tmp_path: Path, what: str
) -> None:
    options, named = CHANGES[what]
    cut_short(tmp_path / "run")
    points = sorted((tmp_path / "run" / "checkpoints" / "fit").iterdir())
    with pytest.raises(SettingsChangedError) as caught:
        go_on(tmp_path / "run", **options)
    assert named in str(caught.value)
    assert "allow_inexact=True" in str(caught.value)
    assert sorted((tmp_path / "run" / "checkpoints" / "fit").iterdir()) == points


class Chosen(Net):
    """Keeps its rate as a hyper-parameter; its decay only the optimizer knows."""

    decay = 0.0

    def __init__(self, lr: float = 0.05, weights: str = "/scratch/job1/weights.pt") -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05, weight_decay=self.decay)


class Decays(Chosen):
    decay = 0.1


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (lambda: Chosen(lr=0.1), "hyper-parameter lr was 0.05, is 0.1"),
        (Decays, "optimizer weight_decay was 0.0, is 0.1"),
    ],
)
def test_a_script_that_is_given_another_rate_is_refused(
    tmp_path: Path, net: Any, named: str
) -> None:
    cut_short(tmp_path / "run", net=Chosen)
    with pytest.raises(SettingsChangedError, match=named):
        go_on(tmp_path / "run", net=net)


def test_a_finished_stage_is_not_loaded_for_another_rate(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", seed=7, threads=1)
    fit(run, net=Chosen)
    run.finish("interrupted")
    with pytest.raises(SettingsChangedError, match=r"hyper-parameter lr was 0\.05, is 0\.1"):
        go_on(tmp_path / "run", net=lambda: Chosen(lr=0.1))  # type: ignore[arg-type]


def test_files_that_lie_elsewhere_are_no_other_setting(tmp_path: Path) -> None:
    cut_short(tmp_path / "run", net=Chosen)
    trainer, _ = go_on(tmp_path / "run", net=lambda: Chosen(weights="/scratch/job2/weights.pt"))  # type: ignore[arg-type]
    assert trainer.global_step == EPOCHS * BATCHES
    assert record(tmp_path / "run")["exact"] is True


def test_a_setting_that_is_no_longer_given_is_refused_as_well(tmp_path: Path) -> None:
    cut_short(tmp_path / "run", gradient_clip_val=0.5)
    with pytest.raises(SettingsChangedError, match=r"gradient_clip_val was 0\.5, is None"):
        go_on(tmp_path / "run")


def test_a_module_that_was_edited_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "my_net.py"
    source.write_text("from test_trainer_nets import Net\n\nclass MyNet(Net):\n    pass\n")
    monkeypatch.setitem(sys.modules, "test_trainer_nets", sys.modules[__name__])
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module("my_net").MyNet
    cut_short(tmp_path / "run", net=net)
    source.write_text(source.read_text() + "    dropout = 0.4\n")
    with pytest.raises(SettingsChangedError, match="module_sha256"):
        go_on(tmp_path / "run", net=net)


def test_a_damaged_resume_point_is_named_in_the_ledger_and_does_no_harm(tmp_path: Path) -> None:
    _, whole = fit(start_run(tmp_path / "whole", seed=7, threads=1))
    path = tmp_path / "cut"
    cut_short(path)
    [*_, newest] = sorted((path / "checkpoints" / "fit").glob("*.ckpt"))
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    _, joined = go_on(path)
    assert weights_digest(joined.state_dict()) == weights_digest(whole.state_dict())
    [line] = Ledger(path / "ledger.jsonl").read()
    assert (line["event"], line["action"]) == ("damaged checkpoint", "passed over")
    assert line["detail"] == newest.name


def test_a_default_that_is_given_is_no_other_setting(tmp_path: Path) -> None:
    cut_short(tmp_path / "run")
    go_on(tmp_path / "run", precision="32-true", accumulate_grad_batches=1, max_steps=-1)
    assert record(tmp_path / "run")["exact"] is True


@pytest.mark.parametrize("what", ["max_epochs", "values"])
def test_allowed_to_be_inexact_it_goes_on_and_says_why(tmp_path: Path, what: str) -> None:
    options, named = CHANGES[what]
    cut_short(tmp_path / "run")
    trainer, _ = go_on(tmp_path / "run", allow_inexact=True, **options)
    content = record(tmp_path / "run")
    assert content["exact"] is False
    assert [reason for reason in content["inexact_reasons"] if named in reason]
    assert trainer.current_epoch == options.get("max_epochs", EPOCHS)


def test_after_a_refusal_it_can_be_gone_on_with_as_it_was(tmp_path: Path) -> None:
    _, whole = fit(start_run(tmp_path / "whole", seed=7, threads=1))
    cut_short(tmp_path / "run")
    with pytest.raises(SettingsChangedError):
        go_on(tmp_path / "run", data=rows(seed=5))
    _, joined = go_on(tmp_path / "run")
    assert weights_digest(joined.state_dict()) == weights_digest(whole.state_dict())
    assert record(tmp_path / "run")["exact"] is True


def best(path: Path) -> ModelCheckpoint:
    return ModelCheckpoint(path / "best", filename="best", monitor="val/loss", save_top_k=1)


@pytest.mark.parametrize("later_points", ["kept", "lost"])
def test_your_best_checkpoint_keeps_its_name_over_a_resume(
    tmp_path: Path, later_points: str
) -> None:
    whole = start_run(tmp_path / "whole", seed=7, threads=1)
    fit(whole, callbacks=(best(whole.dir),))
    path = tmp_path / "cut"
    cut_short(path, callbacks=(best(path),), keep_checkpoints=9)
    if later_points == "lost":  # the point knows nothing of the best one that is there already
        for point in sorted((path / "checkpoints" / "fit").glob("*.ckpt"))[1:]:
            point.unlink()
    assert (path / "best" / "best.ckpt").exists()
    go_on(path, callbacks=(best(path),))
    assert [file.name for file in (path / "best").iterdir()] == ["best.ckpt"]
    joined, expected = (
        torch.load(folder / "best" / "best.ckpt", weights_only=True) for folder in (path, whole.dir)
    )
    assert joined["global_step"] == expected["global_step"]
    assert weights_digest(joined["state_dict"]) == weights_digest(expected["state_dict"])


def test_steps_that_had_to_be_trained_again_are_counted(tmp_path: Path) -> None:
    cut_short(tmp_path / "run")
    [*_, last] = sorted((tmp_path / "run" / "checkpoints" / "fit").glob("*.ckpt"))
    saved = torch.load(last, weights_only=True)["global_step"]
    # the progress file is written twice a second at most; say what it would have
    progress = tmp_path / "run" / "logs" / "progress.json"
    progress.write_text(json.dumps(json.loads(progress.read_text()) | {"step": saved + 3}))
    go_on(tmp_path / "run")
    assert record(tmp_path / "run")["cost"]["steps_wasted"] == 3


# ---- a finished stage --------------------------------------------------------------------------


def test_fitting_a_finished_stage_again_is_an_error_that_says_so(run: Run) -> None:
    fit(run)
    with pytest.raises(
        StageFinishedError, match=r"stage 'fit' of .* is finished\. Run the start_run"
    ):
        fit(run)


def test_so_it_is_without_asking_where_to_resume(run: Run) -> None:
    _, module = fit(run)
    before = weights_digest(module.state_dict())
    again = stable_trainer(run, max_epochs=EPOCHS, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(StageFinishedError):
        again.fit(module, keyed(DataLoader(rows(), batch_size=8, shuffle=True)))
    assert weights_digest(module.state_dict()) == before


def test_another_stage_of_the_run_begins_with_its_own_weights(run: Run) -> None:
    first, second = (fit(run, name=name)[1] for name in ("fit", "probe"))
    assert weights_digest(first.state_dict()) != weights_digest(second.state_dict())
    assert set(record(run.dir)["stages"]) == {"fit", "probe"}


def test_a_resumed_run_loads_a_finished_stage_and_trains_nothing(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", seed=7, threads=1)
    before, whole = fit(run)
    run.stage_begun("probe")  # the run is not over
    trainer, loaded = go_on(tmp_path / "run", cut=0)  # would be cut at the first batch
    assert weights_digest(loaded.state_dict()) == weights_digest(whole.state_dict())
    assert trainer.global_step == before.global_step
    assert trainer.callback_metrics["val/loss"] == before.callback_metrics["val/loss"]
    assert record(run.dir)["stages"]["fit"]["step"] == EPOCHS * BATCHES


def test_a_finished_stage_keeps_one_checkpoint_and_no_leftovers(run: Run) -> None:
    fit(run)
    there = sorted(path.name for path in (run.dir / "checkpoints" / "fit").iterdir())
    assert there == [FINISHED, f"{FINISHED}.sha256"]


def test_its_checkpoint_loads_without_running_code(run: Run) -> None:
    _, module = fit(run)
    saved = torch.load(run.dir / "checkpoints" / "fit" / FINISHED, weights_only=True)
    assert weights_digest(saved["state_dict"]) == weights_digest(module.state_dict())


# ---- what weights are --------------------------------------------------------------------------


def test_the_digest_of_weights_does_not_depend_on_the_order_of_keys() -> None:
    state = Net().state_dict()
    assert weights_digest(dict(reversed(state.items()))) == weights_digest(state)


def flip_last_bit(value: torch.Tensor) -> torch.Tensor:
    return (value.view(torch.int32) ^ 1).view(torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        flip_last_bit,
        lambda value: -value,  # of a zero: the sign bit alone
        lambda value: value.double(),
        lambda value: value.reshape(1, -1),
        lambda value: value.to(torch.int32),
    ],
)
def test_the_digest_of_weights_changes_with_one_bit_and_with_their_type(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    state = {"a": torch.ones(3), "b": torch.zeros(4)}
    assert weights_digest(state | {"b": change(state["b"])}) != weights_digest(state)


def test_the_digest_of_weights_reads_a_view_as_what_it_shows() -> None:
    value = torch.arange(6.0).reshape(2, 3)
    assert weights_digest({"a": value.T}) == weights_digest({"a": value.T.contiguous()})
    assert weights_digest({"a": torch.tensor(1.5, requires_grad=True)}) == weights_digest(
        {"a": torch.tensor(1.5)}
    )
