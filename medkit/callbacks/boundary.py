"""The boundary between two batches: the one moment when a training can be cut and joined again.

Everything of the batch before is done (validation, schedulers, averaging, loggers) and nothing of
the next has begun. Lightning has no hook there: ``on_train_batch_start`` comes after the batch was
fetched and moved, and other callbacks have already done their part in it, which a resume would
have them do twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from medkit.callbacks.bits import same_bits

_PROGRESS_KEYS = ("ready", "started", "processed")


def watch(trainer: pl.Trainer, call: Callable[[], None]) -> None:
    """Have ``call`` called before each training batch is fetched."""
    unwatch(trainer)
    loop = trainer.fit_loop.epoch_loop
    advance = loop.advance

    def watched(data_fetcher: Any) -> None:
        call()
        advance(data_fetcher)

    loop.advance = watched  # type: ignore[method-assign]


def unwatch(trainer: pl.Trainer) -> None:
    """Stop calling."""
    trainer.fit_loop.epoch_loop.__dict__.pop("advance", None)


def settle(loops: dict[str, Any]) -> None:
    """Write the loops' progress as it stands between two batches.

    What was last known about the batch before (it was the last, it has not ended) is no longer so.
    """
    progress = loops["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        for key in _PROGRESS_KEYS:
            progress[part][key] = progress[part]["completed"]
    progress["is_last_batch"] = False


def enter_epoch_cleanly(trainer: pl.Trainer) -> None:
    """Let the epoch loop forget that it restarts as soon as it stands at the right batch.

    A restarting epoch loop that finds validation due (it was done before the point was taken)
    counts a step twice and skips the next validation.
    """
    loop = trainer.fit_loop.epoch_loop
    original = loop.reset

    def reset_once() -> None:
        original()
        loop.reset = original  # type: ignore[method-assign]
        loop.restarting = False

    loop.reset = reset_once  # type: ignore[method-assign]


def collect_trainer(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what callbacks change about the Trainer, and when loaders were made."""
    loop = trainer.fit_loop
    return {
        "should_stop": trainer.should_stop,  # an early stop that waits for min_epochs
        "accumulate_grad_batches": trainer.accumulate_grad_batches,  # on a schedule
        "train_loaded": loop._last_train_dl_reload_epoch,
        "val_loaded": loop.epoch_loop.val_loop._last_val_dl_reload_epoch,
        # whether the next self.log begins its epoch's mean anew
        "first_batch": trainer._logger_connector._first_loop_iter,
        "last_logged": trainer._logger_connector._current_fx,
    }


def restore_trainer(trainer: pl.Trainer, saved: Mapping[str, Any]) -> None:
    """Put that back."""
    loop = trainer.fit_loop
    trainer.should_stop = saved["should_stop"]
    trainer.accumulate_grad_batches = saved["accumulate_grad_batches"]
    loop._last_train_dl_reload_epoch = saved["train_loaded"]
    loop.epoch_loop.val_loop._last_val_dl_reload_epoch = saved["val_loaded"]
    trainer._logger_connector._first_loop_iter = saved["first_batch"]
    trainer._logger_connector._current_fx = saved["last_logged"]


def restore_weights(trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> int:
    """Put weights and rates back where a hook at the start of the fit has changed them.

    ``on_train_start`` may copy the net into its teacher or set a rate: right when a fit begins,
    wrong when it goes on.

    Returns:
        How many tensors and settings of optimizers had changed.
    """
    # weight averaging keeps the net itself under another key
    saved = checkpoint.get("current_model_state", checkpoint["state_dict"])
    own = trainer.lightning_module.state_dict()
    changed = 0
    for name, value in saved.items():
        mine = own.get(name)
        if isinstance(mine, Tensor) and not same_bits(mine, value):
            with torch.no_grad():
                mine.copy_(value)
            changed += 1
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
        for group, was in zip(optimizer.param_groups, state["param_groups"], strict=True):
            for name, value in was.items():
                if name != "params" and not isinstance(value, Tensor) and group[name] != value:
                    group[name] = value
                    changed += 1
    return changed
