"""Whole small fits, with a journal of what each step came to."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.apply_func import apply_to_collection

from medkit import keyed as keys
from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.callbacks.logs import RunCSVLogger
from medkit.callbacks.resume import ResumePoints
from medkit.check.data import with_workers
from medkit.check.digest import digest
from medkit.check.history import history
from medkit.check.subject import SEED, Subject
from medkit.check.trace import Record, Tracer
from medkit.data.fetching import KeyedFetch, PlaceBatch
from medkit.data.loader import KeyedLoader
from medkit.record.checkpoints import newest_sound

EPOCHS = 2
BATCHES = 4


class _CutError(Exception):
    """Ends a fit as a kill would."""


@dataclass
class Course:
    """What a fit went through.

    Attributes:
        steps: Digests by place, "epoch/batch": batch, loss, weights and learning rate.
        end: Digests of the final weights, of metrics.csv and of the metrics callbacks see.
        records: Line by line, where it was traced.
        inexact: What the kit's callbacks said cannot be exact.
    """

    steps: dict[str, dict[str, str | None]] = field(default_factory=dict)
    end: dict[str, str | None] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)


def run_fit(
    subject: Subject,
    folder: Path,
    *,
    number: int,
    cut: int | None = None,
    traced: bool = False,
    clock: str = "shifted",
) -> Course:
    """Fit for a few steps in ``folder``, going on from its newest resume point.

    Args:
        subject: What is checked.
        folder: Resume points and metrics.csv go there.
        number: The history.
        cut: Batches after which the fit dies; the one before them is resumed.
        traced: Record each line; samples are then fetched in this process.
        clock: See ``history``.
    """
    course = Course()
    tracer = Tracer(roots=subject.roots) if traced else None
    points = ResumePoints(
        folder / "points", every_n_steps=1, every_s=None, on_inexact=course.inexact.append
    )
    callbacks = [
        KeyedSteps(seed=SEED, on_inexact=course.inexact.append),
        _Journal(course, points, cut=cut, tracer=tracer),
        points,
    ]
    before = sys.gettrace()
    with history(number, clock=clock), ExitStack() as stack:
        if tracer is not None:
            stack.enter_context(tracer.recording())
        data = subject.data()
        if tracer is not None:
            marked = functools.partial(_marked_loaders, data.train_dataloader, tracer)
            object.__setattr__(data, "train_dataloader", marked)
        with keys.globals_keyed(SEED, "init", "fit"):
            module = subject.make_module()
        trainer = make_trainer(folder, callbacks, RunCSVLogger(folder / "logs"))
        point = newest_sound(folder / "points")
        try:
            trainer.fit(module, data, ckpt_path=str(point) if point else None)
        except _CutError:
            pass
        finally:
            sys.settrace(before)
    path = folder / "logs" / "metrics.csv"
    lines = path.read_text().split("\n") if path.exists() else []
    course.end["metrics.csv"] = digest([line.replace("/", " ") for line in lines])
    course.records = tracer.records if tracer is not None else []
    return course


def make_trainer(
    folder: Path, callbacks: list[pl.Callback], logger: RunCSVLogger | bool = False
) -> pl.Trainer:
    """Return a Trainer for a few steps."""
    return pl.Trainer(
        accelerator=os.environ.get("MEDKIT_ACCELERATOR", "auto"),
        devices=1,
        max_epochs=EPOCHS,
        limit_train_batches=BATCHES,
        limit_val_batches=2,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=logger,
        callbacks=callbacks,
        deterministic=True,
        enable_checkpointing=any(isinstance(c, ResumePoints) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder),
    )


class _Journal(pl.Callback):
    """Digests each step, tells a tracer where the fit stands, and cuts it where it is told to."""

    def __init__(
        self, course: Course, points: ResumePoints, *, cut: int | None, tracer: Tracer | None
    ) -> None:
        self.course = course
        self.points = points
        self.cut = cut
        self.tracer = tracer

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(f"epoch {trainer.current_epoch}")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.points._writer.join()  # a point before every batch, however slow the disk
        done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        if self.cut is not None and done >= self.cut:
            raise _CutError
        place = f"{trainer.current_epoch}/{batch_idx}"
        self.course.steps[place] = {"batch": digest(batch)}
        self._begin(f"step {place}")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        place = f"{trainer.current_epoch}/{batch_idx}"
        step = self.course.steps[place]
        step["loss"] = digest(outputs)
        step["weights"] = digest(pl_module.state_dict())
        step["rate"] = digest([g["lr"] for o in trainer.optimizers for g in o.param_groups])
        self._begin(f"after {place}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(f"validation {trainer.current_epoch}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(f"end of epoch {trainer.current_epoch}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.course.end["weights"] = digest(pl_module.state_dict())
        self.course.end["metrics"] = digest(dict(sorted(trainer.callback_metrics.items())))

    def _begin(self, segment: str) -> None:
        if self.tracer is not None:
            self.tracer.begin(segment)


class _MarkedFetch(KeyedFetch):
    """Tells a tracer which batch is being fetched."""

    tracer: Tracer

    def __getitems__(self, place: PlaceBatch) -> Any:
        with _segment(self.tracer, f"fetch {place.epoch}/{place.batch}"):
            return super().__getitems__(place)


def _marked_loaders(hook: Callable[[], Any], tracer: Tracer) -> Any:
    def mark(loader: KeyedLoader) -> KeyedLoader:
        here = with_workers(loader, 0)
        vars(here._fetch)["tracer"] = tracer
        here._fetch.__class__ = _MarkedFetch
        return here

    return apply_to_collection(hook(), KeyedLoader, mark)


@contextmanager
def _segment(tracer: Tracer, name: str) -> Iterator[None]:
    before = tracer.begin(name)
    try:
        yield
    finally:
        tracer.begin(before)
