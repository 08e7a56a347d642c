"""Several conversations in one row, none of which sees another.

Rows filled up with padding waste most of a step where a few answers are long. Packed rows waste
little, and are exact only when three things are right: a mask by which nobody looks across, places
that begin anew with every conversation, and no label for the first token of a conversation, which
would be learnt from the end of the one before. Left to a library's defaults each goes wrong in
silence: with a cache, or with a mask of ones, every conversation sees those before it (4 in 10 of a
trained model's tokens change), and the loss still falls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medkit.data.chat import IGNORED, Encoded, pictures_of

__all__ = ["PackPlan", "Positions", "packed", "plan_packs"]

WORTH_WASTE = 0.25  # share of padding below which length-sorted batches are as fast
Positions = Callable[[Encoded], Tensor]
"""Places of one conversation's tokens, ``(L,)`` or ``(rows, L)``, as its model has them alone."""


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
        """Whether packing pays: where padding wastes a quarter or more."""
        return self.waste >= WORTH_WASTE

    def __str__(self) -> str:
        advice = "pack" if self.worth_it else "do not pack: batches sorted by length do as well"
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
            "Pass a greater longest=, or leave the long ones out and say so."
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


def packed(
    packs: Sequence[Sequence[Encoded]],
    *,
    pad: int,
    longest: int,
    positions: Positions | None = None,
) -> dict[str, Tensor]:
    """Return packed rows as a model of Hugging Face's is called with, under SDPA or eager.

    Args:
        packs: Conversations of each row.
        pad: Number of the padding token.
        longest: Tokens of a row.
        positions: The model's places, where they do not count tokens (Qwen-VL).

    Returns:
        ``input_ids`` and ``labels``, ``(B, L)``; ``position_ids``, ``(B, L)`` or ``(rows, B, L)``;
        ``attention_mask``, bool ``(B, 1, L, L)``, true where a token may look; ``segment``, int64
        ``(B, L)``, which conversation of the row a token is of, -1 behind the last; and the
        pictures' fields.
    """
    size = len(packs), longest
    ids, labels = torch.full(size, pad), torch.full(size, IGNORED)
    segment = torch.full(size, -1)
    places: Tensor | None = None
    for row, pack in enumerate(packs):
        at = 0
        for number, one in enumerate(pack):
            stop = at + len(one.ids)
            if stop > longest:
                raise ValueError(
                    f"a row holds {longest} tokens, and pack {row} has more. Plan with "
                    "plan_packs(lengths, longest=...)."
                )
            own = torch.arange(len(one.ids)) if positions is None else positions(one)
            if places is None:
                places = torch.zeros((*own.shape[:-1], *size), dtype=torch.int64)
            ids[row, at:stop], segment[row, at:stop] = one.ids, number
            labels[row, at:stop] = one.labels
            labels[row, at] = IGNORED  # it would be learnt from another conversation
            places[..., row, at:stop] = own
            at = stop
    # padding looks at itself alone: a row of nothing to look at is NaN
    alone = torch.where(segment < 0, -1 - torch.arange(longest), segment)
    may = (alone[:, :, None] == alone[:, None, :]) & torch.ones(longest, longest).tril().bool()
    batch = {"input_ids": ids, "labels": labels, "segment": segment, "attention_mask": may[:, None]}
    if places is not None:
        batch["position_ids"] = places
    return batch | pictures_of([one for pack in packs for one in pack])


def _waste(lengths: NDArray[np.int64], batch_size: int) -> float:
    whole = [lengths[at : at + batch_size] for at in range(0, len(lengths), batch_size)]
    return float(1 - lengths.sum() / sum(len(some) * some.max() for some in whole))
