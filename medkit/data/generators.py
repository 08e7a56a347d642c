"""Find the random generators an object keeps for itself, and key them.

A dataset may hold a ``RandomState`` (every MONAI transform does), a ``numpy.random.Generator``, a
``random.Random`` or a ``torch.Generator``: in an attribute, in a list of transforms, in the cells
of a lambda, in a module-level variable or transform its methods name. Each of them is history. The
walk below finds them; :func:`rekey` makes their next draws a function of a place.
"""

from __future__ import annotations

import functools
import itertools
import logging
import random
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

_log = logging.getLogger(__name__)

Generator = np.random.RandomState | np.random.Generator | random.Random | torch.Generator

_GENERATORS = (np.random.RandomState, np.random.Generator, random.Random, torch.Generator)
_LEAVES = (str, bytes, bytearray, int, float, complex, bool, type(None), np.ndarray, np.generic)
_LEAVES += (torch.Tensor, PurePath)  # type: ignore[assignment]
_LIBRARIES = (
    "torch.",
    "numpy",
    "pandas",
    "builtins",
    "pyarrow",
    "PIL",
    "logging",
    "pathlib",
    "pytorch_lightning",
    "lightning_fabric",
    "torchmetrics",
    "threading",
    "_thread",
)
_MANY = 1000  # a longer list is data when its first hundred entries are
_LIMIT = 200_000  # objects looked at before the walk gives up


def find_generators(root: object) -> list[Generator]:
    """Return every private generator reachable from ``root``, in an order that does not vary."""
    found = reachable(root, lambda item: isinstance(item, _GENERATORS))
    return [item for item in found if not _is_global(item)]


def reachable(root: object, wanted: Callable[[object], bool]) -> list[Any]:
    """Return what is wanted of all that ``root`` holds; what that holds itself is not looked at."""
    found: list[Any] = []
    seen: set[int] = set()
    stack: list[object] = [root]
    while stack:
        if len(seen) >= _LIMIT:
            _log.warning(
                "gave up looking for random generators in %s after %d objects; one found later "
                "would draw from its history. Keep rows in a table or an array.",
                type(root).__name__,
                _LIMIT,
            )
            break
        item = stack.pop()
        if isinstance(item, _LEAVES) or id(item) in seen:
            continue
        seen.add(id(item))
        if wanted(item):
            found.append(item)
            continue
        stack.extend(reversed(list(_parts(item))))
    return found


def rekey(generators: Iterable[Generator], key: int) -> None:
    """Set each generator from ``key`` and its number in the list."""
    for number, item in enumerate(generators, start=1):
        mixed = (key ^ (0x9E3779B97F4A7C15 * number)) & 0xFFFFFFFFFFFFFFFF
        if isinstance(item, np.random.RandomState):
            item.seed(mixed & 0xFFFFFFFF)
        elif isinstance(item, np.random.Generator):
            bits = item.bit_generator
            bits.state = type(bits)(mixed).state
        elif isinstance(item, random.Random):
            item.seed(mixed)
        else:
            item.manual_seed(mixed)


def _is_global(item: object) -> bool:
    """Whether this is one of the process-wide generators, which have keys of their own."""
    # SystemRandom asks the operating system; seeding it does nothing
    return (
        item is torch.default_generator
        or item is np.random.mtrand._rand
        or isinstance(item, random.SystemRandom)
        or item is getattr(random.random, "__self__", None)
    )


def _parts(item: object) -> Iterator[object]:
    if isinstance(item, Mapping):
        yield from _sample(list(item.values()))
    elif isinstance(item, list | tuple | set | frozenset | deque):
        yield from _sample(item)
    elif isinstance(item, functools.partial):
        yield from (item.func, *item.args, *item.keywords.values())
    elif isinstance(item, types.MethodType):
        yield from (item.__self__, item.__func__)
    elif isinstance(item, types.FunctionType):
        yield from _of_function(item)
    elif isinstance(item, types.BuiltinFunctionType):
        if isinstance(item.__self__, _GENERATORS):
            yield item.__self__  # self.draw = self.rng.normal
    elif isinstance(item, type | types.ModuleType):
        return
    elif not type(item).__module__.startswith(_LIBRARIES) or _is_torch_data(item):
        yield from _of_object(item)


def _is_torch_data(item: object) -> bool:
    """Torch's own datasets, samplers and modules hold other people's objects."""
    module = type(item).__module__
    return module.startswith(("torch.utils.data", "torch.nn"))


def _sample(items: Collection[Any]) -> Iterable[object]:
    """Leave out a long list of data: a list of 300,000 rows would use up the walk."""
    if len(items) > _MANY and all(_is_data(part) for part in itertools.islice(items, 100)):
        return ()
    return items


def _is_data(item: object, depth: int = 3) -> bool:
    if isinstance(item, _LEAVES):
        return True
    if depth and isinstance(item, Mapping):
        return all(_is_data(part, depth - 1) for part in item.values())
    if depth and isinstance(item, list | tuple | set):
        return all(_is_data(part, depth - 1) for part in itertools.islice(item, 100))
    return False


def _of_function(function: types.FunctionType) -> Iterator[object]:
    if (function.__module__ or "").startswith(_LIBRARIES):
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a cell not filled yet holds nothing
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    names = list(_names(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType | type):  # settings.RNG, Augment.rng
            if not value.__name__.startswith(_LIBRARIES):
                own = vars(value)
                yield from (own[n] for n in names if isinstance(own.get(n), _GENERATORS))
        elif value is not None:
            yield value  # a generator, a transform made beside the class, a helper that draws


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names a function looks up, those in its lambdas and comprehensions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _of_object(item: object) -> Iterator[object]:
    state = getattr(item, "__dict__", None)
    if isinstance(state, dict):
        yield from list(state.values())
    for kind in type(item).__mro__:
        if kind.__module__.startswith(_LIBRARIES):
            continue
        for value in list(vars(kind).values()):
            # MONAI's Randomizable.R is shared by the class until it is set
            yield getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        for slot in getattr(kind, "__slots__", ()):
            if isinstance(slot, str) and hasattr(item, slot):
                yield getattr(item, slot)
