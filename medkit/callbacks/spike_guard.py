"""A step that would wreck the weights is not taken; trouble that repeats is rolled back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from medkit.callbacks import guard_step
from medkit.callbacks.guard_policy import GuardSettings, Policy
from medkit.callbacks.guard_rows import (
    Row,
    in_words,
    norm_of,
    rows_of,
    samples,
    total_norm,
    without,
)
from medkit.callbacks.guard_search import Fault, Micro, find_rows
from medkit.callbacks.guard_state import Before
from medkit.callbacks.guard_window import Window
from medkit.callbacks.keyed_steps import KeyedSteps

_log = logging.getLogger(__name__)


class SpikeGuard(pl.Callback):
    """Skip the step of a non-finite or exploding loss or gradient; roll back what repeats.

    Before the optimizer moves, the losses of the step's micro-batches and the norm of its gradient
    are compared with running windows (:class:`~medkit.callbacks.guard_window.Window`); before 32
    steps have filled them, only what is not finite is held back. A void step
    leaves weights, optimizer, per-step schedulers, ``trainer.global_step``, Lightning's weight
    averaging, GradScaler, BatchNorm statistics, torchmetrics, means of ``self.log`` and the
    module's own attributes bit for bit as they were before its (first micro-)batch; only the
    position goes on. Then the rows at fault are looked for. One whose loss or gradient is not
    finite is set aside at once, one that is only too large the second time: from then on other
    rows of its batch stand in for it. Void steps without a row at fault are the net's own trouble,
    and soon rolled back: weights, optimizers and averages of the last snapshot are put back, the
    rates lowered, and later draws get another ``attempt`` in their keys; position, step count and
    schedules are not rewound. Over budget, training stops with ``TrainingUnstableError``.

    Manual optimization: each ``optimizer.step()`` is judged by its gradient alone. What the module
    does itself (stepping its schedulers, averaging, another optimizer's step) is not held back,
    and rows are looked for only where it has ``loss_terms``. Rows can be set aside where they are
    known: by the batch's field ``row`` or a keyed loader. Callbacks of others that average weights
    at each batch, whatever ``global_step`` says, go on doing so. Not guarded, with a warning:
    LBFGS, strategies other than one device and DDP, and a module of several members trained apart.

    Args:
        settings: When to step in, and how far to go.
        on_event: Called with each intervention as keyword arguments ``event action epoch batch
            step rows detail``; None logs it. All are in ``events``.
        name_row: How rows are named there; a run gives pseudonyms, and
            :func:`~medkit.record.ledger.rows_named` leads back to the rows.
        seed: Draws the stand-ins; None takes that of the Trainer's ``KeyedSteps``, or 0.
    """

    def __init__(
        self,
        settings: GuardSettings | None = None,
        *,
        on_event: Callable[..., None] | None = None,
        name_row: Callable[[Row], Row] | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(settings, GuardSettings | None):
            raise TypeError(
                f"settings of a SpikeGuard must be GuardSettings or None, got {settings!r}. "
                "None takes the defaults; others: SpikeGuard(GuardSettings(factor=5))."
            )
        self.settings = settings or GuardSettings()
        self.on_event = on_event
        self.name_row = name_row
        self.seed = seed
        self._guarding = False
        self._begin()

    logs_nothing = True  # in its hooks: they need not be entered by Lightning
    # passed over by Lightning, see KeyedSteps
    on_train_batch_start = on_train_batch_end = on_before_zero_grad = None  # type: ignore[assignment]
    on_before_backward = on_after_backward = None  # type: ignore[assignment]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every intervention of this fit, those before a resume included."""
        return self.policy.events

    def _begin(self) -> None:
        self.policy = Policy(self.settings, self._tell, self._name)
        self._losses = self._window()
        self._norms: list[tuple[Window, int]] = []  # by optimizer, with its number of gradients

    def _window(self) -> Window:
        return Window(self.settings.false_alarms / 2, self.settings.factor)

    def _name(self, row: Row) -> Row:
        return row if self.name_row is None else self.name_row(row)

    def _tell(self, line: Mapping[str, Any]) -> None:
        if self.on_event is not None:
            self.on_event(**line)
        _log.warning("%s", in_words(line))

    # ---- a fit begins and ends -----------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew; a resumed fit loads what it knew after this."""
        if stage == "fit":
            self._begin()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stand between the loop and its steps."""
        self._let_go(trainer)
        reason = _why_not(trainer)
        if reason:
            _log.warning("SpikeGuard does not guard this fit: %s", reason)
            return
        self._guarding = True
        self._before = Before(trainer)
        self._hold = guard_step.Hold(trainer)
        # looked up once: properties of a Trainer lead through three objects
        self._scaler = guard_step.scaler_of(trainer)
        self._progress = trainer.fit_loop.epoch_loop.batch_progress.current
        self._module = pl_module
        self._micros: list[Micro] = []
        self._faults: list[Fault] = []
        self._void = False
        self._weights: dict[int, tuple[int, list[Tensor]]] = {}
        self._names = {id(p): name for name, p in pl_module.named_parameters()}
        missing = len(trainer.optimizers) - len(self._norms)
        self._norms += [(self._window(), 0) for _ in range(missing)]
        if self.policy.rollbacks:
            self.policy.tell_attempt(trainer)
        strategy, loop = trainer.strategy, trainer.fit_loop.epoch_loop
        strategy.training_step = partial(self._step, trainer, strategy.training_step)  # type: ignore[method-assign]
        loop.update_lr_schedulers = partial(self._after, trainer, loop.update_lr_schedulers)  # type: ignore[method-assign]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Step aside."""
        self._let_go(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Step aside."""
        self._let_go(trainer)

    def _let_go(self, trainer: pl.Trainer) -> None:
        if self._guarding:
            self._guarding = False
            trainer.strategy.__dict__.pop("training_step", None)
            trainer.fit_loop.epoch_loop.__dict__.pop("update_lr_schedulers", None)

    # ---- a step --------------------------------------------------------------------------------

    def _step(self, trainer: pl.Trainer, training_step: Any, batch: Any, *rest: Any) -> Any:
        """Take the place of the strategy's ``training_step``."""
        number = self._progress.ready - 1
        by_itself = self._module.automatic_optimization
        if not by_itself or number % trainer.accumulate_grad_batches == 0:
            self._micros.clear()
            self._void = False
            self._before.take()
            self.policy.snapshot(trainer)
        if self.policy.set_aside:
            batch = self._without_rows(trainer, batch, number)
        if self._micros and self._micros[-1].number == number:
            self._micros.pop()  # it ran out of memory, and is run again
        micro = Micro(number, batch, rest, samples(batch))
        self._micros.append(micro)
        output = training_step(batch, *rest)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if isinstance(loss, Tensor) and by_itself:
            micro.loss = loss.detach()
        return output

    def _without_rows(self, trainer: pl.Trainer, batch: Any, number: int) -> Any:
        rows, out = rows_of(trainer, batch, number), self.policy.set_aside
        if rows is None or out.keys().isdisjoint(rows):
            return batch
        seeds = [c.seed for c in trainer.callbacks if isinstance(c, KeyedSteps)]  # type: ignore[attr-defined]
        seed = self.seed if self.seed is not None else [*seeds, 0][0]
        self.policy.replaced += sum(row in out for row in rows)
        place = (trainer.current_epoch, number, trainer.global_rank)
        return without(batch, rows, out, *place, seed=seed)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Judge the step: gradients are whole and unscaled, and not yet clipped."""
        if not self._guarding:
            return
        optimizers = trainer.optimizers
        number = 0 if optimizers[0] is optimizer else optimizers.index(optimizer)
        groups, weights = self._weights.get(number, (0, []))
        if groups != len(optimizer.param_groups):  # the first time, or layers were unfrozen
            weights = guard_step.weights_of(optimizer)
            self._weights[number] = (len(optimizer.param_groups), weights)
        grads = [gradient for p in weights if (gradient := p.grad) is not None]
        if not grads:
            return
        losses = [(micro.loss, micro.size) for micro in self._micros if micro.loss is not None]
        seen = guard_step.gather(trainer, losses, total_norm(grads))
        if self._scaler is not None:
            seen.norm = guard_step.unscaled(self._scaler, optimizer, seen.norm)
            if guard_step.found_inf(self._scaler, seen.norm) and not any(seen.over(self._losses)):
                return  # the scaler looks for its scale, and leaves the step out itself
        window, gradients = self._norms[number]
        if gradients != len(grads):  # layers were frozen or unfrozen
            window.forget()
            self._norms[number] = (window, len(grads))
        self.policy.steps += 1
        event = seen.what_is_wrong(self._losses, window)
        if event:
            names = [self._names.get(id(p), "unnamed") for p in weights if p.grad is not None]
            norms = norm_of(grads)
            fault = Fault.found(event, seen, self._losses, window, optimizer, names, norms)
            self._faults.append(fault)
            self._hold.void(optimizer)
            return
        seen.add_to(self._losses, window)
        self.policy.good += 1
        if self.policy.lr_scale != 1.0:
            self._hold.lower_rates(optimizer, self.policy.lr_scale)

    def _after(
        self, trainer: pl.Trainer, update: Any, interval: str, update_plateau_schedulers: bool
    ) -> None:
        """Take the place of the loop's ``update_lr_schedulers``: the optimizers have moved."""
        self._hold.rates_back()
        if self._faults:
            faults, self._faults = self._faults, []
            self._void = self._module.automatic_optimization
            self._hold.put_back()
            self._before.put_back()
            for fault in faults:
                find_rows(trainer, fault, self._micros)
                self._before.put_back()  # looking at rows runs the module's code
                self.policy.void(trainer, fault, self._micros[-1].number)
        if not (self._void and interval == "step"):
            update(interval, update_plateau_schedulers=update_plateau_schedulers)

    # ---- a checkpoint --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return windows, counts, rows set aside and events."""
        norms = [{"window": window.state(), "gradients": count} for window, count in self._norms]
        return {"policy": self.policy.state(), "losses": self._losses.state(), "norms": norms}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.policy.load(state_dict["policy"])
        self._losses.load(state_dict["losses"])
        self._norms = []
        for saved in state_dict["norms"]:
            window = self._window()
            window.load(saved["window"])
            self._norms.append((window, int(saved["gradients"])))

    def kept(self) -> list[dict[str, Any]]:
        """Return what a resume point holds beside: the snapshots."""
        return self.policy.kept()

    def keep(self, kept: list[dict[str, Any]]) -> None:
        """Go on with those of a resume point."""
        self.policy.keep(kept)


def _why_not(trainer: pl.Trainer) -> str:
    """Return why this fit cannot be guarded; empty if it can."""
    strategy = trainer.strategy
    known = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not known or strategy.handles_gradient_accumulation:
        return f"{type(strategy).__name__} keeps gradients where they cannot be looked at whole"
    if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
        return "LBFGS takes several looks at each step"
    if getattr(trainer.lightning_module, "trained_apart", False):
        return "its members are trained apart, and a step skipped for one would be for all"
    return ""
