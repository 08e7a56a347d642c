"""One net of an ensemble, and how much of what the nets add to their start is to count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from medkit.data.batches import Batch
from medkit.data.ehr import EHRDataModule
from medkit.models.classifier import LitClassifier

Floats = NDArray[np.float64]
_AT_ONCE = 65_536  # rows a forward pass


class Scores(NamedTuple):
    """What an ensemble says of rows, ``(N,)`` each.

    Attributes:
        prob: P(y = 1), the members' mean.
        baseline: The same of logistic regression on the same folds; NaN where it was not fitted.
        y: Label; -1 where it is not known.
        row: Row number in the table.
        site: Index into the DataModules' ``sites``; -1 for one not seen before.
        spread: Standard deviation of the members' probabilities.
    """

    prob: Floats
    baseline: Floats
    y: NDArray[np.int64]
    row: NDArray[np.int64]
    site: NDArray[np.int64]
    spread: Floats


@dataclass(frozen=True)
class Member:
    """One net of an ensemble, with the medians and scales it was trained under."""

    stage: str
    dm: EHRDataModule
    model: LitClassifier

    def logits(self, batch: Batch) -> Floats:
        """Return the net's log odds of each row."""
        was_training, shift = self.model.training, self.model.logit_shift
        self.model.eval()
        with torch.no_grad():
            parts = [self.model(x.to(self.model.device)).float() for x in batch.x.split(_AT_ONCE)]
        self.model.train(was_training)
        return torch.cat(parts).double().cpu().numpy() + shift

    def prob(self, batch: Batch, *, weight: float = 1.0) -> Floats:
        """Return P(y = 1) from log odds ``weight`` of the way from the baseline's to the net's."""
        logits = self.logits(batch)
        if weight != 1:
            start = self.dm.baseline.logits(batch.x)
            logits = start + weight * (logits - start)
        return expit(logits)

    def baseline_prob(self, batch: Batch) -> Floats:
        """Return what logistic regression on this member's training rows says."""
        if self.dm.baseline_c is None:
            return np.full(len(batch.y), np.nan)
        return self.dm.baseline.prob(batch.x)


def held_out_weight(members: Sequence[Member]) -> float:
    """Choose the weight on the held-out folds; 1 where there is no baseline to weigh against."""
    if any(member.dm.baseline_c is None for member in members):
        return 1.0
    batches = [member.dm.rows("val") for member in members]
    pairs = list(zip(members, batches, strict=True))
    start = np.concatenate([member.dm.baseline.logits(batch.x) for member, batch in pairs])
    logits = np.concatenate([member.logits(batch) for member, batch in pairs])
    return best_weight(start, logits, np.concatenate([batch.y.numpy() for batch in batches]))


def best_weight(start: Floats, logits: Floats, y: NDArray[np.int64]) -> float:
    """Return the weight in [0, 1] between two sets of log odds with the least cross entropy.

    The cross entropy is convex in it, so its slope is bisected.
    """
    added = logits - start

    def slope(weight: float) -> float:
        return float(np.sum(added * (expit(start + weight * added) - y)))

    if slope(0.0) >= 0:
        return 0.0
    if slope(1.0) <= 0:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return (low + high) / 2
