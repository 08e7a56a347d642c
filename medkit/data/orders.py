"""The order of an epoch as a function of its key, whatever sampler somebody wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from medkit import keyed as keys
from medkit.data.fetching import PlaceBatch
from medkit.data.generators import find_generators, rekey


def at_once(
    loader: DataLoader[Any], seed: int, epoch: int, cycle: int, tag: tuple[keys.Place, ...]
) -> NDArray[np.int64] | None:
    """Draw an epoch's order at once, where the sampler allows that; else return None."""
    sampler = loader.sampler
    plain, theirs = _is_plain_random(sampler), getattr(sampler, "keyed_order", None)
    if type(loader.batch_sampler) is not BatchSampler or not (plain or theirs):
        return None
    place = (epoch, cycle) if cycle else (epoch,)
    draw = keys.generator(seed, "order", *place, *tag)
    order: NDArray[np.int64]
    order = draw.permutation(len(sampler)) if plain else theirs(draw)  # type: ignore[arg-type,misc]
    return order


def of_sampler(
    loader: DataLoader[Any], seed: int, epoch: int, cycle: int, tag: tuple[keys.Place, ...]
) -> list[PlaceBatch]:
    """Have the loader's own sampler go through an epoch, every generator set from its key."""
    place = (epoch, cycle) if cycle else (epoch,)
    key = keys.seed_of(seed, "order", *place, *tag)
    sampler = loader.batch_sampler or loader.sampler
    for part in samplers(loader):
        if callable(set_epoch := getattr(part, "set_epoch", None)):
            set_epoch(epoch)
    state = keys.get_globals()
    keys.set_globals(key)
    rekey(find_generators(sampler), key)
    try:
        groups = list(sampler)
    finally:
        keys.restore_globals(state)
    places, position = [], 0
    for number, group in enumerate(groups):
        places.append(PlaceBatch(epoch, number, position, group))
        position += len(group) if hasattr(group, "__len__") else 1
    return places


def samplers(loader: DataLoader[Any]) -> tuple[object, ...]:
    """Return the samplers of a loader, one inside the other."""
    return loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)


def why_not_keyed(loader: DataLoader[Any]) -> str:
    """Return why the draws of a loader cannot be made functions of place; empty if they can."""
    if isinstance(loader.dataset, IterableDataset):
        return (
            f"{type(loader.dataset).__name__} is an IterableDataset: its samples have no position, "
            "so an epoch cannot be entered in the middle. Use a map-style dataset."
        )
    if any(kind.__name__ == "ThreadDataLoader" for kind in type(loader).__mro__):
        return (
            "MONAI's ThreadDataLoader fetches in threads that share their generators, so draws "
            "depend on timing. Use monai.data.DataLoader or torch's."
        )
    return ""


def _is_plain_random(sampler: object) -> bool:
    """Whether this is the sampler of an ordinary shuffled loader."""
    return (
        type(sampler) is RandomSampler and not sampler.replacement and sampler._num_samples is None
    )
