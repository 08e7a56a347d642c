"""Shapley values for tables: exact for few players, drawn permutations by Captum for many."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from medkit import keyed
from medkit.saliency.attribution import AT_ONCE, Attribution, Model, answers, as_used
from medkit.saliency.players import Players, players_for, references

with warnings.catch_warnings():  # tqdm, which Captum imports, asks for JupyterLab's widgets
    warnings.simplefilter("ignore")
    from captum.attr import ShapleyValueSampling


def shapley_values(
    model: Model,
    x: Tensor,
    *,
    baseline: Tensor | None = None,
    players: Players | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> Attribution:
    """Attribute what the model says of each row to its columns, fairly (Shapley 1953).

    A column's share is what showing it adds, averaged over the orders in which columns may be
    shown; one that is not shown holds a reference row's value (interventional: what the *model*
    does with the row, correlated columns broken up). Nothing is asked of the model but answers, so
    that boosting, or the true rule of made-up hospitals, is explained as a net is.

    All coalitions are asked where that takes no more answers than drawing does: for one reference
    row and 200 permutations, up to 10 columns. Otherwise orders are drawn in pairs, one the
    reverse of the other (Mitchell 2022): exact where columns act in twos at most. Each pair has
    one of the reference rows, all of them equally often. ``error`` is the standard error that the
    orders leave; where a reference row has fewer than two pairs, that of choosing such rows too.

    Args:
        model: Maps ``(B, F)`` to ``(B,)`` or ``(B, 1)``, usually logits; a net is used in eval
            mode and left in the mode it was in. Row by row: no row may matter to another.
        x: Rows as the model sees them, ``(B, F)``, on its device.
        baseline: Reference row, ``(F,)``, or rows, ``(K, F)``, such as training rows; None: zeros.
        players: Columns that are shown and credited together; None: each by itself.
        permutations: Orders drawn, an even number.
        seed: Decides them and nothing else; the global generators are not touched.

    Raises:
        ValueError: For a table, players or baseline that do not fit, or too few permutations.
    """
    known, rows = players_for(players, x), references(baseline, x)
    if permutations < 2 or permutations % 2:
        raise ValueError(
            f"permutations must be an even number, 2 or more, got {permutations}: each order goes "
            "with its reverse. 200 leave a standard error of a few per cent."
        )
    names = () if players is None else known.names
    count = len(known.names)
    with torch.no_grad(), as_used(model):
        if count <= 24 and (1 << count) * len(rows) <= permutations * count:
            values, error = _exact(model, x, rows, known), None
        else:
            values, error = _drawn(model, x, rows, known, permutations, seed)
        away = answers(model, x) - answers(model, rows).mean()
    return Attribution(values, values.sum(1) - away, names, error)


def _exact(model: Model, x: Tensor, rows: Tensor, players: Players) -> Tensor:
    """Sum over all coalitions; ``shown[c, p]`` says whether coalition c has player p."""
    count = len(players.names)
    number = torch.arange(1 << count, device=x.device)
    shown = (number[:, None] >> torch.arange(count, device=x.device)) & 1 == 1
    keep = players.keep(shown)
    worth = torch.zeros(len(x), len(number), dtype=x.dtype, device=x.device)
    for reference in rows:
        for block in torch.arange(len(number), device=x.device).split(max(1, AT_ONCE // len(x))):
            mixed = torch.where(keep[block, None], x, reference)  # (C, B, F)
            worth[:, block] += answers(model, mixed.flatten(0, 1)).view(len(block), len(x)).T
    worth /= len(rows)
    size = shown.sum(1)
    weight = torch.tensor(
        [1 / (count * math.comb(count - 1, n)) for n in range(count)], dtype=x.dtype
    ).to(x.device)
    values = torch.empty(len(x), count, dtype=x.dtype, device=x.device)
    for player in range(count):
        without = number[~shown[:, player]]
        gained = worth[:, without + (1 << player)] - worth[:, without]
        values[:, player] = gained @ weight[size[without]]
    return values


def _drawn(
    model: Model, x: Tensor, rows: Tensor, players: Players, permutations: int, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Average over pairs of orders; Captum walks each order, a batch of all its steps at once."""
    count, pairs = len(players.names), permutations // 2
    first = torch.tensor([players.of.tolist().index(player) for player in range(count)])
    draw = keyed.generator(seed, "shapley")
    explain = ShapleyValueSampling(lambda part: answers(model, part))
    total = torch.zeros(len(x), count, dtype=torch.float64, device=x.device)
    squares, spread = torch.zeros_like(total), torch.zeros_like(total)
    for turn, reference in enumerate(draw.permutation(len(rows)).tolist()):
        own, its = torch.zeros_like(total), pairs // len(rows) + (turn < pairs % len(rows))
        for _ in range(its):
            order: list[int] = draw.permutation(count).tolist()
            explain.permutation_generator = _both_ways(order)
            shares = explain.attribute(
                x,
                rows[reference][None],
                feature_mask=players.of[None].to(x.device),
                n_samples=2,
                perturbations_per_eval=max(1, min(count, AT_ONCE // len(x))),
            )[:, first.to(x.device)].double()
            own += shares
            squares += shares**2
        total += own
        spread += own**2 / max(its, 1)
    if pairs < 2:
        return (total / pairs).to(x.dtype), None
    if pairs < 2 * len(rows):  # a pair or none for some reference row: it counts as drawn, too
        spread, groups = total**2 / pairs, 1
    else:
        groups = len(rows)
    variance = (squares - spread).clamp(min=0) / (pairs - groups) / pairs
    return (total / pairs).to(x.dtype), variance.sqrt().to(x.dtype)


def _both_ways(order: list[int]) -> Callable[[int, int], Iterable[list[int]]]:
    """Give Captum one order and its reverse; its own come from torch's global generator."""
    return lambda _features, _samples: (order, order[::-1])
