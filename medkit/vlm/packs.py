"""Is packing exact for this model? To be asked once before a training; it costs two forwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medkit.data.chat import Encoded, given, padded
from medkit.data.packing import Positions, packed

__all__ = ["packing_error", "positions_of", "require_exact_packing"]


def positions_of(model: Any) -> Positions | None:
    """Return the places of one conversation's tokens for a model; None where it counts them.

    Qwen-VL's are three: time, row and column of a patch, and the same number thrice for text.
    """
    inner: Any = getattr(model, "model", None)
    if not hasattr(inner, "get_rope_index"):
        return None
    image = model.config.image_token_id

    def positions(one: Encoded) -> Tensor:
        ids = one.ids[None]
        found, _ = inner.get_rope_index(
            ids,
            mm_token_type_ids=(ids == image).int(),
            image_grid_thw=one.pictures.get("image_grid_thw"),
            attention_mask=torch.ones_like(ids),
        )
        places: Tensor = found[:, 0]
        return places

    return positions


def packing_error(model: Any, samples: Sequence[Encoded], batch: dict[str, Tensor]) -> float:
    """Return the largest difference between logits in a packed row and alone.

    Args:
        model: Of Hugging Face's; it is asked in evaluation mode.
        samples: The conversations of the one row in ``batch``, in their order.
        batch: Of :func:`~medkit.data.packing.packed`, or what a script makes instead of it.
    """
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            together = _logits(model, batch)[0]
            worst, at = 0.0, 0
            for one in samples:
                alone = _logits(model, padded([one], 0))[0]
                part = together[at : at + len(one.ids)]
                at += len(one.ids)
                worst = max(worst, float((part - alone).abs().max()))
    finally:
        model.train(was)
    return worst


def require_exact_packing(
    model: Any, samples: Sequence[Encoded], *, pad: int = 0, most: float | None = None
) -> float:
    """Pack some conversations, and refuse a model whose answers to them differ from those alone.

    Args:
        model: Of Hugging Face's.
        samples: Two or more, of different lengths, with pictures.
        pad: Number of the padding token.
        most: Largest difference of a logit; None: 1e-5 in float32, 1e-12 in float64, 0.1 in less.

    Returns:
        The largest difference found.

    Raises:
        ValueError: Where it is more: another conversation is seen, or places are others.
    """
    length = sum(len(one.ids) for one in samples)
    batch = packed([samples], pad=pad, longest=length, positions=positions_of(model))
    dtype = next(model.parameters()).dtype
    limit = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.1) if most is None else most
    worst = packing_error(model, samples, batch)
    if not worst <= limit:
        raise ValueError(
            f"packed conversations must be what they are alone; logits of {type(model).__name__} "
            f"differ by {worst:.2g}, more than {limit:.0e}. It looks at a question in both "
            "directions, or has places of its own: train it with batches sorted by length."
        )
    return worst


def _logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    inputs: dict[str, Any] = given(batch)
    inner = getattr(model, "model", None)
    if hasattr(inner, "get_rope_index") and "position_ids" not in inputs:
        image = model.config.image_token_id
        inputs["mm_token_type_ids"] = (batch["input_ids"] == image).int()
    found: Tensor = model(**inputs).logits
    return found
