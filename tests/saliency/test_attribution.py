from __future__ import annotations

import pytest
import torch
from torch import nn

from medkit.models.classifier import LitClassifier
from medkit.saliency.attribution import integrated_gradients


def test_a_linear_model_gives_weight_times_distance_from_the_baseline() -> None:
    model = nn.Linear(3, 1)
    x, baseline = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0.5, 0.0, -1.0])
    got = integrated_gradients(model, x, baseline=baseline)
    torch.testing.assert_close(got.values, model.weight.detach() * (x - baseline))


def test_shares_add_up_to_the_change_of_the_logit() -> None:
    torch.manual_seed(0)
    model = LitClassifier("medkit.models.nets:mlp", {"inputs": 4}).eval()
    x = torch.randn(6, 4)
    got = integrated_gradients(model, x, steps=256)
    change = model(x) - model(torch.zeros(6, 4))
    torch.testing.assert_close(got.values.sum(1), change.detach(), atol=0.01, rtol=0.05)
    assert got.delta.abs().max() < 0.02
    assert got.values.shape == x.shape


def test_dropout_is_off_and_the_mode_is_put_back() -> None:
    model = LitClassifier("medkit.models.nets:mlp", {"inputs": 4, "dropout": 0.5}).train()
    x = torch.ones(2, 4)
    one, other = (integrated_gradients(model, x).values for _ in range(2))
    assert torch.equal(one, other)
    assert model.training


def test_parameters_keep_no_gradient() -> None:
    model = nn.Linear(3, 1)
    integrated_gradients(model, torch.ones(2, 3))
    assert model.weight.grad is None


def test_something_that_is_not_a_table_is_refused() -> None:
    for rows in (torch.ones(3), torch.ones(0, 3), torch.ones(2, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"\(B, F\), of floating.*got shape .*x\[None\]"):
            integrated_gradients(nn.Linear(3, 1), rows)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps must be at least 1.* got 0\. 64"):
        integrated_gradients(nn.Linear(3, 1), torch.ones(2, 3), steps=0)
