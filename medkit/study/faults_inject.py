"""Faults injected into a process that knows nothing of them: Lightning itself is patched.

``MEDKIT_FAULT`` names a JSON file (:class:`Order`). A ``sitecustomize.py`` that only the suite puts
on the path calls :func:`when_imported`, and Lightning is patched once it has been imported: under
``stable_trainer`` and under a stock Trainer alike, below every guard. Nothing of medkit is imported
here before Lightning is, so that other processes start as quickly as ever.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

VARIABLE = "MEDKIT_FAULT"
SITE = """import sys
mine = sys.modules.pop("sitecustomize")
sys.path.remove({folder!r})
try:
    import sitecustomize  # the one that this one hides
except ImportError:
    pass
sys.modules["sitecustomize"] = mine
from medkit.study.faults_inject import when_imported
when_imported()
"""
BIG, GARBAGE = 1e4, 1e4  # factor of an exploding loss; size of finite nonsense
GARBAGE_SHARE = 0.005
DISK_BYTES = 1024  # what still fits on a full disk: no file may be longer
FULL_FOR = 25  # batches
_LIGHTNING = "pytorch_lightning.trainer.trainer"


@dataclass(frozen=True)
class Order:
    """What is to happen in a run.

    Attributes:
        fault: Name of the fault; "" only counts batches.
        seed: Draws the rows of a fault in the data.
        batch: The training batch, counted from 0 through the fits that count.
        folder: Where it is written down what has happened; one a run.
        checkpoints: Where the run's checkpoints lie.
        protected: Only fits with the kit's resume points count and are disturbed.
    """

    fault: str
    seed: int
    batch: int
    folder: str
    checkpoints: str
    protected: bool

    def write(self, path: Path) -> None:
        """Write it for the process that is to be disturbed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))


def when_imported() -> None:
    """Patch Lightning when it is imported, if the environment orders a fault."""
    path = os.environ.get(VARIABLE, "")
    if path and _LIGHTNING not in sys.modules:
        sys.meta_path.insert(0, _Watch(Order(**json.loads(Path(path).read_text()))))


class _Watch(MetaPathFinder):
    """Stands in the way of one import, and patches once it is done."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the ordinary spec, its loader followed by the patching."""
        spec = PathFinder.find_spec(name, path) if name == _LIGHTNING else None
        if spec is None or spec.loader is None:
            return None
        sys.meta_path.remove(self)
        load = spec.loader.exec_module

        def load_and_patch(module: Any) -> None:
            load(module)
            inject(self.order)

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec


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
                self._room_at = self._counted + FULL_FOR

    def _truncate(self) -> None:
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
        loaders = original(source)
        if source.name == "train_dataloader" and self.order.fault in _POISON:
            for loader in _loaders(loaders):
                if getattr(loader, "dataset", None) is not None:
                    self._poison(loader.dataset)
        return loaders

    def _poison(self, data: Any) -> None:
        from medkit import keyed

        if getattr(data, "_poisoned", False):
            return
        draw, length = keyed.generator(self.order.seed, "fault", self.order.fault), len(data)
        count = 1
        if self.order.fault == "finite_garbage":
            count = max(1, round(GARBAGE_SHARE * length))
        bad = {int(row) for row in draw.choice(length, count, replace=False)}
        change = _POISON[self.order.fault]
        if isinstance(getattr(data, "rows", None), tuple):  # the kit's tables, gathered at once
            if self.order.fault == "corrupt_file":
                return  # nothing is read
            at = getattr(data, "at", None)
            for row in bad:
                place = row if at is None else int(at[row])
                data.rows[0][place] = change(data.rows[0][place])
        else:
            _poison_items(data, bad, change)
        data._poisoned = True
        self._happened(rows=sorted(bad))


def _poison_items(data: Any, bad: set[int], change: Callable[[Any], Any]) -> None:
    """Have some items of a dataset come out changed; the object stays the same one."""
    kind = type(data)

    def getitem(self: Any, index: Any) -> Any:
        item = kind.__getitem__(self, index)
        return _changed(item, change) if int(index) in bad else item

    methods: dict[str, Any] = {"__getitem__": getitem}
    if hasattr(kind, "__getitems__"):
        methods["__getitems__"] = lambda self, many: [self[index] for index in many]
    made = type(kind.__name__, (kind,), methods | {"__module__": kind.__module__})
    data.__class__ = made


def _changed(item: Any, change: Callable[[Any], Any]) -> Any:
    """Return a sample whose first part that holds real numbers is changed."""
    import torch
    from torch.utils._pytree import tree_flatten, tree_unflatten

    parts, structure = tree_flatten(item)
    for number, part in enumerate(parts):
        values = torch.as_tensor(part) if hasattr(part, "dtype") else None
        if values is not None and values.is_floating_point():
            changed = change(values)
            parts[number] = changed if isinstance(part, torch.Tensor) else changed.numpy()
            break
    return tree_unflatten(parts, structure)


def _nan(values: Any) -> Any:
    changed = values.clone()
    changed.view(-1)[0] = math.nan
    return changed


def _garbage(values: Any) -> Any:
    import torch

    return torch.full_like(values, GARBAGE)


def _unreadable(values: Any) -> Any:
    raise OSError(errno.EIO, "the file is cut short or damaged")


_POISON = {"nan_sample": _nan, "finite_garbage": _garbage, "corrupt_file": _unreadable}


def _loaders(found: Any) -> Iterator[Any]:
    if isinstance(found, Mapping):
        found = list(found.values())
    for one in found if isinstance(found, list | tuple) else [found]:
        if isinstance(one, list | tuple | Mapping):
            yield from _loaders(one)
        else:
            yield one


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
