"""Class-balanced draws: first the class, then one of its members, with replacement."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from medkit import keyed as keys


class BalancedDraws(Sampler[int]):
    """As many draws as there are rows, each class equally often, with replacement.

    The distribution is that of ``WeightedRandomSampler`` with one over the class's size as weight.
    That one looks each draw up among all rows, and refuses more than 2**24 of them; two draws, of
    a class and of a member, need neither the weights nor the search.

    What is learnt from balanced draws has the wrong prior: put it back into the logits
    (``logit_shift=dm.logit_shift``).

    Args:
        labels: Class of each row, integers from 0 on, ``(N,)``.

    Raises:
        ValueError: When labels are no classes, or there is only one.
    """

    def __init__(self, labels: Tensor) -> None:
        classes = _classes(labels)
        sizes = np.bincount(classes)
        short = np.min_scalar_type(len(sizes))  # NumPy sorts 8 and 16 bits ten times as fast
        # rows by class, and where each class begins among them
        self._members = np.argsort(classes.astype(short), kind="stable")
        self._sizes = sizes[sizes > 0]
        self._first = np.cumsum(self._sizes) - self._sizes

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[int]:
        # without a key: from torch's global generator, as torch's own samplers draw
        seed = int(torch.empty((), dtype=torch.int64).random_())
        return iter(self.keyed_order(keys.generator(seed, "order")).tolist())

    def keyed_order(self, draw: np.random.Generator) -> NDArray[np.int64]:
        """Draw the rows of one epoch, ``(N,)``; a keyed loader hands in the epoch's generator."""
        count = len(self._sizes)
        kind = draw.integers(0, count, len(self), dtype=np.uint8 if count <= 256 else np.int64)
        order = np.empty(len(self), np.int64)
        if count > 8:  # not a pass over all draws for each class
            return self._members[self._first[kind] + draw.integers(0, self._sizes[kind])]
        for number, (first, size) in enumerate(zip(self._first, self._sizes, strict=True)):
            at = np.flatnonzero(kind == number)
            order[at] = self._members[first + draw.integers(0, size, len(at))]
        return order


class HalfPositive(Sampler[int]):
    """As many draws as there are rows, every second one positive: each even batch is half and half.

    Negatives come without replacement; positives in shuffled rounds, each as often as the others.
    ``WeightedRandomSampler`` has a batch's share of positives vary, and rows be missed by chance.

    Args:
        y: Labels 0 and 1, ``(N,)``.

    Raises:
        ValueError: For other labels, and where one of the two is missing.
    """

    def __init__(self, y: NDArray[np.int64]) -> None:
        self._members = [np.flatnonzero(y == label) for label in (0, 1)]
        if not all(len(rows) for rows in self._members) or len(self) != len(y):
            raise ValueError(
                "half of a batch is positive where labels are 0 and 1 and both are there; found "
                f"{sorted(set(y.tolist()))[:5]} in {len(y)} rows. Draw shuffled, or split so that "
                "the training rows hold both."
            )

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._members)

    def __iter__(self) -> Iterator[int]:
        # without a key: from torch's global generator, as torch's own samplers draw
        seed = int(torch.empty((), dtype=torch.int64).random_())
        return iter(self.keyed_order(keys.generator(seed, "order")).tolist())

    def keyed_order(self, draw: np.random.Generator) -> NDArray[np.int64]:
        """Draw the rows of one epoch, ``(N,)``; a keyed loader hands in the epoch's generator."""
        order = np.empty(len(self), np.int64)
        for label, rows in enumerate(self._members):
            count = len(order[label::2])
            rounds = [draw.permutation(rows) for _ in range(-(-count // len(rows)))]
            order[label::2] = np.concatenate(rounds)[:count]
        return order


def _classes(labels: Tensor) -> NDArray[np.int64]:
    integral = not (labels.is_floating_point() or labels.is_complex())
    if labels.ndim != 1 or not integral or (len(labels) and int(labels.min()) < 0):
        found = f"{labels.dtype} of shape {tuple(labels.shape)}"
        if labels.ndim == 1 and integral:
            found += f" with {int((labels < 0).sum())} below 0"
        raise ValueError(
            f"balanced draws need a class from 0 on for each row; found {found}. "
            "Leave out rows whose label is not known, and pass grades or shares as classes."
        )
    classes = labels.cpu().numpy().astype(np.int64)
    different = int((np.bincount(classes) > 0).sum()) if len(classes) else 0
    if different < 2:
        raise ValueError(
            f"balanced draws need at least two classes; found {different} in {len(classes)} rows. "
            "Draw shuffled, or split so that the training rows hold both."
        )
    return classes
