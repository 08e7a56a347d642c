"""Resume points: kill a training anywhere, and go on to the same bits.

A point is taken between two batches, when the step before is wholly done: validation, schedulers,
averaging and loggers included (``callbacks/boundary.py``). It holds weights, optimizers, loops and
what Lightning leaves out (``state.py``, ``attributes.py``), and no generator state at all: the next
batch is a function of its place. What is in it: ``content.py``; what must not have changed when it
is gone on from: ``fingerprint.py``; what asks for one more and an end: ``signals.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from medkit.callbacks import boundary
from medkit.callbacks import state as extra
from medkit.callbacks.content import KEY, Content, csv_logs
from medkit.callbacks.due import Due, of_any_rank
from medkit.callbacks.fingerprint import compare
from medkit.callbacks.signals import StopSignals
from medkit.callbacks.writer import Writer
from medkit.data.fetching import PlaceBatch
from medkit.data.keyed_loader import KeyedLoader
from medkit.data.workers import is_lost
from medkit.record.checkpoints import (
    FINISHED,
    CheckpointWriteError,
    checkpoint_name,
    checkpoints,
    clean,
    is_sound,
    set_aside,
)

_log = logging.getLogger(__name__)


class ResumePoints(Checkpoint):
    """Write resume points off the training thread, and bring a fit back from one.

    Put it last in the Trainer's list, so that other callbacks' state is in the point. Resume by
    ``trainer.fit(..., ckpt_path=newest_sound(folder))``.

    A point that cannot be written (the disk is full) does not end a training that needs no disk:
    older points make room, the next is due when it would have been anyway, and with five in a row
    missing, or the last, it stops with ``CheckpointWriteError``. What the points before it hold is
    intact. Workers of keyed loaders that die are replaced, at the batch that was lost.

    Args:
        folder: Where the stage's points go; one fit writes there.
        every_n_steps: A point every so many optimizer steps; None for none by count.
        every_s: A point when this many seconds have passed since the last, the first of a fit after
            5 at most; None for none by time.
        keep: Points kept.
        identity: Plain settings of the fit; a resume under others is refused, or, when
            ``on_changed`` returns, goes on.
        on_changed: Called with the differences; raises to refuse. None refuses.
        on_signal: Called with the signal's name before ``TrainingInterrupted`` is raised.
        on_saved: Called with (epoch, batch, step) when a point was taken.
        on_finished: Called once the last point, of the finished stage, is on the disk.
        on_inexact: Called with a reason when something cannot be put back; None logs it.
        on_event: Called with what was survived, as keyword arguments ``event action epoch batch
            detail``; None logs it. Such lines have no ``step``: a resume does not live through
            them again.
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
        on_event: Callable[..., None] | None = None,
    ) -> None:
        self.due = Due(every_n_steps, every_s)
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}. One sound point must remain.")
        self.folder = Path(folder)
        self.identity = dict(identity or {})
        self.on_changed = on_changed
        self.on_saved = on_saved
        self.on_finished = on_finished
        self.on_event = on_event
        self.signals = StopSignals(on_signal)
        self.resumed_at: tuple[int, int, int] | None = None
        self._resumed: dict[str, Any] | None = None
        self._content = Content(
            on_inexact or (lambda reason: _log.warning("not exact: %s", reason))
        )
        self._writer = Writer(keep, self._not_written)
        self._place = (0, 0)  # epoch and batch of the point being written
        self._copies = extra.HostCopies()
        self._alone = True

    # passed over by Lightning, see KeyedSteps
    on_train_batch_start = on_train_batch_end = None  # type: ignore[assignment]
    on_before_zero_grad = on_before_backward = None  # type: ignore[assignment]
    on_after_backward = on_before_optimizer_step = None  # type: ignore[assignment]

    # ---- coming back -------------------------------------------------------------------------

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take in what Lightning does not restore, and set its loops straight."""
        if KEY not in checkpoint or trainer.state.fn != "fit":
            return
        saved = checkpoint[KEY]
        self._resumed = saved | {"checkpoint": checkpoint}
        self._compare()
        self.resumed_at = (saved["epoch"], saved["batch"], saved["step"])
        if saved["finished"]:
            trainer.should_stop = True  # an early stop left no other trace
            trainer.num_sanity_val_steps = 0  # it would wipe the metrics put back below
        else:
            boundary.enter_epoch_cleanly(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember how the module began; bring a finished stage back."""
        self._content.begin(trainer)
        if self._resumed is not None and self._resumed["finished"]:
            self._content.put_end_back(trainer, self._resumed["checkpoint"])
            self._resumed = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clean the folder; begin to watch the boundaries and to listen for signals."""
        self.folder.mkdir(parents=True, exist_ok=True)
        orphans = clean(self.folder) if trainer.is_global_zero else []
        if orphans:
            _log.info("removed %d files that a kill left in %s", len(orphans), self.folder)
        rows: list[int] = []
        self.due.begin(trainer.global_step)
        self._alone = trainer.world_size == 1
        if self._resumed is not None:
            rows = self._resumed["ranks"][trainer.global_rank]["log_rows"]
        if trainer.is_global_zero:
            self._set_later_points_aside()
            for number, log in enumerate(csv_logs(trainer)):
                log.begin(rows[number] if number < len(rows) else 0)
        self._hear_of_workers(trainer)
        boundary.watch(trainer, lambda: self._at_boundary(trainer))
        self.signals.listen()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to the loaders of validation as well."""
        self._hear_of_workers(trainer)

    def _hear_of_workers(self, trainer: pl.Trainer) -> None:
        combined = getattr(trainer._active_loop, "_combined_loader", None)
        for loader in combined.flattened if combined is not None else ():
            if isinstance(loader, KeyedLoader):
                loader.on_lost = self._worker_lost

    def _compare(self) -> None:
        """Refuse, or report, what differs from the point that is resumed from."""
        if self._resumed is not None:
            was, ended = self._resumed["identity"], self._resumed["finished"]
            compare(was, self.identity, finished=ended, on_changed=self.on_changed)

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

    # ---- taking points -----------------------------------------------------------------------

    def _at_boundary(self, trainer: pl.Trainer) -> None:
        """Take a point if one is due and no gradient is under way."""
        if self._resumed is not None:
            resumed, self._resumed = self._resumed, None
            changed = self._content.put_back(trainer, resumed["checkpoint"])
            if changed:
                _log.info("put %d values back that hooks had set as the fit began again", changed)
        # Lightning holds this flag through the whole resumed epoch, and then leaves out the step
        # of a plateau scheduler at its end
        trainer.fit_loop._restarting = False
        if self._alone and self.signals.first is None and not self.due.maybe():
            return
        batch_idx = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        by_itself = trainer.lightning_module.automatic_optimization
        if by_itself and batch_idx % trainer.accumulate_grad_batches:
            return
        due, stop = self._agree(trainer)
        if stop:
            self._save_and_stop(trainer, batch_idx)
        elif due:
            self._save(trainer, batch_idx, wait=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the finished stage: a later resume loads it and trains nothing."""
        self._save(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready, finished=True)
        self._let_go(trainer)
        if self.on_finished is not None:
            self.on_finished(trainer)
        if self.signals.first is not None:
            self._stop(trainer, 0)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let the point that is being written land; the live state may be in the middle of a step.

        A signal to the whole process group kills the loader's workers before the next boundary.
        The loss shows when a batch is asked for, and then the state is whole: it is saved.
        """
        self._let_go(trainer)
        self._writer.let_land()
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        if self.signals.first is None or not is_lost(exception) or not trainer.training:
            return
        whole = progress.ready == progress.completed
        if whole and progress.completed % trainer.accumulate_grad_batches == 0:
            self._save_and_stop(trainer, progress.completed)
        self._stop(trainer, progress.completed)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wait for the disk."""
        self._let_go(trainer)
        self._writer.let_land()

    def _save_and_stop(self, trainer: pl.Trainer, batch_idx: int) -> NoReturn:
        point = "A resume point is"
        try:
            self._save(trainer, batch_idx, wait=True)
        except CheckpointWriteError as error:
            _log.error("%s", error)
            point = "No point of this place could be written, older ones are"
        self._stop(trainer, batch_idx, point)

    def _stop(
        self, trainer: pl.Trainer, batch_idx: int, point: str = "A resume point is"
    ) -> NoReturn:
        self.signals.stop(
            f"training stopped before batch {batch_idx} of epoch {trainer.current_epoch} "
            f"(step {trainer.global_step}). {point} in {self.folder}; run the same fit again to go "
            "on."
        )

    def _let_go(self, trainer: pl.Trainer) -> None:
        boundary.unwatch(trainer)
        self.signals.let_go()

    def _agree(self, trainer: pl.Trainer) -> tuple[bool, bool]:
        """Return whether to take a point and whether to stop; all processes do the same."""
        wishes = [
            *self.due.at(trainer.global_step),
            self.signals.first is not None,
            not self._writer.idle(),
        ]
        by_count, by_time, stop, busy = of_any_rank(trainer, wishes)
        # a point by count is where it was asked for; one by time can wait for a slow disk
        return by_count or (by_time and not busy), stop

    def _save(
        self, trainer: pl.Trainer, batch_idx: int, *, wait: bool = True, finished: bool = False
    ) -> None:
        self._writer.landed(last=False)
        late = self._flush(trainer)
        place = {
            "epoch": trainer.current_epoch,
            "batch": batch_idx,
            "step": trainer.global_step,
            "finished": finished,
        }
        collected = self._content.collect(trainer, place, self.identity)
        self.due.taken(trainer.global_step)
        if not trainer.is_global_zero:
            return  # all have collected; only the first of them writes
        name = FINISHED if finished else checkpoint_name(trainer.current_epoch, batch_idx)
        checkpoint = extra.plain(collected, "checkpoint", self._copies)
        self._place = (trainer.current_epoch, batch_idx)
        self._writer.submit(self.folder / name, checkpoint, late)
        if wait:
            self._writer.landed(last=True)
        if self.on_saved is not None:
            self.on_saved(trainer.current_epoch, batch_idx, trainer.global_step)

    def _flush(self, trainer: pl.Trainer) -> OSError | None:
        """Bring to the disk what the point claims to have logged; return why that failed."""
        try:
            for log in csv_logs(trainer):
                log.flush()
        except OSError as error:
            return error
        return None

    # ---- what is survived --------------------------------------------------------------------

    def _not_written(self, action: str, detail: str) -> None:
        self._tell("resume point not written", action, *self._place, detail)

    def _worker_lost(self, place: PlaceBatch, said: str) -> None:
        self._tell("loader worker died", "new workers started", place.epoch, place.batch, said)

    def _tell(self, event: str, action: str, epoch: int, batch: int, detail: str) -> None:
        _log.warning("%s at epoch %d, batch %d: %s (%s)", event, epoch, batch, action, detail)
        if self.on_event is not None:
            self.on_event(event=event, action=action, epoch=epoch, batch=batch, detail=detail)
