"""Nine families of image-text models at sizes that a test can build, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

transformers = pytest.importorskip("transformers", reason="the extra vlm is not installed")

_BLOCKS: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
}  # fmt: skip
TEXT: dict[str, Any] = _BLOCKS | {
    "vocab_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_EYE = _BLOCKS | {"image_size": 32, "patch_size": 8}
_QWEN = {
    "image_token_id": 3,
    "video_token_id": 4,
    "vision_start_token_id": 5,
    "vision_end_token_id": 6,
}
_QWEN_EYE: dict[str, Any] = {
    "depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 8, "out_hidden_size": 64,
    "patch_size": 8, "spatial_merge_size": 2,
}  # fmt: skip


def llava() -> Any:
    t = transformers
    return t.LlavaForConditionalGeneration(
        t.LlavaConfig(
            vision_config=t.CLIPVisionConfig(**_EYE), text_config=t.LlamaConfig(**TEXT),
            image_token_index=3, vision_feature_layer=-1,
        )
    )  # fmt: skip


def llava_onevision() -> Any:
    t = transformers
    return t.LlavaOnevisionForConditionalGeneration(
        t.LlavaOnevisionConfig(
            vision_config=t.SiglipVisionConfig(**_EYE), text_config=t.Qwen2Config(**TEXT),
            image_token_index=3, video_token_index=4, image_grid_pinpoints=[[32, 32]],
            vision_feature_layer=-1,
        )
    )  # fmt: skip


def internvl() -> Any:
    t = transformers
    eye = t.InternVLVisionConfig(**_BLOCKS, image_size=[32, 32], patch_size=[8, 8])
    return t.InternVLForConditionalGeneration(
        t.InternVLConfig(
            vision_config=eye, text_config=t.Qwen2Config(**TEXT), image_token_id=3,
            image_seq_length=4, downsample_ratio=0.5,
        )
    )  # fmt: skip


def paligemma() -> Any:
    t = transformers
    return t.PaliGemmaForConditionalGeneration(
        t.PaliGemmaConfig(
            vision_config=t.SiglipVisionConfig(**_EYE),
            text_config=t.GemmaConfig(**TEXT, head_dim=8), image_token_index=3, projection_dim=64,
            hidden_size=64,
        )
    )  # fmt: skip


def smolvlm() -> Any:
    t = transformers
    return t.SmolVLMForConditionalGeneration(
        t.SmolVLMConfig(
            vision_config=_EYE, text_config=t.LlamaConfig(**TEXT), image_token_id=3,
            scale_factor=2, pad_token_id=0,
        )
    )  # fmt: skip


def idefics3() -> Any:
    t = transformers
    return t.Idefics3ForConditionalGeneration(
        t.Idefics3Config(
            vision_config=_EYE, text_config=t.LlamaConfig(**TEXT), image_token_id=3,
            scale_factor=2, pad_token_id=0,
        )
    )  # fmt: skip


def blip2() -> Any:
    t = transformers
    text = t.OPTConfig(
        vocab_size=64, hidden_size=64, ffn_dim=64, num_hidden_layers=2, num_attention_heads=8,
        max_position_embeddings=256, word_embed_proj_dim=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    former = _BLOCKS | {"vocab_size": 64, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
    return t.Blip2ForConditionalGeneration(
        t.Blip2Config(
            vision_config=_EYE, qformer_config=former, text_config=text, num_query_tokens=4,
            image_token_index=3,
        )
    )  # fmt: skip


def qwen2_5_vl() -> Any:
    t = transformers
    eye = _QWEN_EYE | {"window_size": 32, "fullatt_block_indexes": [1]}
    text = TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    return t.Qwen2_5_VLForConditionalGeneration(
        t.Qwen2_5_VLConfig(vision_config=eye, text_config=text, **_QWEN)
    )


def qwen3_vl() -> Any:
    t = transformers
    eye = _QWEN_EYE | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True}
    return t.Qwen3VLForConditionalGeneration(
        t.Qwen3VLConfig(
            vision_config=eye, text_config=TEXT | {"head_dim": 8, "rope_scaling": rope}, **_QWEN
        )
    )


# the first five in each run of the tests, the others in the long ones
QUICK: dict[str, Callable[[], Any]] = {
    "qwen2_5_vl": qwen2_5_vl, "internvl": internvl, "llava": llava, "smolvlm": smolvlm,
    "blip2": blip2,
}  # fmt: skip
SLOW: dict[str, Callable[[], Any]] = {
    "qwen3_vl": qwen3_vl, "llava_onevision": llava_onevision, "paligemma": paligemma,
    "idefics3": idefics3,
}  # fmt: skip
EACH = [
    *(pytest.param(build, id=name) for name, build in QUICK.items()),
    *(pytest.param(build, id=name, marks=pytest.mark.slow) for name, build in SLOW.items()),
]
