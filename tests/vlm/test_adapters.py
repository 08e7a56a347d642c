from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("peft", reason="the extra vlm is not installed")

from medkit.data.encoded import padded
from medkit.vlm.adapters import Adapters, merged
from medkit.vlm.extra import require
from medkit.vlm.groups import groups_of, linear_layers
from medkit.vlm.model import LitVLM
from medkit.vlm.tutorial import tutorial_model
from tests.vlm.families import EACH, internvl, llava
from tests.vlm.test_packing import conversations

Build = Callable[[], Any]


def drawn(adapted: Any) -> None:
    """Give the adapters weights as after a training: as they are made, they add nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02)  # as weights are drawn


def logits(model: Any, some: Any) -> Tensor:
    batch = padded([some], 0)
    batch.pop("labels")
    if hasattr(getattr(model, "model", None), "get_rope_index") or "image_grid_thw" in batch:
        batch["mm_token_type_ids"] = (batch["input_ids"] == 3).int()
    found: Tensor = model(**batch).logits
    return found


@pytest.mark.parametrize("build", EACH)
@pytest.mark.parametrize("group", ["vision", "llm"])
def test_adapters_are_in_their_group_alone(build: Build, group: str) -> None:
    model = build()
    before = groups_of(model)
    adapted = Adapters(groups=(group,)).add_to(model)
    trained = [name for name, value in adapted.named_parameters() if value.requires_grad]
    assert trained
    after = groups_of(adapted)
    assert {after[name] for name in trained} == {group}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * len(linear_layers(build(), [group]))
    assert set(before.values()) == set(after.values())


@pytest.mark.parametrize("build", EACH)
@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_to_merge_them_changes_nothing(build: Build, dora: bool) -> None:
    torch.manual_seed(0)
    model = build().eval()
    (one, *_) = conversations(model)
    adapted = Adapters(use_dora=dora, lora_dropout=0.0).add_to(model)
    with torch.no_grad():
        bare = logits(adapted, one)
    drawn(adapted)
    plain, error = merged(adapted, lambda m: logits(m, one))
    assert error <= 1e-6
    assert not any("lora" in name for name, _ in plain.named_parameters())
    with torch.no_grad():
        assert (logits(plain, one) - bare).abs().max() > 1e-3


def test_targets_and_layers_to_skip_are_whole_names() -> None:
    layer = "model.language_model.layers.1"
    adapted = Adapters(groups=("llm",), targets=("q_proj", "v_proj"), skip=(layer,)).add_to(
        internvl()
    )
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert len(trained) == 4
    assert all(".layers.0.self_attn." in name for name in trained)
    with pytest.raises(ValueError, match=r"'query' is none of \[.*'q_proj'"):
        Adapters(groups=("llm",), targets=("query",)).add_to(internvl())
    with pytest.raises(ValueError, match=r"skip must name layers as a whole; \['layers.1'\]"):
        Adapters(groups=("llm",), skip=("layers.1",)).add_to(internvl())


def test_a_layer_whose_weight_is_only_read_gets_none() -> None:
    parts = {"eye": nn.MultiheadAttention(8, 2), "text": nn.Linear(8, 8), "lead": nn.Linear(8, 8)}
    prefixes = {"vision": ["eye"], "llm": ["text"], "aligner": ["lead"]}
    model = nn.ModuleDict(parts)
    assert linear_layers(model, ["vision", "llm"], prefixes) == ["text"]  # not eye.out_proj


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_convolutions_get_one_where_it_is_asked_for(dora: bool) -> None:
    torch.manual_seed(0)
    pixels = torch.rand(1, 1, 64, 64)
    own = Adapters(groups=("vision",), convolutions=True, use_dora=dora, lora_dropout=0.0)
    adapted = own.add_to(tutorial_model(vocabulary=32))
    drawn(adapted)
    trained = [name for name, value in adapted.named_parameters() if value.requires_grad]
    assert len(trained) == 4 * (3 if dora else 2)  # layers of the stem
    stem = lambda m: m.get_image_features(pixel_values=pixels).last_hidden_state  # noqa: E731
    plain, error = merged(adapted, stem)
    assert error <= 1e-6
    assert len(linear_layers(plain, ["vision"], convolutions=True)) == 4


@pytest.mark.parametrize("build", EACH)
def test_norms_are_trained_beside_them_in_their_group_alone(build: Build) -> None:
    with_norms = Adapters(groups=("llm",), norms=True).add_to(build())
    bare = Adapters(groups=("llm",)).add_to(build())
    before, of = dict(bare.named_parameters()), groups_of(with_norms)
    more = {
        name
        for name, value in with_norms.named_parameters()
        if value.requires_grad and not before[name].requires_grad
    }
    norms = {n for n in before if n.rpartition(".")[0].endswith("norm") and of[n] == "llm"}
    assert norms <= more
    assert {of[name] for name in more} == {"llm"}
    assert all(before[name].ndim == 1 for name in more)


def stem_of(lit: LitVLM) -> Any:
    return lit.model.get_base_model().model.vision_tower.layers


@pytest.mark.parametrize("norms", [False, True])
def test_what_a_norm_keeps_of_pictures_moves_with_norms_alone_and_is_in_the_checkpoint(
    norms: bool,
) -> None:
    lora = {"groups": ["vision"], "convolutions": True, "norms": norms}
    lit = LitVLM("medkit.vlm.tutorial:tutorial_model", {"vocabulary": 32}, lora=lora)
    lit.frozen.set_modes()
    before = {name: value.clone() for name, value in stem_of(lit).named_buffers()}
    digest = lit.frozen.digest()
    stem_of(lit)(torch.rand(4, 1, 64, 64))
    moved = {n for n, value in stem_of(lit).named_buffers() if not torch.equal(value, before[n])}
    assert moved == (set(before) if norms else set())
    assert lit.frozen.digest() == digest
    checkpoint: dict[str, Any] = {"state_dict": lit.state_dict()}
    lit.on_save_checkpoint(checkpoint)
    kept = {name for name in checkpoint["state_dict"] if "running_mean" in name}
    assert len(kept) == (4 if norms else 0)


def test_norms_to_skip_stay_and_none_at_all_is_an_error() -> None:
    stem = "model.vision_tower.layers"
    own = Adapters(groups=("vision",), convolutions=True, norms=True, skip=(f"{stem}.1",))
    adapted = own.add_to(tutorial_model(vocabulary=32))
    trained = {n for n, v in adapted.named_parameters() if v.requires_grad and "lora" not in n}
    assert {name.removeprefix("base_model.model.").rpartition(".")[0] for name in trained} == {
        f"{stem}.{at}" for at in (4, 7, 10)
    }
    with pytest.raises(ValueError, match=r"norms asks for norms to train, and \('aligner',\)"):
        Adapters(groups=("aligner",), norms=True).add_to(tutorial_model(vocabulary=32))


def test_adapters_and_norms_are_merged_into_the_model_that_was_trained() -> None:
    torch.manual_seed(0)
    pixels = torch.rand(2, 1, 64, 64)
    own = Adapters(groups=("vision",), convolutions=True, norms=True, lora_dropout=0.0)
    stem = lambda m: m.get_image_features(pixel_values=pixels).last_hidden_state  # noqa: E731
    model = tutorial_model(vocabulary=32).eval()
    bare = stem(model)
    adapted = own.add_to(model)
    drawn(adapted)
    adapted.train()
    stem(adapted)  # the norms see pictures
    plain, error = merged(adapted, stem)
    assert error <= 1e-6
    assert (stem(plain) - bare).abs().max() > 1e-2
    norm = plain.get_submodule("model.vision_tower.layers.1")
    assert norm.running_mean.abs().max() > 0


def test_a_group_can_be_trained_in_full_beside_them() -> None:
    adapted = Adapters(groups=("llm",), full=("aligner",)).add_to(llava())
    of = groups_of(adapted)
    for name, value in adapted.named_parameters():
        assert value.requires_grad == (of[name] == "aligner" or "lora_" in name)


def test_a_module_trains_them_and_keeps_little() -> None:
    args: dict[str, Any] = {
        "model": "medkit.vlm.tutorial:tutorial_model",
        "model_args": {"vocabulary": 64, "hidden": 64, "layers": 1},
    }
    import medkit.vlm.tutorial  # noqa: F401 - the factory's module

    lit = LitVLM(**args, lora={"groups": ["llm"], "lora_rank": 4})
    table = lit.frozen.table()
    assert table.loc["vision", "trained"] == table.loc["aligner", "trained"] == 0
    assert 0 < table.loc["llm", "share"] < 0.2
    checkpoint: dict[str, Any] = {"state_dict": lit.state_dict()}
    lit.on_save_checkpoint(checkpoint)
    assert all("lora_" in name or name.startswith("val_") for name in checkpoint["state_dict"])
    with pytest.raises(ValueError, match="by freeze or by lora, not by both"):
        LitVLM(**args, lora={}, freeze={"freeze_vit": True})


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lora has the keys .*found \['rank'\]"):
        Adapters.of({"rank": 4})
    with pytest.raises(ValueError, match="Name each once"):
        Adapters(groups=("llm",), full=("llm",))
    with pytest.raises(ValueError, match="Name each once"):
        Adapters(groups=("language",))
    with pytest.raises(ValueError, match="a lora_rank of 1 or more"):
        Adapters(lora_rank=0)


def test_bitsandbytes_is_quiet_about_a_kernel_that_is_not_used_and_about_that_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    require("peft")
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "none")
    logger.warning("something else")
    assert caplog.messages == ["something else"]
