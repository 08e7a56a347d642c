"""Losses for a rare class, each with what puts the prior back into its logits.

None replaces batches that are half positive on a fixed budget: on made-up nodules at 1:50, after
500 steps, AUROC at a new hospital is .93 with those, and .60 to .78 under any of these with rows as
they come (notebook 09). With four times the steps plain cross entropy is there, too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "loss_sum", "prior_shift", "require_loss"]

LOSSES = ("cross entropy", "focal", "pos_weight", "logit adjusted")
_ALPHA, _GAMMA = 0.25, 2.0


def require_loss(name: str, prior: float | None) -> None:
    """Refuse a loss that is not known, and one that needs a prior without it.

    Raises:
        ValueError: See there.
    """
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {list(LOSSES)}, got {name!r}. The first is usual.")
    needs = name in ("pos_weight", "logit adjusted")
    if needs and (prior is None or not 0 < prior < 1):
        raise ValueError(
            f"loss={name!r} needs the share of label 1 in the training rows, got prior={prior}. "
            "Pass prior=dm.prior."
        )


def loss_sum(name: str, logits: Tensor, y: Tensor, prior: float | None) -> Tensor:
    """Return the loss summed over rows, in float32 whatever the autocast.

    * "cross entropy".
    * "focal": alpha 0.25 and gamma 2 (Lin et al. 2017); its probabilities are no probabilities
      until they are recalibrated.
    * "pos_weight": positives count as much as all negatives together.
    * "logit adjusted": the prior's log odds are added in training (Menon et al. 2021), so that the
      logits are those of balanced classes.

    Args:
        name: Of :data:`LOSSES`.
        logits: ``(B,)``.
        y: 0 and 1, ``(B,)``.
        prior: Share of label 1 in the training rows.
    """
    logits, labels = logits.float(), y.float()
    if name == "focal":
        bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        wrong = torch.sigmoid(logits) * (1 - labels) + torch.sigmoid(-logits) * labels
        weight = _ALPHA * labels + (1 - _ALPHA) * (1 - labels)
        return (weight * wrong**_GAMMA * bce).sum()
    if name == "pos_weight":
        assert prior is not None
        weight = logits.new_tensor((1 - prior) / prior)
        return F.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=weight, reduction="sum"
        )
    if name == "logit adjusted":
        assert prior is not None
        logits = logits + _log_odds(prior)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


def prior_shift(name: str, prior: float | None) -> float:
    """Return what is added to the logits after training, so that they are those of the prior.

    For "focal" there is no such number, and 0 is returned: fit slope and intercept on held-out
    rows.
    """
    if name in ("pos_weight", "logit adjusted"):
        assert prior is not None
        return _log_odds(prior)
    return 0.0


def _log_odds(prior: float) -> float:
    return math.log(prior / (1 - prior))
