"""What a resume point holds of a live fit: collected, and put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch

from medkit.callbacks import boundary
from medkit.callbacks import state as extra
from medkit.callbacks.attributes import ChangedAttributes
from medkit.callbacks.logs import RunCSVLogger

KEY = "medkit"  # the kit's part of a Lightning checkpoint


class Content:
    """Lightning's checkpoint, and beside it what Lightning leaves out, for every process.

    Args:
        on_inexact: Called with a reason when something cannot be put back.
    """

    def __init__(self, on_inexact: Callable[[str], None]) -> None:
        self._on_inexact = on_inexact
        self._changes: ChangedAttributes | None = None

    def begin(self, trainer: pl.Trainer) -> None:
        """Remember how the module began: what has changed since is collected."""
        self._changes = ChangedAttributes(trainer)

    def collect(
        self, trainer: pl.Trainer, place: Mapping[str, Any], identity: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return a checkpoint of now."""
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
            "log_rows": [log.rows for log in csv_logs(trainer)],
        }
        ranks = [mine]
        if trainer.world_size > 1:
            ranks = [mine] * trainer.world_size
            torch.distributed.all_gather_object(ranks, mine)
        kept = {} if place["finished"] else {c.state_key: c.kept() for c in _keepers(trainer)}
        checkpoint[KEY] = {**place, "identity": identity, "ranks": ranks, "kept": kept}
        return checkpoint

    def put_back(self, trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> int:
        """Put back what Lightning did not, after all hooks that begin a fit have run.

        Returns:
            How many values those hooks had set over the restored ones.
        """
        mine = checkpoint[KEY]["ranks"][trainer.global_rank]
        changed = boundary.restore_weights(trainer, checkpoint)
        for callback in _keepers(trainer):
            callback.keep(checkpoint[KEY].get("kept", {}).get(callback.state_key, []))
        self._restore_attributes(trainer, mine["changed"])
        boundary.restore_trainer(trainer, mine["trainer"])
        extra.restore_results(trainer, mine["results"])
        extra.restore_callback_metrics(trainer, mine["callback_metrics"])
        extra.restore_gradients(trainer, mine["gradients"])
        return changed

    def put_end_back(self, trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
        """Put back what is left of a stage that is over and is not trained again."""
        mine = checkpoint[KEY]["ranks"][trainer.global_rank]
        self._restore_attributes(trainer, mine["changed"])
        extra.restore_callback_metrics(trainer, mine["callback_metrics"])
        if trainer.is_global_zero:  # a test after the fit may have logged before a kill
            for log, count in zip(csv_logs(trainer), mine["log_rows"], strict=False):
                log.begin(count)

    def _restore_attributes(self, trainer: pl.Trainer, saved: Mapping[str, Any]) -> None:
        if self._changes is None:
            raise RuntimeError("on_fit_start must run before a point is put back. Use the Trainer.")
        for holder in self._changes.restore(trainer, saved):
            self._on_inexact(
                f"{holder} had changed when the resume point was taken, and is not there when the "
                "fit begins again; make it in __init__"
            )


def _keepers(trainer: pl.Trainer) -> list[Any]:
    """Return callbacks with more to keep than belongs into other checkpoints."""
    return [c for c in trainer.callbacks if hasattr(c, "kept")]  # type: ignore[attr-defined]


def csv_logs(trainer: pl.Trainer) -> list[RunCSVLogger]:
    """Return the logs that a resume point cuts to what it knows."""
    return [log for log in trainer.loggers if isinstance(log, RunCSVLogger)]
