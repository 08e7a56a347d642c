"""Randomness without history: every draw is a function of where it happens.

The one table (``DESIGN``): which patients are in which split, the initial weights of a stage, the
order of an epoch, the augmentation of a sample and every draw inside a step each have a *key*; a
generator made from the key is used once and dropped. So nothing random need be saved, and any
place can be had again.

NumPy's ``SeedSequence`` and ``Philox`` are promised to give the same bits in every version
(NEP 19). This is the only file of the kit that sets a global generator. Torch is imported only
when one of its generators is asked for.
"""

from __future__ import annotations

import hashlib
import operator
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Place = int | str

_EXACT = frozenset({int, str})
_run_seed: int | None = None
_run_split_seed = 0
_random: random.Random = random._inst
_seed_random = random.Random.__mro__[1].seed  # type: ignore[attr-defined]


def seed_of(seed: int, purpose: str, *place: Place) -> int:
    """Return the 64-bit number that stands for one place.

    Args:
        seed: The run's seed (or ``split_seed`` for splits).
        purpose: What is drawn: "split", "init", "order", "augment", "collate", "step", ...
        *place: Where: integers and names, such as epoch and position. ``1`` and ``"1"`` differ.
    """
    whole = (seed, purpose, *place)
    for part in whole:
        if type(part) not in _EXACT:  # a NumPy scalar, say, whose repr may change
            whole = tuple(str(p) if isinstance(p, str) else int(p) for p in whole)
            break
    digest = hashlib.blake2b(repr(whole).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seeds_of(seeds: Iterable[int], what: str = "seeds") -> tuple[int, ...]:
    """Return several seeds as a tuple.

    Raises:
        ValueError: For one number, a text, and what is no whole number: 1.5 would be cut to 1.
    """
    try:
        return tuple(operator.index(seed) for seed in seeds)
    except TypeError as error:
        raise ValueError(
            f"{what} must be several whole numbers, got {seeds!r}. Pass range(5), or [0, 1, 2]."
        ) from error


def generator(seed: int, purpose: str, *place: Place) -> np.random.Generator:
    """Return NumPy's generator for one place; draw from it and drop it."""
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence(seed_of(seed, purpose, *place)))
    )


def torch_generator(
    seed: int, purpose: str, *place: Place, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator for one place on ``device``; draw from it and drop it."""
    import torch

    return torch.Generator(device=device).manual_seed(seed_of(seed, purpose, *place))


def set_globals(key: int, *, device: torch.device | None = None) -> None:
    """Set the global generators of ``random``, NumPy and (where loaded) torch from one number.

    For code that knows nothing of keys: dropout, MixUp, somebody's dataset. Torch's generators are
    seeded one by one (10 us); ``torch.manual_seed`` would walk all backends (300 us).

    Args:
        key: From :func:`seed_of`.
        device: An accelerator whose default generator is set as well.
    """
    _seed_random(_random, key)  # without the checks of random.seed: a third of a step's keying
    _random.gauss_next = None  # type: ignore[attr-defined]
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 - the legacy global generator is the point
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.manual_seed(key)
        if device is not None and device.type not in {"cpu", "meta"}:
            torch.get_device_module(device).manual_seed(key)


def get_globals() -> tuple[Any, ...]:
    """Return the state of the global CPU generators, for :func:`restore_globals`."""
    torch = sys.modules.get("torch")
    state = torch.default_generator.get_state() if torch is not None else None
    return random.getstate(), np.random.get_state(), state  # noqa: NPY002


def restore_globals(state: tuple[Any, ...]) -> None:
    """Put back what :func:`get_globals` returned."""
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    if state[2] is not None:
        sys.modules["torch"].default_generator.set_state(state[2])


@contextmanager
def globals_keyed(seed: int, purpose: str, *place: Place) -> Iterator[None]:
    """Run a block with the global generators set from a key, and put them back after it."""
    state = get_globals()
    set_globals(seed_of(seed, purpose, *place))
    try:
        yield
    finally:
        restore_globals(state)


def set_run_seed(seed: int, split_seed: int = 0) -> None:
    """Say which seeds data keyed without one take; ``start_run`` calls this."""
    global _run_seed, _run_split_seed
    _run_seed, _run_split_seed = int(seed), int(split_seed)
    set_globals(seed_of(seed, "start"))


def run_seed() -> int:
    """Return the seed of the run that was started last in this process.

    Raises:
        RuntimeError: When no run was started.
    """
    if _run_seed is None:
        raise RuntimeError(
            "keyed draws need a seed, and no run was started in this process. "
            "Call start_run(run_dir, seed=...) first, or pass seed=... yourself."
        )
    return _run_seed


def run_split_seed() -> int:
    """Return the seed of that run's splits, which stays while its seed varies."""
    return _run_split_seed
