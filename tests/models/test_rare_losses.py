"""Losses for a rare class: their values, and probabilities that have the prior again."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from medkit.data.batches import Batch
from medkit.models.classifier import LitClassifier
from medkit.models.rare_losses import LOSSES, loss_sum, prior_shift, require_loss

LOGITS, Y = torch.tensor([0.3, -2.0, 1.5, 0.0]), torch.tensor([1, 0, 0, 1])


def test_focal_is_that_of_its_paper() -> None:
    total = 0.0
    for z, y in zip(LOGITS.tolist(), Y.tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        of_truth, alpha = (p, 0.25) if y else (1 - p, 0.75)
        total += -alpha * (1 - of_truth) ** 2 * math.log(of_truth)
    assert float(loss_sum("focal", LOGITS, Y, None)) == pytest.approx(total, rel=1e-5)


def test_positives_count_as_all_negatives_together() -> None:
    bce = F.binary_cross_entropy_with_logits(LOGITS, Y.float(), reduction="none")
    expected = float((bce * torch.tensor([4.0, 1, 1, 4])).sum())
    assert float(loss_sum("pos_weight", LOGITS, Y, 0.2)) == pytest.approx(expected, rel=1e-6)


def test_adjusted_logits_are_cross_entropy_with_the_priors_log_odds() -> None:
    shifted = LOGITS + math.log(0.2 / 0.8)
    expected = F.binary_cross_entropy_with_logits(shifted, Y.float(), reduction="sum")
    assert float(loss_sum("logit adjusted", LOGITS, Y, 0.2)) == pytest.approx(float(expected))


@pytest.mark.parametrize("name", ["cross entropy", "pos_weight", "logit adjusted"])
def test_what_knows_nothing_but_the_prior_ends_at_the_prior(name: str) -> None:
    y = (torch.arange(1000) < 50).long()
    z = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = loss_sum(name, z.expand(1000), y, 0.05)
        total.backward()
        return total

    optimizer.step(loss)
    prob = torch.sigmoid(z.detach() + prior_shift(name, 0.05))
    assert float(prob) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_sums_over_parts_of_a_batch_add_up(name: str) -> None:
    whole = loss_sum(name, LOGITS, Y, 0.1)
    parts = loss_sum(name, LOGITS[:1], Y[:1], 0.1) + loss_sum(name, LOGITS[1:], Y[1:], 0.1)
    torch.testing.assert_close(whole, parts)


def test_the_module_trains_on_its_loss_and_validates_on_cross_entropy() -> None:
    args: dict[str, Any] = {"inputs": 3, "dropout": 0.0}
    module = LitClassifier("medkit.models.nets:mlp", args, loss="pos_weight", prior=0.1)
    batch = Batch(torch.randn(4, 3), Y, torch.arange(4), torch.zeros(4, dtype=torch.long))
    total, weight = module.loss_terms(batch)
    assert float(total) == pytest.approx(
        float(loss_sum("pos_weight", module(batch.x), batch.y, 0.1)), rel=1e-6
    )
    assert weight == 4
    assert module.logit_shift == pytest.approx(math.log(0.1 / 0.9))
    plain = torch.sigmoid(module(batch.x) + module.logit_shift)
    torch.testing.assert_close(module.prob(batch.x), plain)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="loss must be one of"):
        require_loss("dice", None)
    for prior in (None, 0.0, 1.0):
        with pytest.raises(ValueError, match=r"needs the share of label 1.*prior=dm\.prior"):
            require_loss("logit adjusted", prior)
