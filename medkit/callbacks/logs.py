"""Logs that survive a kill: metrics.csv that goes on where it stood, and a progress file."""

from __future__ import annotations

import csv
import io
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers.csv_logs import CSVLogger, ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from medkit.record.attempts import PROGRESS_NAME, used_cpu_s
from medkit.record.files import append_whole, is_full_disk, write_bytes, write_json

_log = logging.getLogger(__name__)
_SAVE_EVERY_S = 1.0


class _Writer(ExperimentWriter):
    rows = 0

    def _check_log_dir_exists(self) -> None:
        """Keep the file: Lightning's writer deletes what an earlier process logged."""

    def save(self) -> None:
        """Write what was logged, whole or not at all: half a row would be read as one."""
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        keys = sorted({*self.metrics_keys}.union(*self.metrics))
        if path.exists() and keys == self.metrics_keys:
            append_whole(path, _as_csv(keys, self.metrics, header=False), durable=False)
        else:
            with path.open(newline="") if path.exists() else io.StringIO() as file:
                before: list[dict[str, Any]] = list(csv.DictReader(file))
            write_bytes(path, _as_csv(keys, [*before, *self.metrics], header=True), durable=False)
        self.metrics_keys = keys
        self.rows += len(self.metrics)
        self.metrics = []

    def cut(self, rows: int) -> None:
        """Keep the first ``rows`` rows of what an earlier process wrote, and append to them."""
        self.metrics = []
        path = Path(self.metrics_file_path)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if rows == 0 or not lines:
            path.unlink(missing_ok=True)
            return
        write_bytes(path, b"".join(lines[: rows + 1]))
        self.metrics_keys = next(csv.reader([lines[0].decode()]))
        self.rows = min(rows, len(lines) - 1)


def _as_csv(keys: list[str], rows: list[dict[str, Any]], *, header: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, keys)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


class RunCSVLogger(CSVLogger):
    """``logs/<stage>/metrics.csv``; a resumed fit cuts it to the rows its resume point knew.

    Lightning has a logger save after each row. Here the rows go to the disk once a second, with
    each resume point and at the end: a kill costs none that the point knows of. On a full disk
    they wait in memory, and resume points for them.

    Args:
        folder: The stage's log folder.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__(save_dir=str(folder), name="", version="")
        self._folder = Path(folder)
        self._next_save = 0.0

    @property
    def log_dir(self) -> str:
        """The folder itself, without a version below it."""
        return str(self._folder)

    @property
    def experiment(self) -> _Writer:
        """The writer, made at first use."""
        if self._experiment is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]

    @property
    def rows(self) -> int:
        """Rows on the disk."""
        return self.experiment.rows

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged, if a second has passed."""
        if time.monotonic() >= self._next_save:
            self._try()

    @rank_zero_only
    def flush(self) -> None:
        """Write what was logged."""
        self._next_save = time.monotonic() + _SAVE_EVERY_S
        super().save()

    def _try(self) -> None:
        try:
            self.flush()
        except OSError as error:
            if not is_full_disk(error):
                raise
            rows = len(self.experiment.metrics)
            _log.warning("%s: %d rows wait for room on the disk", self.log_dir, rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what was logged: the stage is over, well or not."""
        if self._experiment is None:
            return
        if status == "success":
            self.flush()
        else:
            self._try()  # what ended the fit must not be hidden

    @rank_zero_only
    def begin(self, rows: int = 0) -> None:
        """Start at ``rows`` rows; 0 begins a new file."""
        self.experiment.cut(rows)


class ProgressFile(pl.Callback):
    """Write where training stands into one small file, at most twice a second.

    Whoever started the job shows it as a bar; the notebook's output stays free of ten thousand
    progress lines.

    Args:
        folder: The run's ``logs`` folder; the file is ``progress.json``.
        name: The stage.
        every_s: Seconds between two writes.
        cpu_before: CPU time [s] of this process that is not the run's.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        name: str = "fit",
        every_s: float = 0.5,
        cpu_before: float = 0.0,
    ) -> None:
        self.path = Path(folder) / PROGRESS_NAME
        self.name = name
        self.every_s = every_s
        self.cpu_before = cpu_before
        self._next = 0.0
        self._told = False

    # passed over by Lightning, see KeyedSteps
    on_train_batch_start = on_before_zero_grad = on_before_backward = None  # type: ignore[assignment]
    on_after_backward = on_before_optimizer_step = None  # type: ignore[assignment]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write if half a second has passed."""
        now = time.monotonic()
        if now >= self._next and trainer.is_global_zero:
            self._next = now + self.every_s
            self._write(trainer, batch_idx + 1, "training")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that validation runs; not after the fit, whose epochs are all done."""
        if (
            trainer.is_global_zero
            and time.monotonic() >= self._next
            and trainer.state.fn == "fit"
            and not trainer.sanity_checking
        ):
            self._write(
                trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready, "validating"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that the stage is done."""
        if trainer.is_global_zero:
            self._write(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready, "done")

    def _write(self, trainer: pl.Trainer, batch: int, message: str) -> None:
        batches = trainer.num_training_batches
        content = {
            "stage": self.name,
            "epoch": trainer.current_epoch,
            "max_epochs": trainer.max_epochs,
            "batch": batch,
            "batches": int(batches) if batches != float("inf") else None,
            "step": trainer.global_step,
            "message": message,
            "time": time.time(),
            "cpu_s": round(used_cpu_s() - self.cpu_before, 2),
        }
        try:
            write_json(self.path, content, durable=False)
        except OSError as error:  # a bar that stands still must not stop the training
            if not is_full_disk(error):
                raise
            if not self._told:
                _log.warning("progress cannot be written: %s", error)
            self._told = True
