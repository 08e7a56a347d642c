from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("peft", reason="the extra vlm is not installed")

import transformers

from medkit.data.encoded import Encoded, given, padded
from medkit.vlm.adapters import Adapters
from medkit.vlm.language_part import language_model, prompt_embeddings
from medkit.vlm.sampling import evaluating
from medkit.vlm.tutorial import SPECIAL, tutorial_model
from tests.vlm import families
from tests.vlm.test_packing import conversations

Build = Callable[[], Any]


def llava_of(kind: str) -> Build:
    """A LLaVA around another language part."""

    def build() -> Any:
        config = families.llava().config
        config.text_config = getattr(transformers, f"{kind}Config")(**families.TEXT, head_dim=8)
        return transformers.LlavaForConditionalGeneration(config)

    return build


ALONE = [
    *(getattr(families, name) for name in ("llava", "smolvlm", "internvl", "llava_onevision")),
    *(families.idefics3, llava_of("Mistral"), llava_of("Qwen3")),
]


def moved(model: Any, seed: int) -> Any:
    """Draw all adapters away from zero, and the statistics of BatchNorm."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value += 0.1 * torch.randn(value.shape, generator=draw, dtype=value.dtype)
        for name, value in model.named_buffers():
            if "running" in name:
                value += torch.rand(value.shape, generator=draw, dtype=value.dtype)
    return model


def adapted(build: Build, seed: int = 1, **lora: Any) -> tuple[Any, list[Encoded]]:
    torch.manual_seed(0)
    model = build()
    prompts = conversations(model)
    model = Adapters.of({"lora_rank": 4, "lora_dropout": 0.5} | lora).add_to(model)
    return moved(model, seed), prompts


def tutorial() -> tuple[Any, list[Encoded]]:
    torch.manual_seed(0)
    lora = {"groups": ["vision", "llm"], "lora_rank": 4, "convolutions": True, "norms": True}
    model = Adapters.of(lora).add_to(tutorial_model(vocabulary=64))
    image = torch.full((16,), SPECIAL.index("<image>"))
    prompts = []
    for number in range(4):
        ids = torch.cat([torch.tensor([1]), image, torch.arange(10, 14 + 3 * number)])
        prompts.append(Encoded(ids, ids, {"pixel_values": torch.randn(1, 1, 64, 64)}))
    return moved(model, 1), prompts


def largest_difference(model: Any, prompts: list[Encoded]) -> float:
    """Of logits of the part that stands alone from those of the whole, over the largest."""
    batch = given(padded(prompts, 0))
    batch |= {k: v.to(model.dtype) for k, v in batch.items() if v.is_floating_point()}
    prompts = [
        replace(one, pictures={k: v.to(batch[k].dtype) for k, v in one.pictures.items()})
        for one in prompts
    ]
    with evaluating(model), torch.no_grad():
        whole = model(**batch).logits
        found = prompt_embeddings(model, prompts, 0)
    config, state = language_model(model)
    alone = transformers.AutoModelForCausalLM.from_config(config, dtype=config.dtype).eval()
    alone.load_state_dict(state)
    differences = []
    for row, one in enumerate(found):
        with torch.no_grad():
            logits = alone(inputs_embeds=one[None]).logits[0]
        differences.append((logits - whole[row, : len(one)]).abs().max())
    return float(torch.stack(differences).max() / whole.abs().max())


@pytest.mark.parametrize("build", ALONE)
def test_the_part_alone_answers_as_the_whole_with_its_adapters(build: Build) -> None:
    model, prompts = adapted(build)
    assert largest_difference(model, prompts) < 1e-5
    assert largest_difference(model.double(), prompts) < 1e-12


def test_so_does_that_of_a_stem_of_convolutions_with_trained_norms() -> None:
    model, prompts = tutorial()
    assert largest_difference(model.double(), prompts) < 1e-12


def test_and_that_of_adapters_by_direction_and_length() -> None:
    model, prompts = adapted(families.llava, use_dora=True)
    assert largest_difference(model.double(), prompts) < 1e-12


def test_and_that_of_four_bit_weights() -> None:
    pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    four = {"quant_bits": 4, "quant_groups": ["llm"]}
    model, prompts = adapted(families.llava, **four)
    assert largest_difference(model, prompts) < 1e-5
    with pytest.raises(ValueError, match="Set use_dora to False"):
        language_model(adapted(families.llava, use_dora=True, **four)[0])


def test_each_part_moves_what_is_read() -> None:
    """Else the adapters of the tests above would do nothing."""
    model, prompts = adapted(families.llava)
    with evaluating(model):
        before = prompt_embeddings(model, prompts, 0)
        with model.disable_adapter():
            after = prompt_embeddings(model, prompts, 0)
            plain = language_model(model)[1]
    assert not torch.allclose(before[0], after[0])
    assert torch.equal(before[1], after[1])  # has no picture
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(language_model(model)[1][name], plain[name])
    base = model.get_base_model().model.language_model.layers[0].self_attn.q_proj.base_layer
    assert torch.equal(plain[name], base.weight)


def test_the_model_stays_as_it_is_to_the_bit() -> None:
    model, prompts = adapted(families.llava)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prompt_embeddings(model, prompts, 0)
    language_model(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with evaluating(model), torch.no_grad():
        model(**given(padded(prompts, 0)))  # no hook is left behind


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "paligemma", "blip2"])
def test_a_part_that_cannot_stand_alone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"that of .* is '.*'.*by HFSampler\."):
        language_model(getattr(families, name)())


@pytest.mark.parametrize(
    ("name", "told"),
    [("qwen2_5_vl", "position_ids"), ("qwen3_vl", "position_ids"), ("paligemma", "attention_mask")],
)
def test_and_so_is_one_that_is_told_more_than_embeddings(name: str, told: str) -> None:
    model = getattr(families, name)()
    kinds = {"mm_token_type_ids": 3} if "qwen" in name else {"token_type_ids": 99}
    prompts = [replace(one, kinds=kinds) for one in conversations(model)]
    with pytest.raises(ValueError, match=rf"tells its own more, by .*{told}.*by HFSampler\."):
        prompt_embeddings(model.eval(), prompts, 0)


def test_a_model_that_keeps_its_language_part_elsewhere_is_refused() -> None:
    model, prompts = adapted(families.llava)
    other = torch.nn.Identity()
    model.get_decoder = lambda: other
    with pytest.raises(RuntimeError, match="without calling its get_decoder"):
        prompt_embeddings(model, prompts, 0)
