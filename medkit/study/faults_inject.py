"""Faults injected into a process that knows nothing of them: Lightning itself is patched.

Under ``stable_trainer`` and under a stock Trainer alike, below every guard.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from medkit.study.faults import FAULTS
from medkit.study.faults_order import Order
from medkit.study.faults_samples import POISON, loaders, poison

BIG = 1e4  # factor of an exploding loss
DISK_BYTES = 1024  # what still fits on a full disk: no file may be longer


def inject(order: Order) -> None:
    """Patch Lightning in this process."""
    from pytorch_lightning.loops.fit_loop import _FitLoop
    from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
    from pytorch_lightning.strategies import Strategy
    from pytorch_lightning.trainer.connectors.data_connector import _DataLoaderSource

    injector = Injector(order)
    _around(Strategy, "training_step", injector.training_step)
    _around(Strategy, "optimizer_step", injector.optimizer_step)
    _around(_TrainingEpochLoop, "advance", injector.advance)
    _around(_DataLoaderSource, "dataloader", injector.dataloader)
    _around(_FitLoop, "run", injector.fit)


def _around(owner: type, name: str, wrapper: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(original, self, *args, **kwargs)

    setattr(owner, name, wrapped)


class Injector:
    """Carries one order out.

    Args:
        order: What is to happen.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.folder = Path(order.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._counted = self._no_step = 0
        self._counts = False
        self._limit = 0  # samples that fit
        self._whose: Any = None  # module that takes the batch
        self._room_at = 0  # the batch from which files can be written again
        self._once = not (self.folder / "happened").exists()

    # ---- where we are --------------------------------------------------------------------------

    def fit(self, original: Any, loop: Any) -> Any:
        """Count the batches of a fit, and those that no step came of."""
        names = {f"{type(c).__module__}.{b.__name__}" for c in loop.trainer.callbacks
                 for b in type(c).__mro__}  # fmt: skip
        self._counts = not self.order.protected or any("ResumePoints" in name for name in names)
        try:
            return original(loop)
        finally:
            if self._room_at:
                _limit_files(None)
            if self._counts:
                self._tell("batches", batches=self._counted, no_step=self._no_step)
            self._counts = False

    def advance(self, original: Any, loop: Any, *rest: Any) -> Any:
        """Go through one batch."""
        step = loop.trainer.global_step
        if self._counts and self._here():
            self._by_us()
        if self._room_at and self._counted >= self._room_at:
            self._room_at = 0
            _limit_files(None)
        short = (
            self._counts and self._here() and self.order.fault in ("oom_forward", "oom_backward")
        )
        with self._short_of_memory() if short else nullcontext():
            done = original(loop, *rest)
        self._counted += self._counts
        self._no_step += self._counts and loop.trainer.global_step == step
        return done

    def _here(self) -> bool:
        return self._once and self._counted >= self.order.batch

    def _happened(self, **what: Any) -> None:
        self._once = False
        self._tell("happened", batch=self._counted, **what)
        (self.folder / "happened").touch()

    def _tell(self, event: str, **what: Any) -> None:
        with (self.folder / "witness.jsonl").open("a") as handle:
            handle.write(json.dumps({"event": event, "fault": self.order.fault, **what}) + "\n")

    # ---- faults of the process and the disk ----------------------------------------------------

    def _by_us(self) -> None:
        fault = self.order.fault
        if fault == "sigkill":
            self._happened()
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "sigterm":
            self._happened()
            os.kill(int(os.environ.get("MEDKIT_LAUNCHER_PID", os.getpid())), signal.SIGTERM)
        elif fault == "truncated_checkpoint":
            self._truncate()
        elif fault == "dead_worker":
            self._kill_worker()
        elif fault.startswith("disk_full"):
            self._happened()
            _limit_files(DISK_BYTES)
            if fault != "disk_full":
                self._room_at = self._counted + FAULTS[fault].lasts

    def _truncate(self) -> None:
        for thread in threading.enumerate():
            if thread.name == "medkit-resume-point":  # it would put another one in its place
                thread.join()
        there = [*Path(self.order.checkpoints).rglob("*.ckpt")]
        if there:
            newest = max(there, key=lambda path: path.stat().st_mtime_ns)
            os.truncate(newest, newest.stat().st_size // 2)
            self._happened(file=newest.name)
            os.kill(os.getpid(), signal.SIGKILL)

    def _kill_worker(self) -> None:
        import multiprocessing

        workers = [child for child in multiprocessing.active_children() if child.pid]
        if workers:
            self._happened(worker=workers[0].pid)
            os.kill(int(workers[0].pid or 0), signal.SIGKILL)

    # ---- faults of a batch ---------------------------------------------------------------------

    def training_step(self, original: Any, strategy: Any, *args: Any) -> Any:
        """Have a loss explode."""
        output = original(strategy, *args)
        if self.order.fault != "exploding_batch" or not self._counts or not self._here():
            return output
        self._happened()
        if isinstance(output, Mapping):
            return {**output, "loss": output["loss"] * BIG}
        return output * BIG

    @contextmanager
    def _short_of_memory(self) -> Iterator[None]:
        """Let no more than half of this batch through the net at once."""
        import torch.nn.modules.module as hooks

        self._limit, self._whose = 0, None
        before = hooks.register_module_forward_pre_hook(self._forward)
        after = hooks.register_module_forward_hook(self._forward_done)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _forward(self, module: Any, inputs: Any) -> None:
        size = samples(inputs)
        if self._whose is None and size and module.training:
            self._whose, self._limit = module, max(1, size // 2)
            self._happened(samples=size)
        if module is self._whose and size > self._limit and self.order.fault == "oom_forward":
            _out_of_memory(f"{size} samples")

    def _forward_done(self, module: Any, inputs: Any, output: Any) -> None:
        size = samples(inputs)
        fits = self.order.fault == "oom_forward" or size <= self._limit
        if module is self._whose and not fits and getattr(output, "requires_grad", False):
            output.register_hook(lambda gradient: _out_of_memory(f"gradients of {size} samples"))

    def optimizer_step(
        self, original: Any, strategy: Any, optimizer: Any, closure: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Run out of memory when gradients are there and the optimizer has not moved."""

        def then_full() -> Any:
            found = closure()
            if self.order.fault == "oom_step" and self._counts and self._here():
                self._happened()
                _out_of_memory("the optimizer's state")
            return found

        return original(strategy, optimizer, then_full, *args, **kwargs)

    # ---- faults in the data --------------------------------------------------------------------

    def dataloader(self, original: Any, source: Any) -> Any:
        """Poison the datasets that training is given."""
        found = original(source)
        if source.name == "train_dataloader" and self.order.fault in POISON:
            for loader in loaders(found):
                if getattr(loader, "dataset", None) is not None:
                    self._poison(loader.dataset)
        return found

    def _poison(self, data: Any) -> None:
        rows = poison(data, self.order.fault, self.order.seed)
        if rows:
            self._happened(rows=rows)


def samples(batch: Any) -> int:
    """Return the length of the first tensor in a batch."""
    from medkit.callbacks.guard_rows import samples as count

    return count(batch)


def _limit_files(size: int | None) -> None:
    """Let no file of this process grow beyond so many bytes; None: as the system has it."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def _out_of_memory(what: str) -> None:
    import torch

    raise torch.OutOfMemoryError(f"injected: no memory for {what}")
