"""Resume points: kill a training anywhere, and go on to the same bits.

A point is taken between two batches, when the step before is wholly done: validation, schedulers,
averaging and loggers included (``callbacks/boundary.py``). It holds weights, optimizers, loops and
what Lightning leaves out (``state.py``, ``attributes.py``), and no generator state at all: the next
batch is a function of its place.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from medkit.callbacks import boundary
from medkit.callbacks import state as extra
from medkit.callbacks.attributes import ChangedAttributes
from medkit.callbacks.logs import RunCSVLogger
from medkit.callbacks.writer import Writer
from medkit.record.checkpoints import (
    FINISHED,
    checkpoint_name,
    checkpoints,
    clean,
    commit,
    is_sound,
    prune,
    set_aside,
)
from medkit.record.identity import difference

_log = logging.getLogger(__name__)
_KEY = "medkit"
_LENGTH = {"max_epochs", "max_steps", "min_epochs", "min_steps"}
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_FIRST_AFTER_S = 5.0


class TrainingInterrupted(SystemExit):
    """Training stopped at a step boundary because a signal asked for it; a resume point is there.

    A subclass of SystemExit, so that a plain script ends with exit code 143 (SIGTERM, SIGUSR1) or
    130 (Ctrl-C) and never with 0.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        self.code = 130 if signum == signal.SIGINT else 143


class SettingsChangedError(ValueError):
    """A run was to be resumed under other settings than it was started with."""


