"""The bootstrap: rows, or whole patients, drawn anew within each site or class.

A statistic is a function of *weights*: how often each row is in a resample. It is called with many
resamples at once, ``(B, N)``, and returns one number for each, ``(B,)``: 1,000 resamples of 600
rows then take milliseconds. The draws are keyed, so the same seed gives the same interval.

    ranking = Ranking(y, prob)
    value, low, high = interval(ranking.average_precision, len(y), seed=0, groups=patient)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from medkit import keyed
from medkit.metrics.checks import Codes, Floats, codes
from medkit.metrics.intervals import two_sided, unit_strata

Statistic = Callable[[Floats], Floats]
KINDS = ("percentile", "bca", "logit")

_CELLS = 1_000_000  # weights held at once: 8 MB
_MOST_JACKKNIFE = 1000  # units left out one by one; above it they go in as many blocks


def bootstrap(
    statistic: Statistic,
    n: int,
    *,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
) -> Floats:
    """Return the statistic on each resample, ``(draws,)``.

    A resample on which it is NaN (one class only, say) is drawn again.

    Args:
        statistic: Weights ``(B, n)`` to values ``(B,)``.
        n: Rows.
        groups: Patient of each row, ``(n,)``: whole patients are drawn.
        strata: Site (or class, see :func:`crossed`) of each row, ``(n,)``: each keeps its size.
        seed: Decides the resamples; the first 100 of 1,000 are those of ``draws=100``.
        draws: Resamples.

    Raises:
        ValueError: When nine of ten resamples have no value, or ``draws`` is below 2.
    """
    _require_rows(n)
    if draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}. 1,000 is usual.")
    found: list[Floats] = []
    have = tried = 0
    for weights in blocks(n, groups=groups, strata=strata, seed=seed):
        values = _values(statistic, weights)
        found.append(values[np.isfinite(values)])
        have, tried = have + len(found[-1]), tried + len(values)
        if have >= draws or tried >= 10 * draws:
            break
    if have < draws:
        raise ValueError(
            f"the statistic must have a value on most resamples; it had one on {have} of {tried}. "
            "There are too few patients with an event (or without): score a larger part."
        )
    return np.concatenate(found)[:draws]


def interval(
    statistic: Statistic,
    n: int,
    *,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
    kind: str = "percentile",
) -> tuple[float, float, float]:
    """Return the statistic on the rows as they are, and the limits of its bootstrap interval.

    Args:
        statistic: Weights ``(B, n)`` to values ``(B,)``.
        n: Rows.
        groups: Patient of each row.
        strata: Site or class of each row.
        seed: Decides the resamples.
        draws: Resamples.
        level: Nominal coverage.
        kind: "percentile"; "bca" (bias-corrected and accelerated, Efron 1987); "logit", for a
            statistic between 0 and 1: symmetric on the log-odds scale, with the resamples' sd
            there. It covers best for AUROC and AUPRC of few rows, percentile worst.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {list(KINDS)}, got {kind!r}. 'percentile' is usual.")
    _require_rows(n)
    z, tail = two_sided(level), (1 - level) / 2
    value = float(_values(statistic, np.ones((1, n)))[0])
    samples = bootstrap(statistic, n, groups=groups, strata=strata, seed=seed, draws=draws)
    if kind == "logit" and 0 < value < 1:
        spread = z * float(logit(np.clip(samples, 0.5 / n, 1 - 0.5 / n)).std(ddof=1))
        center = float(logit(value))
        return value, float(expit(center - spread)), float(expit(center + spread))
    at = np.array([tail, 1 - tail])
    if kind == "bca":
        normal = NormalDist()
        below = float(np.mean(samples < value) + np.mean(samples == value) / 2)
        bias = normal.inv_cdf(min(max(below, 0.5 / draws), 1 - 0.5 / draws))
        skew = _acceleration(statistic, n, groups)
        at = np.array(
            [
                normal.cdf(bias + (bias + side) / max(1 - skew * (bias + side), 0.1))
                for side in (-z, z)
            ]
        )
    low, high = np.quantile(samples, at)
    return value, float(low), float(high)


def _require_rows(n: int) -> None:
    if n < 1:
        raise ValueError(
            f"a bootstrap needs rows to draw, got n={n}. Leave the part out that has none."
        )


def _values(statistic: Statistic, weights: Floats) -> Floats:
    values = np.asarray(statistic(weights))
    if values.shape != (len(weights),):
        raise ValueError(
            "a statistic must turn weights (B, n) into B values, one per resample; got shape "
            f"{values.shape} for {weights.shape}. Sum over the last axis: (w * x).sum(axis=1)."
        )
    return values


def crossed(*columns: ArrayLike | None) -> Codes | None:
    """Return one stratum per combination (site and class, say); None where all are None."""
    given = [np.asarray(column) for column in columns if column is not None]
    if not given:
        return None
    joint = np.zeros(len(given[0]), dtype=np.int64)
    for column in given:
        code = codes(column, len(joint), "strata")
        joint = joint * (int(code.max()) + 1) + code
    return codes(joint, len(joint), "strata")


def blocks(
    n: int, *, groups: ArrayLike | None = None, strata: ArrayLike | None = None, seed: int = 0
) -> Iterator[Floats]:
    """Yield weights ``(B, n)`` of resamples for ever; B depends on ``n`` alone."""
    draw = keyed.generator(seed, "bootstrap")
    owner = None if groups is None else codes(groups, n, "groups")
    stratum = None if strata is None else codes(strata, n, "strata")
    if owner is not None:
        stratum = unit_strata(owner, stratum)
    units = n if owner is None else int(owner.max()) + 1
    members = [np.arange(units)]
    if stratum is not None:
        members = [np.flatnonzero(stratum == one) for one in np.unique(stratum)]
    size = int(np.clip(_CELLS // n, 1, 256))
    while True:
        weights = np.empty((size, units))
        for rows in members:
            chosen = draw.integers(len(rows), size=(size, len(rows)))
            chosen += np.arange(size)[:, None] * len(rows)
            count = np.bincount(chosen.ravel(), minlength=size * len(rows))
            weights[:, rows] = count.reshape(size, len(rows))
        yield weights if owner is None else weights[:, owner]


def _acceleration(statistic: Statistic, n: int, groups: ArrayLike | None) -> float:
    """Return BCa's acceleration from values with one patient (or a block of them) left out."""
    owner = np.arange(n) if groups is None else codes(groups, n, "groups")
    owner = owner % min(int(owner.max()) + 1, _MOST_JACKKNIFE)
    left_out, size = int(owner.max()) + 1, max(1, _CELLS // n)
    values = np.concatenate(
        [
            statistic((owner != np.arange(start, min(start + size, left_out))[:, None]) * 1.0)
            for start in range(0, left_out, size)
        ]
    )
    values = values[np.isfinite(values)]
    away = values.mean() - values
    spread = float(np.sum(away**2))
    return float(np.sum(away**3)) / (6 * spread**1.5) if spread > 0 else 0.0
