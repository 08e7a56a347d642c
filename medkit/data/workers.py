"""Batches from worker processes that may die: begun anew at the batch that was lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

import torch
from torch.utils.data import DataLoader

from medkit.data.fetching import PlaceBatch, Places

_LOST = re.compile(r"DataLoader (worker \(pid|timed out after)")
RESTARTS = 3  # of one iteration
_SOON_S = 2.0
_NO_PID = "DataLoader worker (pid not known) exited unexpectedly"


class LoaderWorkersLostError(RuntimeError):
    """Worker processes died more often than can be chance."""


def is_lost(error: BaseException) -> bool:
    """Whether an error says that a loader's worker died or hangs."""
    return isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))


def fetched(
    inner: DataLoader[Any],
    places: Places,
    wanted: Sequence[PlaceBatch],
    *,
    begin: Callable[[], None],
    on_lost: Callable[[PlaceBatch, str], None],
) -> Iterator[Any]:
    """Yield the batches of ``wanted``, in order, through ``inner``.

    A batch is a function of its place, so what dead workers have taken with them is fetched again
    by new ones, to the same bits.

    Args:
        inner: Fetches what ``places`` hands out.
        places: Its batch sampler.
        wanted: Places of the batches.
        begin: Called before workers are started.
        on_lost: Called with the place of the lost batch and what was said of it, before new
            workers are started.

    Raises:
        LoaderWorkersLostError: When workers died more than three times.
    """
    done = lost = 0
    while done < len(wanted):
        places.places = wanted[done:]
        begin()
        batches: Any = None
        try:
            batches = iter(inner)
            try:
                _listen(batches, to=False)
                for _ in places.places:
                    _listen(batches, to=True)
                    batch = next(batches)
                    _listen(batches, to=False)
                    yield batch
                    done += 1
            finally:
                # a death may be raised even here, but once only: torch then forgets the workers
                _listen(batches, to=False)
        except (RuntimeError, OSError, EOFError) as error:
            if batches is None:  # persistent workers may have died since the last epoch
                batches = getattr(inner, "_iterator", None)
            _listen(batches, to=False)
            if not is_lost(error) and not _one_is_dead(batches):
                raise
            lost += 1
            said = str(error).partition(". ")[0] if is_lost(error) else _NO_PID
            if lost > RESTARTS:
                place = wanted[done]
                raise LoaderWorkersLostError(
                    f"loader workers must live, but they died {lost} times, the last time at batch "
                    f"{place.batch} of epoch {place.epoch}: {said}. Look at memory (fewer workers, "
                    "smaller batches), shared memory and the files of these rows, then run again: "
                    "resume points are intact."
                ) from error
            on_lost(wanted[done], said)
            _drop(inner, batches)


def _listen(batches: Any, *, to: bool) -> None:
    """Let a worker's death be raised, or not: torch does so from a signal handler.

    While a batch is waited for it may; amid an optimizer step it would leave half a step behind.
    Death in between shows when the next batch is asked for, some seconds later.
    """
    known: bool | None = getattr(batches, "_worker_pids_set", None)  # None: no workers
    if known is None or known is to:
        return
    if to:
        pids = tuple(worker.pid for worker in batches._workers)
        torch._C._set_worker_pids(id(batches), pids)
    else:
        torch._C._remove_worker_pids(id(batches))
    batches._worker_pids_set = to


def _one_is_dead(batches: Any) -> bool:
    """Whether a worker is dead: the connection to it may break before torch knows."""
    sentinels = [worker.sentinel for worker in getattr(batches, "_workers", ())]
    return bool(sentinels and connection.wait(sentinels, timeout=_SOON_S))


def _drop(inner: Any, batches: Any) -> None:
    """End the workers that are left; persistent ones would be asked again."""
    if batches is not None:
        batches._shutdown_workers()
    inner._iterator = None
