"""Watch a training while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from medkit.models.seed_ensemble import SeedEnsemble
from medkit.widgets.curves import History, Picture, Thinned, draw
from medkit.widgets.fan import members_of
from medkit.widgets.marks import marks, said
from medkit.widgets.place import surroundings

_FOLD = 64  # losses are fetched from the device this many at a time


class TrainingMonitor(pl.Callback):
    """Show loss and validation metrics: live in JupyterLab, one picture in a job.

    In JupyterLab widgets follow the training and give way to a picture at its end, so that a saved
    notebook holds no widget. Under ``medkit run``, and where ipywidgets is not installed, there is
    one picture at the end; outside a notebook there is none, but :meth:`figure` draws it.

    What guards and schedules beside it have done is marked below the loss, at its step, with a
    legend; of a :class:`~medkit.models.seed_ensemble.SeedEnsemble` every member is drawn. For
    trainings that are over, and several at once, there is :func:`medkit.widgets.fan.fan`.

    It only looks: the weights have the same bits with and without it. Its lines are kept in resume
    points, so the picture of a resumed training is whole.

    Args:
        metrics: A panel for each of these logged names; None takes the first three ``val/`` ones.
        loss_label: Name and unit of the training loss.
        every_s: Least time between two drawings [s]. It grows where drawing is slow: drawing takes
            a tenth of the time at most.
    """

    def __init__(
        self,
        *,
        metrics: Sequence[str] | None = None,
        loss_label: str = "loss",
        every_s: float = 1.0,
    ) -> None:
        self.metrics = None if metrics is None else list(metrics)
        self.loss_label = loss_label
        self.every_s = every_s
        self.history = History()
        self.drawings = 0
        self._pending: list[tuple[int, Tensor]] = []  # losses still on the device
        self._scale = 1.0  # of the losses
        self._epoch: list[float] = []  # losses of the running epoch
        self._view: _View | None = None
        self._trainer: pl.Trainer | None = None
        self._next = 0.0
        self._began = 0.0

    # Lightning pays for every hook of every callback at every step; one that is None is passed over
    on_train_batch_start = on_before_zero_grad = on_before_backward = None  # type: ignore[assignment]
    on_after_backward = on_before_optimizer_step = None  # type: ignore[assignment]

    def figure(self, *, title: str = "") -> Picture:
        """Draw what has been seen so far."""
        self._fold()
        self._look_around()
        return draw(self.history, metrics=self.metrics, loss_label=self.loss_label, title=title)

    def state_dict(self) -> dict[str, Any]:
        """Return the lines, so that a resumed training goes on drawing them."""
        self._fold()
        return {"history": self.history.state(), "epoch": list(self._epoch)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the lines back."""
        self.history.load(state_dict["history"])
        self._epoch = list(state_dict["epoch"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remember whose guards and members to draw."""
        if stage == "fit":
            self._trainer = trainer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the widgets where there is somebody to see them."""
        automatic = pl_module.automatic_optimization
        self._scale = float(trainer.accumulate_grad_batches if automatic else 1)
        if isinstance(pl_module, SeedEnsemble):  # whose loss is the sum of its members'
            self._scale /= len(pl_module.seeds)
        self._began = time.monotonic()
        self._next = self._began + self.every_s
        if trainer.is_global_zero and self._view is None and surroundings() == "live":
            self._view = _View()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the loss; draw if it is time."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            self._pending.append((trainer.global_step, loss.detach()))
            if len(self._pending) >= _FOLD:
                self._fold()
        if self._view is not None and time.monotonic() >= self._next:
            self._show(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the epoch's mean loss."""
        self._fold()
        if self._epoch:
            # a loss that is no number belongs to a skipped step, or shows in the batches' line
            finite = [loss for loss in self._epoch if math.isfinite(loss)] or self._epoch
            self.history.epochs.add(trainer.global_step, sum(finite) / len(finite))
            self._epoch = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what was logged."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        wanted = set(self.metrics or ())
        logged = trainer.callback_metrics.items()
        found = {n: float(v) for n, v in logged if n in wanted or n.startswith("val/")}
        self.history.log(trainer.global_step, found)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave one picture; also that of a finished stage that was only loaded."""
        self._close(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave a picture of how far it went."""
        self._close(trainer)

    def _fold(self) -> None:
        if not self._pending:
            return
        losses = torch.stack([loss for _, loss in self._pending]).float().tolist()
        # Lightning hands out the loss divided by the number of accumulated batches
        losses = [loss * self._scale for loss in losses]
        for (step, _), loss in zip(self._pending, losses, strict=True):
            self.history.batches.add(step, loss)
        self._epoch += losses
        self._pending = []

    def _look_around(self) -> None:
        """Take in what guards and schedules have done, and the curves of a stack's members."""
        trainer = self._trainer
        if trainer is None:
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        kept = [getattr(callback, "events", None) for callback in callbacks]
        self.history.marks = marks(
            line for events in kept if isinstance(events, list) for line in events
        )
        module = trainer.lightning_module
        if isinstance(module, SeedEnsemble):
            steps = self.history.logged.get("val/loss", Thinned()).x
            self.history.members = members_of(module, steps=steps[-1] if steps else 0)

    def _show(self, trainer: pl.Trainer) -> None:
        start = time.monotonic()
        if self._view is not None:
            self._view.update(self._png(), _status(trainer, self.history, start - self._began))
        end = time.monotonic()
        self._next = end + max(self.every_s, 9 * (end - start))

    def _png(self) -> bytes:
        self.drawings += 1
        return self.figure().png()

    def _close(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero or surroundings() == "none":
            return
        if self.history.batches.x or self._pending:
            _leave_picture(self._png(), self._view)
        self._view = None


class _View:
    """Widgets that follow a training."""

    def __init__(self) -> None:
        import ipywidgets
        from IPython.display import display

        self._text = ipywidgets.HTML("the first batches ...")
        self._bar = ipywidgets.FloatProgress(max=1.0, layout={"width": "20em"})
        self._curves = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        line = ipywidgets.HBox([self._bar, self._text])
        self._box = ipywidgets.VBox([line, self._curves])
        self.handle = display(self._box, display_id=True)

    def update(self, png: bytes, said: tuple[float, str]) -> None:
        self._bar.value, self._text.value = said
        self._curves.value = png

    def close(self) -> None:
        line = self._box.children[0]
        for part in (self._curves, self._bar, self._text, line, self._box):
            for model in (getattr(part, "style", None), part.layout, part):
                if model is not None:
                    model.close()


def _leave_picture(png: bytes, view: _View | None) -> None:
    from IPython.display import Image, display

    picture = Image(data=png, format="png")
    if view is None:
        display(picture)
        return
    view.handle.update(picture)  # in the widgets' place
    view.close()


def _status(trainer: pl.Trainer, history: History, elapsed_s: float) -> tuple[float, str]:
    """Return the share that is done, and a line of text."""
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    parts = [f"epoch {trainer.current_epoch + 1} of {epochs}", f"step {trainer.global_step}"]
    parts += [f"{name} {line.y[-1]:#.3g}" for name, line in history.logged.items() if line.y][:4]
    parts += said(history.marks)
    share = 0.0
    if epochs and epochs > 0 and batches != float("inf"):
        share = min(1.0, (trainer.current_epoch + done / max(1, batches)) / epochs)
    return share, "&ensp;".join([*parts, f"{elapsed_s:.0f} s"])
