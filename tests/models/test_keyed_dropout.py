"""Masks belong to samples, not to batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medkit import keyed
from medkit.models.keyed_dropout import KeyedDropout, part_of_batch, swap_dropout
from medkit.models.masks import LeanDropout
from medkit.models.stacked import StackedNet


def dropped(
    layer: nn.Module, x: Tensor, key: int = 1, part: tuple[int, int] | None = None
) -> Tensor:
    with keyed.globals_keyed(key, "step", 0):
        if part is None:
            return layer(x)
        with part_of_batch(*part):
            return layer(x)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (7, 3, 4, 4), (7, 33)])
def test_parts_have_the_masks_of_the_whole(shape: tuple[int, ...], per_channel: bool) -> None:
    layer, x = KeyedDropout(0.4, per_channel=per_channel), torch.ones(shape)
    whole = dropped(layer, x)
    for first, count in ((0, 3), (3, 1), (4, 3)):
        part = dropped(layer, x[first : first + count], part=(first, count))
        assert torch.equal(part, whole[first : first + count])


def test_time_steps_folded_behind_their_samples_are_split_with_them() -> None:
    layer, x = KeyedDropout(0.4), torch.ones(6, 4, 5)
    whole = dropped(layer, x.flatten(0, 1))
    part = dropped(layer, x[2:5].flatten(0, 1), part=(2, 3))
    assert torch.equal(part, whole.view(6, 4, 5)[2:5].flatten(0, 1))


def test_a_mask_is_a_function_of_the_key_and_of_nothing_drawn_before() -> None:
    layer, x = KeyedDropout(0.5), torch.ones(16, 64)
    first = dropped(layer, x)
    torch.rand(5)
    assert torch.equal(dropped(layer, x), first)
    assert not torch.equal(dropped(layer, x, key=2), first)


def test_layers_and_samples_have_masks_of_their_own() -> None:
    net = nn.Sequential(KeyedDropout(0.5), KeyedDropout(0.5))
    kept = dropped(net, torch.ones(64, 64)) > 0
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.03)  # both, independently
    rows = dropped(net[0], torch.ones(64, 64)) > 0
    assert len({tuple(row) for row in rows.tolist()}) == 64


def test_a_share_p_is_dropped_and_the_rest_scaled_up() -> None:
    x = torch.ones(200, 1000)
    y = dropped(KeyedDropout(0.3), x)
    assert float((y == 0).float().mean()) == pytest.approx(0.3, abs=0.005)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.01)
    assert len(y.unique()) == 2


def test_a_channel_is_dropped_whole() -> None:
    y = dropped(KeyedDropout(0.5, per_channel=True), torch.ones(8, 16, 3, 3))
    assert (y.flatten(2).std(dim=2) == 0).all()
    assert 0 < float((y == 0).float().mean()) < 1


def test_nothing_is_dropped_in_evaluation() -> None:
    x = torch.ones(3, 4)
    assert torch.equal(KeyedDropout(0.9).eval()(x), x)


def test_layers_of_torch_are_swapped_by_name_and_the_net_computes_on() -> None:
    net = nn.Sequential(
        nn.Linear(3, 4), nn.Dropout(0.2), nn.Sequential(LeanDropout(0.1)), nn.Dropout2d(0.3)
    )
    before = net.state_dict().keys()
    assert swap_dropout(net) == ["1", "3", "2.0"]
    assert net.state_dict().keys() == before
    assert (net[1].p, net[2][0].p, net[3].per_channel) == (0.2, 0.1, True)
    assert "KeyedDropout(p=0.3, per_channel=True)" in str(net)


def test_members_of_a_stack_cannot_have_it() -> None:
    nets = [nn.Sequential(nn.Linear(3, 4), KeyedDropout(0.2), nn.Linear(4, 1)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"nets are stacked where.*found KeyedDropout"):
        StackedNet(nets)


def test_a_share_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"from 0 to below 1, got 1\.0.*usual"):
        KeyedDropout(1.0)


def test_samples_that_are_not_the_first_axis_are_refused() -> None:
    message = r"must be the 4 samples.*got \(5, 4, 3\).*Put the samples first"
    with part_of_batch(0, 4), pytest.raises(ValueError, match=message):
        KeyedDropout(0.5)(torch.ones(5, 4, 3))
