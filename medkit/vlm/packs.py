"""Is packing exact for this model? To be asked once before a training; it costs two forwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medkit.data.encoded import given
from medkit.data.packing import packed

__all__ = ["packed_for", "packing_error", "places_of", "require_exact_packing"]

Batch = Mapping[str, Tensor]


def places_of(model: Any, batch: Batch) -> Tensor | None:
    """Return the places of a batch's tokens for a model; None where it counts them.

    Qwen-VL's are four: the number of a token, by which conversations are told apart, and time, row
    and column of a patch, the same number thrice for text.

    Args:
        model: Of Hugging Face's, with adapters or without.
        batch: Of :func:`~medkit.data.encoded.padded`.

    Returns:
        int64 ``(4, B, L)``, or None.
    """
    whole = _bare(model)
    inner: Any = getattr(whole, "model", None)
    if not hasattr(inner, "get_rope_index"):
        return None
    ids = batch["input_ids"]
    found, _ = inner.get_rope_index(
        ids,
        mm_token_type_ids=(ids == whole.config.image_token_id).int(),
        image_grid_thw=batch.get("image_grid_thw"),
        attention_mask=batch["attention_mask"],
    )
    number = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return torch.cat([number[None], found])


def packed_for(model: Any, batch: Batch, *, longest: int) -> dict[str, Tensor]:
    """Return a batch packed as a model takes it; its fields are those of ``batch``.

    With FlashAttention there is no mask: it finds the conversations by their places.

    Args:
        model: Of Hugging Face's, with adapters or without.
        batch: Of :func:`~medkit.data.encoded.padded`.
        longest: Tokens of a row.
    """
    by_places = "flash" in str(_bare(model).config.get_text_config()._attn_implementation)
    return packed(batch, longest=longest, places=places_of(model, batch), mask=not by_places)


def packing_error(model: Any, batch: Batch, together: Batch) -> float:
    """Return the largest difference between logits in packed rows and without.

    It is a share of the largest logit, where that is above 1.

    Args:
        model: Of Hugging Face's; it is asked in evaluation mode.
        batch: Of :func:`~medkit.data.encoded.padded`.
        together: The same of :func:`packed_for`, or what a script makes instead of it.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            apart = _logits(model, batch)[batch["attention_mask"].bool()]
            rows = _logits(model, together)[together["segment"] >= 0]
    finally:
        for module, training in modes.items():
            module.training = training
    return float((rows - apart).abs().max() / apart.abs().max().clamp_min(1))


def require_exact_packing(
    model: Any, batch: Batch, *, longest: int | None = None, most: float | None = None
) -> float:
    """Pack conversations, and refuse a model whose answers to them differ from those without.

    Args:
        model: Of Hugging Face's.
        batch: Of :func:`~medkit.data.encoded.padded`: two or more, of different lengths, with
            pictures.
        longest: Tokens of a row; None: all in one.
        most: Largest difference of a logit; None: 1e-12 in float64, 1e-5 in float32, 0.1 in less,
            torch's faster matrix products for float32 among it.

    Returns:
        The largest difference found.

    Raises:
        ValueError: Where it is more: another conversation is seen, or places are others.
    """
    longest = int(batch["attention_mask"].sum()) if longest is None else longest
    worst = packing_error(model, batch, packed_for(model, batch, longest=longest))
    dtype = next(value.dtype for value in model.parameters() if value.is_floating_point())
    whole = 1e-5 if torch.get_float32_matmul_precision() == "highest" else 0.1
    limit = {torch.float64: 1e-12, torch.float32: whole}.get(dtype, 0.1) if most is None else most
    if not worst <= limit:
        raise ValueError(
            f"packed conversations must be what they are alone; logits of "
            f"{type(_bare(model)).__name__} differ by {worst:.2g}, more than {limit:.0e}. It looks "
            "at a question in both directions, or has places of its own: train it with batches "
            'sorted by length (packing="by_length").'
        )
    return worst


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _logits(model: Any, batch: Batch) -> Tensor:
    inputs: dict[str, Any] = given(batch)
    whole = _bare(model)
    if hasattr(getattr(whole, "model", None), "get_rope_index") and "position_ids" not in inputs:
        image = whole.config.image_token_id
        inputs["mm_token_type_ids"] = (batch["input_ids"] == image).int()
    found: Tensor = model(**{"use_cache": False, **inputs}).logits
    return found
