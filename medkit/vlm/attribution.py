"""Which parts of the pictures speak for the value of a field: gradients and occlusion.

What is shared out is the log-likelihood of the field's tokens, all before them given [nat]. It
says what the model does, not what the disease does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medkit.saliency.attribution import as_used
from medkit.saliency.volume_maps import VolumeMaps
from medkit.vlm.attention import NOT_PLAYED, fields_of_all, together
from medkit.vlm.places import Asked, pixels_of

with warnings.catch_warnings():  # tqdm, which Captum imports, asks for JupyterLab's widgets
    warnings.simplefilter("ignore")
    from captum.attr import IntegratedGradients

__all__ = ["integrated_gradients", "occlusion"]

_AT_ONCE = 32  # pictures in one forward of the model
_ROUNDING = 1e-4  # [nat], of float32 log-likelihoods


def integrated_gradients(
    model: Any,
    asked: Sequence[Asked],
    *,
    fields: Sequence[str] | None = None,
    steps: int = 32,
    most_steps: int = 288,
    tolerance: float = 0.02,
    cell: int = 4,
) -> dict[str, VolumeMaps]:
    """Share out what a field gains from the pictures to their cells (Sundararajan 2017; Captum).

    The way goes from black pictures to these ones, by its midpoints: where the model changes its
    mind, Gauss-Legendre's nodes lose what they gain on smooth nets. What the shares fail to add up
    to is ``delta`` of the maps, and ``maps.residual()`` its share; a field of a conversation whose
    residual is above ``tolerance`` is asked anew at three times the points.

    Where black pictures say the same already ("right", say), there is next to nothing to share out.

    Args:
        model: Of Hugging Face's; asked in evaluation mode.
        asked: Conversations with their answers.
        fields: Those of the maps; None: all that every answer has.
        steps: Points on the way, at first.
        most_steps: Not more than so many at a time, whatever the residual.
        tolerance: Of the residual.
        cell: Shares are added up over so many pixels each way (patches, where the model is given
            patches).

    Returns:
        Field -> maps ``(B, rows, columns, K)`` [nat], with ``delta`` and ``nodes``.

    Raises:
        ValueError: For answers without the fields, conversations of different grids, and cells or
            steps that can't be.
    """
    names = fields_of_all(asked, fields)
    if not 1 <= steps <= most_steps or cell < 1 or not tolerance > 0:
        raise ValueError(
            "steps must be from 1 to most_steps, cell at least 1 and tolerance above 0; got "
            f"{steps}, {most_steps}, {cell} and {tolerance}. 32, 288, 4 and 0.02 are usual."
        )
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    deltas: dict[str, list[float]] = {name: [] for name in names}
    nodes: dict[str, list[int]] = {name: [] for name in names}
    with as_used(model):
        for one in asked:
            pixels, score = pixels_of(model, one), _scorer(model, one, names)
            x, x0 = _ends(model, one)
            for number, name in enumerate(names):
                used = steps
                while True:
                    shares, delta = IntegratedGradients(score).attribute(
                        x, x0, target=number, n_steps=used, method="riemann_middle",
                        internal_batch_size=_AT_ONCE, return_convergence_delta=True,
                    )  # fmt: skip
                    found = _added(pixels.maps(shares[0].detach().float()), cell)
                    missing = float(delta.detach())
                    enough = abs(missing) <= tolerance * float(found.abs().sum()) + _ROUNDING
                    if enough or 3 * used > most_steps:
                        break
                    used *= 3
                values[name].append(found)
                deltas[name].append(missing)
                nodes[name].append(used)
    return {
        name: VolumeMaps(
            together(maps), f"integrated gradients of {name!r}", "nat",
            delta=torch.tensor(deltas[name]), nodes=torch.tensor(nodes[name]),
            verdict=NOT_PLAYED,
        )
        for name, maps in values.items()
    }  # fmt: skip


def occlusion(
    model: Any,
    asked: Sequence[Asked],
    *,
    fields: Sequence[str] | None = None,
    side: int = 8,
    stride: int = 4,
) -> dict[str, VolumeMaps]:
    """Blacken squares of the pictures and see what each field loses (Zeiler 2014).

    A place's value is the mean loss over the squares that cover it. All fields are asked at once,
    as each square costs a forward whatever is read of it.

    Args:
        model: Of Hugging Face's; asked in evaluation mode.
        asked: Conversations with their answers.
        fields: Those of the maps; None: all that every answer has.
        side: Of a square [pixels; patches, where the model is given patches].
        stride: From one square to the next.

    Returns:
        Field -> maps ``(B, rows, columns, K)`` [nat lost].

    Raises:
        ValueError: For answers without the fields, conversations of different grids, and squares
            that can't be.
    """
    names = fields_of_all(asked, fields)
    found: list[Tensor] = []  # (F, rows, columns, K) each
    with torch.no_grad(), as_used(model):
        for one in asked:
            pixels, score = pixels_of(model, one), _scorer(model, one, names)
            if not 1 <= stride <= side <= min(pixels.sides):
                unit = "pixels" if pixels.rows is None else "patches, which this model is given"
                fits = max(1, min(8, min(pixels.sides) // 2))
                raise ValueError(
                    "squares must cover the pictures and fit into them: 1 <= stride <= side <= "
                    f"{min(pixels.sides)} [{unit}]; got side={side}, stride={stride}. Pass "
                    f"side={fits}, stride={max(1, fits // 2)}, say."
                )
            places = [
                (picture, rows, columns)
                for picture in range(pixels.count)
                for rows, columns in product(*(_starts(s, side, stride) for s in pixels.sides))
            ]
            x, x0 = _ends(model, one)
            whole = score(x)
            total = torch.zeros(len(names), *pixels.sides, pixels.count)
            times = torch.zeros(*pixels.sides, pixels.count)
            for first in range(0, len(places), _AT_ONCE):
                some = places[first : first + _AT_ONCE]
                masks = torch.stack([pixels.mask(*place) for place in some]).to(x.device)
                lost = (whole - score(torch.where(masks, x0, x))).float().cpu()
                for (picture, rows, columns), loss in zip(some, lost, strict=True):
                    total[:, rows, columns, picture] += loss[:, None, None]
                    times[rows, columns, picture] += 1
            found.append(total / times.clamp_min(1))
    stacked = together(found)
    return {
        name: VolumeMaps(
            stacked[:, number], f"occlusion of {name!r}", "nat lost", verdict=NOT_PLAYED
        )
        for number, name in enumerate(names)
    }


def _ends(model: Any, one: Asked) -> tuple[Tensor, Tensor]:
    """Return the pictures and the black ones, ``(1, ...)`` each."""
    like = next(model.parameters())
    x, x0 = (of.get("pixel_values") for of in (one.encoded.pictures, one.blank))
    if x is None or x0 is None or x.shape != x0.shape:
        shapes = [None if of is None else tuple(of.shape) for of in (x, x0)]
        raise ValueError(
            "pictures are held against black ones of the same shape, as pixel_values both; got "
            f"{shapes[0]} and {shapes[1]}. Use ask(), whose encoder makes both alike."
        )
    return x[None].to(like.device, torch.float32), x0[None].to(like.device, torch.float32)


def _scorer(model: Any, one: Asked, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """Return pictures ``(S, ...)`` -> log-likelihood of each field's tokens, ``(S, F)``."""
    given = one.inputs(model)
    ids = given["input_ids"][0]
    dtype = next(model.parameters()).dtype

    def score(x: Tensor) -> Tensor:
        several = {
            name: value.repeat(len(x), *[1] * (value.ndim - 1))
            for name, value in given.items()
            if name != "pixel_values"
        }
        logits = model(**several, pixel_values=x.flatten(0, 1).to(dtype), use_cache=False).logits
        parts = []
        for name in names:
            at = torch.tensor(one.tokens[name], device=ids.device)
            each = logits[:, at - 1].float().log_softmax(-1)
            parts.append(each[:, torch.arange(len(at)), ids[at]].sum(1))
        return torch.stack(parts, dim=1)

    return score


def _added(maps: Tensor, cell: int) -> Tensor:
    """Add up a map ``(h, w, K)`` over cells; the last ones may be cut short."""
    per_picture = maps.permute(2, 0, 1)[:, None]
    mean = F.avg_pool2d(per_picture, cell, ceil_mode=True, divisor_override=1)
    return mean[:, 0].permute(1, 2, 0)


def _starts(whole: int, side: int, stride: int) -> Iterator[slice]:
    """Yield the ranges along an axis; the last may be cut short."""
    for start in range(0, -(-(whole - side) // stride) * stride + 1, stride):
        yield slice(start, min(start + side, whole))
