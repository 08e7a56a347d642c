from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from medkit.vlm.groups import FreezePolicy, groups_of
from tests.vlm.families import EACH, llava

Build = Callable[[], Any]


@pytest.mark.parametrize("build", EACH)
def test_every_parameter_is_in_exactly_one_group(build: Build) -> None:
    model = build()
    groups = groups_of(model)
    assert list(groups) == [name for name, _ in model.named_parameters()]
    assert set(groups.values()) == {"vision", "aligner", "llm"}
    tower = next(iter(model.get_input_embeddings().parameters()))
    (embedded,) = [name for name, value in model.named_parameters() if value is tower]
    assert groups[embedded] == "llm"


@pytest.mark.parametrize("build", EACH)
def test_what_is_frozen_has_no_gradient_and_is_in_evaluation_mode(build: Build) -> None:
    model = build()
    frozen = FreezePolicy(freeze_vit=True, freeze_llm=True).apply(model)
    groups = groups_of(model)
    for name, value in model.named_parameters():
        assert value.requires_grad == (groups[name] == "aligner")
    model.train()
    frozen.set_modes()
    for _, module in model.named_modules():
        own = list(module.parameters())
        if own:
            assert module.training == any(value.requires_grad for value in own)
    table = frozen.table()
    assert table.loc["vision", "trained"] == table.loc["llm", "trained"] == 0
    assert table.loc["all", "trained"] == table.loc["aligner", "trained"] > 0
    assert table.loc["all"][["trained", "frozen"]].sum() == sum(
        v.numel() for v in model.parameters()
    )


def test_layers_are_named_as_a_whole() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.ModuleDict({"vision_tower": nn.Linear(1, 1)})
            self.model["multi_modal_projector"] = nn.Linear(1, 1)
            layers = nn.ModuleList([nn.Linear(1, 1) for _ in range(12)])
            self.model["language_model"] = nn.ModuleDict({"layers": layers})

    model = Deep()
    FreezePolicy(freeze_parameters=("model.language_model.layers.1",)).apply(model)
    kept = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert kept == [f"model.language_model.layers.1.{part}" for part in ("weight", "bias")]


def test_what_is_to_be_trained_wins_over_what_is_frozen() -> None:
    model = llava()
    policy = FreezePolicy(
        freeze_vit=True, freeze_llm=True, trainable_parameters=("model.language_model.layers.1",)
    )
    policy.apply(model)
    trained = Counter(n.split(".")[1] for n, v in model.named_parameters() if v.requires_grad)
    assert set(trained) == {"multi_modal_projector", "language_model"}
    assert all(
        "layers.1." in n for n, v in model.named_parameters() if v.requires_grad and "language" in n
    )


@pytest.mark.parametrize("which", ["freeze_parameters", "trainable_parameters"])
def test_a_name_that_is_none_is_an_error(which: str) -> None:
    for wrong in ("model.vision_towr", "vision_tower", "model.language_model.layers.", "lm"):
        with pytest.raises(ValueError, match=f"{which} must name modules or parameters as a whole"):
            FreezePolicy(**{which: (wrong,)}).apply(llava())


def test_to_freeze_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="something must be trained"):
        FreezePolicy(freeze_vit=True, freeze_aligner=True, freeze_llm=True).apply(llava())


def test_a_family_that_is_not_known_asks_for_its_names() -> None:
    with pytest.raises(ValueError, match=r"'weight' of Linear is in none.*Pass prefixes="):
        groups_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"has none for \['vision'\]"):
        groups_of(nn.Linear(2, 2), {"vision": ["eye"], "llm": ["weight", "bias"]})


def test_the_digest_is_of_what_is_frozen_alone() -> None:
    model = llava()
    frozen = FreezePolicy(freeze_vit=True).apply(model)
    before = frozen.digest()
    with torch.no_grad():
        model.lm_head.weight += 1
    assert frozen.digest() == before
    with torch.no_grad():
        next(model.model.vision_tower.parameters()).flatten()[0] += 1
    assert frozen.digest() != before
