"""Encoded conversations, and batches of them as a model is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["IGNORED", "LEARNT", "PACKING", "ROWS", "Encoded", "given", "padded", "pictures_of"]

IGNORED = -100  # as a label: nothing is learnt here
LEARNT = -1  # as a kind of token: what is learnt
ROWS = "_rows"  # behind a pictures' field: how many of its rows each conversation has
PACKING = "packing_length"  # of a batch to be packed: tokens of a row
_NOT_GIVEN = ("labels", "row", "site", "segment", PACKING)  # fields that a model is not called with


@dataclass(frozen=True, eq=False)
class Encoded:
    """One conversation.

    Attributes:
        ids: Token numbers, int64 ``(L,)``.
        labels: The same where it is learnt, ``IGNORED`` elsewhere.
        pictures: What the model is given of its pictures.
        kinds: Fields of a batch that are 1 where a token is of this number, or ``LEARNT``: Qwen-VL
            has places by row and column only where it is told what is a picture.
    """

    ids: Tensor
    labels: Tensor
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)


def given(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the fields of a batch that a model is called with."""
    return {
        name: value
        for name, value in batch.items()
        if name not in _NOT_GIVEN and not name.endswith(ROWS)
    }


def padded(samples: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
    """Return conversations as one batch, filled up on the right.

    Args:
        samples: To be put together; pictures are put one behind the other.
        pad: Number of the padding token.

    Returns:
        ``input_ids``, ``labels`` and ``attention_mask``, ``(B, L)``; fields of ``kinds``, alike;
        the pictures' fields, and how many rows of each are whose, ``(B,)``, as ``<field>_rows``.
    """
    length = max(len(one.ids) for one in samples)
    ids = torch.full((len(samples), length), pad)
    labels = torch.full((len(samples), length), IGNORED)
    mask = torch.zeros((len(samples), length), dtype=torch.int64)
    for row, one in enumerate(samples):
        ids[row, : len(one.ids)] = one.ids
        labels[row, : len(one.ids)] = one.labels
        mask[row, : len(one.ids)] = 1
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    for name, token in samples[0].kinds.items():
        batch[name] = (labels != IGNORED if token == LEARNT else ids == token).long()
    pictures = pictures_of(samples)
    for name in pictures:
        own = [len(one.pictures[name]) if name in one.pictures else 0 for one in samples]
        batch[name + ROWS] = torch.tensor(own)
    return batch | pictures


def pictures_of(samples: Sequence[Encoded]) -> dict[str, Tensor]:
    """Put the pictures of conversations one behind the other.

    Where models keep them by conversation, ``(1, K, ...)``, and these have different numbers, they
    are filled up with zeros, which such models leave out.
    """
    found = {}
    for name in dict.fromkeys(name for one in samples for name in one.pictures):
        parts = [one.pictures[name] for one in samples if name in one.pictures]
        most = max(part.shape[1] if part.ndim > 1 else 0 for part in parts)
        if any(part.ndim >= 4 and part.shape[1] < most for part in parts):
            parts = [_filled(part, most) for part in parts]
        found[name] = torch.cat(parts)
    return found


def _filled(part: Tensor, most: int) -> Tensor:
    missing = part.new_zeros(part.shape[0], most - part.shape[1], *part.shape[2:])
    return torch.cat([part, missing], dim=1)
