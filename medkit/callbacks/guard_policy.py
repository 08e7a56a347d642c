"""What follows a void step: rows set aside, a rollback, the end; and what is known of it."""

from __future__ import annotations

import math
import numbers
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl

from medkit.callbacks import guard_state
from medkit.callbacks.guard_rows import Row
from medkit.callbacks.guard_search import Fault
from medkit.callbacks.keyed_steps import KeyedSteps

_LEAST_BUDGET = 10
_WHOLE = ("patience", "snapshot_every", "snapshots", "max_rollbacks")
_NAMED = 3  # layers and rows that a message names
_KEPT = ("steps", "skipped", "rollbacks", "replaced", "lr_scale", "good", "went_back")


class TrainingUnstableError(FloatingPointError):
    """A training was in trouble more often than its budget allows."""


@dataclass(frozen=True)
class GuardSettings:
    """When :class:`~medkit.callbacks.spike_guard.SpikeGuard` steps in, and how far it goes.

    Attributes:
        false_alarms: Chance per step of an undisturbed training to be called a spike (half of it
            for losses and for norms), as defined at the window; 32 steps must have gone before.
        factor: A spike is at least so many times the window's median.
        patience: Void steps without a row at fault, among ten times as many, until a rollback.
        snapshot_every: Good steps between two snapshots (copies in host memory).
        snapshots: Snapshots kept; a second rollback before the next snapshot goes one further back.
        lr_factor: Multiplies the rates at each rollback.
        max_rollbacks: Rollbacks of one fit before it is stopped.
        budget: Share of the planned steps that may be void, and of the rows that may be set aside
            (10 always may).
    """

    false_alarms: float = 1e-6
    factor: float = 3.0
    patience: int = 3
    snapshot_every: int = 100
    snapshots: int = 2
    lr_factor: float = 0.5
    max_rollbacks: int = 3
    budget: float = 0.05

    def __post_init__(self) -> None:
        given = asdict(self)
        kinds = {name: numbers.Integral if name in _WHOLE else numbers.Real for name in given}
        wrong = {name: v for name, v in given.items() if not isinstance(v, kinds[name])}
        if wrong:
            raise TypeError(
                f"settings of a guard must be numbers, and whole ones for {', '.join(_WHOLE)}; got "
                f"{wrong}. Leave out what should be as by default: GuardSettings(factor=5)."
            )
        if not 0 < self.false_alarms < 0.1 or not self.factor > 1 or not 0 < self.lr_factor <= 1:
            raise ValueError(
                "a guard needs 0 < false_alarms < 0.1, factor > 1 and 0 < lr_factor <= 1, got "
                f"{self.false_alarms}, {self.factor} and {self.lr_factor}. The defaults are 1e-6, "
                "3 and 0.5."
            )
        counts = (self.patience, self.snapshot_every, self.snapshots)
        if min(counts) < 1 or self.max_rollbacks < 0 or not 0 <= self.budget < 1:
            raise ValueError(
                "a guard needs patience, snapshot_every and snapshots of at least 1, max_rollbacks "
                f"from 0 and 0 <= budget < 1, got {counts}, {self.max_rollbacks} and "
                f"{self.budget}. The defaults are 3, 100, 2, 3 and 0.05."
            )