class ResumePoints(Checkpoint):
    """Write resume points off the training thread, and bring a fit back from one.

    Put it last in the Trainer's list, so that other callbacks' state is in the point. Resume by
    ``trainer.fit(..., ckpt_path=newest_sound(folder))``.

    Args:
        folder: Where the stage's points go; one fit writes there.
        every_n_steps: A point every so many optimizer steps; None for none by count.
        every_s: A point when this many seconds have passed since the last, the first of a fit after
            5 at most; None for none by time.
        keep: Points kept.
        identity: Plain settings of the fit; a resume under others is refused, or, when
            ``on_changed`` returns, goes on.
        on_changed: Called with the differences; raises to refuse. None refuses.
        on_signal: Called with the signal's name before :class:`TrainingInterrupted` is raised.
        on_saved: Called with (epoch, batch, step) when a point was taken.
        on_finished: Called once the last point, of the finished stage, is on the disk.
        on_inexact: Called with a reason when something cannot be put back; None logs it.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        every_n_steps: int | None = None,
        every_s: float | None = 60.0,
        keep: int = 2,
        identity: Mapping[str, Any] | None = None,
        on_changed: Callable[[dict[str, Any]], None] | None = None,
        on_signal: Callable[[str], None] | None = None,
        on_saved: Callable[[int, int, int], None] | None = None,
        on_finished: Callable[[pl.Trainer], None] | None = None,
        on_inexact: Callable[[str], None] | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps must be at least 1, got {every_n_steps}. Use None for none."
            )
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}. One sound point must remain.")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.every_s = every_s
        self.keep = keep
        self.identity = dict(identity or {})
        self.on_changed = on_changed
        self.on_signal = on_signal
        self.on_saved = on_saved
        self.on_finished = on_finished
        self.on_inexact = on_inexact or (lambda reason: _log.warning("not exact: %s", reason))
        self.stop_signal: int | None = None
        self.resumed_at: tuple[int, int, int] | None = None
        self._resumed: dict[str, Any] | None = None
        self._changes: ChangedAttributes | None = None
        self._writer = Writer()
        self._copies = extra.HostCopies()
        self._last_step = 0
        self._last_time = 0.0
        self._batches = 0  # begun since the last point: never fewer than the steps
        self._alone = True
        self._process = 0
        self._handlers: dict[int, Any] = {}

    # passed over by Lightning, see KeyedSteps
    on_train_batch_start = on_train_batch_end = None  # type: ignore[assignment]
    on_before_zero_grad = on_before_backward = None  # type: ignore[assignment]
    on_after_backward = on_before_optimizer_step = None  # type: ignore[assignment]

    # ---- coming back -------------------------------------------------------------------------

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take in what Lightning does not restore, and set its loops straight."""
        if _KEY not in checkpoint or trainer.state.fn != "fit":
            return
        saved = checkpoint[_KEY]
        self._resumed = saved | {"checkpoint": checkpoint}
        self._compare(saved["identity"])
        self.resumed_at = (saved["epoch"], saved["batch"], saved["step"])
        if saved["finished"]:
            trainer.should_stop = True  # an early stop left no other trace
            trainer.num_sanity_val_steps = 0  # it would wipe the metrics put back below
        else:
            boundary.enter_epoch_cleanly(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember how the module began; bring a finished stage back."""
        self._changes = ChangedAttributes(trainer)
        if self._resumed is not None and self._resumed["finished"]:
            rank_state = self._resumed["ranks"][trainer.global_rank]
            self._restore_attributes(trainer, rank_state["changed"])
            extra.restore_callback_metrics(trainer, rank_state["callback_metrics"])
            if trainer.is_global_zero:  # a test after the fit may have logged before a kill
                for log, count in zip(_csv_logs(trainer), rank_state["log_rows"], strict=False):
                    log.begin(count)
            self._resumed = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clean the folder; begin to watch the boundaries and to listen for signals."""
        self.folder.mkdir(parents=True, exist_ok=True)
        orphans = clean(self.folder) if trainer.is_global_zero else []
        if orphans:
            _log.info("removed %d files that a kill left in %s", len(orphans), self.folder)
        rows: list[int] = []
        self._last_step = trainer.global_step
        early = max(0.0, (self.every_s or 0.0) - _FIRST_AFTER_S)  # the first point comes soon
        self._last_time = time.monotonic() - early
        self._batches, self._alone = 0, trainer.world_size == 1
        if self._resumed is not None:
            rows = self._resumed["ranks"][trainer.global_rank]["log_rows"]
        if trainer.is_global_zero:
            self._set_later_points_aside()
            for number, log in enumerate(_csv_logs(trainer)):
                log.begin(rows[number] if number < len(rows) else 0)
        boundary.watch(trainer, lambda: self._at_boundary(trainer))
        self.stop_signal = None
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            # after Lightning's own handlers, which end a run with exit code 0
            self._handlers = {s: signal.signal(s, self._note_signal) for s in _SIGNALS}

    def _set_later_points_aside(self) -> None:
        """Those passed over as damaged would be taken for the newest, and kept for sound ones."""
        there = checkpoints(self.folder)
        if self.resumed_at is None and any(is_sound(path) for path in there):
            raise FileExistsError(
                f"a new fit must begin in an empty folder, {self.folder} holds resume points. Go "
                "on from them with trainer.fit(..., ckpt_path=run.resume(stage)), or start a new "
                "run."
            )
        own = checkpoint_name(*self.resumed_at[:2]) if self.resumed_at is not None else ""
        for path in there:
            if path.name == FINISHED or path.name > own:
                _log.warning("%s was not resumed from: set aside as %s", path, set_aside(path).name)

    def _put_back(self, trainer: pl.Trainer, resumed: dict[str, Any]) -> None:
        """Put everything back that Lightning did not, after all hooks that begin a fit have run."""
        mine = resumed["ranks"][trainer.global_rank]
        changed = boundary.restore_weights(trainer, resumed["checkpoint"])
        if changed:
            _log.info("put %d values back that hooks had set as the fit began again", changed)
        self._restore_attributes(trainer, mine["changed"])
        boundary.restore_trainer(trainer, mine["trainer"])
        extra.restore_results(trainer, mine["results"])
        extra.restore_callback_metrics(trainer, mine["callback_metrics"])
        extra.restore_gradients(trainer, mine["gradients"])

    # ---- taking points -----------------------------------------------------------------------

    def _at_boundary(self, trainer: pl.Trainer) -> None:
        """Take a point if one is due and no gradient is under way."""
        if self._resumed is not None:
            resumed, self._resumed = self._resumed, None
            self._put_back(trainer, resumed)
        # Lightning holds this flag through the whole resumed epoch, and then leaves out the step
        # of a plateau scheduler at its end
        trainer.fit_loop._restarting = False
        if self._alone and self.stop_signal is None and not self._may_be_due():
            return
        batch_idx = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        by_itself = trainer.lightning_module.automatic_optimization
        if by_itself and batch_idx % trainer.accumulate_grad_batches:
            return
        due, stop = self._agree(trainer)
        if stop:
            self._save(trainer, batch_idx, wait=True)
            self._stop(trainer, batch_idx)
        elif due:
            self._save(trainer, batch_idx, wait=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the finished stage: a later resume loads it and trains nothing."""
        self._save(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready, finished=True)
        self._let_go(trainer)
        if self.on_finished is not None:
            self.on_finished(trainer)
        if self.stop_signal is not None:
            self._stop(trainer, 0)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let the point that is being written land; the live state may be in the middle of a step.

        A signal to the whole process group kills the loader's workers before the next boundary.
        The loss shows when a batch is asked for, and then the state is whole: it is saved.
        """
        self._let_go(trainer)
        self._writer.join()
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        lost_worker = isinstance(exception, RuntimeError) and "DataLoader worker" in str(exception)
        if self.stop_signal is None or not lost_worker or not trainer.training:
            return
        whole = progress.ready == progress.completed
        if whole and progress.completed % trainer.accumulate_grad_batches == 0:
            self._save(trainer, progress.completed, wait=True)
        self._stop(trainer, progress.completed)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait for the disk."""
        self._let_go(trainer)
        self._writer.join()

    def _restore_attributes(self, trainer: pl.Trainer, saved: Mapping[str, Any]) -> None:
        if self._changes is None:
            raise RuntimeError("on_fit_start must run before a point is put back. Use the Trainer.")
        for holder in self._changes.restore(trainer, saved):
            self.on_inexact(
                f"{holder} had changed when the resume point was taken, and is not there when the "
                "fit begins again; make it in __init__"
            )

    def _compare(self, saved: Mapping[str, Any]) -> None:
        """Refuse, or report, settings of this fit that differ from the point's."""
        found = {
            key: {"was": saved[key], "is": value}
            for key, value in self.identity.items()
            if key in saved and saved[key] != value
        }
        ended = self._resumed is not None and self._resumed["finished"]
        longer = [
            f"{key} was {found[key]['was']}, is {found[key]['is']}" for key in _LENGTH & {*found}
        ]
        if ended and longer:  # allowed or not: nothing would be trained
            raise SettingsChangedError(
                "a finished stage is loaded and not trained again, but "
                f"{'; '.join(sorted(longer))}. Set it back, start a new run, or train on in a "
                "stage of another name."
            )
        if found and self.on_changed is None:
            raise SettingsChangedError(describe_changes(found))
        if found and self.on_changed is not None:
            self.on_changed(found)

    def _may_be_due(self) -> bool:
        """Whether it is worth asking the Trainer for its step, which costs 5 us."""
        self._batches += 1
        if self.every_n_steps is not None and self._batches >= self.every_n_steps:
            return True
        return self.every_s is not None and time.monotonic() >= self._last_time + self.every_s

    def _is_due(self, trainer: pl.Trainer) -> tuple[bool, bool]:
        """Return whether a point is due by count, and whether by time."""
        done = trainer.global_step - self._last_step
        if done <= 0:
            return False, False
        by_count = self.every_n_steps is not None and done >= self.every_n_steps
        by_time = self.every_s is not None and time.monotonic() - self._last_time >= self.every_s
        return by_count, by_time

    def _agree(self, trainer: pl.Trainer) -> tuple[bool, bool]:
        """Return whether to take a point and whether to stop; all processes do the same."""
        wishes = [*self._is_due(trainer), self.stop_signal is not None, not self._writer.idle()]
        if trainer.world_size > 1:  # what one wants, all do; only the first of them writes
            votes = torch.tensor(wishes, dtype=torch.int32, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
            wishes = [bool(vote) for vote in votes]
        by_count, by_time, stop, busy = wishes
        # a point by count is where it was asked for; one by time can wait for a slow disk
        return by_count or (by_time and not busy), stop

    def _save(
        self, trainer: pl.Trainer, batch_idx: int, *, wait: bool = True, finished: bool = False
    ) -> None:
        self._writer.join()
        for log in _csv_logs(trainer):
            log.flush()  # what the point claims to have logged is on the disk
        place = {
            "epoch": trainer.current_epoch,
            "batch": batch_idx,
            "step": trainer.global_step,
            "finished": finished,
        }
        collected = self._collect(trainer, place)
        self._last_step, self._last_time = trainer.global_step, time.monotonic()
        self._batches = 0
        if not trainer.is_global_zero:
            return
        name = FINISHED if finished else checkpoint_name(trainer.current_epoch, batch_idx)
        checkpoint = extra.plain(collected, "checkpoint", self._copies)
        self._writer.submit(lambda: self._write(self.folder / name, checkpoint))
        if wait:
            self._writer.join()
        if self.on_saved is not None:
            self.on_saved(trainer.current_epoch, batch_idx, trainer.global_step)

    def _collect(self, trainer: pl.Trainer, place: dict[str, Any]) -> dict[str, Any]:
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            # not needed to go on; kept where they are plain, so that a net can be rebuilt
            if key in checkpoint:
                checkpoint[key] = extra.plain_or_none(checkpoint[key], key)
        for loop in ("validate_loop", "test_loop", "predict_loop"):
            checkpoint["loops"][loop] = {}  # not running; two thirds of a small point's entries
        if not place["finished"]:
            boundary.settle(checkpoint["loops"]["fit_loop"])
        if self._changes is None:
            raise RuntimeError("on_train_start must run before a point is saved. Use the Trainer.")
        mine = {
            "changed": self._changes.collect(trainer),
            "trainer": boundary.collect_trainer(trainer),
            "results": extra.collect_results(trainer),
            "callback_metrics": extra.collect_callback_metrics(trainer),
            "gradients": extra.collect_gradients(trainer),
            "log_rows": [log.rows for log in _csv_logs(trainer)],
        }
        ranks = [mine]
        if trainer.world_size > 1:
            ranks = [mine] * trainer.world_size
            torch.distributed.all_gather_object(ranks, mine)
        checkpoint[_KEY] = place | {"identity": self.identity, "ranks": ranks}
        return checkpoint

    def _write(self, path: Path, checkpoint: dict[str, Any]) -> None:
        commit(path, lambda temp: torch.save(checkpoint, temp))
        prune(path.parent, self.keep)

    # ---- signals -----------------------------------------------------------------------------

    def _note_signal(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader's worker, forked with this handler: its parent decides
        if self.stop_signal is not None and signum == signal.SIGINT:
            if self.on_signal is not None:
                self.on_signal(_name(signum))
            raise TrainingInterrupted("asked twice: stopped at once, without a new point", signum)
        self.stop_signal = signum
        _log.warning("%s: a resume point at the next step boundary, then stop", _name(signum))

    def _stop(self, trainer: pl.Trainer, batch_idx: int) -> None:
        signum = self.stop_signal if self.stop_signal is not None else signal.SIGTERM
        if self.on_signal is not None and self.stop_signal is not None:  # else another rank's
            self.on_signal(_name(signum))
        raise TrainingInterrupted(
            f"{_name(signum)}: training stopped before batch {batch_idx} of epoch "
            f"{trainer.current_epoch} (step {trainer.global_step}). A resume point is in "
            f"{self.folder}; run the same fit again to go on.",
            signum,
        )

    def _let_go(self, trainer: pl.Trainer) -> None:
        boundary.unwatch(trainer)
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}


def describe_changes(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Say which settings differ, and what can be done."""
    plainly = sorted(found, key=lambda key: key.endswith("_sha256"))  # what can be read comes first
    lines = [difference(key, found[key]["was"], found[key]["is"]) for key in plainly]
    return (
        "a run is resumed under the settings it was started with, but "
        + "; ".join(lines)
        + ". Set them back, start a new run, or pass allow_inexact=True (--allow-inexact): the run "
        "then goes on and is marked exact: false with these reasons."
    )


def _csv_logs(trainer: pl.Trainer) -> list[RunCSVLogger]:
    return [log for log in trainer.loggers if isinstance(log, RunCSVLogger)]


def _name(signum: int) -> str:
    return signal.Signals(signum).name
