"""Digests of whatever stands in a variable, so that two passes over some code can be compared."""

from __future__ import annotations

import hashlib
import random
import types
import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_SAMPLED = 1 << 18  # bytes of an array looked at when a digest must be quick
_FIRST = 64  # entries of a container looked at when a digest must be quick
# objects of these are machinery: their insides are no part of what a line computes
_MACHINERY = ("torch", "logging", "pytorch_lightning", "lightning_fabric", "threading", "medkit")
_ITERATORS = ("list_iterator", "tuple_iterator", "range_iterator", "dict_keyiterator")


def digest(value: Any, *, quick: bool = False, depth: int = 6) -> str | None:
    """Return a digest of what ``value`` holds, or None where that cannot be told.

    Equal contents give equal digests in this process and in another one; addresses, file names
    and open handles are left out.

    Args:
        value: Anything: numbers, arrays, tensors, containers, generators, objects of plain classes.
        quick: Sample large arrays and long containers.
        depth: How far to go into containers and objects.
    """
    hasher = hashlib.blake2b(digest_size=12)
    told = _feed(hasher.update, value, quick, depth, set())
    return hasher.hexdigest() if told else None


def _feed(put: Any, value: Any, quick: bool, depth: int, open_ids: set[int]) -> bool:
    """Feed a value; return whether anything of it could be told."""
    if value is None or isinstance(value, bool | int | float | complex):
        put(f"{type(value).__name__}{value!r};".encode())
        return True
    if isinstance(value, bytes | str):
        text = value if isinstance(value, str) else value.decode("latin-1")
        if "/" in text or "0x" in text:  # a path or an address
            return False
        put(f"s{text};".encode())
        return True
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _feed_array(put, value, quick)
    if isinstance(value, torch.dtype | torch.device | type | types.ModuleType | types.FunctionType):
        return False
    if depth == 0 or id(value) in open_ids:
        return False
    inside = open_ids | {id(value)}
    state = _state_of(value)
    if state is None:
        return False
    pairs = list(state.items()) if isinstance(state, dict) else list(enumerate(state))
    put(f"{type(value).__name__}{len(pairs)}(".encode())
    told = not pairs
    for name, part in pairs[:_FIRST] if quick else pairs:
        if not (isinstance(name, str) and name.startswith("__")):
            put(f"{name}=".encode())
            told = _feed(put, part, quick, depth - 1, inside) or told
    put(b")")
    return told


def _state_of(value: Any) -> Any:
    """Return what is inside of ``value`` as a list or dict, None for what cannot be looked into."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    state: Any = None
    if isinstance(value, np.random.RandomState):
        state = list(value.get_state(legacy=False).items())
    elif isinstance(value, np.random.Generator):
        state = list(value.bit_generator.state.items())
    elif isinstance(value, random.Random):
        state = None if isinstance(value, random.SystemRandom) else list(value.getstate())
    elif isinstance(value, torch.Generator):
        state = [value.get_state()]
    elif isinstance(value, nn.Module):
        state = value.state_dict() if "_parameters" in vars(value) else None  # not made yet
    elif isinstance(value, Mapping):
        state = {str(key): part for key, part in value.items()}
    elif isinstance(value, list | tuple | deque):
        state = list(value)
    elif isinstance(value, set | frozenset):
        state = sorted(value, key=repr)
    elif isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        locals_ = [] if frame is None else [frame.f_lasti, *frame.f_locals.values()]
        state = [*locals_, value.gi_yieldfrom]
    elif package == "itertools" or kind.__name__ in _ITERATORS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some may not be copied from Python 3.14 on
            state = list(value.__reduce__()[1:])
    elif package == "pandas" and hasattr(value, "to_numpy"):
        state = [value.to_numpy()]
    elif package == "PIL" and hasattr(value, "tobytes"):
        state = [np.frombuffer(value.tobytes(), np.uint8)]
    elif isinstance(getattr(value, "__dict__", None), dict) and package not in _MACHINERY:
        state = vars(value)
    return state


def _feed_array(put: Any, value: Any, quick: bool) -> bool:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            return False
        plain = value.detach().as_subclass(Tensor).cpu().contiguous().reshape(-1)
        name, array = str(value.dtype), plain.view(torch.uint8).numpy()
    else:
        array = np.ascontiguousarray(value).reshape(-1)
        if array.dtype.kind not in "biufcM":
            return False
        name, array = array.dtype.name, array.view(np.uint8)
    put(f"{name}{tuple(value.shape)}".encode())
    if quick and array.nbytes > _SAMPLED:
        step = array.nbytes // _SAMPLED | 1  # odd: all bytes of an element have their turn
        put(array[::step].tobytes())
    else:
        put(array.tobytes())
    return True
