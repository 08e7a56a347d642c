"""The promises of somebody's module: initial weights, transfer, training step, hidden state."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.trainer import call

from medkit import keyed as keys
from medkit.callbacks.attributes import ChangedAttributes, holders
from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.check.compare import Culprit
from medkit.check.digest import digest
from medkit.check.findings import Finding, broken, guarded, holds, skipped
from medkit.check.history import Twice
from medkit.check.subject import SEED, Subject
from medkit.data.generators import find_generators
from medkit.data.loader import KeyedLoader

STEP_PROMISES = ("batch transfer", "training step", "hidden state")


class ProbedEnoughError(Exception):
    """Ends a fit whose first batch was looked at."""


def initial_weights(subject: Subject, twice: Twice) -> Finding:
    """Build the module again, under the same key and after other things."""

    def built() -> dict[str, torch.Tensor]:
        with keys.globals_keyed(SEED, "init", "fit"):
            return dict(subject.make_module().state_dict())

    culprit = twice.differs(built, budget_s=0.0)
    if culprit is None:
        return holds("initial weights")
    return broken("initial weights", culprit, "the weights of a module built again differ")


class StepProbe(pl.Callback):
    """Looks at batch transfer and training step where they happen: in a fit, at its first batch.

    Put it after ``KeyedSteps``. Ends the fit by :class:`ProbedEnoughError`.

    Args:
        twice: Compares passes.
        steps: Keys the steps.
    """

    def __init__(self, twice: Twice, steps: KeyedSteps) -> None:
        self.twice = twice
        self.steps = steps
        self.findings: list[Finding] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look, and end the fit."""
        probes = (self._transfer, self._step, self._hidden)
        for promise, probe in zip(STEP_PROMISES, probes, strict=True):
            look = functools.partial(probe, trainer, pl_module)
            self.findings.append(guarded(promise, self.twice.roots, look))
        raise ProbedEnoughError

    def _raw_batches(self, trainer: pl.Trainer) -> list[Any]:
        """Return the first two batches as they come from the loaders."""
        combined = trainer.fit_loop._combined_loader
        if combined is None:
            return []
        numbers = (0, min(1, max(0, int(trainer.num_training_batches) - 1)))
        found = []
        for number in numbers:
            parts = [x.batch_at(0, number % len(x)) for x in combined.flattened if _is_keyed(x)]
            if len(parts) != len(combined.flattened):
                return []
            waiting = iter(parts)
            found.append(
                apply_to_collection(combined.iterables, KeyedLoader, lambda _, w=waiting: next(w))
            )
        return found

    def _moved(self, trainer: pl.Trainer, raw: Any, number: int) -> Any:
        """Move a batch as the fit does: keyed, through the module's and the data's hooks."""
        flattened = trainer.fit_loop._combined_loader.flattened  # type: ignore[union-attr]
        for loader in flattened:
            if _is_keyed(loader) and loader.on_transfer is not None:
                loader.on_transfer(keys.seed_of(SEED, "transfer", 0, number, *loader.tag))
        return call._call_strategy_hook(
            trainer, "batch_to_device", copy.deepcopy(raw), dataloader_idx=0
        )

    def _transfer(self, trainer: pl.Trainer, module: pl.LightningModule) -> Finding:
        batches = self._raw_batches(trainer)
        culprit = self.twice.differs(
            lambda: self._moved(trainer, batches[0], 0),
            between=lambda _: self._moved(trainer, batches[1], 1),
        )
        if culprit is None:
            return holds("batch transfer")
        return broken("batch transfer", culprit, "a batch moved to the device again differs")

    def _step(self, trainer: pl.Trainer, module: pl.LightningModule) -> Finding:
        if not module.automatic_optimization:
            return skipped("training step", "manual optimization: see resume and repeat")
        raw = self._raw_batches(trainer)
        batches = [self._moved(trainer, one, number) for number, one in enumerate(raw)]
        before = _Snapshot(trainer)

        def run() -> Any:
            before.put_back(trainer)
            return self._step_once(trainer, module, copy.deepcopy(batches[0]), 0)

        def others(_: int) -> None:
            before.put_back(trainer)
            for number in (1, 0):
                self._step_once(trainer, module, copy.deepcopy(batches[number]), number)

        culprit = self.twice.differs(run, between=others)
        before.put_back(trainer)
        if culprit is None:
            return holds("training step")
        return broken("training step", culprit, "loss or gradients of the same batch differ")

    def _step_once(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, number: int
    ) -> Any:
        self.steps.on_train_batch_start(trainer, module, batch, number)
        module.zero_grad()
        arguments = [batch, number][: len(inspect.signature(module.training_step).parameters)]
        result = call._call_strategy_hook(trainer, "training_step", *arguments)
        loss = result["loss"] if isinstance(result, dict) else result
        if loss is None:
            return None
        loss.backward()
        gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        return {"loss": loss, "gradients": gradients, "buffers": dict(module.named_buffers())}

    def _hidden(self, trainer: pl.Trainer, module: pl.LightningModule) -> Finding:
        """Take steps, and look for what changed that a resume point cannot hold."""
        if not module.automatic_optimization:
            return skipped("hidden state", "manual optimization: see resume")
        before = {(who, name): text for who, name, text, _ in _opaque(trainer)}
        snapshot = _Snapshot(trainer)
        for number, raw in enumerate(self._raw_batches(trainer)):
            self._step_once(trainer, module, self._moved(trainer, raw, number), number)
        after = list(_opaque(trainer))
        snapshot.put_back(trainer)
        for who, name, text, holder in after:
            if before.get((who, name), text) != text:
                at = _where_used(type(holder), name)
                what = f"{name} of {type(holder).__name__} changed, and is no plain value"
                kind = type(vars(holder)[name]).__name__
                advice = (
                    f"self.{name} is a {kind}, which a resume point cannot hold. Keep numbers, "
                    "tensors, lists or dicts, or compute it from the step"
                )
                return broken("hidden state", at, what, advice)
        return holds("hidden state")


