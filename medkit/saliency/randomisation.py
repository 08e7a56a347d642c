"""Do attributions show what was learnt? They must change when the weights are drawn anew."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from torch import nn

from medkit import keyed
from medkit.metrics.checks import Floats
from medkit.saliency.attribution import Attribution

FLIPS = 9999  # of the columns' signs
# Where a normalising layer keeps the mean and width of what it was shown: scales, not weights.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Net = TypeVar("Net", bound=nn.Module)


class Stage(NamedTuple):
    """Similarity to the trained net's shares once the weights down to ``module`` are random."""

    module: str
    similarity: float


@dataclass(frozen=True)
class Verdict:
    """What the randomisation test says of a way to explain a net.

    Attributes:
        passed: Whether the shares may be shown.
        similarity: Mean absolute similarity to the shares of random nets, 0 to 1.
        chance: What it would seldom exceed (once in ``1 / alpha``) by chance.
        p: Share of sign flips as similar as that.
        alpha: The test fails where ``p`` is at most this.
        draws: Random nets.
        against: What they were: "nets with random weights", "nets trained on shuffled labels".
        randomised: Tensors that were drawn anew.
        kept: Tensors that were not: counts, and statistics of normalising layers.
        cascade: Similarity as the weights become random, from the output down. Only the last is
            tested: while lower layers are as trained, some likeness is what they carry.
    """

    passed: bool
    similarity: float
    chance: float
    p: float
    alpha: float
    draws: int
    against: str = "nets with random weights"
    randomised: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    cascade: tuple[Stage, ...] = ()

    def __str__(self) -> str:
        found = f"similarity {self.similarity:.2f} to {self.draws} {self.against}, by chance up to "
        found += f"{self.chance:.2f} (p = {self.p:.2g})"
        if self.passed:
            return f"passes the randomisation test: {found}"
        return (
            f"do not use: {found}. These shares look the same whatever the net has learnt: they "
            "show its input, not its reasons"
        )

    def on(self, attribution: Attribution) -> Attribution:
        """Return the attribution with this verdict on it."""
        return replace(attribution, verdict=str(self))


def randomisation_test(
    model: Net,
    x: Any,
    explain: Callable[[Net, Any], Attribution],
    *,
    draws: int = 15,
    alpha: float = 0.001,
    seed: int = 0,
    cascade: bool = False,
    keep: Collection[str] = (),
) -> Verdict:
    """Test that attributions depend on the weights (model randomisation, Adebayo 2018).

    Every tensor that carries weights is drawn anew, *buffers too*: a net that starts as logistic
    regression holds it in a buffer, and with that left in place any method would seem to look
    away. ``Verdict.randomised`` names the tensors.

    It judges a way to explain this net, not the net: one trained on noise passes, for its shares
    do follow its weights. That it knows nothing shows in its AUROC on rows it has not seen. And a
    method that blends the input into honest shares is caught surely where that is as large as the
    shares are, with half of it one time in three (on the kit's hospitals, with the defaults).

    Args:
        model: The trained net; it is copied, not changed. For an ensemble ``EnsembleNet``.
        x: Rows as ``explain`` takes them; some 50 of them, no two of one patient.
        explain: ``explain(model, x)``, such as ``integrated_gradients`` or
            ``partial(shapley_values, permutations=40)``.
        draws: Random nets.
        alpha: About the chance of failing a sound method.
        seed: Decides the random weights and the null.
        cascade: Also randomise one module after the other, from the output down, in the order
            they were registered (one draw each).
        keep: Names of tensors that carry no weights, where the net has such buffers.

    Raises:
        ValueError: Where nothing is left to randomise, or ``draws`` is too few.
    """
    groups, kept = weights_of(model, keep)
    trained = _numbers(explain(model, x))
    names = [name for group in groups for name in group[1]]
    last = [_numbers(explain(randomised(model, names, seed, draw), x)) for draw in range(draws)]
    verdict = compare(trained, last, alpha=alpha, seed=seed)
    stages: list[Stage] = []
    if cascade:
        done: list[str] = []
        for module, tensors in groups:
            done += tensors
            shares = _numbers(explain(randomised(model, done, seed, 0), x))
            alike = abs(float(_products(trained, shares).sum()))
            stages.append(Stage(module or type(model).__name__, alike))
    return replace(verdict, randomised=tuple(names), kept=kept, cascade=tuple(stages))


def label_randomisation_test(
    trained: Attribution,
    shuffled: Sequence[Attribution],
    *,
    alpha: float = 0.001,
    seed: int = 0,
) -> Verdict:
    """Test that attributions depend on the labels (data randomisation, Adebayo 2018).

    Args:
        trained: Of the net.
        shuffled: Of nets trained in the same way on shuffled labels, for the same rows.
        alpha: Chance of failing a sound method.
        seed: Decides the null.
    """
    found = compare(_numbers(trained), [_numbers(one) for one in shuffled], alpha=alpha, seed=seed)
    return replace(found, against="nets trained on shuffled labels")


