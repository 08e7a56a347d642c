"""What hooks set on a DataModule or a dataset: how strong an augmentation is, which stage it is in.

A hook may set it as an epoch begins, and a resume in the middle of an epoch does not call that hook
again. Only what is small is looked at: the rest is data, or a cache.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medkit.callbacks.packing import ATOMS
from medkit.data.fetching import KeyedFetch
from medkit.data.loader import KeyedLoader

_DATA = (pl.LightningDataModule, Dataset)
_LEADS_TO_DATA = (*_DATA, DataLoader, KeyedLoader)
_LIGHTNING = frozenset(vars(pl.LightningDataModule()))
LOADER = "loader:"  # begins the name of what only a loader leads to
_FEW = 64  # entries: a longer list is data
_LONG = 1000  # characters


def data_holders(trainer: pl.Trainer, seen: set[int]) -> Iterator[tuple[str, object]]:
    """Yield the DataModule and the datasets it and the loaders lead to, with their names.

    Args:
        trainer: Before or during a fit.
        seen: ``id`` of objects that are not yielded again.
    """
    source = trainer.fit_loop._data_source.instance
    loaders = trainer.fit_loop._combined_loader
    waiting: list[tuple[str, object]] = [("data", getattr(trainer, "datamodule", None) or source)]
    waiting += [(f"{LOADER}{n}", x) for n, x in enumerate(loaders.flattened if loaders else ())]
    while waiting:
        who, data = waiting.pop(0)
        if id(data) in seen or not isinstance(getattr(data, "__dict__", None), dict):
            continue
        seen.add(id(data))
        if isinstance(data, _DATA) and not isinstance(data, KeyedFetch):  # it must look anew
            yield who, data
        for name, part in vars(data).items():
            parts = part if isinstance(part, list | tuple) and len(part) <= _FEW else [part]
            for number, value in enumerate(parts):
                if isinstance(value, _LEADS_TO_DATA) and not isinstance(value, nn.Module):
                    waiting.append((f"{who}.{name}[{number}]", value))


def no_settings(holder: object) -> frozenset[str]:
    """Return the attributes that are no settings: data, caches, and what Lightning keeps."""
    large = {name for name, value in vars(holder).items() if not _is_small(value)}
    return _LIGHTNING | large if isinstance(holder, pl.LightningDataModule) else frozenset(large)


def _is_small(value: object, depth: int = 2) -> bool:
    if isinstance(value, str | bytes):
        return len(value) <= _LONG
    if isinstance(value, Tensor | np.ndarray):
        return math.prod(value.shape) <= _FEW
    if isinstance(value, Mapping) and len(value) <= _FEW:
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return len(value) <= _FEW and depth > 0 and all(_is_small(v, depth - 1) for v in value)
    return type(value) in ATOMS or isinstance(value, np.generic | enum.Enum | Path)
