"""How alike two sets of attributions are: with the known truth, over seeds, over folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, combinations, islice
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit
from scipy.stats import rankdata

from medkit.metrics.checks import Floats
from medkit.metrics.resample import blocks
from medkit.record.results import Metric

MEASURES = ("row_rank", "row_top", "row_sign", "importance_rank", "importance_correlation")


def agreement(
    values: ArrayLike,
    truth: ArrayLike,
    *,
    top: int = 5,
    groups: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 500,
) -> dict[str, Metric]:
    """Measure how near attributions are to the true ones, with intervals over rows.

    Args:
        values: ``(B, P)``.
        truth: ``(B, P)``, in the same columns: the shares of a rule that is known.
        top: See :func:`measures`.
        groups: Patient of each row: whole patients are drawn anew.
        seed: Decides the resamples.
        draws: Resamples.

    Returns:
        The five of :func:`measures`, with 95 % percentile intervals, the value within them.
    """
    one, other = _alike([values, truth], top)
    rows = len(one)
    point = measures(one, other, top=top)
    if rows < 2:
        return {name: Metric(value, n=rows, method="one row") for name, value in point.items()}
    by_row, sizes = _by_row(one, other, top), (np.abs(one), np.abs(other))
    weights = chain.from_iterable(blocks(rows, groups=groups, seed=seed))
    found = [_summed(by_row, sizes, weight) for weight in islice(weights, draws)]
    how = "bootstrap over rows" if groups is None else "bootstrap over patients"
    limits: dict[str, Metric] = {}
    for name, value in point.items():
        low, high = np.quantile([one[name] for one in found], (0.025, 0.975)).tolist()
        # resampled rows rank the columns a little worse than all rows do
        low, high = min(low, value), max(high, value)
        limits[name] = Metric(value, low, high, 0.95, rows, method=how)
    return limits


def stability(runs: Sequence[ArrayLike], *, top: int = 5) -> dict[str, Metric]:
    """Measure how alike the attributions of several runs (seeds, folds) are, pair by pair.

    Members of k folds share most of their training rows, so nets that learnt nothing but noise
    agree with each other too: read it beside the same figure for nets trained on shuffled labels.

    Args:
        runs: Attributions of the same rows, ``(B, P)`` each: ``attribution.members``, or one per
            seed.
        top: See :func:`measures`.

    Returns:
        The means over pairs of the five of :func:`measures`. Intervals are Student's, from leaving
        one run out at a time (pairs share runs, so they are no sample: Arvesen 1969); none from
        two runs.
    """
    tables = _alike(runs, top)
    pairs = {
        (i, j): measures(tables[i], tables[j], top=top)
        for i, j in combinations(range(len(tables)), 2)
    }
    return {
        name: _over_pairs({pair: found[name] for pair, found in pairs.items()}, len(tables))
        for name in MEASURES
    }


def measures(values: ArrayLike, other: ArrayLike, *, top: int = 5) -> dict[str, float]:
    """Compare two tables of attributions, ``(B, P)`` each.

    Returns:
        ``row_rank``: Spearman's correlation of a row's shares, mean over rows (0 where all shares
        of a row are equal). ``row_top``: how many of the row's ``top`` largest absolute shares are
        among the other's, as a share of ``top``. ``row_sign``: of the other's ``top``, how many
        have the same sign. ``importance_rank`` and ``importance_correlation``: Spearman's and
        Pearson's correlation of the mean absolute shares of the columns.
    """
    one, two = _alike([values, other], top)
    return _summed(_by_row(one, two, top), (np.abs(one), np.abs(two)), np.ones(len(one)))


def _by_row(one: Floats, other: Floats, top: int) -> Mapping[str, Floats]:
    mine, theirs = _largest(one, top), _largest(other, top)
    return {
        "row_rank": _correlation(rankdata(one, axis=1), rankdata(other, axis=1)),
        "row_top": (mine & theirs).sum(1) / top,
        "row_sign": ((np.sign(one) == np.sign(other)) & theirs).sum(1) / top,
    }


def _summed(
    by_row: Mapping[str, Floats], sizes: tuple[Floats, Floats], weight: Floats
) -> dict[str, float]:
    found = {name: float(np.average(rows, weights=weight)) for name, rows in by_row.items()}
    one, other = (weight @ size / weight.sum() for size in sizes)
    ranks = rankdata(one)[None], rankdata(other)[None]
    found["importance_rank"] = float(_correlation(*ranks)[0])
    found["importance_correlation"] = float(_correlation(one[None], other[None])[0])
    return found


def _correlation(one: Floats, other: Floats) -> Floats:
    """Pearson's, row by row; 0 where one of the two does not vary."""
    one = one - one.mean(axis=1, keepdims=True)
    other = other - other.mean(axis=1, keepdims=True)
    size = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    return np.where(size > 0, (one * other).sum(1) / np.where(size > 0, size, 1), 0.0)


def _largest(values: Floats, top: int) -> NDArray[np.bool_]:
    order = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :top]
    chosen = np.zeros(values.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def _over_pairs(pairs: Mapping[tuple[int, int], float], runs: int) -> Metric:
    mean = float(np.mean(list(pairs.values())))
    if runs < 3:
        return Metric(mean, n=runs, method="one pair of runs")
    without = np.array(
        [np.mean([v for pair, v in pairs.items() if left not in pair]) for left in range(runs)]
    )
    variance = (runs - 1) / runs * float(np.sum((without - without.mean()) ** 2))
    half = float(stdtrit(runs - 1, 0.975)) * sqrt(variance)
    limits = max(-1.0, mean - half), min(1.0, mean + half)
    return Metric(mean, *limits, 0.95, runs, method="mean over pairs of runs, jackknife over runs")


def _alike(tables: Sequence[ArrayLike], top: int) -> list[Floats]:
    found = [np.asarray(table, np.float64) for table in tables]
    shapes = [table.shape for table in found]
    if len(found) < 2 or len(set(shapes)) > 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise ValueError(
            "two or more attributions of the same rows and columns are compared, (B, P) each; got "
            f"shapes {shapes}. Explain the same rows with each model, with the same players."
        )
    bad = sum(int((~np.isfinite(table)).sum()) for table in found)
    if bad:
        raise ValueError(
            f"attributions must be finite; found {bad} cells that are not, of {len(found)} tables "
            f"of shape {shapes[0]}. A net whose logits are not finite has nothing to explain."
        )
    if not 1 <= top <= shapes[0][1]:
        raise ValueError(
            f"top must be between 1 and the number of columns, got {top} for {shapes[0][1]}. "
            "A quarter of the columns is usual."
        )
    return found
