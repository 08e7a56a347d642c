"""Models of the hub, or of a folder that ``save_pretrained`` wrote, and encoders for them.

encoder = hub.encoder(model_id="Qwen/Qwen2.5-VL-3B-Instruct", revision="...")
dm = ReportDataModule("reports.jsonl", encoder, batch_size=2)
lit = LitVLM("medkit.vlm.hub:pretrained", {"model_id": ..., "revision": "..."}, lora={...})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medkit.data.chat import ChatEncoder
from medkit.data.pictures import LUNG_HU
from medkit.vlm.extra import require
from medkit.vlm.processors import FAMILIES, IMAGE, Family, FamilyPictures, limited

__all__ = ["DTYPES", "MAX_PIXELS", "encoder", "pretrained"]

MAX_PIXELS = 1280 * 28 * 28  # of a picture: 1,280 tokens of Qwen2.5-VL's, as its authors advise

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pretrained(
    *,
    model_id: str,
    revision: str | None = None,
    dtype: str = "float32",
    attention: str = "sdpa",
) -> nn.Module:
    """Load an image-text model; for :class:`~medkit.vlm.model.LitVLM`.

        LitVLM("medkit.vlm.hub:pretrained", {"model_id": "Qwen/Qwen2.5-VL-3B-Instruct"})

    Its own code (``trust_remote_code``) is never run, and only safetensors are read.

    Args:
        model_id: Name on the hub, or a folder.
        revision: Commit of the hub's repository: without it another day loads other weights.
        dtype: "float32", "bfloat16" or "float16".
        attention: "sdpa", "eager" (attention maps need it) or "flash_attention_2".

    Raises:
        ValueError: For another dtype.
        OSError: For a model without safetensors, or one that is not there (ValueError for an empty
            folder): Hugging Face's own messages.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {list(DTYPES)}, got {dtype!r}.")
    auto: Any = require("transformers").AutoModelForImageTextToText
    import_module("medkit.vlm.tutorial")  # whose vision part is none of the library's
    with _no_folder_noted(model_id):
        model: nn.Module = auto.from_pretrained(
            model_id,
            revision=revision,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    return model


def encoder(
    *,
    model_id: str,
    revision: str | None = None,
    max_pixels: int | None = MAX_PIXELS,
    longest: int | None = None,
    window_hu: tuple[float, float] = LUNG_HU,
    template: str | None = None,
) -> ChatEncoder:
    """Return the encoder of a model: its tokenizer, chat template and image processor.

    It needs no torchvision, and no network where the model is a folder or was loaded before. Its
    tokenizer's ``eos_token`` is the one that its template ends an answer with.

    Args:
        model_id: Name on the hub, or a folder, as :func:`pretrained`'s.
        revision: Commit of the hub's repository.
        max_pixels: That the model sees of one picture (a small copy beside tiles is not counted);
            None: as many as its own settings say, 12.8 million for Qwen2.5-VL, 16,384 tokens.
        longest: Tokens of a conversation; None: as many as the model has places for.
        window_hu: Black and white of DICOM and NIfTI slices [HU].
        template: Chat template, in place of the model's own.

    Raises:
        ValueError: For a model without image tokens or chat template, and a family that is not
            known here and whose own processor does not load.
        OSError: For a model that is not there: Hugging Face's own message.
    """
    if max_pixels is not None and max_pixels < 1:
        raise ValueError(
            f"max_pixels must be 1 or more, or None for the model's own; got {max_pixels}."
        )
    hf: Any = require("transformers")
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    tutorial: Any = import_module("medkit.vlm.tutorial")
    with _no_folder_noted(model_id):
        config = hf.AutoConfig.from_pretrained(model_id, **where)
        tokenizer = hf.AutoTokenizer.from_pretrained(model_id, **where)
    if isinstance(getattr(config, "vision_config", None), tutorial.ConvStemConfig):
        return ChatEncoder(tokenizer, tutorial.tutorial_pictures)
    if getattr(config, "image_token_id", None) is None:
        raise ValueError(
            f"an image-text model must name its image token; {model_id} ({config.model_type}) has "
            "no image_token_id. Take one for AutoModelForImageTextToText, or set "
            "image_token_index in its config.json."
        )
    family = FAMILIES.get(config.model_type)
    if family is None:
        family, images = _of_its_own(model_id, where, config.model_type)
    else:
        images = hf.AutoImageProcessor.from_pretrained(model_id, backend="pil", **where)
    shrink = None if max_pixels is None else limited(images, config.model_type, max_pixels)
    mark = family.mark or tokenizer.convert_ids_to_tokens(config.image_token_id)
    pictures = FamilyPictures(
        family, images, config, tokenizer, mark=mark, window_hu=window_hu, shrink=shrink
    )
    tokenizer.chat_template = (
        template
        or _template_beside(hf, model_id, revision)
        or tokenizer.chat_template
        or (family.template or "").replace("MARK", mark)
    )
    kinds = {n: config.image_token_id if k == IMAGE else k for n, k in family.kinds.items()}
    if longest is None:
        longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    made = ChatEncoder(tokenizer, pictures, mark=mark, longest=longest, kinds=kinds)
    tokenizer.eos_token = made.end_text
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked, and nothing is learnt of it
    return made


@contextmanager
def _no_folder_noted(model_id: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not Path(model_id).is_dir():
            error.add_note(
                f"{model_id!r} was asked of the hub, as there is no folder of that name."
            )
        raise


def _template_beside(hf: Any, model_id: str, revision: str | None) -> str | None:
    """Return the chat template of a model's processor, which writes pictures, if it has one."""
    found = hf.ProcessorMixin.get_processor_dict(model_id, revision=revision)[0]
    said = found.get("chat_template")
    return said.get("default") if isinstance(said, dict) else said


def _of_its_own(model_id: str, where: Mapping[str, Any], model_type: str) -> tuple[Family, Any]:
    """Return a family by its own processor, and its image processor.

    Raises:
        ValueError: Where it does not load here: many need torchvision, for videos.
    """
    auto: Any = require("transformers").AutoProcessor
    try:
        own = auto.from_pretrained(model_id, **where)
        told = ("mm_token_type_ids", "token_type_ids") if own.return_mm_token_type_ids else ()
        family = Family(
            lambda _, found, number: str(own.replace_image_token(found, number)),
            asked=dict(own.images_kwargs),
            dropped=tuple(own.unused_input_names),
            kinds={name: IMAGE for name in told if name in own.model_input_names},
            mark=own.image_token,
        )
    except (AttributeError, ImportError, OSError, ValueError) as error:
        raise ValueError(
            f"pictures are encoded for the families {sorted(FAMILIES)}, and for others whose own "
            f"processor loads here; that of {model_id} ({model_type}) does not: {error}. Install "
            "torchvision, which many need for videos, and transformers 5.23 or newer, or pass "
            "ChatEncoder pictures of your own."
        ) from error
    return family, own.image_processor
