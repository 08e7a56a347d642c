"""Faults in the data: samples that come out changed, or not at all, and nobody else's.

Datasets are changed in place, so that whoever holds one (a keyed loader, a quarantine, a stock
DataLoader) fetches the same samples.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

GARBAGE, GARBAGE_SHARE = 1e4, 0.005  # finite nonsense, and in which share of the rows


def poison(data: Any, fault: str, seed: int) -> list[int]:
    """Change some samples of a dataset, once; return their indices, none where it can't be."""
    from medkit import keyed

    if getattr(data, "_poisoned", False):
        return []
    draw, length = keyed.generator(seed, "fault", fault), len(data)
    count = max(1, round(GARBAGE_SHARE * length)) if fault == "finite_garbage" else 1
    bad = {int(row) for row in draw.choice(length, count, replace=False)}
    change = POISON[fault]
    if isinstance(getattr(data, "rows", None), tuple):  # the kit's tables, gathered at once
        if fault == "corrupt_file":
            return []  # nothing is read
        at = getattr(data, "at", None)
        for row in bad:
            place = row if at is None else int(at[row])
            data.rows[0][place] = change(data.rows[0][place])
    else:
        _poison_items(data, bad, change)
    data._poisoned = True
    return sorted(bad)


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


POISON = {"nan_sample": _nan, "finite_garbage": _garbage, "corrupt_file": _unreadable}


def loaders(found: Any) -> Iterator[Any]:
    """Yield the loaders of a collection."""
    if isinstance(found, Mapping):
        found = list(found.values())
    for one in found if isinstance(found, list | tuple) else [found]:
        if isinstance(one, list | tuple | Mapping):
            yield from loaders(one)
        else:
            yield one
