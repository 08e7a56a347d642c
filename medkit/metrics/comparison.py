"""Whether one score ranks better than another on the same rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from medkit.metrics.checks import Codes
from medkit.metrics.intervals import two_sided
from medkit.metrics.two_level import Placed
from medkit.record.results import Metric


def auroc_difference(
    y: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> Metric:
    """Return AUROC of ``a`` minus AUROC of ``b`` on the same rows, with the paired interval.

    DeLong's (1988), or Obuchowski's (1997) over patients; ``method`` holds the two-sided p. It
    asks whether *these two* score vectors differ for other patients. Of two recipes it calls 5 to
    22 % different that are the same, at 600 rows, since a second training would have differed
    too: for recipes use :func:`auroc_difference_over_seeds`.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        a: One score, ``(N,)``.
        b: The other, ``(N,)``.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.
    """
    first, second = Placed.of(y, [a], groups), Placed.of(y, [b], groups)
    found, n, owner = first.one_run(0, second, 0), len(first.labels), first.owner
    value, variance = found.value, found.over_patients
    how = how_made("AUROC difference", "paired DeLong", owner, "plain")
    if np.isnan(variance):
        return Metric(value, n=n, method="AUROC difference; no interval: one row in a class")
    if variance <= 0:  # the two rank every pair alike, on these rows and on any resample of them
        return Metric(value, value, value, level, n, method=f"{how}; no pair ranked otherwise")
    half = two_sided(level) * found.se
    low, high = max(-1.0, value - half), min(1.0, value + half)
    return Metric(value, low, high, level, n, method=f"{how}, p = {found.p:.3g}")


def auroc_difference_over_seeds(
    y: ArrayLike,
    a: Sequence[ArrayLike],
    b: Sequence[ArrayLike],
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> Metric:
    """Return mean AUROC of recipe ``a`` minus that of ``b``, for other patients *and* trainings.

    The variance over trainings (of the differences, seed by seed) and DeLong's over patients (of
    the placements averaged over seeds) are added; t with Satterthwaite's degrees of freedom.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        a: Scores of one recipe, one vector ``(N,)`` per seed.
        b: Scores of the other with the same seeds in the same order. A baseline that draws
            nothing is given once per seed.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.

    Raises:
        ValueError: When the two hold different numbers of seeds, or fewer than 2.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"a and b must hold one score vector per seed, at least 2 each; got {len(a)} and "
            f"{len(b)}. For one training each use auroc_difference."
        )
    first, second = Placed.of(y, a, groups), Placed.of(y, b, groups)
    found, n, owner = first.minus(second, paired=True), len(first.labels), first.owner
    value, (low, high) = found.value, found.limits(level)
    how = how_made("AUROC difference", f"{len(a)} seeds and DeLong", owner, "t")
    if not found.se > 0:
        return Metric(value, value, value, level, n, method=f"{how}; no pair ranked otherwise")
    low, high = max(-1.0, low), min(1.0, high)
    return Metric(value, low, high, level, n, method=f"{how}, p = {found.p:.3g}")


def how_made(what: str, variance: str, owner: Codes | None, scale: str) -> str:
    """Return the method of a Metric, such as "AUROC, DeLong over 80 patients, logit"."""
    over = "" if owner is None else f" over {int(owner.max()) + 1} patients"
    return f"{what}, {variance}{over}" + ("" if scale == "bootstrap" else f", {scale}")
