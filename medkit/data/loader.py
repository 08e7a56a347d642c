"""Somebody's data made functions of place.

``keyed(data)`` wraps a DataLoader or the hooks of a DataModule; what a wrapped loader does is in
``keyed_loader.py``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader

from medkit import keyed as keys
from medkit.data.keyed_loader import KeyedLoader
from medkit.data.orders import why_not_keyed

__all__ = ["KeyedLoader", "keyed", "why_not_keyed"]

_log = logging.getLogger(__name__)
_HOOKS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")


def keyed(data: Any, *, seed: int | None = None, split_seed: int | None = None) -> Any:
    """Make order and augmentation of somebody's data functions of place.

    Args:
        data: A ``DataLoader`` (a :class:`KeyedLoader` comes back), or a LightningDataModule or
            LightningModule with ``*_dataloader`` hooks, which comes back itself: its hooks then
            return keyed loaders, and its ``setup`` draws (splits) from the key "split".
        seed: None takes the seed of the run started last.
        split_seed: Decides what ``setup`` draws. None takes that of the run, or ``seed`` where one
            is given.

    Raises:
        TypeError: For anything else.
        ValueError: For a loader that cannot be tamed, with the reason.
    """
    if split_seed is None:
        split_seed = keys.run_split_seed() if seed is None else int(seed)
    seed = keys.run_seed() if seed is None else int(seed)
    if isinstance(data, KeyedLoader):
        if data.free:
            data.take_key(seed, ())
        return data
    if isinstance(data, DataLoader):
        return KeyedLoader(data, seed=seed)
    if isinstance(data, pl.LightningDataModule | pl.LightningModule):
        for hook in _HOOKS:
            if _overrides(data, hook):
                original = getattr(data, hook)
                if isinstance(original, functools.partial):  # keyed before: the new seed counts
                    original = original.keywords["hook"]
                kind = hook.removesuffix("_dataloader")
                fresh = functools.partial(_keyed_loaders, hook=original, seed=seed, kind=kind)
                object.__setattr__(data, hook, fresh)
        if isinstance(data, pl.LightningDataModule) and _overrides(data, "setup"):
            original = getattr(data, "setup")  # noqa: B009 - Lightning wraps it by instance
            if isinstance(original, functools.partial):
                original = original.keywords["hook"]
            object.__setattr__(
                data, "setup", functools.partial(_keyed_setup, hook=original, seed=split_seed)
            )
        return data
    raise TypeError(
        f"keyed() wraps a DataLoader, a LightningDataModule or a LightningModule with loader "
        f"hooks, got {type(data).__name__}. Pass the object whose batches are trained on."
    )


def _keyed_loaders(*, hook: Callable[[], Any], seed: int, kind: str) -> Any:
    trainer = _trainer_of(getattr(hook, "__self__", None))
    place: tuple[keys.Place, ...] = (kind,)
    every: int = getattr(trainer, "reload_dataloaders_every_n_epochs", 0)
    if trainer is not None and every:
        place = (kind, trainer.current_epoch // every)  # made anew because it should differ
    with keys.globals_keyed(seed, "loader", *place):
        loaders = hook()
    numbers = iter(range(1_000_000))

    def wrap(loader: DataLoader[Any] | KeyedLoader) -> Any:
        if isinstance(loader, KeyedLoader) and not loader.free:
            return loader
        number = next(numbers)
        first = kind == "train" and number == 0
        tag = () if first else (kind, number)
        if isinstance(loader, KeyedLoader):
            loader.take_key(seed, tag)
            fresh = loader
        else:
            reason = why_not_keyed(loader)
            if reason:  # left as it is; the Trainer's callbacks mark the run inexact
                _log.warning("%s", reason)
                return loader
            fresh = KeyedLoader(loader, seed=seed, tag=tag)
        if kind == "train" and trainer is not None:
            fresh.bind(trainer)  # at once: Lightning asks for the length of this process's share
        return fresh

    if isinstance(loaders, CombinedLoader):
        known = (DataLoader, KeyedLoader)
        loaders.flattened = [wrap(x) if isinstance(x, known) else x for x in loaders.flattened]
        return loaders
    return apply_to_collection(loaders, DataLoader | KeyedLoader, wrap)


def _keyed_setup(stage: str | None = None, *, hook: Callable[..., Any], seed: int) -> Any:
    with keys.globals_keyed(seed, "split"):
        return hook(stage)


def _trainer_of(owner: object) -> pl.Trainer | None:
    """Return the Trainer a DataModule or LightningModule is attached to, if there is one."""
    name = "_trainer" if isinstance(owner, pl.LightningModule) else "trainer"
    trainer = getattr(owner, name, None)
    return trainer if isinstance(trainer, pl.Trainer) else None


def _overrides(data: object, name: str) -> bool:
    parent = (
        pl.LightningDataModule if isinstance(data, pl.LightningDataModule) else pl.LightningModule
    )
    return name in vars(data) or getattr(type(data), name) is not getattr(parent, name)
