"""MONAI's nets under LitClassifier, and the norm under which they would not learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medkit.models.classifier import LitClassifier
from medkit.models.ct_net import CandidateNet
from medkit.models.monai_nets import refuse_norm_under_mean


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet", {"channels": (4, 8, 8, 8)}),
        ("densenet", {"init_features": 4, "growth_rate": 4}),
        ("vit", {"hidden": 24, "layers": 2, "heads": 2}),
    ],
)
def test_a_net_gives_a_logit_a_patch_and_comes_back_from_its_checkpoint(
    name: str, settings: dict[str, Any]
) -> None:
    module = LitClassifier(f"medkit.models.monai_nets:{name}", settings).eval()
    x = torch.randn(2, 1, 24, 24, 24)
    logits = module(x)
    assert logits.shape == (2,)
    logits.sum().backward()
    again = LitClassifier(**module.hparams).eval()
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(again(x), logits)


@pytest.mark.parametrize("norm", ["instance", ("group", {"num_groups": 2})])
def test_a_norm_over_space_under_a_mean_over_space_is_refused(norm: Any) -> None:
    with pytest.raises(ValueError, match=r"must not follow a norm over space.*norm='batch'"):
        LitClassifier("medkit.models.monai_nets:densenet", {"norm": norm})


def test_what_sees_a_place_is_allowed_and_the_net_is_left_as_it_was() -> None:
    net = CandidateNet(norm="group")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert refuse_norm_under_mean(net) is net
    assert net.training
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_batch_norm_between_makes_it_right() -> None:
    net = nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.GroupNorm(2, 4), nn.Conv3d(4, 4, 3), nn.BatchNorm3d(4),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 1),
    )  # fmt: skip
    refuse_norm_under_mean(net, size=8)
    net[3] = nn.Identity()
    with pytest.raises(ValueError, match="GroupNorm"):
        refuse_norm_under_mean(net, size=8)
