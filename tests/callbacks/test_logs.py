"""Logs that survive a kill."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from medkit.callbacks import logs
from medkit.callbacks.logs import ProgressFile, RunCSVLogger
from medkit.data.loader import keyed
from medkit.record.attempts import PROGRESS_NAME
from tests.callbacks.small import BATCHES, Data, Net


def logged(folder: Path, rows: int, numbers: range) -> list[str]:
    logger = RunCSVLogger(folder)
    logger.begin(rows)
    for number in numbers:
        logger.log_metrics({"train/loss": float(number)}, step=number)
        logger.save()
    logger.finalize("success")
    return (folder / "metrics.csv").read_text().splitlines()


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_new_fit_begins_a_new_log(tmp_path: Path) -> None:
    logged(tmp_path, 0, range(5))
    assert len(logged(tmp_path, 0, range(2))) == 1 + 2


def test_a_resumed_fit_goes_on_after_the_rows_its_point_knew(tmp_path: Path) -> None:
    whole = logged(tmp_path / "whole", 0, range(6))
    logged(tmp_path / "cut", 0, range(5))
    assert logged(tmp_path / "cut", 3, range(3, 6)) == whole


def test_a_row_torn_by_a_kill_is_cut(tmp_path: Path) -> None:
    whole = logged(tmp_path / "whole", 0, range(6))
    logged(tmp_path / "cut", 0, range(3))
    with (tmp_path / "cut" / "metrics.csv").open("a") as handle:
        handle.write("3.0,")
    assert logged(tmp_path / "cut", 3, range(3, 6)) == whole


def test_rows_not_yet_on_the_disk_are_there_when_a_point_is_taken(tmp_path: Path) -> None:
    logger = RunCSVLogger(tmp_path)
    logger.begin()
    for number in range(3):
        logger.log_metrics({"train/loss": float(number)}, step=number)
        logger.save()
    assert logger.rows == 1  # the others wait for the second to pass
    logger.flush()
    assert logger.rows == 3
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 3


def test_a_column_that_comes_later_keeps_the_rows_before_it(tmp_path: Path) -> None:
    logged(tmp_path, 0, range(2))
    logger = RunCSVLogger(tmp_path)
    logger.begin(2)
    logger.log_metrics({"val/loss": 0.5}, step=2)
    logger.save()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,train/loss,val/loss", "0,0.0,", "1,1.0,", "2,,0.5"]


def test_rows_wait_while_the_disk_is_full_and_none_is_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = logged(tmp_path / "whole", 0, range(5))
    logger = RunCSVLogger(tmp_path / "full")
    logger.begin()
    original = os.replace
    with monkeypatch.context() as full:
        full.setattr(os, "replace", no_room)  # the first row comes with a header
        full.setattr(logs, "append_whole", no_room)
        for number in range(3):
            logger.log_metrics({"train/loss": float(number)}, step=number)
            logger._next_save = 0.0
            logger.save()
            if number == 0:
                full.setattr(os, "replace", original)
        with pytest.raises(OSError, match="No space"):
            logger.flush()
        assert logger.rows == 2
        logger.finalize("failed")
    for number in range(3, 5):
        logger.log_metrics({"train/loss": float(number)}, step=number)
    logger.finalize("success")
    assert (tmp_path / "full" / "metrics.csv").read_text().splitlines() == whole


def test_a_progress_file_that_cannot_be_written_stops_nothing(
    quiet: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "write_json", no_room)
    trainer = pl.Trainer(**quiet, max_epochs=1, callbacks=[ProgressFile(tmp_path, every_s=0)])
    trainer.fit(Net(), keyed(Data(), seed=7))
    assert trainer.global_step == BATCHES


@pytest.fixture
def progress(quiet: dict[str, Any], tmp_path: Path) -> list[dict[str, Any]]:
    """What stood in the progress file as each epoch ended, and at the end."""
    seen = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            seen.append(json.loads((tmp_path / PROGRESS_NAME).read_text()))

    callbacks = [ProgressFile(tmp_path, name="warm up", every_s=0.0), Look()]
    trainer = pl.Trainer(max_epochs=2, callbacks=callbacks, **quiet)
    trainer.fit(Net(), keyed(Data(), seed=7))
    return [*seen, json.loads((tmp_path / PROGRESS_NAME).read_text())]


def test_the_progress_file_says_where_training_stands(progress: list[dict[str, Any]]) -> None:
    names = ("stage", "epoch", "max_epochs", "batch", "batches", "step", "message")
    found = [tuple(content[name] for name in names) for content in progress]
    assert found == [
        ("warm up", 0, 2, BATCHES, BATCHES, BATCHES, "validating"),
        ("warm up", 1, 2, BATCHES, BATCHES, 2 * BATCHES, "validating"),
        ("warm up", 2, 2, BATCHES, BATCHES, 2 * BATCHES, "done"),
    ]


def test_the_progress_file_says_what_cpu_time_was_used(progress: list[dict[str, Any]]) -> None:
    used = [content["cpu_s"] for content in progress]
    assert 0 < used[0] <= used[-1] <= sum(os.times()[:4]) + 0.01


def test_cpu_time_that_is_not_the_runs_is_left_out(quiet: dict[str, Any], tmp_path: Path) -> None:
    callback = ProgressFile(tmp_path, cpu_before=-1000.0)
    pl.Trainer(max_epochs=1, callbacks=[callback], **quiet).fit(Net(), keyed(Data(), seed=7))
    assert json.loads((tmp_path / PROGRESS_NAME).read_text())["cpu_s"] > 1000.0


def test_a_validation_after_the_fit_does_not_begin_another_epoch(
    quiet: dict[str, Any], tmp_path: Path
) -> None:
    trainer = pl.Trainer(max_epochs=1, callbacks=[ProgressFile(tmp_path, every_s=0.0)], **quiet)
    trainer.fit(net := Net(), keyed(Data(), seed=7))
    trainer.validate(net, Data().val_dataloader(), verbose=False)
    assert json.loads((tmp_path / PROGRESS_NAME).read_text())["message"] == "done"


def test_the_progress_file_is_written_at_most_twice_a_second(
    quiet: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medkit.callbacks.logs.time.monotonic", lambda: 100.0)  # no time passes
    file = ProgressFile(tmp_path)
    wrote = []
    monkeypatch.setattr(file, "_write", lambda trainer, batch, message: wrote.append(message))
    pl.Trainer(max_epochs=1, callbacks=[file], **quiet).fit(Net(), keyed(Data(), seed=7))
    assert wrote == ["training", "done"]
