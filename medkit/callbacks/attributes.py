"""What a module, its helpers and callbacks changed about themselves during a fit.

People keep running means, lists of predictions, a ``deque`` of losses, an ``AverageMeter`` or a
MONAI metric in plain attributes, which no checkpoint holds. Here they are found, written as plain
values, and put back in the same types, so that what is computed from them goes on to the same bits.
"""

from __future__ import annotations

import enum
import random
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medkit.callbacks.bits import memory_of, same_bits
from medkit.callbacks.data_settings import LOADER, data_holders, no_settings
from medkit.callbacks.packing import ATOMS, TAG, pack, unpack
from medkit.callbacks.state import NotPlainError

_MODULE_KEYS = frozenset(vars(nn.Module())) | frozenset(vars(pl.LightningModule())) - {"training"}
# what ModelCheckpoint decides by and its state_dict leaves out
_CHECKPOINT_KEYS = frozenset(
    [
        *("_last_global_step_saved", "_last_checkpoint_saved", "_defer_save_until_validation"),
        "current_score",
    ]
)
_HIDDEN_KEYS = _MODULE_KEYS | {""}  # of modules that are not registered: they have no state dict
_TENSOR = "tensor:"
_VIEW = f"{TAG}view"
# objects of these are not looked into: machinery, data, and what has a state of its own
_LIBRARIES = frozenset(
    [
        *("torch", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"),
        *(
            "numpy",
            "pandas",
            "polars",
            "builtins",
            "functools",
            "itertools",
            "logging",
            "io",
            "_io",
        ),
        *("threading", "_thread", "queue", "multiprocessing", "concurrent", "asyncio", "weakref"),
        *("subprocess", "socket"),
    ]
)
_NOT_HELPERS: tuple[Any, ...] = (
    *(nn.Module, Dataset, DataLoader, pl.LightningDataModule, pl.Callback, pl.Trainer),
    *(type, types.ModuleType, types.FunctionType, types.MethodType, random.Random),
    *(Tensor, np.ndarray),
)
# kept and stepped by hand
_STATEFUL = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)
_DEEPEST = 4
_MOST = 500


class ChangedAttributes:
    """Attributes that differ from what they were when the fit began."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self._carried: dict[str, set[str]] = {}  # came from a resume point: goes into the next
        weights = _memory(trainer.lightning_module)
        self._at_start = {
            who: _packed(trainer, holder, skip, weights, freeze=True)
            for who, holder, skip in holders(trainer)
        }
        self._flags = _flags(trainer.lightning_module)

    def collect(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Return what has changed, by holder; flags are ``requires_grad`` and ``training``."""
        changed: dict[str, Any] = {}
        weights = _memory(trainer.lightning_module)
        for who, holder, skip in holders(trainer):
            start = self._at_start.get(who, {})
            now = _packed(trainer, holder, skip, weights)
            carried = self._carried.get(who, set())
            moved = {
                k: v
                for k, v in now.items()
                if k in carried or k not in start or not _same(start[k], v)
            }
            if moved:
                changed[who] = moved
        flags = _flags(trainer.lightning_module)
        moved_flags = {k: v for k, v in flags.items() if self._flags.get(k) != v}
        return {"attributes": changed, "flags": moved_flags}

    def restore(self, trainer: pl.Trainer, saved: Mapping[str, Any]) -> list[str]:
        """Put collected attributes and flags back; return the holders that are not there."""
        waiting = dict(saved["attributes"])
        self._carried = {who: set(names) for who, names in waiting.items()}
        device, weights = trainer.strategy.root_device, _memory(trainer.lightning_module)
        for who, holder, _ in holders(trainer):
            for name, value in waiting.pop(who, {}).items():
                if name.startswith(_TENSOR):
                    _set_tensor(holder, name.removeprefix(_TENSOR), unpack(value, None, device))
                    continue
                was_view = isinstance(value, tuple) and value[:1] == (_VIEW,)
                if was_view and _is_view(vars(holder).get(name), weights):
                    continue  # the weights are back, and a copy would not follow them
                kept = value[1] if was_view else value
                vars(holder)[name] = unpack(kept, vars(holder).get(name), device)
        module = trainer.lightning_module
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(saved["flags"].get(f"grad:{name}", parameter.requires_grad))
        for name, part in module.named_modules():
            part.training = saved["flags"].get(f"train:{name}", part.training)
        # a finished stage is brought back before its loaders are made
        return sorted(who for who in waiting if not who.startswith(LOADER))


def holders(trainer: pl.Trainer) -> Iterator[tuple[str, object, frozenset[str]]]:
    """Yield name, object and attributes to leave out of all that may keep state during a fit.

    These are the modules, other people's callbacks, and the helper objects in their attributes,
    lists and dicts; of the data, what is small.
    """
    seen: set[int] = set()
    for name, module in trainer.lightning_module.named_modules():
        yield f"module:{name}", module, _MODULE_KEYS
        yield from _helpers(f"module:{name}", module, _MODULE_KEYS, seen)
    for number, callback in enumerate(trainer.callbacks):  # type: ignore[attr-defined]
        own = type(callback)
        who = f"callback:{number}:{own.__qualname__}"
        skip = frozenset[str]()
        if isinstance(callback, ModelCheckpoint):
            skip = frozenset(vars(callback)) - _CHECKPOINT_KEYS
        elif own.__module__.startswith(("pytorch_lightning", "medkit.")):
            continue  # they keep what they need
        yield who, callback, skip
        yield from _helpers(who, callback, skip, seen)
    for who, data in data_holders(trainer, seen):
        yield who, data, no_settings(data)
        for place, helper, _ in _helpers(who, data, frozenset(), seen):
            yield place, helper, no_settings(helper)


