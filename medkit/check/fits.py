"""Whole small fits: cut and resumed, and in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from medkit import keyed as keys
from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.callbacks.logs import RunCSVLogger
from medkit.callbacks.resume import ResumePoints
from medkit.check.digest import digest
from medkit.check.findings import Finding, broken, holds
from medkit.check.history import history
from medkit.check.subject import SEED, Subject
from medkit.check.trace import Culprit, Record, Tracer, first_difference
from medkit.record.checkpoints import newest_sound
from medkit.record.files import read_json, write_json

EPOCHS = 2
BATCHES = 4
_CUTS = (2, 5)  # batches after which the fit is cut
_COMPONENTS = ("batch", "loss", "weights", "rate")


class _CutError(Exception):
    """Ends a fit as a kill would."""


@dataclass
class Course:
    """What a fit went through.

    Attributes:
        steps: Digests by place, "epoch/batch": batch, loss, weights and learning rate.
        end: Digests of the final weights, of metrics.csv and of the metrics callbacks see.
        records: Line by line, from the place that was asked for.
        inexact: What the kit's callbacks said cannot be exact.
    """

    steps: dict[str, dict[str, str | None]] = field(default_factory=dict)
    end: dict[str, str | None] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)


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
    """Digests each step; cuts the fit where it is told to."""

    def __init__(self, course: Course, *, cut: int | None, tracer: Tracer | None, at: str) -> None:
        self.course = course
        self.cut = cut
        self.tracer = tracer
        self.at = at
        self.recording: Any = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        place = f"{trainer.current_epoch}/{batch_idx}"
        done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        if self.cut is not None and done >= self.cut:
            raise _CutError
        self.course.steps[place] = {"batch": digest(batch)}
        if self.tracer is not None and self.recording is None and place == self.at:
            self.recording = self.tracer.recording()
            self.recording.__enter__()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = self.course.steps[f"{trainer.current_epoch}/{batch_idx}"]
        step["loss"] = digest(outputs)
        step["weights"] = digest(pl_module.state_dict())
        step["rate"] = digest([g["lr"] for o in trainer.optimizers for g in o.param_groups])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.recording is not None:
            self.recording.__exit__(None, None, None)
        self.course.end["weights"] = digest(pl_module.state_dict())
        self.course.end["metrics"] = digest(dict(sorted(trainer.callback_metrics.items())))


def run_fit(
    subject: Subject,
    folder: Path,
    *,
    number: int,
    cut: int | None = None,
    trace_at: str = "",
    clock: str = "shifted",
) -> Course:
    """Fit for a few steps in ``folder``, going on from its newest resume point.

    Args:
        subject: What is checked.
        folder: Resume points and metrics.csv go there.
        number: The history.
        cut: Batches after which the fit dies.
        trace_at: Place from which lines are recorded; empty for nowhere.
        clock: See ``history``.
    """
    course = Course()
    tracer = Tracer(roots=subject.roots) if trace_at else None
    with history(number, clock=clock):
        data = subject.data()
        with keys.globals_keyed(SEED, "init", "fit"):
            module = subject.make_module()
        trainer = make_trainer(
            folder,
            [
                KeyedSteps(seed=SEED, on_inexact=course.inexact.append),
                _Journal(course, cut=cut, tracer=tracer, at=trace_at),
                ResumePoints(
                    folder / "points",
                    every_n_steps=1,
                    every_s=None,
                    on_inexact=course.inexact.append,
                ),
            ],
            RunCSVLogger(folder / "logs"),
        )
        before = sys.gettrace()
        try:
            point = newest_sound(folder / "points")
            trainer.fit(module, data, ckpt_path=str(point) if point else None)
        except _CutError:
            pass
        finally:
            sys.settrace(before)
    path = folder / "logs" / "metrics.csv"
    course.end["metrics.csv"] = (
        digest(path.read_bytes().replace(b"/", b"")) if path.exists() else ""
    )
    course.records = tracer.records if tracer is not None else []
    return course


def resume(subject: Subject, folder: Path) -> tuple[Finding, Course]:
    """Cut a fit twice and resume it; compare with one that ran through."""
    whole = run_fit(subject, folder / "whole", number=0)
    cut = folder / "cut"
    for number, after in enumerate(_CUTS, start=1):
        run_fit(subject, cut, number=number, cut=min(after, len(whole.steps) - 1))
    resumed = run_fit(subject, cut, number=3)
    reasons = whole.inexact + resumed.inexact
    if reasons:
        return Finding("resume", False, reasons[0], "see the resume's message"), whole
    what, place = _compare(whole, resumed)
    if not what:
        return holds("resume"), whole
    at = next(iter(resumed.steps), "0/0")
    culprit = Culprit()
    for clock in ("frozen", "shifted"):
        first = run_fit(subject, folder / f"whole-{clock}", number=0, trace_at=at, clock=clock)
        again = folder / f"cut-{clock}"
        run_fit(subject, again, number=1, cut=_place_number(at), clock=clock)
        second = run_fit(subject, again, number=2, trace_at=at, clock=clock)
        if _compare(first, second)[0]:
            culprit = first_difference(first.records, second.records)
            break
    return broken("resume", culprit, f"{what} differs first, at {place} (epoch/batch)"), whole


def repeat(subject: Subject, folder: Path, whole: Course) -> Finding:
    """Do the fit that ran through again, in a fresh process with another hash seed."""
    again = _in_fresh_process(subject, folder, "")
    what, place = _compare(whole, again)
    if not what:
        return holds("repeat")
    first = run_fit(subject, folder / "here", number=0, trace_at="0/0")
    second = _in_fresh_process(subject, folder, "0/0")
    culprit = first_difference(first.records, second.records)
    return broken("repeat", culprit, f"{what} differs first, at {place} (epoch/batch)")


def _compare(whole: Course, other: Course) -> tuple[str, str]:
    """Return the first component that differs and where; ("", "") where nothing does."""
    for place, step in other.steps.items():
        for component in _COMPONENTS:
            if whole.steps.get(place, {}).get(component) != step.get(component):
                return component, place
    for name, text in other.end.items():
        if whole.end.get(name) != text:
            return name, "the end"
    return "", ""


def _place_number(place: str) -> int:
    epoch, batch = (int(part) for part in place.split("/"))
    return max(1, epoch * BATCHES + batch)


def _in_fresh_process(subject: Subject, folder: Path, trace_at: str) -> Course:
    folder = Path(tempfile.mkdtemp(dir=folder))
    paths = [str(Path(place or ".").absolute()) for place in sys.path]
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "medkit.check.fresh"),
            *(subject.module_spec, subject.data_spec, str(folder), trace_at),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = "\n".join(done.stderr.splitlines()[-5:])
        raise RuntimeError(f"a fresh process could not do the fit that this one did:\n{last}")
    content = read_json(folder / "course.json")
    records = [Record(**record) for record in content.pop("records")]
    return Course(**content, records=records)


def write_course(course: Course, path: Path) -> None:
    """Write what a fit went through, for the process that compares."""
    content: dict[str, Any] = {
        "steps": course.steps,
        "end": course.end,
        "inexact": course.inexact,
        "records": [vars(record) for record in course.records],
    }
    write_json(path, content)
