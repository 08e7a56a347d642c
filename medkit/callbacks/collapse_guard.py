"""Stop an alignment whose own score rises while the model falls apart, and go back to before it."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from medkit.callbacks import guard_state
from medkit.callbacks.due import of_any_rank
from medkit.callbacks.guard_rows import in_words

__all__ = ["COLLAPSE", "CollapseGuard", "Limit"]

_log = logging.getLogger(__name__)
_SILENT = 100  # batches without one watched value: nothing is guarded
_TWENTIETH = -0.05  # log-likelihood of what is a twentieth less likely


@dataclass(frozen=True)
class Limit:
    """What a logged value must not do.

    Attributes:
        name: As logged: a key of ``trainer.callback_metrics``.
        at_least: Bound of the mean over ``batches``, from below.
        at_most: From above; one of the two.
        batches: Training batches that are averaged; nothing is judged before so many. A value that
            is logged now and then counts until the next one.
        from_start: Judge the change since the first mean, not the mean.
        reason: Why the bound lies there; the ledger repeats it.
    """

    name: str
    at_least: float | None = None
    at_most: float | None = None
    batches: int = 1
    from_start: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        bound = self.bound if (self.at_least is None) != (self.at_most is None) else math.nan
        if not math.isfinite(bound) or self.batches < 1 or not self.reason:
            raise ValueError(
                "a limit needs at_least or at_most, 1 batch or more, and a reason for the ledger; "
                f"got {self}. A value that must stay within two bounds takes two limits."
            )

    @property
    def bound(self) -> float:
        """Where it lies."""
        found = self.at_least if self.at_least is not None else self.at_most
        return math.nan if found is None else found

    def used(self, value: float, start: float) -> float:
        """Return the share of the way from ``start`` to the bound: over 1, and it is broken.

        What is not a number has broken it.
        """
        if self.from_start:
            value, start = value - start, 0.0
        sign = 1.0 if self.at_least is None else -1.0
        way, gone = sign * (self.bound - start), sign * (value - start)
        if not sign * value <= sign * self.bound:
            return math.inf
        return gone / way if way > 0 else 0.0

    def in_words(self, value: float, start: float) -> str:
        """Say what was found, and why that is too much."""
        side = "at least" if self.at_most is None else "at most"
        shown, since = (value - start, ", from its start") if self.from_start else (value, "")
        over = f" over {self.batches} batches" if self.batches > 1 else ""
        return f"{self.name} {shown:.3g}{over}{since}, {side} {self.bound:g}: {self.reason}"


COLLAPSE = (
    Limit("step/chosen_logprob", at_least=_TWENTIETH, batches=8,
          reason="a token of the preferred answers is a twentieth less likely than it was"),
    Limit("step/diversity", at_least=0.5, reason="half as many different answers as true ones"),
    Limit("step/diversity", at_most=2.0, reason="twice as many different answers as true ones"),
    Limit("step/dominance", at_most=0.25,
          reason="one answer is given to a quarter of the questions more than any is right for"),
    Limit("step/odd_words", at_most=0.05, from_start=True,
          reason="one word in twenty more is in no true answer, or one sign over and over"),
    Limit("step/equal_groups", at_most=0.999, batches=20,
          reason="no group has had two different rewards: nothing is learnt but noise"),
)  # fmt: skip
"""Limits on what LitDPO, LitGRPO and SampledAnswers log."""


class CollapseGuard(pl.Callback):
    """End a fit when a logged value breaks its limit, with the weights of the last good state.

    It sees what the module logs and no held-out score. As the fit begins, and then every
    ``snapshot_every`` batches at which no watched value has gone half the way from its first mean
    to its limit, weights, buffers, optimizers and averages are copied to the host. When a limit is
    broken they are put back, and ``trainer.should_stop`` is set: validation and checkpoints at the
    end of the fit are of the last good state. Position, step count and rates stay.

    A resumed fit goes on with means, first means and, from the kit's resume points, the last good
    state. Processes agree: what one of them holds broken is so for all.

    Args:
        limits: What is watched; :data:`COLLAPSE` by default, of which a module logs some.
        snapshot_every: Batches between two copies.
        on_event: Called with each intervention as keyword arguments ``event action epoch batch
            step rows detail``; None logs it. All are in ``events``.

    Raises:
        ValueError: In the fit, when none of the names was logged in its first 100 batches.
    """

    def __init__(
        self,
        limits: Sequence[Limit] = COLLAPSE,
        *,
        snapshot_every: int = 10,
        on_event: Callable[..., None] | None = None,
    ) -> None:
        if not limits or snapshot_every < 1:
            raise ValueError(
                "a guard needs limits, and snapshot_every of 1 or more; got "
                f"{list(limits)} and {snapshot_every}. Leave limits out for those of COLLAPSE."
            )
        self.limits = tuple(limits)
        self.snapshot_every = snapshot_every
        self.on_event = on_event
        self._begin()

    def _begin(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._seen = [deque[float](maxlen=one.batches) for one in self.limits]
        self._starts: list[float | None] = [None for _ in self.limits]
        self._batches = 0
        self._good: dict[str, Any] | None = None  # the last good state, and when that was

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew; a resumed fit loads what it knew after this."""
        if stage == "fit":
            self._begin()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the state that the fit begins with."""
        self._keep_state(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Read what was logged, and judge it."""
        self._batches += 1
        broken, doubtful = self._judged(trainer)
        over, in_doubt = of_any_rank(trainer, [bool(broken), doubtful])
        if over:
            self._end(trainer, batch_idx, broken or ["in another process"])
        elif not in_doubt and self._batches % self.snapshot_every == 0:
            self._keep_state(trainer)

    def _judged(self, trainer: pl.Trainer) -> tuple[list[str], bool]:
        """Return which limits are broken, in words, and whether one is half used up."""
        logged = trainer.callback_metrics
        broken, doubtful = [], False
        for number, (limit, seen) in enumerate(zip(self.limits, self._seen, strict=True)):
            if limit.name not in logged:
                continue
            seen.append(float(logged[limit.name]))
            if len(seen) < limit.batches:
                continue
            mean = sum(seen) / len(seen)
            start = self._starts[number]
            if start is None:
                start = self._starts[number] = mean
            used = limit.used(mean, start)
            doubtful |= used > 0.5
            if used > 1:
                broken.append(limit.in_words(mean, start))
        if self._batches == _SILENT and not any(self._seen):
            raise ValueError(
                f"a guard must see one of {sorted({one.name for one in self.limits})}, and none "
                f"was logged in {_SILENT} batches; logged were {sorted(logged)}. Log them in "
                "training_step, or pass limits on what is logged."
            )
        return broken, doubtful

    def _keep_state(self, trainer: pl.Trainer) -> None:
        self._good = {"step": trainer.global_step, "state": guard_state.snapshot(trainer)}

    def _end(self, trainer: pl.Trainer, batch: int, broken: list[str]) -> None:
        if self._good is None:
            raise RuntimeError("on_train_start must run before a batch ends. Use the Trainer.")
        detail = "; ".join(broken)
        guard_state.go_back(trainer, self._good["state"])
        back = f"{detail}; weights are those of step {self._good['step']}"
        self._note(trainer, batch, "rolled back to the last good state", back)
        trainer.should_stop = True
        self._note(trainer, batch, "training stopped", detail)
        for seen in self._seen:  # of weights that are no more; min_steps may let the fit go on
            seen.clear()

    def _note(self, trainer: pl.Trainer, batch: int, action: str, detail: str) -> None:
        line = {
            "event": "collapse",
            "action": action,
            "epoch": trainer.current_epoch,
            "batch": batch,
            "step": trainer.global_step,
            "rows": [],
            "detail": detail,
        }
        self.events.append(line)
        if trainer.is_global_zero:
            if self.on_event is not None:
                self.on_event(**line)
            _log.warning("%s", in_words(line))

    def state_dict(self) -> dict[str, Any]:
        """Return all but the last good state."""
        return {
            "limits": repr(self.limits),
            "seen": [list(seen) for seen in self._seen],
            "starts": list(self._starts),
            "batches": self._batches,
            "events": [dict(line) for line in self.events],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: For a guard with other limits.
        """
        if state_dict["limits"] != repr(self.limits):
            raise ValueError(
                f"a resumed guard needs the limits it had, {state_dict['limits']}; found "
                f"{self.limits}. Pass the same."
            )
        for seen, values in zip(self._seen, state_dict["seen"], strict=True):
            seen.extend(values)
        self._starts = list(state_dict["starts"])
        self._batches = int(state_dict["batches"])
        self.events = [dict(line) for line in state_dict["events"]]

    def kept(self) -> list[dict[str, Any]]:
        """Return what a resume point holds beside: the last good state."""
        return [] if self._good is None else [self._good]

    def keep(self, kept: list[dict[str, Any]]) -> None:
        """Go on with that of a resume point."""
        if kept:
            self._good = kept[0]
