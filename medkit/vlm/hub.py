"""Models of the hub, or of a folder that ``save_pretrained`` wrote."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medkit.vlm.extra import require

__all__ = ["DTYPES", "pretrained"]

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
    model: nn.Module = auto.from_pretrained(
        model_id,
        revision=revision,
        dtype=DTYPES[dtype],
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return model
