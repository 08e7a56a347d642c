"""How families of image-text models see pictures: their image processors, on PIL alone.

The processors of half of the families do not even load without torchvision, since they read videos
too. What they do for a picture is little: the image processor makes numbers of it, and a run of
image tokens, as many as the model will have features, takes the place of its mark. The image
processors run on PIL here, with torchvision or without, so a picture is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medkit.data.encoded import LEARNT
from medkit.data.pictures import LUNG_HU, read_rgb
from medkit.vlm.extra import require

__all__ = ["FAMILIES", "Family", "FamilyPictures", "limited"]

Expand = Callable[["FamilyPictures", Mapping[str, Any], int], str]
IMAGE = "image"  # as a kind of token


@dataclass(frozen=True)
class Family:
    """What a family of models does in its own way.

    Attributes:
        expand: Text of a picture, by its number, and what the image processor returned.
        asked: What the image processor is called with besides.
        nested: Whether it wants the pictures of a conversation as a list in a list.
        dropped: What it returns that the model does not take.
        kinds: Field -> ``IMAGE`` or ``LEARNT``: see :class:`~medkit.data.encoded.Encoded`.
        template: Chat template where the family's models have none, with ``MARK`` for a picture.
        mark: What stands for a picture in a template; None: the image token.
    """

    expand: Expand
    asked: Mapping[str, Any] = field(default_factory=dict)
    nested: bool = False
    dropped: tuple[str, ...] = ()
    kinds: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    mark: str | None = None


class FamilyPictures:
    """Pictures for a :class:`~medkit.data.chat.ChatEncoder` of one model.

    Args:
        family: Of the model.
        processor: Its image processor, on PIL.
        config: The model's.
        tokenizer: The model's.
        mark: Its image token's text.
        window_hu: See :func:`~medkit.data.pictures.read_picture`.
        shrink: Pictures with more pixels are made smaller first; None: none are.
    """

    def __init__(
        self,
        family: Family,
        processor: Any,
        config: Any,
        tokenizer: Any,
        *,
        mark: str,
        window_hu: tuple[float, float] = LUNG_HU,
        shrink: int | None = None,
    ) -> None:
        self.family = family
        self.processor = processor
        self.config = config
        self.tokenizer = tokenizer
        self.window_hu = window_hu
        self.shrink = shrink
        self.mark = mark

    def __call__(self, files: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
        """Return what the model is given of the pictures, and the text that stands for each."""
        from PIL import Image

        pictures = [Image.fromarray(read_rgb(one, window_hu=self.window_hu)) for one in files]
        if self.shrink is not None:
            pictures = [_shrunk(one, self.shrink) for one in pictures]
        images: Any = [pictures] if self.family.nested else pictures
        found = dict(self.processor(images=images, return_tensors="pt", **self.family.asked))
        texts = [self.family.expand(self, found, number) for number in range(len(files))]
        kept = {name: one for name, one in found.items() if name not in self.family.dropped}
        return {name: torch.as_tensor(one) for name, one in kept.items()}, texts

    def grid(self) -> int:
        """Return the patches along a side of the vision part's picture."""
        eye = self.config.vision_config
        return int(eye.image_size // eye.patch_size)


def limited(processor: Any, model_type: str, most: int) -> int | None:
    """Keep an image processor from showing the model more pixels of one picture than ``most``.

    Where a family has a setting for it that is set: all pixels of Qwen-VL, the tiles of InternVL,
    the longer side of SmolVLM and Idefics3; a small copy of the whole beside tiles is not counted.

    Returns:
        ``most`` where the pictures themselves must be made smaller first (LLaVA-OneVision, whose
        model knows its tilings too); else None.
    """
    if model_type == "llava_onevision":
        return most
    if model_type.startswith("qwen"):
        size = dict(processor.size)
        longest = min(most, size["longest_edge"])
        shortest = min(size["shortest_edge"], longest)
        processor.size = {"shortest_edge": shortest, "longest_edge": longest}
    elif model_type == "internvl":
        tile = processor.size["height"] * processor.size["width"]
        processor.max_patches = max(1, min(processor.max_patches, most // tile))
        processor.min_patches = min(processor.min_patches, processor.max_patches)
    elif model_type in ("smolvlm", "idefics3"):
        tile = processor.max_image_size["longest_edge"]
        side = tile * max(1, math.isqrt(most) // tile)
        processor.size = {"longest_edge": min(side, processor.size["longest_edge"])}
    return None


def _qwen(own: FamilyPictures, found: Mapping[str, Any], number: int) -> str:
    merged = own.processor.merge_size**2
    return own.mark * (int(found["image_grid_thw"][number].prod()) // merged)


def _llava(own: FamilyPictures, found: Mapping[str, Any], number: int) -> str:
    height, width = found["pixel_values"].shape[-2:]
    patch = own.config.vision_config.patch_size
    count = (height // patch) * (width // patch)
    # CLIP has a token of its own before the patches, SigLIP has none; "default" drops the first
    count += own.config.vision_config.model_type == "clip_vision_model"
    count -= own.config.vision_feature_select_strategy == "default"
    return own.mark * count


def _internvl(own: FamilyPictures, found: Mapping[str, Any], number: int) -> str:
    tokens = own.config.image_seq_length * int(found["num_patches"][number])
    first = getattr(own.tokenizer, "start_image_token", None) or "<img>"
    last = getattr(own.tokenizer, "end_image_token", None) or "</img>"
    return f"{first}{own.mark * tokens}{last}"


def _tiles(own: FamilyPictures, found: Mapping[str, Any], number: int) -> str:
    """SmolVLM and Idefics3: each tile by its row and column, then the whole."""
    row, col = (int(found[name][0][number]) for name in ("rows", "cols"))
    around, run = (
        "<fake_token_around_image>",
        own.mark * (own.grid() // own.config.scale_factor) ** 2,
    )
    whole = f"{around}<global-img>{run}{around}"
    if not row and not col:
        return whole
    lines = [
        "".join(f"{around}<row_{y + 1}_col_{x + 1}>{run}" for x in range(col)) for y in range(row)
    ]
    return "".join(f"{line}\n" for line in lines) + "\n" + whole


def _onevision(own: FamilyPictures, found: Mapping[str, Any], number: int) -> str:
    side = own.grid()
    if int(found["batch_num_images"][0]) > 1:  # several pictures are not tiled
        return own.mark * (side**2 + 1)
    height, width = (int(one) for one in found["image_sizes"][number])
    tile = found["pixel_values"].shape[-1]
    choose = require("transformers.image_processing_utils").select_best_resolution
    best = choose((height, width), own.processor.image_grid_pinpoints)
    rows, cols = (side * (one // tile) for one in best)
    if width / height > cols / rows:  # tiles hold a border above and below, or beside
        rows -= 2 * ((rows - int(round(height * (cols / width), 7))) // 2)
    else:
        cols -= 2 * ((cols - int(round(width * (rows / height), 7))) // 2)
    most = int(own.config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * cols / (most * side**2))
    if ratio > 1.1:
        rows, cols = int(rows // ratio), int(cols // ratio)
    return own.mark * (side**2 + rows * cols + rows)  # the whole, the tiles, the ends of lines


def _queries(own: FamilyPictures, found: Mapping[str, Any], number: int) -> str:
    return own.mark * int(own.config.num_query_tokens)


def _patches(own: FamilyPictures, found: Mapping[str, Any], number: int) -> str:
    return own.mark * own.grid() ** 2


def _shrunk(picture: Any, most: int) -> Any:
    from PIL import Image

    scale = math.sqrt(most / (picture.width * picture.height))
    if scale >= 1:
        return picture
    size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)


_PLAIN = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}MARK{% endif %}{% endfor %}{% endfor %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ BEFORE }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ SAID if message['role'] == 'assistant' else ASKED }}"
    "{% endif %}{% endfor %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ BEFORE }}{% endif %}"
)


def _template(asked: str, before: str, said: str) -> str:
    """Pictures stand before the first token, as these two families were trained."""
    return _PLAIN.replace("ASKED", asked).replace("BEFORE", before).replace("SAID", said)


_QWEN = Family(_qwen, kinds={"mm_token_type_ids": IMAGE})
_TILES = Family(_tiles, asked={"return_row_col_info": True}, nested=True, dropped=("rows", "cols"))
FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), _QWEN),
    **dict.fromkeys(("smolvlm", "idefics3"), _TILES),
    "internvl": Family(_internvl, asked={"crop_to_patches": True}, dropped=("num_patches",)),
    "llava": Family(_llava),
    "llava_onevision": Family(_onevision, nested=True),
    "blip-2": Family(
        _queries,
        template=_template("'Question: ' + part['text'] + ' '", "'Answer:'", "' ' + part['text']"),
    ),
    "paligemma": Family(
        _patches,
        kinds={"token_type_ids": LEARNT},
        template=_template("part['text'] + '\\n'", "''", "part['text']"),
    ),
}
