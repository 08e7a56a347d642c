"""What hooks set on a DataModule or a dataset: how strong an augmentation is, which stage it is in.

A hook may set it as an epoch begins, and a resume in the middle of an epoch does not call that hook
again. A setting is a word, a number or a few of them; the rest is data, or a cache that grows. The
bounds are tight on purpose: a cache of random draws must not seem to be kept because it is young.
"""

from __future__ import annotations

import enum
import math
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
_FEW = 8  # entries of a setting
_MANY = 64  # datasets in a list that are looked at
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
            parts = part if isinstance(part, list | tuple) and len(part) <= _MANY else [part]
            for number, value in enumerate(parts):
                if isinstance(value, _LEADS_TO_DATA) and not isinstance(value, nn.Module):
                    waiting.append((f"{who}.{name}[{number}]", value))


def no_settings(holder: object) -> frozenset[str]:
    """Return the attributes that are no settings: data, caches, and what Lightning keeps."""
    large = {name for name, value in vars(holder).items() if not _is_setting(value)}
    return _LIGHTNING | large if isinstance(holder, pl.LightningDataModule) else frozenset(large)


def _is_setting(value: object) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return math.prod(value.shape) <= _FEW
    if isinstance(value, Mapping):
        return len(value) <= _FEW and all(
            isinstance(key, str) and _is_word(part) for key, part in value.items()
        )
    if isinstance(value, list | tuple | set | frozenset):
        return len(value) <= _FEW and all(_is_word(part) for part in value)
    return _is_word(value)


def _is_word(value: object) -> bool:
    if isinstance(value, str | bytes):
        return len(value) <= _LONG
    return type(value) in ATOMS or isinstance(value, np.generic | enum.Enum | Path)
