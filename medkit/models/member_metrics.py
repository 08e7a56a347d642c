"""Loss, AUROC, average precision and Brier score of many score vectors on the same rows at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("loss", "auroc", "auprc", "brier")


def of_members(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return each metric of each member and, last, of the mean of their probabilities.

    AUROC and average precision count ties as torchmetrics does, on probabilities in float32; NaN
    where only one class is there, and for a member that has diverged. One sort for all members, in
    place of four metric objects each.

    Args:
        logits: ``(S, N)``.
        y: Labels 0 and 1, ``(N,)``.

    Returns:
        Metric -> float64 ``(S + 1,)``.
    """
    prob = torch.sigmoid(logits.float()).double()
    mean = prob.mean(0, keepdim=True)
    labels = y.double().expand(len(logits), -1)
    own = F.binary_cross_entropy_with_logits(logits.double(), labels, reduction="none").mean(1)
    tiny = torch.finfo(torch.float64).tiny
    together = -(y * mean.clamp(min=tiny).log() + (1 - y) * (1 - mean).clamp(min=tiny).log()).mean(
        1
    )
    everyone = torch.cat([prob, mean])
    auroc, precision = _ranking(everyone, y)
    return {
        "loss": torch.cat([own, together]),
        "auroc": auroc,
        "auprc": precision,
        "brier": (everyone - y.double()).square().mean(1),
    }


def _ranking(score: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return AUROC and average precision of each row of ``score``."""
    score, order = score.float().sort(dim=1, descending=True)
    positive = y.double()[order]
    count = score.shape[1]
    at = torch.arange(count, device=score.device).expand_as(order)
    differs = score[:, 1:] != score[:, :-1]
    edge = differs.new_ones(len(score), 1)
    first = at.where(torch.cat([edge, differs], 1), 0).cummax(1).values  # of those with this score
    last = at.where(torch.cat([differs, edge], 1), count).flip(1).cummin(1).values.flip(1)
    hits = positive.cumsum(1)
    misses = (1 - positive).cumsum(1)
    before = (misses - (1 - positive)).gather(1, first)  # negatives with a higher score
    upto = misses.gather(1, last)
    found = hits.gather(1, last)
    positives, negatives = hits[:, -1], misses[:, -1]
    below = negatives[:, None] - (before + upto) / 2  # ties count half
    auroc = (positive * below).sum(1) / (positives * negatives)
    precision = (positive * found / (found + upto)).sum(1) / positives
    lost = score.isnan().any(1)  # they would be sorted like any number
    return auroc.masked_fill(lost, torch.nan), precision.masked_fill(lost, torch.nan)
