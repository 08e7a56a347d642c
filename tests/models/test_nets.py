from __future__ import annotations

import pytest
import torch
from torch import nn

from medkit.models.nets import build, cnn2d, mlp


def test_mlp_maps_rows_to_one_logit() -> None:
    assert mlp(inputs=5, hidden=[4, 3])(torch.zeros(7, 5)).shape == (7, 1)


def test_mlp_without_hidden_layers_is_linear() -> None:
    net = mlp(inputs=5, hidden=[])
    assert [type(layer) for layer in net] == [nn.Linear]


def test_mlp_drops_out_only_where_asked() -> None:
    kinds = [[type(m) for m in mlp(inputs=2, dropout=p)] for p in (0.0, 0.5)]
    assert [nn.Dropout in kind for kind in kinds] == [False, True]


def test_mlp_takes_the_activation_it_is_told() -> None:
    kinds = [type(mlp(inputs=2, hidden=[3], **given)[1]) for given in ({}, {"activation": "gelu"})]
    assert kinds == [nn.ReLU, nn.GELU]


def test_an_activation_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of \['relu', 'gelu'\], got 'swish'.*its factory"):
        mlp(inputs=2, activation="swish")


def test_cnn2d_maps_images_of_any_size_to_one_logit() -> None:
    net = cnn2d(channels=3, width=4).eval()
    assert net(torch.zeros(2, 3, 28, 28)).shape == (2, 1)
    assert net(torch.zeros(2, 3, 17, 40)).shape == (2, 1)


def test_a_net_is_built_from_its_factorys_name() -> None:
    net = build("medkit.models.nets:mlp", {"inputs": 3, "hidden": [2], "dropout": 0.0})
    assert [p.shape for p in net.parameters()] == [(2, 3), (2,), (1, 2), (1,)]


def test_a_class_of_nets_is_a_factory_too() -> None:
    assert isinstance(build("torch.nn:Linear", {"in_features": 2, "out_features": 1}), nn.Linear)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",  # callable and imported, but no net
        "torch.hub:load",  # gives a net, by running code from the network
        "antigravity:fly",  # importing it does something
        "medkit.models.nets:import_module",
        "mlp",
    ],
)
def test_a_name_that_makes_no_net_is_never_called(name: str) -> None:
    with pytest.raises(ValueError, match=r"named 'package\.module:factory'.*got '.*don't load it"):
        build(name, {})


def test_a_misspelt_factory_is_told_from_the_names_that_are_there() -> None:
    said = r"medkit\.models\.monai_nets has no 'resnt'; it has \['densenet', .*'resnet', 'vit'\]"
    with pytest.raises(ValueError, match=said):
        build("medkit.models.monai_nets:resnt", {})