class Policy:
    """Decides what follows, carries it out and keeps count.

    Args:
        settings: The guard's.
        tell: Called with each event.
        name_row: How rows are named in events and messages.
    """

    def __init__(
        self,
        settings: GuardSettings,
        tell: Callable[[dict[str, Any]], None],
        name_row: Callable[[Row], Row],
    ) -> None:
        self.settings = settings
        self._tell = tell
        self._name_row = name_row
        self.events: list[dict[str, Any]] = []
        self.set_aside: dict[Row, str] = {}
        self.steps = self.skipped = self.rollbacks = self.replaced = 0
        self.lr_scale = 1.0
        self.good = 0  # steps since the last snapshot
        self.went_back = False  # to the newest snapshot there is
        self._suspects: list[Row] = []
        self._unexplained: list[int] = []  # numbers of void steps without a row at fault
        self._ring: deque[dict[str, Any]] = deque(maxlen=settings.snapshots)

    def snapshot(self, trainer: pl.Trainer) -> None:
        """Take a snapshot where one is due; the first is the state training begins with."""
        if self.good >= self.settings.snapshot_every or not self._ring:
            self._ring.append(guard_state.snapshot(trainer))
            self.good, self.went_back = 0, False

    def void(self, trainer: pl.Trainer, fault: Fault, batch: int) -> None:
        """Write a void step down, and do what follows from it.

        Raises:
            TrainingUnstableError: Over budget.
        """
        self.skipped += 1
        layers = ", ".join(fault.layers[:_NAMED])
        places = "; ".join(fault.places[:_NAMED])
        detail = f"{fault.values}; layers: {layers}" + (f"; samples: {places}" if places else "")
        self._note(trainer, batch, fault.event, "step skipped", fault.rows, detail)
        self._set_aside(trainer, fault, batch)
        if not fault.explained:
            since = self.steps - 10 * self.settings.patience
            self._unexplained = [*(n for n in self._unexplained if n > since), self.steps]
            if len(self._unexplained) >= self.settings.patience:
                self._roll_back(trainer, fault, batch)
        planned = _planned_steps(trainer) or self.steps
        if self.skipped > max(_LEAST_BUDGET, self.settings.budget * planned):
            self._stop(trainer, fault, batch, f"{self.skipped} of {planned} steps were void")

    def _set_aside(self, trainer: pl.Trainer, fault: Fault, batch: int) -> None:
        new = [row for row in fault.rows if row not in self.set_aside]
        if not fault.not_finite:  # a healthy row may be hard to learn once
            first = [row for row in new if row not in self._suspects]
            self._suspects += first
            new = [row for row in new if row not in first]
        if not new:
            return
        self.set_aside |= dict.fromkeys(new, fault.event)
        detail = f"{fault.event}; other rows of its batch stand in for it from now on"
        self._note(trainer, batch, fault.event, "rows set aside", new, detail)
        rows = _rows_in_all(trainer)
        if len(self.set_aside) > max(_LEAST_BUDGET, self.settings.budget * rows):
            many = f"{len(self.set_aside)} of {rows or 'unknown'} rows were set aside"
            self._stop(trainer, fault, batch, many)

    def _roll_back(self, trainer: pl.Trainer, fault: Fault, batch: int) -> None:
        if self.rollbacks >= self.settings.max_rollbacks:
            void = f"{len(self._unexplained)} more void steps after {self.rollbacks} rollbacks"
            self._stop(trainer, fault, batch, void)
        if self.went_back and len(self._ring) > 1:
            self._ring.pop()
        guard_state.go_back(trainer, self._ring[-1])
        self.rollbacks += 1
        self.lr_scale *= self.settings.lr_factor
        self.good, self.went_back, self._unexplained = 0, True, []
        self.tell_attempt(trainer)
        detail = f"learning rates x {self.lr_scale:g} from now on, attempt {self.rollbacks}"
        action = "rolled back to the last good state"
        self._note(trainer, batch, f"repeated {fault.event}", action, [], detail)

    def tell_attempt(self, trainer: pl.Trainer) -> None:
        """Let the keys of what comes differ from those that led into trouble."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, KeyedSteps):
                callback.attempt = self.rollbacks

    def _stop(self, trainer: pl.Trainer, fault: Fault, batch: int, found: str) -> None:
        rows = [self._name_row(row) for row in (*fault.rows, *self.set_aside)]
        some = ", ".join(str(row) for row in dict.fromkeys(rows[:_NAMED])) or "none found"
        layers = ", ".join(fault.layers[:_NAMED]) or "none found"
        weights = guard_state.not_finite(trainer.lightning_module)
        self._note(trainer, batch, fault.event, "training stopped", fault.rows, found)
        raise TrainingUnstableError(
            f"training needs finite losses and gradients of a steady size, but {found}; the last "
            f"was a {fault.event} at epoch {trainer.current_epoch}, batch {batch} "
            f"({fault.values}). Layers: {layers}. Rows at fault: {some}. Weights that are not "
            f"finite: {weights[:_NAMED] or 'none'}. Check these rows for codes and units, lower "
            "the learning rate or warm it up; a loss that is meant to jump needs a larger "
            "GuardSettings(factor=...)."
        )

    def _note(
        self,
        trainer: pl.Trainer,
        batch: int,
        event: str,
        action: str,
        rows: list[Row],
        detail: str,
    ) -> None:
        line = {
            "event": event,
            "action": action,
            "epoch": trainer.current_epoch,
            "batch": batch,
            "step": trainer.global_step,
            "rows": [self._name_row(row) for row in rows],
            "detail": detail,
        }
        self.events.append(line)
        if trainer.is_global_zero:
            self._tell(line)

    def state(self) -> dict[str, Any]:
        """Return all but the snapshots as plain types."""
        return {name: getattr(self, name) for name in _KEPT} | {
            "settings": asdict(self.settings),
            "events": [dict(line) for line in self.events],
            "set_aside": dict(self.set_aside),
            "suspects": list(self._suspects),
            "unexplained": list(self._unexplained),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        for name in _KEPT:
            setattr(self, name, state[name])
        self.events = [dict(line) for line in state["events"]]
        self.set_aside = dict(state["set_aside"])
        self._suspects = list(state["suspects"])
        self._unexplained = list(state["unexplained"])

    def kept(self) -> list[dict[str, Any]]:
        """Return the snapshots: only resume points hold them, other checkpoints stay small."""
        return list(self._ring)

    def keep(self, snapshots: list[dict[str, Any]]) -> None:
        """Go on with snapshots from a resume point."""
        self._ring.clear()
        self._ring.extend(snapshots)


def _planned_steps(trainer: pl.Trainer) -> int:
    """Return the steps of the whole fit, 0 where it has no end."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    batches = trainer.num_training_batches
    if not trainer.max_epochs or trainer.max_epochs < 0 or math.isinf(batches):
        return 0
    return trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches)


def _rows_in_all(trainer: pl.Trainer) -> int:
    combined = trainer.fit_loop._combined_loader
    sizes = [getattr(x, "dataset", ()) for x in (combined.flattened if combined else [])]
    return sum(len(data) for data in sizes if hasattr(data, "__len__"))