class _Snapshot:
    """Weights, buffers and attributes as a resume point would hold them."""

    def __init__(self, trainer: pl.Trainer) -> None:
        module = trainer.lightning_module
        self.weights = {name: value.clone() for name, value in module.state_dict().items()}
        self.attributes = ChangedAttributes(trainer)

    def put_back(self, trainer: pl.Trainer) -> None:
        """Return to it, as a resume would."""
        trainer.lightning_module.load_state_dict(self.weights)
        saved = copy.deepcopy(self.attributes._at_start)
        self.attributes.restore(trainer, {"attributes": saved, "flags": {}})


def _opaque(trainer: pl.Trainer) -> Iterator[tuple[str, str, str | None, object]]:
    """Yield holder, attribute and digest of what a resume point cannot hold."""
    kept = ChangedAttributes(trainer)._at_start
    known = {id(found) for found in find_generators(trainer.lightning_module)}
    known |= {id(holder) for _, holder, _ in holders(trainer)}
    for who, holder, skip in holders(trainer):
        for name, value in vars(holder).items():
            plain = name in skip or name in kept.get(who, {})
            if plain or id(value) in known or not who.startswith("module:"):
                continue
            if not isinstance(value, torch.nn.Module | torch.nn.Parameter):
                yield who, name, digest(value, depth=4), holder


def _where_used(kind: type, name: str) -> Culprit:
    """Return the line of a class that uses an attribute outside ``__init__``."""
    for owner in kind.__mro__:
        try:
            lines, start = inspect.getsourcelines(owner)
            file = inspect.getfile(owner)
        except (TypeError, OSError):
            continue
        tree = ast.parse(textwrap.dedent("".join(lines)))
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef) or function.name == "__init__":
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr == name:
                    line = start + node.lineno - 1
                    return Culprit(file, line, (f"self.{name}",), carried=True)
    return Culprit(names=(f"self.{name}",), carried=True)


def _is_keyed(loader: Any) -> bool:
    return isinstance(loader, KeyedLoader)
