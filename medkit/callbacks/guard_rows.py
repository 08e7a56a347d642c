"""Rows of a batch: whose they are, which of them are at fault, and the batch without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

from medkit import keyed as keys
from medkit.data.encoded import ROWS
from medkit.data.loader import KeyedLoader

Row = int | str
_NAMED = 3  # rows that a message names
_FEW = 1 << 15  # numbers that are copied faster than looked at in place


def rows_of(trainer: pl.Trainer, batch: Any, batch_idx: int) -> list[Row] | None:
    """Return which rows a training batch is made of, None where nobody can know.

    They are the batch's own field ``row`` where it has one (the kit's batches do), else the
    dataset's indices, which a keyed loader has from the batch's place.
    """
    field = batch.get("row") if isinstance(batch, Mapping) else getattr(batch, "row", None)
    if isinstance(field, Tensor | np.ndarray) and field.ndim == 1:
        return list(field.tolist())
    if isinstance(field, list) and all(isinstance(row, int | str) for row in field):
        return list(field)
    combined = trainer.fit_loop._combined_loader
    loaders = combined.flattened if combined is not None else []
    if len(loaders) == 1 and isinstance(loaders[0], KeyedLoader):
        return list(loaders[0].rows_here(batch_idx))
    return None


def in_words(line: Mapping[str, Any]) -> str:
    """Return a line of the ledger as a message; rows go by the names they have there."""
    rows = ", ".join(map(str, line["rows"][:_NAMED])) or "none named"
    more = len(line["rows"]) - _NAMED
    rest = f" and {more} more" if more > 0 else ""
    place = f"epoch {line['epoch']}, batch {line['batch']}, rows {rows}{rest}"
    return f"{line['event']} at {place}: {line['action']} ({line['detail']})"


def take(batch: Any, index: Sequence[int], size: int) -> Any:
    """Return a batch of the samples at ``index``; what has no entry for each sample stays.

    A mapping may say how many entries of a field each sample has, as a field of that name and
    ``_rows``, int64 ``(B,)``: pictures of conversations are put one behind the other. What has no
    entry left is left out.

    Args:
        batch: Tensors, arrays and lists of strings or numbers with one entry a sample, in any
            nesting of tuples, lists and mappings.
        index: Places in the batch.
        size: Samples in the batch.
    """
    if isinstance(batch, Tensor):
        if batch.ndim == 0 or len(batch) != size:
            return batch
        return batch.index_select(0, torch.as_tensor(index, device=batch.device))
    if isinstance(batch, np.ndarray):
        return batch[list(index)] if batch.ndim and len(batch) == size else batch
    if isinstance(batch, Mapping):
        parts = {}
        for key, value in batch.items():
            counts = batch.get(f"{key}{ROWS}")
            if not isinstance(counts, Tensor):
                parts[key] = take(value, index, size)
            elif own := _entries(counts.tolist(), index):
                parts[key] = take(value, own, len(value))
        return parts if type(batch) is dict else type(batch)(parts)  # type: ignore[call-arg]
    if isinstance(batch, list | tuple):
        plain = isinstance(batch, list) and all(isinstance(v, str | int | float) for v in batch)
        if plain and len(batch) == size:
            return [batch[at] for at in index]
        parts_in_order = [take(value, index, size) for value in batch]
        return getattr(type(batch), "_make", type(batch))(parts_in_order)
    return batch


def _entries(counts: Sequence[int], index: Sequence[int]) -> list[int]:
    ends = list(accumulate(counts))
    return [entry for at in index for entry in range(ends[at] - counts[at], ends[at])]


def samples(batch: Any) -> int:
    """Return the length of the first tensor in a batch, 0 where there is none."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 0
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], Tensor) and batch[0].ndim:
        return int(batch[0].shape[0])  # as most are
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(parts, list | tuple) or isinstance(batch, Mapping):
        return next((found for found in map(samples, parts) if found), 0)
    return 0


