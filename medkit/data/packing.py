"""Several conversations in one row, none of which sees another; and the batches that suit it.

Rows filled up with padding waste most of a step where a few answers are long. Packed rows waste
little, and are exact only when three things are right: a mask by which nobody looks across, places
that begin anew with every conversation, and no label for the first token of a conversation, which
would be learnt from the end of the one before. Left to a library's defaults each goes wrong in
silence: with a cache, or with a mask of ones, every conversation sees those before it (4 in 10 of a
trained model's tokens change), and the loss still falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Sampler

from medkit import keyed
from medkit.data.encoded import IGNORED

__all__ = ["ByLength", "PackPlan", "PackedBatches", "packed", "plan_packs"]

WORTH_WASTE = 0.25  # share of padding from which packed rows are faster than batches as they come
_SORTED_WASTE = 0.2  # the same, than batches sorted by length
_SORTED = 50  # batches whose conversations are sorted together


@dataclass(frozen=True)
class PackPlan:
    """Which conversations share a row.

    Attributes:
        packs: Rows of conversations, each a list of them.
        longest: Tokens of a packed row.
        efficiency: Share of the packed rows' places that hold a token.
        waste: Share of padding in batches of conversations drawn at random, for comparison.
        sorted_waste: The same in batches of about equally long ones.
    """

    packs: tuple[tuple[int, ...], ...]
    longest: int
    efficiency: float
    waste: float
    sorted_waste: float

    @property
    def worth_it(self) -> bool:
        """Whether packing pays: where padding wastes a quarter or more.

        Where sorting leaves little padding it is as fast, or faster by a tenth; but each of its
        batches is of one length, and the longest is the largest.
        """
        return self.waste >= WORTH_WASTE

    def __str__(self) -> str:
        advice = "pack" if self.worth_it else "do not pack: batches sorted by length do as well"
        if self.worth_it and self.sorted_waste < _SORTED_WASTE:
            advice = "pack, or sort by length, which is as fast"
        return (
            f"{sum(map(len, self.packs))} conversations in {len(self.packs)} rows of "
            f"{self.longest}, {self.efficiency:.1%} full; padding wastes {self.waste:.0%} at "
            f"random, {self.sorted_waste:.0%} sorted by length: {advice}"
        )


def plan_packs(lengths: ArrayLike, *, longest: int, batch_size: int = 32) -> PackPlan:
    """Put conversations into as few rows as can be, the longest first where it fits best.

    Best fit decreasing (Johnson 1973): at most 11/9 of the fewest rows there can be.

    Args:
        lengths: Tokens of each.
        longest: Tokens of a row.
        batch_size: Of the batches that the plan is compared with.

    Raises:
        ValueError: For no conversation, and one that is longer than a row.
    """
    n = np.asarray(lengths, np.int64)
    if n.ndim != 1 or not len(n) or n.min() < 1 or n.max() > longest:
        found = f"up to {n.max()}" if n.size else "none"
        raise ValueError(
            f"conversations of 1 to {longest} tokens are packed, at least one; found {found}. "
            "Pass a greater length of a row, or leave the long ones out and say so."
        )
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # tokens that are left -> rows
    for one in np.argsort(-n, kind="stable").tolist():
        room = next((r for r in range(int(n[one]), longest) if by_room.get(r)), None)
        if room is None:
            at, room = len(rows), longest
            rows.append([])
        else:
            at = by_room[room].pop()
        rows[at].append(one)
        by_room.setdefault(room - int(n[one]), []).append(at)
    shuffled = np.random.Generator(np.random.Philox(0)).permutation(n)
    return PackPlan(
        packs=tuple(map(tuple, rows)),
        longest=longest,
        efficiency=float(n.sum() / (len(rows) * longest)),
        waste=_waste(shuffled, batch_size),
        sorted_waste=_waste(np.sort(n), batch_size),
    )


class PackedBatches(Sampler[list[int]]):
    """Batches of conversations that fill whole rows, one behind the other as they are packed.

    Each epoch is planned anew: which of equally long conversations share a row, and the order of
    the rows, are functions of the epoch's key. The rows that do not fill a batch are left out, each
    epoch others.

    Args:
        lengths: Tokens of each conversation.
        longest: Tokens of a row.
        batch_size: Conversations of a batch, on average: it is made of as many rows as hold them.

    Raises:
        ValueError: For conversations that do not fit, or do not fill one batch.
    """

    def __init__(self, lengths: ArrayLike, *, longest: int, batch_size: int) -> None:
        self.lengths = np.asarray(lengths, np.int64)
        self.plan = plan_packs(self.lengths, longest=longest, batch_size=batch_size)
        each = len(self.lengths) / len(self.plan.packs)
        self.rows = max(1, round(batch_size / each))
        _require_one(len(self.plan.packs), self.rows, "rows")

    def __len__(self) -> int:
        return len(self.plan.packs) // self.rows

    def __iter__(self) -> Iterator[list[int]]:
        draw = _draw()
        order = draw.permutation(len(self.lengths))
        # the number of rows is a function of the lengths alone, whichever of them comes first
        packs = plan_packs(self.lengths[order], longest=self.plan.longest).packs
        some = draw.permutation(len(packs))[: len(self) * self.rows].reshape(-1, self.rows)
        for batch in some.tolist():
            yield [int(order[one]) for row in batch for one in packs[row]]


class ByLength(Sampler[list[int]]):
    """Batches of about equally long conversations.

    Of 50 batches at a time, drawn at random, conversations are sorted; then batches are shuffled,
    so the longest do not all come first. Those that do not fill a batch are left out, each epoch
    others.

    Args:
        lengths: Tokens of each conversation.
        batch_size: Conversations of a batch.

    Raises:
        ValueError: For fewer conversations than a batch.
    """

    def __init__(self, lengths: ArrayLike, *, batch_size: int) -> None:
        self.lengths = np.asarray(lengths, np.int64)
        self.size = batch_size
        _require_one(len(self.lengths), batch_size, "conversations")

    def __len__(self) -> int:
        return len(self.lengths) // self.size

    def __iter__(self) -> Iterator[list[int]]:
        draw = _draw()
        order = draw.permutation(len(self.lengths))[: len(self) * self.size]
        batches: list[list[int]] = []
        for at in range(0, len(order), _SORTED * self.size):
            some = order[at : at + _SORTED * self.size]
            some = some[np.argsort(self.lengths[some], kind="stable")]
            batches += some.reshape(-1, self.size).tolist()
        for number in draw.permutation(len(batches)).tolist():
            yield batches[number]


def packed(
    batch: Mapping[str, Tensor],
    *,
    longest: int,
    places: Tensor | None = None,
    mask: bool = True,
) -> dict[str, Tensor]:
    """Return a batch with its conversations in as few rows as they fit in, in their order.

    Args:
        batch: Of :func:`~medkit.data.encoded.padded`, filled up on the right.
        longest: Tokens of a row.
        places: The model's own places of the batch's tokens, ``(rows, B, L)``, where it does not
            count them (Qwen-VL).
        mask: Whether to say who may look at whom. Without one, FlashAttention and SDPA find the
            conversations by their places, if there is no cache.

    Returns:
        ``input_ids`` and ``labels``, ``(R, longest)``; ``position_ids``, ``(R, longest)`` or
        ``(rows, R, longest)``; ``segment``, int64 ``(R, longest)``, which conversation of the batch
        a token is of, -1 behind the last; ``attention_mask``, bool ``(R, 1, longest, longest)``,
        true where a token may look; and the other fields, those of the shape of ``input_ids``
        packed like them.

    Raises:
        ValueError: For a conversation that is longer than a row.
    """
    ids, there = batch["input_ids"], batch["attention_mask"].bool()
    lengths: list[int] = there.sum(1).tolist()
    if max(lengths) > longest:
        raise ValueError(
            f"a row holds {longest} tokens, and a conversation of the batch has {max(lengths)}. "
            "Pass a greater length of a row."
        )
    row_of, begins, row, at = [], [], 0, 0
    for length in lengths:
        if at + length > longest:
            row, at = row + 1, 0
        row_of.append(row)
        begins.append(at)
        at += length
    whose, within = there.nonzero(as_tuple=True)
    rows = torch.tensor(row_of, device=ids.device)[whose]
    columns = torch.tensor(begins, device=ids.device)[whose] + within

    def put(values: Tensor, fill: Tensor | int) -> Tensor:
        out = values.new_zeros((*values.shape[:-1], row + 1, longest)) + fill
        out[..., rows, columns] = values
        return out

    labels = batch["labels"].clone()
    labels[:, 0] = IGNORED  # it would be learnt from another conversation
    segment = put(whose, -1)
    rest = {k: v for k, v in batch.items() if k not in ("input_ids", "labels", "attention_mask")}
    out = {
        # the end of an answer, which is no picture, fills up
        "input_ids": put(ids[there], ids[0, lengths[0] - 1]),
        "labels": put(labels[there], IGNORED),
        "position_ids": put(within if places is None else places[..., there], 0),
        "segment": segment,
        **{k: put(v[there], 0) if np.shape(v) == ids.shape else v for k, v in rest.items()},
    }
    if mask:
        # padding looks at itself alone: a row of nothing to look at is NaN
        own = torch.where(segment < 0, -1 - torch.arange(longest, device=ids.device), segment)
        causal = torch.ones(longest, longest, dtype=torch.bool, device=ids.device).tril()
        out["attention_mask"] = ((own[:, :, None] == own[:, None, :]) & causal)[:, None]
    return out


def _draw() -> np.random.Generator:
    # a keyed loader sets torch's global generator from the epoch's key; without one it goes on
    return keyed.generator(int(torch.empty((), dtype=torch.int64).random_()), "order")


def _require_one(found: int, wanted: int, what: str) -> None:
    if found < wanted:
        raise ValueError(
            f"there must be {what} for one batch, {wanted}; found {found}. Lower batch_size."
        )


def _waste(lengths: NDArray[np.int64], batch_size: int) -> float:
    whole = [lengths[at : at + batch_size] for at in range(0, len(lengths), batch_size)]
    return float(1 - lengths.sum() / sum(len(some) * some.max() for some in whole))
