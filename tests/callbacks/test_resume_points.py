"""Resume points by themselves, in a Trainer that knows nothing else of the kit but keyed steps."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from benchmarks._kills import digest, in_child
from medkit import keyed as keys
from medkit.callbacks.fingerprint import SettingsChangedError
from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.callbacks.resume import ResumePoints
from medkit.callbacks.state import NotPlainError
from medkit.data.loader import keyed
from medkit.record.checkpoints import FINISHED, PASSED_OVER, checkpoints, newest_sound
from tests.callbacks.small import BATCHES, EPOCHS, Data, Net


class StoppedError(Exception):
    """Stands for whatever ends a fit."""


class Stop(pl.Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.batch:
            raise StoppedError


@pytest.fixture
def fit(quiet: dict[str, Any], tmp_path: Path) -> Callable[..., pl.Trainer]:
    """Fit with resume points in ``tmp_path/points``, from the newest sound one."""

    def run(
        *,
        stop: int = 0,
        net: Callable[[], pl.LightningModule] = Net,
        module: pl.LightningModule | None = None,
        folder: Path = tmp_path / "points",
        callbacks: tuple[pl.Callback, ...] = (),
        points: dict[str, Any] | None = None,
        **options: Any,
    ) -> pl.Trainer:
        with keys.globals_keyed(7, "init", "fit"):
            module = module or net()
        settings = {"every_n_steps": 1, "every_s": None} | (points or {})
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            use_distributed_sampler=False,
            callbacks=[
                KeyedSteps(seed=7),
                *callbacks,
                Stop(stop),
                ResumePoints(folder, **settings),
            ],
            **quiet | options,
        )
        newest = newest_sound(folder) if folder.exists() else None
        try:
            trainer.fit(module, keyed(Data(), seed=7), ckpt_path=newest)
        except StoppedError:
            assert stop
        return trainer

    return run


def weights(trainer: pl.Trainer) -> str:
    return digest(trainer.lightning_module.state_dict())


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def test_they_need_no_run_and_resume_to_the_same_bits(fit: Any, tmp_path: Path) -> None:
    whole = weights(fit(folder=tmp_path / "whole"))
    fit(stop=8)
    assert weights(fit()) == whole


def test_a_point_is_taken_every_so_many_optimizer_steps(fit: Any, tmp_path: Path) -> None:
    fit(stop=11, points={"every_n_steps": 2, "keep": 9}, accumulate_grad_batches=2)
    # three steps an epoch, each of two batches
    assert names(tmp_path / "points") == [
        "resume-e000000-b00000004.ckpt",
        "resume-e000001-b00000002.ckpt",
    ]


def test_the_last_two_are_kept(fit: Any, tmp_path: Path) -> None:
    fit(stop=6)
    assert len(names(tmp_path / "points")) == 2


def test_none_is_taken_before_its_time(fit: Any, tmp_path: Path) -> None:
    fit(stop=11, points={"every_n_steps": None, "every_s": 3600.0})
    assert names(tmp_path / "points") == []


@pytest.mark.parametrize("arguments", [{"every_n_steps": 0}, {"keep": 0}])
def test_a_count_below_one_is_refused(arguments: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be at least 1, got 0"):
        ResumePoints(tmp_path, **arguments)


def test_every_point_loads_without_running_code(fit: Any, tmp_path: Path) -> None:
    fit(stop=8)
    for path in checkpoints(tmp_path / "points"):
        assert "state_dict" in torch.load(path, weights_only=True)


def test_hyper_parameters_that_are_not_plain_do_not_get_into_it(fit: Any, tmp_path: Path) -> None:
    class Odd(Net):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.save_hyperparameters()

    fit(stop=8, net=lambda: Odd(nn.Identity()))
    newest = checkpoints(tmp_path / "points")[-1]
    assert torch.load(newest, weights_only=True)["hyper_parameters"] is None


def test_plain_hyper_parameters_are_kept(fit: Any, tmp_path: Path) -> None:
    class Plain(Net):
        def __init__(self, width: int = 3, where: Path = Path("a/b"), rate: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()

    fit(stop=8, net=lambda: Plain(rate=np.float64(0.5)))
    found = torch.load(checkpoints(tmp_path / "points")[-1], weights_only=True)
    assert found["hyper_parameters"] == {"width": 3, "where": "a/b", "rate": 0.5}


def test_a_state_that_is_not_plain_is_named(fit: Any) -> None:
    class Odd(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"net": nn.Identity()}

    with pytest.raises(NotPlainError, match=r"callbacks.*Odd.*\.net holds a torch\.nn.*Identity"):
        fit(callbacks=(Odd(),))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_one_is_set_aside_and_the_one_before_it_resumed(fit: Any, tmp_path: Path) -> None:
    whole = weights(fit(folder=tmp_path / "whole"))
    fit(stop=8)
    older, newest = checkpoints(tmp_path / "points")
    damage(newest)
    fit(stop=9)
    assert newest.with_name(newest.name + PASSED_OVER).exists()
    assert older.name not in names(tmp_path / "points")[-1:]
    assert weights(fit()) == whole


def test_with_all_damaged_it_starts_afresh(fit: Any, tmp_path: Path) -> None:
    whole = weights(fit(folder=tmp_path / "whole"))
    fit(stop=8)
    for path in checkpoints(tmp_path / "points"):
        damage(path)
    assert weights(fit()) == whole


def test_a_fit_that_does_not_resume_does_not_write_over_sound_points(
    fit: Any, quiet: dict[str, Any], tmp_path: Path
) -> None:
    fit(stop=8)
    trainer = pl.Trainer(max_epochs=1, callbacks=[ResumePoints(tmp_path / "points")], **quiet)
    with pytest.raises(FileExistsError, match=r"must begin in an empty folder.*run\.resume"):
        trainer.fit(Net(), keyed(Data(), seed=7))


def test_a_finished_fit_is_loaded_with_its_metrics_and_not_trained(fit: Any) -> None:
    class Counts(Net):
        steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            type(self).steps += 1
            self.seen = self.steps
            return super().training_step(batch, batch_idx)

    first = fit(net=Counts)
    again = fit(net=Counts)
    assert Counts.steps == BATCHES * EPOCHS
    assert weights(again) == weights(first)
    assert again.callback_metrics == first.callback_metrics
    assert again.lightning_module.seen == BATCHES * EPOCHS


def test_other_settings_are_refused_with_their_names(fit: Any) -> None:
    fit(stop=8, points={"identity": {"rate": 0.1, "rows": 5}})
    with pytest.raises(SettingsChangedError, match=r"rate was 0\.1, is 0\.2\. Set them back"):
        fit(points={"identity": {"rate": 0.2, "rows": 5}})


def test_a_finished_fit_that_is_asked_for_more_epochs_says_that_it_trains_none(fit: Any) -> None:
    fit(points={"identity": {"max_epochs": 3}})
    allowed = {"identity": {"max_epochs": 5}, "on_changed": lambda found: None}
    with pytest.raises(
        SettingsChangedError, match=r"not trained again, but max_epochs was 3, is 5"
    ):
        fit(points=allowed)


def test_a_fit_stopped_and_resumed_in_one_process_passes_on_what_it_carries(
    fit: Any, tmp_path: Path
) -> None:
    """As in a notebook: the same module is fitted on, and only then its process is lost."""

    class Once(Net):
        worth = 1.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.trainer.global_step == 2:
                self.worth = 3.0  # long before the second stop, and never again
            return super().training_step(batch, batch_idx) * self.worth

    whole = weights(fit(net=Once, folder=tmp_path / "whole"))
    module = fit(net=Once, stop=5).lightning_module
    fit(module=module, stop=9)
    assert weights(fit(net=Once)) == whole


def test_what_a_hook_made_and_the_next_fit_has_not_is_reported(fit: Any) -> None:
    class Meter:
        total = 0

    class MadeLate(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if not hasattr(self, "meter"):
                self.meter = Meter()
            self.meter.total = self.meter.total + 1
            return super().training_step(batch, batch_idx)

    reasons: list[str] = []
    fit(net=MadeLate, stop=8)
    fit(net=MadeLate, stop=9, points={"on_inexact": reasons.append})
    assert len(reasons) == 1
    assert "meter had changed" in reasons[0]
    assert "make it in __init__" in reasons[0]


def failing(work: Callable[[], object], log: Path) -> str:
    """Work in a child, which must fail, and return what it said."""
    assert in_child(work, log) == 1
    return log.read_text()


def test_a_full_disk_ends_the_fit_with_a_clear_error_and_keeps_the_older_point(
    fit: Any, tmp_path: Path
) -> None:
    whole = weights(fit(folder=tmp_path / "whole"))
    fit(stop=5)
    before = names(tmp_path / "points")
    size = checkpoints(tmp_path / "points")[-1].stat().st_size

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        fit()

    said = failing(on_a_full_disk, tmp_path / "log")
    assert "a resume point must be written" in said
    assert "make room" in said
    assert names(tmp_path / "points") == before
    assert weights(fit()) == whole


def test_so_does_a_folder_that_cannot_be_written(fit: Any, tmp_path: Path) -> None:
    fit(stop=5)
    folder = tmp_path / "points"
    before = names(folder)

    def forbidden() -> None:
        if os.geteuid() == 0:  # root may write anywhere
            for path in (tmp_path, *tmp_path.parents[:-1], folder, *folder.iterdir()):
                if path.stat().st_uid == 0 and path.parts[:2] != ("/", "proc"):
                    os.chmod(path, path.stat().st_mode | 0o055)
            os.chmod(tmp_path, 0o777)
            os.seteuid(65534)
        fit()

    folder.chmod(0o555)
    modes = {path: path.stat().st_mode for path in tmp_path.parents if path != Path("/")}
    try:
        said = failing(forbidden, tmp_path / "log")
    finally:
        folder.chmod(0o755)
        for path, mode in modes.items():
            path.chmod(mode)
    assert "make the folder writable" in said
    assert names(folder) == before


def test_it_finishes_with_one_checkpoint(fit: Any, tmp_path: Path) -> None:
    fit()
    assert sorted(path.name for path in (tmp_path / "points").iterdir()) == [
        FINISHED,
        f"{FINISHED}.sha256",
    ]
