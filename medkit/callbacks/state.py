"""What a Lightning checkpoint leaves out and an exact resume needs.

Running epoch metrics, the metrics callbacks look at, and the gradients a manual optimisation has
gathered (``callbacks/attributes.py`` has torchmetrics' states and all else that modules keep in
attributes). All of it as plain values and tensors, so that the file loads with
``weights_only=True``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultCollection,
    _ResultMetric,
    _Sync,
)
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

_ATOMS = frozenset({type(None), bool, int, float, str, bytes})


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
        if kind is not Tensor:  # MONAI's MetaTensor: the file could not be loaded without its class
            value = value.detach().as_subclass(Tensor)
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


_META = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph"),
    *("add_dataloader_idx", "dataloader_idx", "metric_attribute"),
)
_SUMS = ("value", "cumulated_batch_size")


def collect_results(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what was logged so far in this training epoch: running sums and how to go on."""
    saved = {}
    for key, metric in trainer.fit_loop.epoch_loop._results.items():
        if metric.has_reset or metric.meta.sync._group is not None:
            continue
        sums = _SUMS if metric.is_tensor else ()  # a torchmetric's state is an attribute of it
        saved[key] = {
            "meta": {name: getattr(metric.meta, name) for name in _META},
            "reduce": metric.meta.reduce_fx.__name__,
            "sync": (metric.meta.sync._should, metric.meta.sync.rank_zero_only),
            "sums": {name: getattr(metric, name) for name in sums if hasattr(metric, name)},
            "last": metric._forward_cache,
            "count": metric._update_count,
        }
    return saved


def restore_results(trainer: pl.Trainer, saved: Mapping[str, Any]) -> None:
    """Let this epoch's means go on from saved sums (Lightning starts them at zero).

    What is logged at some batches only is there even if none of them comes after the resume.
    """
    module = trainer.lightning_module
    results = _ResultCollection(training=True)
    for key, entry in saved.items():
        meta = _Metadata(**entry["meta"], reduce_fx=getattr(torch, entry["reduce"]))
        should, rank_zero_only = entry["sync"]
        fn = trainer.strategy.reduce
        meta.sync = _Sync(_should=should, fn=fn, _group=None, rank_zero_only=rank_zero_only)
        metric = _ResultMetric(meta, bool(entry["sums"]))
        for name, value in entry["sums"].items():
            setattr(metric, name, value)
        if not entry["sums"]:
            metric.value = module.get_submodule(entry["meta"]["metric_attribute"])
        metric._forward_cache = entry["last"]
        metric._update_count = entry["count"]
        results[key] = metric.to(module.device)
    trainer.fit_loop.epoch_loop._results = results


def collect_callback_metrics(trainer: pl.Trainer) -> dict[str, Tensor]:
    """Return the metrics that callbacks and plateau schedulers look at."""
    return {name: value.detach() for name, value in trainer.callback_metrics.items()}


def restore_callback_metrics(trainer: pl.Trainer, saved: Mapping[str, Tensor]) -> None:
    """Put those metrics back; a plateau scheduler may read one from an earlier epoch."""
    trainer._logger_connector._callback_metrics.update(saved)


def collect_gradients(trainer: pl.Trainer) -> dict[str, Tensor]:
    """Return gradients where the module, not Lightning, says when they are cleared."""
    module = trainer.lightning_module
    if module.automatic_optimization and not is_overridden("optimizer_zero_grad", module):
        return {}
    named = module.named_parameters()
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
        if source.numel() < 4096 or source.layout != torch.strided:  # pages do not matter here
            return source.to("cpu", copy=True)
        buffer = self._buffers.get(where)
        if buffer is None or buffer.shape != source.shape or buffer.dtype != source.dtype:
            size = source.numel() * source.element_size()
            raw = torch.from_numpy(np.empty(size, np.uint8))
            buffer = self._buffers[where] = raw.view(source.dtype).reshape(source.shape)
        return buffer.copy_(source)