def _helpers(
    who: str, holder: object, skip: frozenset[str], seen: set[int], depth: int = 1
) -> Iterator[tuple[str, object, frozenset[str]]]:
    for name, value in list(vars(holder).items()):
        if name in skip or type(value) in ATOMS:
            continue
        inside: list[tuple[str, object]] = [(name, value)]
        if isinstance(value, Mapping) and len(value) <= _MOST:
            inside = [(f"{name}[{key!r}]", part) for key, part in value.items()]
        elif isinstance(value, list | tuple) and len(value) <= _MOST:
            inside = [(f"{name}[{number}]", part) for number, part in enumerate(value)]
        for place, part in inside:
            if part is not value and isinstance(part, nn.Module) and id(part) not in seen:
                for name, module in part.named_modules():  # a list hides it from the state dict
                    seen.add(id(module))
                    yield f"{who}.{place}:{name}", module, _HIDDEN_KEYS
            if not is_helper(part) or id(part) in seen or len(seen) > _MOST:
                continue
            seen.add(id(part))
            yield f"{who}.{place}", part, frozenset()
            if depth < _DEEPEST:
                yield from _helpers(f"{who}.{place}", part, frozenset(), seen, depth + 1)


def is_helper(value: object) -> bool:
    """Whether this is an object of somebody's own class that keeps attributes."""
    if type(value) in ATOMS or isinstance(value, _NOT_HELPERS):
        return False
    package = type(value).__module__.partition(".")[0]
    if package in _LIBRARIES or isinstance(value, enum.Enum):
        return False
    return isinstance(getattr(value, "__dict__", None), dict)


def _packed(
    trainer: pl.Trainer,
    holder: object,
    skip: frozenset[str],
    weights: frozenset[int],
    freeze: bool = False,
) -> dict[str, Any]:
    """Return the attributes that have a plain form; views of weights are marked as such."""
    found: dict[str, Any] = {}
    for name, value in vars(holder).items():
        if name in skip or isinstance(value, nn.Parameter):
            continue
        try:
            if isinstance(value, _STATEFUL):
                if not _is_trainers(trainer, value):
                    found[name] = (f"{TAG}stateful", pack(value.state_dict(), freeze))
                continue
            if isinstance(value, nn.Module):  # a shadow of the net, which no checkpoint holds
                if not isinstance(holder, nn.Module) and not _is_registered(trainer, value):
                    found[name] = (f"{TAG}module", pack(dict(value.state_dict()), freeze))
                continue
            packed = pack(value, freeze)
            found[name] = (_VIEW, packed) if _is_view(value, weights) else packed
        except NotPlainError:
            continue  # an object; `medkit check` tells whether it matters
    if isinstance(holder, nn.Module):
        tensors: dict[str, Tensor | None] = dict(holder._buffers)
        if skip is _HIDDEN_KEYS:
            tensors |= holder._parameters
        else:
            tensors = {name: tensors[name] for name in sorted(holder._non_persistent_buffers_set)}
        for name, tensor in tensors.items():
            plain_tensor = tensor.data if isinstance(tensor, nn.Parameter) else tensor
            found[f"{_TENSOR}{name}"] = pack(plain_tensor, freeze)
    return found


def _set_tensor(holder: Any, name: str, value: Tensor | None) -> None:
    """Fill a buffer or parameter that no state dict holds; others may hold the same tensor."""
    mine = holder._parameters.get(name, holder._buffers.get(name))
    if mine is None or value is None or mine.shape != value.shape:
        holder._buffers[name] = value
    else:
        with torch.no_grad():
            mine.copy_(value)


def _memory(module: nn.Module) -> frozenset[int]:
    """Return where in memory weights and buffers are."""
    return frozenset(memory_of(held) for held in (*module.parameters(), *module.buffers()))


def _is_view(value: Any, weights: frozenset[int]) -> bool:
    """Whether this is a view of weights, or views only: a copy would no longer follow them."""
    if isinstance(value, Tensor):
        return memory_of(value) != 0 and memory_of(value) in weights
    if isinstance(value, Mapping):
        value = list(value.values())
    whole = isinstance(value, list | tuple) and bool(value)
    return whole and all(_is_view(part, weights) for part in value)


def _is_trainers(trainer: pl.Trainer, value: object) -> bool:
    """Whether Lightning saves this optimizer or scheduler itself."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return any(value is one for one in (*trainer.optimizers, *schedulers))


def _is_registered(trainer: pl.Trainer, module: nn.Module) -> bool:
    return any(part is module for part in trainer.lightning_module.modules())


def _flags(module: nn.Module) -> dict[str, bool]:
    flags = {f"grad:{name}": p.requires_grad for name, p in module.named_parameters()}
    return flags | {f"train:{name}": part.training for name, part in module.named_modules()}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and same_bits(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
