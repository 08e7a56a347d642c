"""An ordinary Lightning Trainer with the kit's callbacks in it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger

from medkit.callbacks.augmentation_schedule import AugmentationSchedule
from medkit.callbacks.bits import bits
from medkit.callbacks.collapse_guard import CollapseGuard
from medkit.callbacks.fingerprint import SettingsChangedError, fingerprint, of_module, settings
from medkit.callbacks.guard_policy import GuardSettings
from medkit.callbacks.guard_state import not_finite
from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.callbacks.lean import NoProfiler, lighten
from medkit.callbacks.logs import ProgressFile, RunCSVLogger
from medkit.callbacks.memory_guard import MemoryGuard
from medkit.callbacks.quarantine import Quarantine
from medkit.callbacks.resume import ResumePoints
from medkit.callbacks.spike_guard import SpikeGuard
from medkit.callbacks.step_hashes import step_hashes
from medkit.data.loader import keyed
from medkit.record.checkpoints import FINISHED
from medkit.record.pseudonym import pseudonym
from medkit.run import Run
from medkit.start import start_run

__all__ = ["Run", "keyed", "stable_trainer", "start_run", "weights_digest"]

_log = logging.getLogger(__name__)
_LOGGERS = {"tensorboard": "TensorBoardLogger", "mlflow": "MLFlowLogger", "wandb": "WandbLogger"}
_PACKAGES = {"tensorboard": "'medkit[tensorboard]'"}


def stable_trainer(
    run: Run,
    *,
    name: str = "fit",
    max_epochs: int,
    callbacks: Sequence[pl.Callback] = (),
    logger: Logger | str | None = None,
    checkpoint_every_n_steps: int | None = None,
    checkpoint_every_s: float | None = 60.0,
    keep_checkpoints: int = 2,
    spike_guard: SpikeGuard | GuardSettings | bool = False,
    quarantine: Quarantine | bool = False,
    memory_guard: MemoryGuard | bool = False,
    **lightning: Any,
) -> pl.Trainer:
    """Return a ``pl.Trainer`` for one stage of ``run``; fit with ``ckpt_path=run.resume(name)``.

    In it: keyed steps (first), quarantine and spike guard if asked for, your callbacks, the
    progress file, resume points (last), and ``logs/<name>/metrics.csv``. Nothing of Lightning is
    hidden.

    Args:
        run: From :func:`start_run`.
        name: The stage; unique in its run.
        max_epochs: As Lightning's.
        callbacks: Your own; they run between the kit's.
        logger: One more Lightning logger, or "tensorboard", "mlflow" or "wandb"; CSV is always on.
        checkpoint_every_n_steps: A resume point every so many optimizer steps; None for none.
        checkpoint_every_s: A resume point when so many seconds have passed; None for none.
        keep_checkpoints: Resume points kept.
        spike_guard: True, settings or your own: :class:`~medkit.callbacks.spike_guard.SpikeGuard`
            holds back steps that would wreck the weights. It takes some 0.1 ms a step, which a
            small net for tables feels. One of your own among ``callbacks`` takes its place.
        quarantine: True or your own: :class:`~medkit.callbacks.quarantine.Quarantine` sets samples
            aside that can't be read, are not finite or break their ranges.
        memory_guard: True or your own: :class:`~medkit.callbacks.memory_guard.MemoryGuard` trains
            in parts on a batch that does not fit. It copies weights and optimizer state before each
            step. One of your own among ``callbacks`` takes its place.
        **lightning: Any other argument of ``pl.Trainer``. Defaults here: ``deterministic=True``,
            one device, no bar when a launcher shows progress, no model summary.

    Raises:
        TypeError: For a guard or quarantine that is none.
        ValueError: For arguments that would break the promises.
    """
    for key, why in _REFUSED.items():
        if key in lightning and lightning[key] != why[0]:
            raise ValueError(
                f"stable_trainer needs {key}={why[0]!r}, got {lightning[key]!r}. {why[1]}"
            )
        lightning.pop(key, None)
    _require_whole_weights(lightning.get("strategy"))
    headless = run.launched
    options: dict[str, Any] = {
        "accelerator": os.environ.get("MEDKIT_ACCELERATOR", "auto"),
        "devices": 1,
        "deterministic": True,
        "enable_progress_bar": not headless,
        "enable_model_summary": False,
        "profiler": NoProfiler(),
        "use_distributed_sampler": False,
        "default_root_dir": str(run.dir),
    } | lightning
    if options["deterministic"] is not True:
        run.mark_inexact(f"deterministic={options['deterministic']!r}: operations may vary")
    run.stage_begun(name)
    points = _RunPoints(
        run,
        name,
        every_n_steps=checkpoint_every_n_steps,
        every_s=checkpoint_every_s,
        keep=keep_checkpoints,
    )
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and _names_each_once(callback, options):
            # a resumed fit lives through its bests again: the same file, not best-v1.ckpt
            callback._enable_version_counter = False
    guards = [callback for callback in callbacks if isinstance(callback, SpikeGuard)]
    if isinstance(spike_guard, GuardSettings):
        spike_guard = SpikeGuard(spike_guard)
    asked = _asked("spike_guard", spike_guard, SpikeGuard, "GuardSettings(factor=5)")
    if asked and not guards:
        guards = asked
        callbacks = [*guards, *callbacks]
    kept = [callback for callback in callbacks if isinstance(callback, Quarantine)]
    wanted = _asked("quarantine", quarantine, Quarantine, "Quarantine({0: (-1024, 3071)})")
    if wanted and not kept:
        kept = wanted
        callbacks = [*kept, *callbacks]
    both: list[SpikeGuard | Quarantine] = [*guards, *kept]
    for guard in both:
        guard.on_event = guard.on_event or partial(run.ledger.append, stage=name)
        guard.name_row = guard.name_row or pseudonym
    for teller in [c for c in callbacks if isinstance(c, AugmentationSchedule | CollapseGuard)]:
        teller.on_event = teller.on_event or partial(run.ledger.append, stage=name)
    in_parts = [callback for callback in callbacks if isinstance(callback, MemoryGuard)]
    splitting = _asked("memory_guard", memory_guard, MemoryGuard, "MemoryGuard()")
    if splitting and not in_parts:
        in_parts = splitting
        callbacks = [*in_parts, *callbacks]
    for each in in_parts:
        each.on_event = each.on_event or partial(run.ledger.append, stage=name)
        each.on_inexact = each.on_inexact or run.mark_inexact
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        logger=_loggers(run, name, logger),
        callbacks=[
            KeyedSteps(seed=run.seed, name=name, on_inexact=run.mark_inexact),
            *callbacks,
            ProgressFile(
                run.folder.subfolder("logs"),
                name=name,
                cpu_before=0.0 if headless else run.cpu_before,  # a launched process is all its run
            ),
            *step_hashes(run.folder.subfolder("logs") / name, name),
            points,
        ],
        **options,
    )
    lighten(trainer)
    points.identity = settings(trainer, options["deterministic"])
    points.identity["spike_guard"] = repr([guard.settings for guard in guards])
    points.identity["memory_guard"] = len(in_parts)
    points.identity["quarantine"] = repr(kept)
    return trainer


def _require_whole_weights(strategy: Any) -> None:
    named = strategy if isinstance(strategy, str) else type(strategy).__name__
    if str(named).lower().startswith(("fsdp", "deepspeed", "modelparallel")):
        raise ValueError(
            "resume points and guards read weights as a whole, and a strategy that spreads them "
            f"over devices has none; got strategy={named!r}. Take pl.Trainer(strategy=...) with "
            "keyed(data, seed=...), and Lightning's own checkpoints; a resume is then not exact."
        )


_Asked = TypeVar("_Asked", bound=pl.Callback)


def _asked(name: str, given: _Asked | bool, kind: type[_Asked], like: str) -> list[_Asked]:
    """Return the callback that an argument asks for, in a list; empty for none."""
    if isinstance(given, bool):
        return [kind()] if given else []
    if not isinstance(given, kind):
        raise TypeError(
            f"{name} must be True, False or a {kind.__name__}, got {given!r}. True takes the "
            f"defaults; others: {name}={like}."
        )
    return [given]


def _names_each_once(callback: ModelCheckpoint, options: Mapping[str, Any]) -> bool:
    """Whether one fit never gives two of its best checkpoints the same name."""
    name = callback.filename
    if callback.save_top_k == 1 or name is None or "{step" in name:
        return True
    once_an_epoch = options.get("val_check_interval") in (None, 1.0)
    return "{epoch" in name and once_an_epoch and callback._every_n_train_steps < 1


_REFUSED: dict[str, tuple[Any, str]] = {
    "use_distributed_sampler": (False, "The keyed loader deals out the batches itself."),
    "enable_checkpointing": (True, "Resume points are the kit's promise; see checkpoint_every_s."),
    "barebones": (False, "It switches callbacks and checkpoints off."),
}


class _RunPoints(ResumePoints):
    """Resume points that report to their run."""

    def __init__(self, run: Run, name: str, **options: Any) -> None:
        super().__init__(
            run.folder.stage_dir(name),
            on_changed=run.changed,
            on_signal=run.note_signal,
            on_inexact=run.mark_inexact,
            on_finished=self._at_end,
            on_event=partial(run.ledger.append, stage=name),
            **options,
        )
        self.run = run
        self.name = name

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Cut the ledger to the point, and count the steps that are trained again."""
        self.identity |= of_module(pl_module)  # a finished stage never comes to on_train_start
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if self.resumed_at is None or not trainer.is_global_zero:
            return
        *place, step = self.resumed_at
        self.run.ledger.cut_after(self.name, step, place=(place[0], place[1]))
        self.run.count_wasted(self.name, from_step=step)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse to fit a finished stage again, or on other data; note a stage that was loaded."""
        loaded = self._resumed is not None and self._resumed["finished"]
        saved_step = self.resumed_at[2] if self.resumed_at is not None else 0
        if not loaded and (self.folder / FINISHED).exists() and self._resumed is None:
            self.run.resume(self.name)  # raises for a stage finished in this process
        digest = getattr(getattr(trainer, "datamodule", None), "data_sha256", "")
        if digest and trainer.is_global_zero:  # a datamodule's that knows all it has read
            self.run.data(**{self.name: digest})
        super().on_fit_start(trainer, pl_module)
        if loaded and trainer.is_global_zero:
            # a kill may have come before it was noted; the loops are not restored yet
            self._note_done(trainer, step=saved_step)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare module, data and batches with those of the resume point."""
        of_trainer, self.identity = self.identity, fingerprint(trainer)
        self._compare()
        self.identity |= of_trainer
        super().on_train_start(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Note an error as the end of the stage; a signal or a refused resume is none."""
        super().on_exception(trainer, pl_module, exception)
        refused = isinstance(exception, SettingsChangedError)
        if isinstance(exception, Exception) and not refused and trainer.is_global_zero:
            try:
                self.run.stage_failed(self.name, exception, step=trainer.global_step)
            except OSError as error:  # a full disk must not take the error's place
                _log.error("the end of stage %r could not be noted: %s", self.name, error)

    def _flush(self, trainer: pl.Trainer) -> OSError | None:
        """Bring the ledger to the disk as well: it is cut to the point."""
        late = super()._flush(trainer)
        try:
            self.run.ledger.flush()
        except OSError as error:
            return error
        return late

    def _at_end(self, trainer: pl.Trainer) -> None:
        """Note what the weights are: the stage is on the disk, whatever ends the process now."""
        if trainer.is_global_zero:
            self._note_done(trainer, step=trainer.global_step)

    def _note_done(self, trainer: pl.Trainer, *, step: int) -> None:
        module = trainer.lightning_module
        digest = weights_digest(module.state_dict())
        bad = not_finite(module)
        self.run.stage_done(self.name, step=step, weights_sha256=digest, not_finite=bad)


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over parameters and buffers, in key order, as they are."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key]
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        for part in bits(value):
            digest.update(part.numpy().data)
    return digest.hexdigest()


def _loggers(run: Run, name: str, more: Logger | str | None) -> list[Logger]:
    folder = run.folder.subfolder("logs") / name
    loggers: list[Logger] = [RunCSVLogger(folder)]
    if isinstance(more, str):
        loggers.append(_named_logger(more, run.dir, name))
    elif more is not None:
        loggers.append(more)
    return loggers


def _named_logger(kind: str, run_dir: Path, name: str) -> Logger:
    if kind not in _LOGGERS:
        raise ValueError(
            f"logger must be one of {sorted(_LOGGERS)} or a Lightning logger, got {kind!r}. "
            "metrics.csv is written in any case."
        )
    options: dict[str, Any] = {"name": name, "save_dir": str(run_dir / "logs")}
    if kind == "mlflow":  # its file store is closed; a database file works without a server
        database = f"sqlite:///{run_dir / 'logs' / 'mlflow.db'}"
        options = {"experiment_name": name, "tracking_uri": database}
    try:
        logger: Logger = getattr(pl.loggers, _LOGGERS[kind])(**options)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"logger={kind!r} needs a package that is not installed here. Install it: pip install "
            f"{_PACKAGES.get(kind, kind)}, or leave logger out: metrics.csv is always written."
        ) from error
    return logger
