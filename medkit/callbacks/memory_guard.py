"""A batch that does not fit is trained on in parts, as if it had."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loops.optimization.automatic import Closure, ClosureResult
from torch import nn

from medkit.callbacks.guard_rows import samples
from medkit.callbacks.memory_advice import (
    DRAWS_DIFFER,
    batch_norm_deviates,
    does_not_add_up,
    where_not_split,
    why_never_split,
    why_no_smaller,
    why_not_guarded,
)
from medkit.callbacks.memory_errors import DoesNotFitError, first_line, free, is_out_of_memory
from medkit.callbacks.memory_norm import batch_norms
from medkit.callbacks.memory_split import Split, add_up
from medkit.callbacks.memory_step import guard_step
from medkit.callbacks.memory_try import Try, batch_number

_log = logging.getLogger(__name__)
_EVENT = "out of memory"
_NAMED = 3  # layers that a message names


class MemoryGuard(pl.Callback):
    """Out of memory in forward, backward or optimizer step: go on with the same batch in parts.

    The module must have ``loss_terms(batch) -> (sum, weight)``, and ``training_step`` return what
    it makes of ``sum / weight``; without it the error is raised again with that advice. All that
    the failed try has moved is put back (statistics, metrics, logged means, generators, gradients
    of earlier micro-batches), and the step is run again while ``loss_terms`` answers for the whole
    batch from parts half as large, until they fit: the same samples, each once, the same loss and
    one optimizer step. The gradient is the whole batch's to rounding. The size that fits is kept,
    also over a resume, and later batches are split by it at once.

    Exact it is only where a sample's loss depends on nothing else in its batch: dropout must be
    :class:`~medkit.models.keyed_dropout.KeyedDropout` (other draws are found, and reported to
    ``on_inexact``), and batch normalisation normalises each part by itself (said and reported; 3 to
    27 % off the gradient in small nets; :func:`~medkit.callbacks.memory_norm.swap_batchnorm`).
    Losses that do not add up over parts, as Cox's, are refused.

    An optimizer step that runs out is taken back from copies made before each step (weights and
    optimizer state, so memory for another three times the weights with AdamW) and taken again.

    A module whose batches can't be split is named with a warning as the fit begins; its optimizer
    steps are guarded. Not guarded, with a warning: manual optimization, LBFGS, several devices,
    members trained apart. An evaluation that runs out gets advice only. It works beside
    ``SpikeGuard``, in any order.

    Args:
        on_event: Called with each intervention as keyword arguments ``event action epoch batch
            step rows detail``; None logs it. All are in ``events``.
        on_inexact: Called with a reason when a split step is not the whole one; None logs it.
    """

    def __init__(
        self,
        *,
        on_event: Callable[..., None] | None = None,
        on_inexact: Callable[[str], None] | None = None,
    ) -> None:
        self.on_event = on_event
        self.on_inexact = on_inexact
        self._undo: list[Callable[[], None]] = []
        self._begin()

    # passed over by Lightning, see KeyedSteps
    on_train_batch_start = on_train_batch_end = on_before_zero_grad = None  # type: ignore[assignment]
    on_before_backward = on_after_backward = on_before_optimizer_step = None  # type: ignore[assignment]

    def _begin(self) -> None:
        self.samples: int | None = None  # that fit at once, as far as is known
        self.events: list[dict[str, Any]] = []
        self._batches = 0  # split in this epoch
        self._reasons: list[str] = []
        self._guarding = False
        self._adds_up: bool | None = None
        self._split: Split | None = None  # of the training step under way
        self._where = "forward"

    # ---- a fit begins and ends -----------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew; a resumed fit loads what it knew after this.

        It stands between the strategy and the module before other guards stand before it.
        """
        if stage == "fit":
            self._let_go()
            self._begin()
            strategy = trainer.strategy
            strategy.training_step = partial(self._step, trainer, strategy.training_step)  # type: ignore[method-assign]
            self._undo.append(lambda: strategy.__dict__.pop("training_step", None))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stand around each batch's forward and backward pass, and each optimizer's step."""
        reason = why_not_guarded(trainer)
        if reason:
            _log.warning("MemoryGuard does not guard this fit: %s", reason)
            return
        cannot = why_never_split(pl_module)
        if cannot:
            _log.warning("MemoryGuard can't split the batches of this fit: %s", cannot)
        self._guarding = True
        self._try = Try(trainer)
        self._norms = batch_norms(pl_module)
        single = any(isinstance(part, nn.BatchNorm1d) for part in pl_module.modules())
        self._least = 2 if single else 1  # it can't normalise a single row of a table
        loop = trainer.fit_loop.epoch_loop.automatic_optimization
        loop._make_closure = partial(self._make, trainer, loop._make_closure)  # type: ignore[method-assign]
        self._undo.append(lambda: loop.__dict__.pop("_make_closure", None))
        tell = partial(self._tell, trainer)
        self._undo += [guard_step(optimizer, tell) for optimizer in trainer.optimizers]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how many batches were split in this epoch."""
        if self._batches:
            action = f"{self._batches} batches of this epoch split"
            self._tell(trainer, action, f"into parts of at most {self.samples} samples")
        self._batches = 0

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Step aside; add advice to what could not be survived."""
        if is_out_of_memory(exception) and not isinstance(exception, DoesNotFitError):
            advice = where_not_split(trainer)
            exception.add_note(advice)
            self._tell(trainer, "stopped", f"{first_line(exception)}; {advice}")
        self._let_go()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Step aside."""
        self._let_go()

    def _let_go(self) -> None:
        self._guarding = False
        while self._undo:
            self._undo.pop()()

    # ---- a batch -------------------------------------------------------------------------------

    def _make(self, trainer: pl.Trainer, make: Any, kwargs: Any, *rest: Any) -> Closure:
        """Take the place of the loop's ``_make_closure``."""
        return _Guarded(self, trainer, kwargs.get("batch"), make(kwargs, *rest))

    def run(self, trainer: pl.Trainer, once: Callable[[], ClosureResult], batch: Any) -> Any:
        """Run forward and backward pass until they fit."""
        self._try.take()
        if self.samples is not None:
            self._try.drop_old_gradients()
        while True:
            self._where = "forward"
            found = ""
            try:
                result = once()
            except Exception as error:
                if isinstance(error, DoesNotFitError) or not is_out_of_memory(error):
                    raise
                found = first_line(error)
                most, why_not = self._smaller(trainer, samples(batch))
                if why_not:
                    self._tell(trainer, "training stopped", f"{self._where} pass: {found}")
                    raise DoesNotFitError(why_not) from error
            if not found:
                self._batches += bool(self._split is not None and self._split.parts)
                return result
            # here, not in the handler: the traceback held the graph
            free(trainer.lightning_module.device)
            self._try_smaller(trainer, batch, most, found)

    def _step(self, trainer: pl.Trainer, training_step: Any, *args: Any) -> Any:
        """Take the place of the strategy's ``training_step``."""
        module: Any = trainer.lightning_module
        self._split = None
        if self._guarding and self.samples is not None and hasattr(module, "loss_terms"):
            split = self._split = Split(trainer, module.loss_terms, self.samples, self._least)
            own = vars(module).get("loss_terms")
            vars(module)["loss_terms"] = split
            try:
                output = training_step(*args)
            finally:
                self._where = split.where
                del vars(module)["loss_terms"]
                vars(module).update({} if own is None else {"loss_terms": own})
            if split.draws_differ:
                self._inexact(trainer, DRAWS_DIFFER)
        else:
            output = training_step(*args)
        self._where = "backward"
        return output

    def _smaller(self, trainer: pl.Trainer, size: int) -> tuple[int, str]:
        """Return how many samples to try at once, or why nothing smaller can be."""
        tried = size if self.samples is None else min(size, self.samples)
        asked = self._split is None or self._split.calls > 0
        module = trainer.lightning_module
        return (tried + 1) // 2, why_no_smaller(module, self._where, size, tried, asked=asked)

    def _try_smaller(self, trainer: pl.Trainer, batch: Any, most: int, found: str) -> None:
        """Put back what the try has moved, and split from now on."""
        module: Any = trainer.lightning_module
        where = self._where
        self._try.put_back()
        if self._adds_up is None:
            wrong = add_up(trainer, module.loss_terms, batch, most)
            self._try.put_back()  # looking runs the module's code
            self._adds_up = not wrong
            if wrong:
                self._tell(trainer, "training stopped", f"loss_terms: {wrong}")
                raise DoesNotFitError(does_not_add_up(wrong, where))
        self.samples = most
        detail = f"{where} pass of {samples(batch)} samples: {found}"
        self._tell(trainer, f"batch split into parts of at most {most} samples", detail)
        if self._norms:
            self._inexact(trainer, batch_norm_deviates(", ".join(self._norms[:_NAMED])))

    # ---- what is said --------------------------------------------------------------------------

    def _inexact(self, trainer: pl.Trainer, reason: str) -> None:
        if reason in self._reasons:
            return
        self._reasons.append(reason)
        self._tell(trainer, "a split step is not the whole one", reason)
        if self.on_inexact is not None:
            self.on_inexact(reason)

    def _tell(self, trainer: pl.Trainer, action: str, detail: str) -> None:
        line = {
            "event": _EVENT,
            "action": action,
            "epoch": trainer.current_epoch,
            "batch": batch_number(trainer) if trainer.training else None,
            "step": trainer.global_step,
            "rows": [],
            "detail": detail,
        }
        self.events.append(line)
        if self.on_event is not None:
            self.on_event(**line)
        _log.warning("%(event)s at epoch %(epoch)s, batch %(batch)s: %(action)s (%(detail)s)", line)

    # ---- a checkpoint --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the size that fits, and what was said."""
        return {
            "samples": self.samples,
            "batches": self._batches,
            "reasons": list(self._reasons),
            "events": [dict(line) for line in self.events],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.samples = state_dict["samples"]
        self._batches = state_dict["batches"]
        self._reasons = list(state_dict["reasons"])
        self.events = [dict(line) for line in state_dict["events"]]


class _Guarded(Closure):
    """One batch's forward and backward pass, run until they fit, and then never again."""

    def __init__(self, guard: MemoryGuard, trainer: pl.Trainer, batch: Any, made: Closure) -> None:
        super().__init__(made._step_fn, made._backward_fn, made._zero_grad_fn)
        self._guard, self._trainer, self._batch = guard, trainer, batch
        self._done: ClosureResult | None = None

    def closure(self, *args: Any, **kwargs: Any) -> ClosureResult:
        """Return what Lightning's closure does."""
        if self._done is None:
            self._done = self._guard.run(self._trainer, super().closure, self._batch)
        return self._done
