"""How well the best possible rule does at the made-up hospitals: what no model can beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from medkit.synth.ehr import make_hospitals
from medkit.synth.hospitals import STAYS


@dataclass(frozen=True)
class Best:
    """What the rule that knows P(y = 1 | row) reaches in the long run.

    Attributes:
        auroc: Area under the ROC curve.
        f1: F1 at the threshold that makes it largest.
        threshold: That threshold; half of ``f1`` but for the size of the draw (Lipton 2014).
        brier: Mean of (y - prob) squared.
        prevalence: Mean probability.
        rows: Encounters these are taken over.
    """

    auroc: float
    f1: float
    threshold: float
    brier: float
    prevalence: float
    rows: int


def best_possible(
    *,
    family: str = "additive",
    seed: int = 0,
    stays: Mapping[str, int] | None = None,
    draw: int = 20_000,
) -> Best:
    """Return what the best possible rule reaches on a large fresh draw.

    Args:
        family: As :func:`medkit.synth.ehr.make_hospitals` has it.
        seed: Decides the draw.
        stays: Site -> encounters, as a mixture: ``{"C": 1}`` is hospital C alone. None: all three
            in the kit's own shares. One rule ranks the patients of all of them.
        draw: Encounters drawn. The standard error of AUROC is about 0.003 at 20,000.
    """
    shares = dict(STAYS if stays is None else stays)
    if not shares or not all(share > 0 for share in shares.values()) or draw < 1:
        raise ValueError(
            "stays must give a positive share for one site at least, and draw be 1 or more; got "
            f"{shares} and {draw}. stays={{'C': 1}} is hospital C alone."
        )
    whole = sum(shares.values())
    counts = {site: max(1, round(draw * share / whole)) for site, share in shares.items()}
    return best_of(make_hospitals(seed=seed, stays=counts, family=family).prob)


def best_of(prob: ArrayLike) -> Best:
    """Return what a rule reaches whose probabilities are the true ones, on these encounters.

    These are expectations over the labels, of which none is needed: each row counts as ``prob`` of
    a 1 and ``1 - prob`` of a 0.

    Raises:
        ValueError: For probabilities outside [0, 1], or where all are 0 or all are 1.
    """
    p = np.sort(np.asarray(prob, np.float64).reshape(-1))[::-1]
    if len(p) == 0 or not (p >= 0).all() or not (p <= 1).all() or not 0 < p.mean() < 1:
        raise ValueError(
            "prob must hold probabilities between 0 and 1, neither all 0 nor all 1; found "
            f"{len(p)} numbers" + (f" from {p.min():.3g} to {p.max():.3g}" if len(p) else "") + ". "
            "Pass Hospitals.prob; logits must go through the logistic function first."
        )
    ends = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)  # ties share a place
    ones, zeros = np.cumsum(p)[ends], np.cumsum(1 - p)[ends]
    gained, before = np.diff(zeros, prepend=0.0), np.append(0.0, ones[:-1])
    auroc = float(np.sum(gained * (before + ones) / 2) / (ones[-1] * zeros[-1]))
    f1 = 2 * ones / (ends + 1 + ones[-1])
    at = int(np.argmax(f1))
    return Best(
        auroc=auroc,
        f1=float(f1[at]),
        threshold=float(p[ends[at]]),
        brier=float(np.mean(p * (1 - p))),
        prevalence=float(p.mean()),
        rows=len(p),
    )