def without(
    batch: Any, rows: Sequence[Row], out: Collection[Row], *place: keys.Place, seed: int
) -> Any:
    """Return the batch with rows that are set aside replaced by others of it.

    The others are drawn from the key ``seed, "redraw", *place``. The loss of a row could be masked
    instead, but a NaN in it would still reach the statistics of batch normalisation, and as
    ``0 * NaN`` the gradient. With no other row left the batch stays as it is.
    """
    healthy = [at for at, row in enumerate(rows) if row not in out]
    if not healthy:
        return batch
    draw = keys.generator(seed, "redraw", *place)
    index = [
        at if row not in out else healthy[int(draw.integers(len(healthy)))]
        for at, row in enumerate(rows)
    ]
    return take(batch, index, len(rows))


def at_fault(measure: Callable[[list[int]], float], size: int, limit: float) -> list[int]:
    """Return the places in a batch of the few rows that put it over the limit.

    A part of the batch is at fault when its share of the whole batch's mean (for a gradient: the
    most it can be) alone is over the limit, or not finite. Halves at fault are halved again; where
    neither half is, the worst rows are taken until the rest is within the limit. When more than
    half of the batch is at fault, it is not the rows: none are returned.

    Args:
        measure: Mean loss, or gradient norm, of the samples at these places.
        size: Samples in the batch.
        limit: For the whole batch.
    """

    def over(part: list[int]) -> bool:
        share = measure(part) * len(part) / size
        return not math.isfinite(share) or share > limit

    def search(part: list[int]) -> list[int]:
        if len(part) == 1:
            return part
        halves = part[: len(part) // 2], part[len(part) // 2 :]
        found = [row for half in halves if over(half) for row in search(half)]
        return found or worst(part)

    def worst(part: list[int]) -> list[int]:
        alone = sorted((measure([row]), row) for row in part)  # all finite: no half was over
        taken = []
        while alone and sum(value for value, _ in alone) / size > limit:
            taken.append(alone.pop()[1])
        return taken

    found = search(list(range(size))) if size and over(list(range(size))) else []
    return [] if 2 * len(found) > size else sorted(found)


@contextmanager
def replaying(module: pl.LightningModule) -> Iterator[None]:
    """Run training steps again to look at them: no dropout, nothing logged, no draw left behind.

    In evaluation mode one sample does not change another's loss through batch normalisation, and
    a single one can be looked at.
    """
    modes = [(part, part.training) for part in module.modules()]
    draws = keys.get_globals()
    module.eval()
    vars(module)["log"] = vars(module)["log_dict"] = _ignore
    try:
        yield
    finally:
        del vars(module)["log"], vars(module)["log_dict"]
        keys.restore_globals(draws)
        for part, mode in modes:
            part.training = mode


def _ignore(*_: object, **__: object) -> None:
    """Take the place of ``self.log``."""


def norm_of(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the L2 norm of each gradient, float32 or better, in one fused call where it can be."""
    dense = [g.coalesce()._values() if g.is_sparse else g for g in gradients]
    half = any(g.dtype in (torch.float16, torch.bfloat16) for g in dense)
    return list(torch._foreach_norm(dense, 2, torch.float32 if half else None))


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients: of a small net in two calls, since each counts there."""
    numbers = 0
    for gradient in gradients:
        if gradient.dtype is not torch.float32 or gradient.is_sparse:
            numbers = _FEW + 1
        numbers += gradient.numel()
    if numbers <= _FEW:
        return torch.linalg.vector_norm(_flatten_dense_tensors(gradients))
    return torch.linalg.vector_norm(torch.stack(norm_of(gradients)))


def first_not_finite(module: nn.Module, forward: Callable[[], object]) -> str:
    """Return the first layer whose output is not finite though its input is; empty if none."""
    found: list[str] = []

    def look(name: str, inputs: Any, outputs: Any) -> None:
        if not found and not all_finite(outputs) and all_finite(inputs):
            found.append(name)

    hooks = [
        part.register_forward_hook(
            lambda _, inputs, outputs, name=name: look(name, inputs, outputs)
        )
        for name, part in module.named_modules()
        if not any(True for _ in part.children())
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""


def all_finite(values: Any) -> bool:
    """Whether every tensor in a nesting of containers is finite."""
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(values.isfinite().all())
    if isinstance(values, Mapping):
        return all(map(all_finite, values.values()))
    if isinstance(values, list | tuple):
        return all(map(all_finite, values))
    return True