def compare(
    trained: ArrayLike,
    others: Sequence[ArrayLike],
    *,
    alpha: float = 0.001,
    seed: int = 0,
) -> Verdict:
    """Test whether attributions are more like those of random nets than chance has it.

    Shares of a table's columns follow the size of the input whatever the net does: what a patient
    does not have gets none. So absolute shares of *any* two nets are alike. What a random net can't
    know is which way a column pushes. Similarity is that of signed ranks (ranks of the absolute
    shares with the shares' signs, their cosine in each row, mean over rows), and chance is what it
    becomes when each column's sign is flipped at random, the same in all rows: sizes stay.

    Args:
        trained: Of the trained net, ``(B, P)``.
        others: Of nets that can't know, ``(B, P)`` each.
        alpha: Fails where the p-value is at most this.
        seed: Decides the flips.

    Raises:
        ValueError: Where shapes differ, the trained net's shares are all 0, or there are too few
            columns and nets for a p-value below ``alpha``.
    """
    shares = [np.asarray(one, np.float64) for one in (trained, *others)]
    shapes = sorted({one.shape for one in shares})
    if len(shapes) > 1 or len(shapes[0]) != 2 or not np.isfinite(np.stack(shares)).all():
        raise ValueError(
            "attributions of the same rows and columns are compared, (B, P) each and finite; got "
            f"shapes {shapes}. Explain the same rows with each net, with the same players."
        )
    if not shares[0].any():
        raise ValueError(
            "a trained net's shares must not be 0 everywhere, and these are, in "
            f"{shapes[0][0]} rows: it says the same of all of them, or of the baseline. Explain a "
            "net that tells rows apart, or take another baseline."
        )
    columns, nets = shapes[0][1], len(others)
    # the least p there can be, by the flips that there are and by those that are drawn
    least = max(2.0 ** (-nets * (columns - 1)), 1 / (1 + FLIPS)) if nets else 1.0
    if least >= alpha:
        raise ValueError(
            f"a p-value below alpha = {alpha} needs random nets and columns; {nets} nets of "
            f"{columns} columns reach {least:.2g} at best. Raise draws, or alpha."
        )
    products = np.stack([_products(shares[0], other) for other in shares[1:]])
    found = float(np.abs(products.sum(1)).mean())
    flips = keyed.generator(seed, "sign flips").integers(0, 2, (FLIPS, *products.shape), np.int8)
    null = np.abs(np.einsum("ndp,dp->nd", 2.0 * flips - 1, products)).mean(1)
    p = (1 + int((null >= found - 1e-12).sum())) / (1 + FLIPS)
    chance = float(np.quantile(null, 1 - alpha))
    return Verdict(p > alpha, found, chance, p, alpha, nets)


def _numbers(attribution: Attribution) -> Floats:
    return np.asarray(attribution.values.detach().cpu().double().numpy())


def _products(one: Floats, other: Floats) -> Floats:
    """Return what each column adds to the similarity, ``(P,)``."""
    return np.asarray((_signed_ranks(one) * _signed_ranks(other)).mean(axis=0))


def _signed_ranks(shares: Floats) -> Floats:
    """Return signed ranks of each row's shares, of length 1; zeros where all shares are 0."""
    ranks = np.sign(shares) * rankdata(np.abs(shares), axis=1)
    size = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.asarray(ranks / np.where(size > 0, size, 1))


def weights_of(
    model: nn.Module, keep: Collection[str]
) -> tuple[list[tuple[str, list[str]]], tuple[str, ...]]:
    """Return the tensors that carry weights, by module from the output down; and the others."""
    groups: list[tuple[str, list[str]]] = []
    kept: list[str] = []
    for module_name, module in reversed(list(model.named_modules())):
        chosen = []
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            whole = f"{module_name}.{name}".lstrip(".")
            if name in STATISTICS or whole in keep or not tensor.is_floating_point():
                kept.append(whole)
            elif tensor.numel():
                chosen.append(whole)
        if chosen:
            groups.append((module_name, chosen))
    strange = sorted(set(keep) - set(kept))
    if not groups or strange:
        raise ValueError(
            "a net must have tensors to draw anew, and keep must name tensors of it; found "
            f"{sum(len(names) for _, names in groups)} to draw, and no tensor named {strange}. "
            "Weights belong into parameters or buffers: tensors that are plain attributes stay "
            "as trained."
        )
    return groups, tuple(kept)


def randomised(model: Net, names: Sequence[str], seed: int, draw: int) -> Net:
    """Return a copy whose tensors are normal draws of the same root mean square, either sign."""
    other = copy.deepcopy(model)
    tensors = dict(other.named_parameters()) | dict(other.named_buffers())
    with torch.no_grad():
        for name in names:
            tensor = tensors[name]
            draws = keyed.torch_generator(seed, "random weights", draw, name)
            size = tensor.double().square().mean().sqrt().to(tensor)
            tensor.copy_(torch.randn(tensor.shape, generator=draws).to(tensor) * size)
    return other
