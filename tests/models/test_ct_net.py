from __future__ import annotations

import pytest
import torch

from medkit.models.ct_net import CandidateNet
from medkit.models.nets import build


def test_it_is_small_and_a_checkpoint_can_rebuild_it() -> None:
    net = build("medkit.models.ct_net:CandidateNet", {"norm": "batch"})
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(52_000, rel=0.01)
    assert net(torch.zeros(3, 1, 24, 24, 24)).shape == (3, 1)
    assert net(torch.zeros(2, 1, 16, 16, 8)).shape == (2, 1)


def test_the_head_sees_the_mean_and_the_voxel_in_the_middle() -> None:
    net, x = CandidateNet().eval(), torch.randn(2, 1, 24, 24, 24)
    found = net.features(x)
    assert found.shape == (2, 32, 3, 3, 3)
    net.head.weight.data.zero_()
    net.head.bias.data.zero_()
    net.head.weight.data[0, 5] = 1
    torch.testing.assert_close(net(x)[:, 0], found[:, 5].flatten(1).mean(1))
    net.head.weight.data[0, 5], net.head.weight.data[0, 32 + 5] = 0, 1
    torch.testing.assert_close(net(x)[:, 0], found[:, 5, 1, 1, 1])


def test_group_norm_under_a_mean_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match=r"'group' under 'mean' learns nothing.*Take head="):
        CandidateNet(norm="group", head="mean")
    with pytest.raises(ValueError, match=r"norm must be one of.*got 'instance'"):
        CandidateNet(norm="instance")


def test_what_group_norm_hands_a_mean_is_next_to_nothing() -> None:
    """The reason in numbers: before the ReLU, the mean over space of each group is zero."""
    net = CandidateNet(norm="group")
    before = net.features[:-1](torch.randn(4, 1, 24, 24, 24))
    groups = before.reshape(4, 8, -1).mean(-1)
    assert groups.abs().max() < 1e-5
