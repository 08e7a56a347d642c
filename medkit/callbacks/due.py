"""When a resume point is due: by the steps done or the time passed since the one before."""

from __future__ import annotations

import time

import pytorch_lightning as pl
import torch

_FIRST_AFTER_S = 5.0


class Due:
    """Counts from point to point.

    Args:
        every_n_steps: A point every so many optimizer steps; None for none by count.
        every_s: A point when this many seconds have passed since the last, the first of a fit after
            5 at most; None for none by time.
    """

    def __init__(self, every_n_steps: int | None, every_s: float | None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps must be at least 1, got {every_n_steps}. Use None for none."
            )
        self.every_n_steps = every_n_steps
        self.every_s = every_s
        self._last_step = 0
        self._last_time = 0.0
        self._batches = 0  # begun since the last point: never fewer than the steps

    def begin(self, step: int) -> None:
        """Start to count as a fit starts at ``step``; its first point comes soon."""
        self.taken(step)
        self._last_time -= max(0.0, (self.every_s or 0.0) - _FIRST_AFTER_S)

    def taken(self, step: int) -> None:
        """Start to count anew: a point was taken."""
        self._last_step, self._last_time = step, time.monotonic()
        self._batches = 0

    def maybe(self) -> bool:
        """Whether it is worth asking the Trainer for its step, which costs 5 us; once a batch."""
        self._batches += 1
        if self.every_n_steps is not None and self._batches >= self.every_n_steps:
            return True
        return self.every_s is not None and time.monotonic() >= self._last_time + self.every_s

    def at(self, step: int) -> tuple[bool, bool]:
        """Return whether a point is due by count, and whether by time."""
        done = step - self._last_step
        if done <= 0:
            return False, False
        by_count = self.every_n_steps is not None and done >= self.every_n_steps
        by_time = self.every_s is not None and time.monotonic() - self._last_time >= self.every_s
        return by_count, by_time


def of_any_rank(trainer: pl.Trainer, wishes: list[bool]) -> list[bool]:
    """Return the wishes of all processes together: what one wants, all do."""
    if trainer.world_size == 1:
        return wishes
    votes = torch.tensor(wishes, dtype=torch.int32, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
    return [bool(vote) for vote in votes]
