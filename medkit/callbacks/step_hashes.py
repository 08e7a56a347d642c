"""Digests of what each training step was made of, for a certificate: written only when asked for.

``medkit certify`` asks through an environment variable, ``MEDKIT_HASH_STEPS``: "1", or
"STAGE:FROM:TO" to have every operation of those steps written down as well, after which that
stage ends. ``stable_trainer`` then adds the callback.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from medkit.callbacks.bits import bits
from medkit.callbacks.op_trace import BACKWARD, OPTIMIZER, OpTrace, digest_of
from medkit.data.loader import KeyedLoader

HASH_STEPS = "MEDKIT_HASH_STEPS"
FILE = "steps.jsonl"
_BAG = (1 << 64) - 1


class TracedEnoughError(RuntimeError):
    """The steps that were to be traced are done: what comes after is not wanted."""


def step_hashes(folder: Path, stage: str) -> list[pl.Callback]:
    """Return the callback that the environment asks for, or none.

    Args:
        folder: Where ``steps.jsonl`` goes.
        stage: The stage's name.
    """
    asked = os.environ.get(HASH_STEPS, "")
    if not asked:
        return []
    traced, first, last = asked.rsplit(":", 2) if asked.count(":") > 1 else ("", "0", "0")
    return [StepHashes(folder, trace=range(int(first), int(last) if traced == stage else 0))]


class StepHashes(pl.Callback):
    """Writes ``steps.jsonl``: a line as the stage begins, and one a batch.

    A line is flushed before the next step begins, so it outlives a kill; a step that is lived
    through again after a resume is written again, and the later line counts. It costs 0.4 ms a
    step of a table net, and for larger ones a second per 1.3 GB of weights, gradients, optimizer
    state and batch.

    Args:
        folder: Where the file goes.
        trace: Batches of the stage, counted from 0, whose operations are recorded (``OpTrace``);
            after the last of them ``TracedEnoughError`` ends the fit.
    """

    logs_nothing = True

    def __init__(self, folder: Path, *, trace: range = range(0)) -> None:
        self.folder = folder
        self.trace = trace
        self._file: IO[str] | None = None
        self._line: dict[str, Any] = {}
        self._bag, self._bag_of = 0, -1
        self._ops: OpTrace | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Digest the weights that training begins with, by name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rank = f"-{trainer.global_rank}" if trainer.global_rank else ""
        path = self.folder / f"{Path(FILE).stem}{rank}{Path(FILE).suffix}"
        self._file = path.open("a", encoding="utf-8")
        state = {name: digest_of(value) for name, value in pl_module.state_dict().items()}
        self._write({"place": "start", "weights": state, "threads": torch.get_num_threads()})

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Digest the batch and which rows it was made of."""
        epoch = trainer.current_epoch
        if epoch != self._bag_of or batch_idx == 0:
            self._bag, self._bag_of = 0, epoch
        self._bag = (self._bag + _bag(batch)) & _BAG
        self._line = {
            "place": f"{epoch}/{batch_idx}",
            "threads": torch.get_num_threads(),
            "rows": _rows(trainer, batch_idx),
            "batch": digest_of(batch),
            "bag": f"{self._bag:016x}",
        }
        number = trainer.fit_loop.total_batch_idx
        if self.trace and number >= self.trace.stop:
            raise TracedEnoughError(f"batches {self.trace} are traced")
        if number in self.trace:
            self._line["again"] = _fetched_again(trainer, epoch, batch_idx)
            parts = tree_flatten_with_path(batch)[0]
            self._line["parts"] = {keystr(path): digest_of(part) for path, part in parts}
            self._line["weights before"] = digest_of(dict(pl_module.state_dict()))
            self._ops = OpTrace(pl_module)
            self._ops.watch()
            self._ops.__enter__()

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Note that the forward pass is over: what it left in the buffers."""
        with _Pause(self._ops, BACKWARD):
            self._line["loss"] = digest_of(loss)
            self._line["buffers"] = digest_of(dict(pl_module.named_buffers()))

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Digest the gradients, as they have added up so far."""
        with _Pause(self._ops, OPTIMIZER):
            named = pl_module.named_parameters()
            self._line["gradients"] = digest_of({n: p.grad for n, p in named if p.grad is not None})

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Digest what the step left behind, and write the line."""
        if self._ops is not None:
            self._ops.__exit__(None, None, None)
            self._ops.unwatch()
            self._line["ops"], self._ops = self._ops.ops, None
        self._line.setdefault("loss", digest_of(outputs))
        self._line["weights"] = digest_of(dict(pl_module.state_dict()))
        self._line["optimizer"] = digest_of([o.state_dict() for o in trainer.optimizers])
        self._write(self._line)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop looking at operations, and close the file."""
        if self._ops is not None:
            self._ops.__exit__(None, None, None)
            self._ops.unwatch()
            self._ops = None
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the file."""
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


class _Pause:
    """Keeps the digests of a hook out of the trace; afterwards the step is in another phase."""

    def __init__(self, ops: OpTrace | None, then: str) -> None:
        self.ops, self.then = ops, then

    def __enter__(self) -> None:
        if self.ops is not None:
            self.ops.paused = True

    def __exit__(self, *_: object) -> None:
        if self.ops is not None:
            self.ops.paused, self.ops.phase = False, self.then


def _keyed_loader(trainer: pl.Trainer) -> KeyedLoader | None:
    combined = trainer.fit_loop._combined_loader
    loaders = combined.flattened if combined is not None else []
    return next((loader for loader in loaders if isinstance(loader, KeyedLoader)), None)


def _rows(trainer: pl.Trainer, batch_idx: int) -> str:
    """Digest which rows a batch is made of; empty for a loader that is not keyed."""
    loader = _keyed_loader(trainer)
    return digest_of(loader.rows_here(batch_idx)) if loader is not None else ""


def _fetched_again(trainer: pl.Trainer, epoch: int, batch_idx: int) -> list[str]:
    """Digest a batch fetched twice more in this process: does fetching itself vary?"""
    loader = _keyed_loader(trainer)
    if loader is None or trainer.world_size > 1 or batch_idx >= len(loader.places(epoch)):
        return []
    return [digest_of(loader.batch_at(epoch, batch_idx)) for _ in range(2)]


def _bag(batch: Any) -> int:
    """Return the sum of the samples' digests: the same in whatever order they come."""
    tensors = [t for t in tree_leaves(batch) if isinstance(t, Tensor) and t.dim()]
    plain = all(t.layout is torch.strided for t in tensors)
    if not (tensors and plain and len({len(t) for t in tensors}) == 1 and len(tensors[0])):
        return int(digest_of(batch), 16)
    size = len(tensors[0])
    parts = [part.numpy().reshape(size, -1) for t in tensors for part in bits(t)]
    return sum(
        int.from_bytes(hashlib.blake2b(sample.tobytes(), digest_size=8).digest(), "little")
        for sample in np.concatenate(parts, axis=1)
    )
