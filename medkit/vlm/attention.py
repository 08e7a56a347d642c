"""Where an answer's tokens attend to in the pictures.

Attention is not a reason: a token may look at a place and take nothing from it, and what one layer
moves the next one reads elsewhere. Show a map only beside its pointing score and what control maps
score (:mod:`medkit.vlm.pointing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from medkit.saliency.attribution import as_used
from medkit.saliency.volume_maps import VolumeMaps
from medkit.vlm.places import Asked, token_grids

__all__ = ["NOT_PLAYED", "attention_maps", "eager", "fields_of_all"]

NOT_PLAYED = "not checked: play the pointing game before these maps are shown"


def attention_maps(
    model: Any,
    asked: Sequence[Asked],
    *,
    fields: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
) -> dict[str, VolumeMaps]:
    """Return for each field what its tokens attend to, on the grid of image tokens.

    A token's attention is that of the place it is predicted from, the one before it; the mean is
    taken over heads, ``layers`` and the field's tokens. Weights are those of the language model;
    what is left of 1 goes to the text.

    Args:
        model: Of Hugging Face's; asked in evaluation mode, by the eager implementation of
            attention, and left in the ones it had.
        asked: Conversations with their answers.
        fields: Those of the maps; None: all that every answer has.
        layers: Of the language model, -1 the last; None: all.

    Returns:
        Field -> maps ``(B, rows, columns, K)`` of K pictures each; where a processor cuts pictures
        into tiles (InternVL, SmolVLM), of its K tiles, in its order.

    Raises:
        ValueError: For a family whose image tokens have no place in the picture, conversations of
            different grids, and answers without the fields.
        RuntimeError: Where the model returns no attention.
    """
    names = fields_of_all(asked, fields)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    with torch.no_grad(), as_used(model), eager(model):
        for one in asked:
            at, (rows, columns) = token_grids(model, one)
            output = model(**one.inputs(model), output_attentions=True, use_cache=False)
            weights = _mean(model, getattr(output, "attentions", None), layers)
            for name in names:
                from_ = torch.tensor(one.tokens[name]) - 1
                of = weights[from_].mean(0)[at].view(len(at), rows, columns)
                found[name].append(of.permute(1, 2, 0))
    over = "all layers" if layers is None else f"layers {list(layers)}"
    return {
        name: VolumeMaps(
            together(maps), f"attention of {name!r}, mean over heads and {over}",
            "attention weight", signed=False, verdict=NOT_PLAYED,
        )
        for name, maps in found.items()
    }  # fmt: skip


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Let a model compute attention in the open, as others return none of it, and put it back."""
    before = _implementations(model.config)
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def fields_of_all(asked: Sequence[Asked], fields: Sequence[str] | None) -> list[str]:
    """Return the fields that maps are made of; refuse answers without them."""
    common = [
        n for n in (asked[0].tokens if asked else ()) if all(one.tokens.get(n) for one in asked)
    ]
    names = common if fields is None else list(fields)
    if not names or set(names) - set(common):
        raise ValueError(
            f"every answer must have the fields that are asked about, {names or 'one at least'}; "
            f"all {len(asked)} have {common}. Leave out those that say that there is nothing."
        )
    return names


def together(maps: Sequence[Tensor]) -> Tensor:
    """Stack maps of conversations; refuse different grids."""
    shapes = {tuple(one.shape) for one in maps}
    if len(shapes) != 1:
        raise ValueError(
            "maps of one call must have one grid (rows, columns, pictures); got "
            f"{sorted(shapes)}. Ask about conversations with pictures alike."
        )
    return torch.stack([one.detach().float().cpu() for one in maps])


def _mean(model: Any, attentions: Any, layers: Sequence[int] | None) -> Tensor:
    there = [one for one in attentions or () if one is not None]
    if not there or len(there) != len(attentions):
        raise RuntimeError(
            f"a model must return the attention of each layer, and {type(model).__name__} returned "
            f"{len(there)} of {len(attentions or ())}. Its eager implementation is not used; "
            "update transformers, or ask by occlusion or integrated gradients."
        )
    chosen = there if layers is None else [there[number] for number in layers]
    return torch.stack([one[0].float().mean(0) for one in chosen]).mean(0).cpu()


def _implementations(config: Any) -> Any:
    parts = {
        name: _implementations(getattr(config, name))
        for name in config.sub_configs
        if getattr(config, name, None) is not None
    }
    own = config._attn_implementation
    return {"": own, **parts} if parts else own
