"""What a Lightning checkpoint leaves out and an exact resume needs.

Running epoch metrics, the metrics callbacks look at, torchmetrics' states, plain attributes that a
module or a callback changed during training, frozen parameters, modules in eval mode, and the
gradients a manual optimisation has gathered. All of it as plain values and tensors, so that the
file loads with ``weights_only=True``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors.logger_connector.result import (
    _ResultCollection,
    _ResultMetric,
)
from torch import Tensor, nn

_ATOMS = frozenset({type(None), bool, int, float, str, bytes})
_MODULE_KEYS = frozenset(vars(nn.Module())) | frozenset(vars(pl.LightningModule())) - {"training"}


class NotPlainError(TypeError):
    """A state holds something that cannot be written as plain values."""


def plain(value: Any, where: str = "", copies: HostCopies | None = None) -> Any:
    """Return ``value`` as tensors, numbers, strings and containers of them.

    Args:
        value: Any state.
        where: Its name, for the error and for the buffer of its copy.
        copies: Where given, tensors are copied to the host.

    Raises:
        NotPlainError: Naming the place, the type found and what to do.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, Tensor):
        return value if copies is None else copies.copy(value, where)
    if kind is dict or isinstance(value, Mapping):
        return {plain(k, where): plain(v, f"{where}.{k}", copies) for k, v in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        items = [plain(v, f"{where}[{i}]", copies) for i, v in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return _odd(value, where)


def _odd(value: Any, where: str) -> Any:
    """Return the plain form of what is neither a tensor nor a container nor an atom."""
    if isinstance(value, torch.dtype | torch.device | torch.Size):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, enum.Enum):
        return plain(value.value, where)
    for base in (int, float, str, bytes):
        if isinstance(value, base):  # a subclass of one
            return base(value)  # type: ignore[arg-type]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return {plain(v, where) for v in value}
    raise NotPlainError(
        f"a checkpoint must hold plain values and tensors, but {where or 'the state'} holds a "
        f"{type(value).__module__}.{type(value).__qualname__}. Return numbers, strings, lists and "
        "dicts from state_dict() / on_save_checkpoint(); rebuild objects from them when loading."
    )


def plain_or_none(value: Any, where: str) -> Any:
    """Like :func:`plain`, but None where a value cannot be written."""
    try:
        return plain(value, where)
    except NotPlainError:
        return None


def attributes(owner: object, skip: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the attributes of ``owner`` that are plain values or tensors."""
    found = {}
    for name, value in vars(owner).items():
        if name in skip or isinstance(value, nn.Module | nn.Parameter):
            continue
        try:
            found[name] = plain(value)
        except NotPlainError:
            continue  # such an attribute is an object; `medkit check` tells whether it matters
    return found


def _owners(trainer: pl.Trainer) -> Iterator[tuple[str, object, frozenset[str]]]:
    for name, module in trainer.lightning_module.named_modules():
        yield f"module:{name}", module, _MODULE_KEYS
    for number, callback in enumerate(trainer.callbacks):  # type: ignore[attr-defined]
        own = type(callback)
        silent = own.state_dict is pl.Callback.state_dict
        if silent and not own.__module__.startswith(("pytorch_lightning", "medkit.")):
            yield f"callback:{number}:{own.__qualname__}", callback, frozenset()


class ChangedAttributes:
    """Plain attributes that differ from what they were when the fit began."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self._at_start = {
            who: _frozen(attributes(owner, skip)) for who, owner, skip in _owners(trainer)
        }
        self._flags = _flags(trainer.lightning_module)

    def collect(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Return what has changed, by owner; flags are ``requires_grad`` and ``training``."""
        changed: dict[str, Any] = {}
        for who, owner, skip in _owners(trainer):
            start = self._at_start.get(who, {})
            now = attributes(owner, skip)
            moved = {k: v for k, v in now.items() if k not in start or not _same(start[k], v)}
            if moved:
                changed[who] = moved
        flags = _flags(trainer.lightning_module)
        moved_flags = {k: v for k, v in flags.items() if self._flags.get(k) != v}
        return {"attributes": changed, "flags": moved_flags}

    @staticmethod
    def restore(trainer: pl.Trainer, saved: Mapping[str, Any]) -> None:
        """Put collected attributes and flags back."""
        for who, owner, _ in _owners(trainer):
            vars(owner).update(saved["attributes"].get(who, {}))
        module = trainer.lightning_module
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(saved["flags"].get(f"grad:{name}", parameter.requires_grad))
        for name, part in module.named_modules():
            part.training = saved["flags"].get(f"train:{name}", part.training)


def _flags(module: nn.Module) -> dict[str, bool]:
    flags = {f"grad:{name}": p.requires_grad for name, p in module.named_parameters()}
    return flags | {f"train:{name}": part.training for name, part in module.named_modules()}


def _frozen(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in values.items()}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        same_kind = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
        return same_kind and a.dtype == b.dtype and bool(torch.equal(a, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class _ResumedResults(_ResultCollection):
    """Epoch results that begin from saved sums.

    Lightning makes an entry at the first ``self.log`` of its name; that is when the sum over the
    batches before the resume is put in.
    """

    saved: dict[str, dict[str, Tensor]]

    def __setitem__(self, key: str, metric: _ResultMetric) -> None:
        for name, value in self.saved.pop(key, {}).items():
            setattr(metric, name, value.to(metric.value.device))
        super().__setitem__(key, metric)


def collect_results(trainer: pl.Trainer) -> dict[str, dict[str, Tensor]]:
    """Return the running sums of what was logged so far in this training epoch."""
    saved = {}
    for key, metric in trainer.fit_loop.epoch_loop._results.items():
        if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset:
            names = ("value", "cumulated_batch_size")
            saved[key] = {n: getattr(metric, n) for n in names if hasattr(metric, n)}
    return saved


def restore_results(trainer: pl.Trainer, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Let this epoch's means go on from saved sums (Lightning starts them at zero)."""
    results = _ResumedResults(training=True)
    results.saved = {key: dict(values) for key, values in saved.items()}
    trainer.fit_loop.epoch_loop._results = results


def collect_callback_metrics(trainer: pl.Trainer) -> dict[str, Tensor]:
    """Return the metrics that callbacks and plateau schedulers look at."""
    return {name: value.detach() for name, value in trainer.callback_metrics.items()}


def restore_callback_metrics(trainer: pl.Trainer, saved: Mapping[str, Tensor]) -> None:
    """Put those metrics back; a plateau scheduler may read one from an earlier epoch."""
    trainer._logger_connector._callback_metrics.update(saved)


def collect_gradients(trainer: pl.Trainer) -> dict[str, Tensor]:
    """Return gradients under manual optimisation, which may gather them over batches."""
    if trainer.lightning_module.automatic_optimization:
        return {}
    named = trainer.lightning_module.named_parameters()
    return {name: p.grad for name, p in named if p.grad is not None}


def restore_gradients(trainer: pl.Trainer, saved: Mapping[str, Tensor]) -> None:
    """Put gathered gradients back."""
    for name, parameter in trainer.lightning_module.named_parameters():
        if name in saved:
            parameter.grad = saved[name].to(parameter.device, copy=True)


class HostCopies:
    """Copies of tensors in host memory, their buffers used again by the next copy.

    Fresh memory costs a page fault for every 4 KiB; NumPy asks for huge pages where torch does not.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, value: Tensor, where: str) -> Tensor:
        """Return a copy of a tensor; ``where`` names its buffer."""
        source = value.detach()
        if source.numel() < 4096:  # pages do not matter here
            return source.to("cpu", copy=True)
        buffer = self._buffers.get(where)
        if buffer is None or buffer.shape != source.shape or buffer.dtype != source.dtype:
            size = source.numel() * source.element_size()
            raw = torch.from_numpy(np.empty(size, np.uint8))
            buffer = self._buffers[where] = raw.view(source.dtype).reshape(source.shape)
        return buffer.copy_(source)
