"""Values of people's attributes as plain values and tensors, and back in the types they had."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medkit.callbacks.state import NotPlainError

ATOMS = frozenset({type(None), bool, int, float, str, bytes})
TAG = "medkit:"
_SMALL = 1_000  # values of a tensor that may be stacked with others


def pack(value: Any, freeze: bool = False) -> Any:
    """Return ``value`` as plain values and tensors, its type kept where it matters.

    Args:
        value: An attribute.
        freeze: Clone tensors, so that the result does not change with them.

    Raises:
        NotPlainError: When it holds anything that has no plain form.
    """
    kind = type(value)
    if kind in ATOMS or isinstance(value, torch.dtype | torch.device | torch.Size):
        return value
    if isinstance(value, nn.Parameter):
        raise NotPlainError("a parameter is in the weights, and must stay the one it is")
    if isinstance(value, Tensor):
        tensor = value.detach()
        if type(tensor) is not Tensor:  # a MetaTensor cannot be loaded safely
            tensor = tensor.as_subclass(Tensor)
        tensor = tensor.clone() if freeze else tensor
        return tensor if value.device.type == "cpu" else (f"{TAG}device", tensor)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        if isinstance(value, np.generic):
            return (f"{TAG}scalar", value.dtype.name, value.item())
        return (f"{TAG}array", torch.from_numpy(np.array(value, value.dtype.newbyteorder("="))))
    if isinstance(value, Mapping):
        return {_key(k): pack(v, freeze) for k, v in value.items()}
    if isinstance(value, list | tuple):
        if kind is list and _stacks(value):
            # the losses of an epoch so far: one tensor is written in no time, a thousand are not
            return (f"{TAG}stack", torch.stack(value).detach(), value[0].device.type == "cpu")
        items = [pack(v, freeze) for v in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, deque):
        return (f"{TAG}deque", [pack(v, freeze) for v in value], value.maxlen)
    if isinstance(value, set | frozenset):
        return (f"{TAG}{kind.__name__}", [pack(v, freeze) for v in value])
    if isinstance(value, Path):
        return (f"{TAG}path", str(value))
    if isinstance(value, enum.Enum):
        return (f"{TAG}enum", pack(value.value))
    raise NotPlainError(f"{kind.__module__}.{kind.__qualname__} has no plain form")


def unpack(packed: Any, like: Any = None, device: torch.device | str = "cpu") -> Any:
    """Turn what :func:`pack` returned into a value again.

    Args:
        packed: The plain form.
        like: What stands in the attribute now: its container is filled where the kind is the same
            (a ``defaultdict`` keeps its factory, and others that hold the container see it).
        device: Where tensors go that were not on the host.
    """
    if isinstance(packed, dict):
        fresh = {key: unpack(part, None, device) for key, part in packed.items()}
        if not isinstance(like, MutableMapping):
            return fresh
        like.clear()
        like.update(fresh)
        return like
    if isinstance(packed, list):
        items = [unpack(part, None, device) for part in packed]
        if not isinstance(like, list):
            return items
        like[:] = items
        return like
    if not isinstance(packed, tuple) or isinstance(packed, torch.Size):
        return packed
    tag = packed[0] if packed and isinstance(packed[0], str) else ""
    if tag.startswith(TAG):
        return _untag(tag.removeprefix(TAG), packed, like, device)
    parts = (unpack(part, None, device) for part in packed)
    return type(like)._make(parts) if hasattr(like, "_make") else tuple(parts)


def _untag(tag: str, packed: tuple[Any, ...], like: Any, device: torch.device | str) -> Any:
    if tag == "device":
        return packed[1].to(device)
    if tag in {"module", "stateful"}:
        if hasattr(like, "load_state_dict"):
            like.load_state_dict(unpack(packed[1], None, device))
        return like
    if tag == "stack":
        stack = packed[1] if packed[2] else packed[1].to(device)
        items = [row.clone() for row in stack.unbind()]
        if not isinstance(like, list):
            return items
        like[:] = items
        return like
    if tag == "array":
        return packed[1].cpu().numpy().copy()
    if tag == "scalar":
        return np.dtype(packed[1]).type(packed[2])
    if tag == "path":
        return Path(packed[1])
    if tag == "enum":
        return type(like)(unpack(packed[1])) if isinstance(like, enum.Enum) else unpack(packed[1])
    items = [unpack(part, None, device) for part in packed[1]]
    if tag == "deque":
        if isinstance(like, deque) and like.maxlen == packed[2]:
            like.clear()
            like.extend(items)
            return like
        return deque(items, packed[2])
    return frozenset(items) if tag == "frozenset" else set(items)


def _stacks(values: Sequence[Any]) -> bool:
    """Whether these are small plain tensors of one kind, no graph attached."""
    first = values[0] if len(values) > 1 else None
    if type(first) is not Tensor or first.numel() > _SMALL or first.is_quantized:
        return False
    kind = (first.shape, first.dtype, first.device)
    return all(
        type(v) is Tensor
        and (v.shape, v.dtype, v.device) == kind
        and not v.requires_grad
        and v.layout == torch.strided
        and v.is_contiguous()
        for v in values
    )


def _key(key: Any) -> Any:
    if type(key) not in ATOMS and type(key) is not tuple:
        raise NotPlainError(f"a key of {type(key).__qualname__} has no plain form")
    return key
