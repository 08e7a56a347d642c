"""Folders as ``save_pretrained`` writes them, for nine families: model, tokenizer, pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from PIL import Image

from medkit.data.conversations import Conversation, Turn
from tests.vlm.families import _EYE, QUICK, SLOW, TEXT

# Each of its family's form, with its traps: pictures before all text, no end, a stray space.
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for p in m['content'] %}"
    "{{ PICTURE if p['type'] == 'image' else p['text'] }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAVA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ p['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_ONEVISION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + p['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SMOL = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}{% for p in m['content'] %}"
    "{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_CHAT = ("<|endoftext|>", "<s>", "<|im_end|>")
_PLAIN = ("<pad>", "<s>", "</s>", "<image>")
_TILES = tuple(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2))
_QWEN = "'<|vision_start|><|image_pad|><|vision_end|>'"
_SQUARE = {"height": 32, "width": 32}


@dataclass(frozen=True)
class Parts:
    """What a family's folder holds beside the model."""

    special: Sequence[str]
    processor: str
    settings: dict[str, Any]
    template: str | None = None
    first: bool = False  # the tokenizer puts <s> before a text
    whole: dict[str, Any] = field(default_factory=dict)  # what its Processor is told besides


_EYES = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>")
_PIXELS = {"size": {"shortest_edge": 256, "longest_edge": 4096}, "patch_size": 8}
_SMOLLISH = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
_SMOL_TOKENS = (
    *("<pad>", "<|im_start|>", "<end_of_utterance>", "<image>"),
    *("<fake_token_around_image>", "<global-img>", *_TILES),
)
PARTS = {
    "qwen2_5_vl": Parts(
        _CHAT + _EYES, "Qwen2VLImageProcessorPil", _PIXELS, _CHATML.replace("PICTURE", _QWEN)
    ),
    "qwen3_vl": Parts(
        _CHAT + _EYES, "Qwen2VLImageProcessorPil", _PIXELS, _CHATML.replace("PICTURE", _QWEN)
    ),
    "internvl": Parts(
        (*_CHAT, "<IMG_CONTEXT>", "<img>", "</img>", "<|im_start|>"),
        "GotOcr2ImageProcessorPil",
        {"size": _SQUARE, "max_patches": 4},
        _CHATML.replace("PICTURE", "'<IMG_CONTEXT>\n'"),
    ),
    "llava": Parts(
        _PLAIN,
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 32}, "crop_size": _SQUARE},
        _LLAVA,
        first=True,
        whole={
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    ),
    "llava_onevision": Parts(
        (*_CHAT, "<image>", "<video>", "<|im_start|>"),
        "LlavaOnevisionImageProcessorPil",
        {"size": _SQUARE, "image_grid_pinpoints": [[32, 32], [32, 64], [64, 64]]},
        _ONEVISION,
    ),
    "smolvlm": Parts(_SMOL_TOKENS, "SmolVLMImageProcessorPil", _SMOLLISH, _SMOL),
    "idefics3": Parts(
        _SMOL_TOKENS, "Idefics3ImageProcessorPil", _SMOLLISH, _SMOL, whole={"image_seq_len": 4}
    ),
    "blip2": Parts(
        _PLAIN,
        "BlipImageProcessorPil",
        {"size": _SQUARE},
        first=True,
        whole={"num_query_tokens": 4},
    ),
    "paligemma": Parts(
        ("<pad>", "<bos>", "<eos>", "<image>"),
        "SiglipImageProcessorPil",
        {"size": _SQUARE, "image_seq_length": 16},
    ),
}
# one that is not known, and goes by its own processor
GEMMA3 = Parts(
    ("<pad>", "<bos>", "<eos>", "<image>", "<boi>", "<eoi>", "<end_of_turn>"),
    "Gemma3ImageProcessorPil",
    {"size": _SQUARE},
    "<bos>" + _CHATML.replace("PICTURE", "'<boi>'").replace("<|im_end|>", "<end_of_turn>"),
)


def gemma3(folder: Path) -> Path:
    """Write a tiny Gemma 3 with all that its processor is made of."""
    t = transformers
    names = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}
    tokenizer = tokenizer_of(GEMMA3, extra_special_tokens=names)
    config = t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**_EYE),
        text_config=t.Gemma3TextConfig(**TEXT | {"vocab_size": len(tokenizer)}, head_dim=8),
        image_token_index=3, boi_token_index=4, eoi_token_index=5, mm_tokens_per_image=16,
    )  # fmt: skip
    t.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    images = t.Gemma3ImageProcessorPil(**GEMMA3.settings)
    t.Gemma3Processor(
        images, tokenizer, chat_template=GEMMA3.template, image_seq_length=16
    ).save_pretrained(folder)
    return folder


def tokenizer_of(parts: Parts, **settings: Any) -> Any:
    whole = tokenizers.Tokenizer(tokenizers.models.BPE())
    whole.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(parts.special),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    whole.train_from_iterator(["is there a nodule? yes, on the left. no."] * 2, trainer)
    if parts.first:
        whole.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    pad, bos, eos = parts.special[:3]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token=pad, bos_token=bos, eos_token=eos, **settings
    )


def checkpoint(name: str, folder: Path) -> Path:
    """Write a family's tiny model, tokenizer, chat template and image processor to a folder."""
    parts = PARTS[name]
    torch.manual_seed(0)
    model = (QUICK | SLOW)[name]()
    tokenizer = tokenizer_of(parts)
    model.resize_token_embeddings(len(tokenizer))
    if name == "llava_onevision":
        model.config.image_grid_pinpoints = parts.settings["image_grid_pinpoints"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    getattr(transformers, parts.processor)(**parts.settings).save_pretrained(folder)
    if parts.template is not None:  # as older folders have it, beside the tokenizer
        said = json.dumps({"chat_template": parts.template})
        (folder / "chat_template.json").write_text(said)
    return folder


def pictures(folder: Path, *sizes: tuple[int, int]) -> tuple[str, ...]:
    """Write grey PNGs of these heights and widths."""
    out = []
    for number, size in enumerate(sizes):
        draw = np.random.default_rng(number).integers(0, 256, size).astype(np.uint8)
        Image.fromarray(draw).save(folder / f"{number}.png")
        out.append(str(folder / f"{number}.png"))
    return tuple(out)


def conversations(folder: Path, *, most: int = 3) -> list[Conversation]:
    """Return conversations with one to three pictures."""
    files = pictures(folder, (40, 40), (32, 48), (64, 32))
    out = []
    for number in range(4):
        own = files[: 1 + number % most]
        asked = "<image>" * len(own) + "is there a nodule?"
        answer = ("no.", "yes, on the left.")[number % 2]
        turns = (Turn("user", asked), Turn("assistant", answer))
        out.append(Conversation(turns, own, columns={"patient": f"p{number}"}))
    return out
