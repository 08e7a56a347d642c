"""How alike trainings are that differ in their seed alone: bands of curves, rates, crashes.

All of it is over deliberately different seeds on the *same* rows unless said otherwise: with the
split left free a band is that of other patients, which no training practice makes narrower. A run
that diverged stays in: left out, it would make the worst recipe look tight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtri, fdtri, stdtrit

from medkit.metrics.checks import Floats
from medkit.metrics.intervals import two_sided, wilson
from medkit.metrics.spread import mean_over_seeds
from medkit.record.results import Metric

_Z = 1.96  # the bands are named for it, whatever the level of their intervals
_ALONE = "one run has no spread"


def convergence_band(curves: ArrayLike, *, last: float = 0.25, level: float = 0.95) -> Metric:
    """Return the terminal band: 1.96 sd over mean of the loss late in training [%].

    Pooled over runs and evaluations, so it holds what sets runs apart and what moves inside each.
    The variance is that of the runs' means (over n - 1) plus the mean of the variances inside
    them; pooled blindly it would be too small by 1/n. Evaluations of one run are not independent,
    so the chi-square interval has n - 1 degrees of freedom however many there are: right where
    runs differ, too wide where they all jitter alike.

    Infinite, without interval, where a run has a value that is not finite; ``method`` then says
    how many, and the band of the others.

    Args:
        curves: Loss of the weights as they are (not the best so far), ``(runs, evaluations)``,
            on the same rows; 20 evaluations in the part taken are enough.
        last: Share of the evaluations taken, from the end.
        level: Nominal coverage.

    Raises:
        ValueError: For what is no table, a share outside (0, 1], or a mean that is not positive.
    """
    late = _late(curves, last)
    (n, evaluations), dead = late.shape, diverged(late)
    how = f"1.96 sd / mean, {n} runs x {evaluations} evaluations, chi-square interval"
    if dead.any():
        rest = convergence_band(late[~dead], last=1, level=level) if not dead.all() else None
        return _infinite(dead, rest, level)
    mean = float(late.mean())
    if not mean > 0:
        raise ValueError(
            f"a band is a share of the mean, which must be positive; found {mean:.4g}. Pass losses "
            "such as cross entropy, or late_spread() for AUROC."
        )
    if n < 2:
        return Metric(nan, n=n, unit="%", method=_ALONE)
    variance = float(late.mean(axis=1).var(ddof=1) + late.var(axis=1).mean())
    return _with_limits(100 * _Z * sqrt(variance) / mean, n, level, how)


def late_spread(
    curves: ArrayLike, *, last: float = 0.5, chance: float = 0.5, level: float = 0.95
) -> Metric:
    """Return the mean over late evaluations of 1.96 sd over runs, as a share of what is learnt [%].

    What is learnt is the mean over runs above ``chance``. For curves that rise, such as AUROC in
    imaging; the sd itself is in ``method``, since a percentage of little is large. Infinite where
    a run is not finite, or the runs are no better than chance at one of the evaluations.

    Args:
        curves: ``(runs, evaluations)`` on the same rows.
        last: Share of the evaluations taken, from the end.
        chance: What guessing has.
        level: Nominal coverage of the chi-square interval, n - 1 degrees of freedom.
    """
    late = _late(curves, last)
    (n, evaluations), dead = late.shape, diverged(late)
    if dead.any():
        some = not dead.all()
        rest = late_spread(late[~dead], last=1, chance=chance, level=level) if some else None
        return _infinite(dead, rest, level)
    if n < 2:
        return Metric(nan, n=n, unit="%", method=_ALONE)
    learnt, sd = late.mean(axis=0) - chance, late.std(axis=0, ddof=1)
    nothing = int((learnt <= 0).sum())
    if nothing:
        how = f"not above chance ({chance:g}) at {nothing} of {evaluations} evaluations"
        return Metric(inf, level=level, n=n, unit="%", method=how)
    value = 100 * _Z * float(np.mean(sd / learnt))
    how = f"1.96 sd / (mean - {chance:g}), {n} runs x {evaluations} evaluations, mean sd "
    return _with_limits(value, n, level, f"{how}{float(sd.mean()):.4g}, chi-square interval")


def jitter(
    curves: ArrayLike, *, last: float = 0.25, chance: float = 0.0, level: float = 0.95
) -> Metric:
    """Return what is seen on the screen of one run: 1.96 sd of its jumps over sqrt 2 x mean [%].

    Jumps are from evaluation to evaluation, so a slow fall or rise does not count. The mean over
    runs, with a t interval from two on. Infinite where a run is not finite.

    Args:
        curves: ``(runs, evaluations)``, or ``(evaluations,)`` of one run.
        last: Share of the evaluations taken, from the end; three at least.
        chance: Taken off the mean: 0 for a loss, 0.5 for AUROC.
        level: Nominal coverage.
    """
    late = _late(np.atleast_2d(np.asarray(curves, np.float64)), last)
    if late.shape[1] < 3:
        raise ValueError(
            f"jitter needs at least 3 evaluations; found {late.shape[1]} in the last {last:g} of "
            "the curve. Evaluate more often, or take a larger share."
        )
    dead = diverged(late)
    if dead.any():
        some = not dead.all()
        rest = jitter(late[~dead], last=1, chance=chance, level=level) if some else None
        return _infinite(dead, rest, level)
    learnt = late.mean(axis=1) - chance
    if (learnt <= 0).any():
        how = f"not above {chance:g}: {int((learnt <= 0).sum())} of {len(late)} runs"
        return Metric(inf, level=level, n=len(late), unit="%", method=how)
    jumps = np.diff(late, axis=1).std(axis=1, ddof=1) / sqrt(2)
    return mean_over_seeds(100 * _Z * jumps / learnt, level=level, unit="%")


def spread_ratio(a: Metric, b: Metric, *, r: float | None = None, level: float = 0.95) -> Metric:
    """Return how many times as wide the spread ``a`` is as ``b``, with its interval.

    For two of :func:`convergence_band`, :func:`late_spread` or ``sd_over_seeds``, of ``a.n`` and
    ``b.n`` runs: the F interval; where runs are paired and ``r`` is known, that of Pitman and
    Morgan (1939), which is the narrower the more alike the seeds act on both. A bootstrap is no
    cure below 20 runs. Infinite without interval where a run of ``a`` diverged, 0 where one of
    ``b`` did, NaN where both did.

    Args:
        a: One spread.
        b: The other.
        r: Correlation of paired runs, see :func:`paired_correlation`; None: independent ones.
        level: Nominal coverage.
    """
    n = min(a.n or 0, b.n or 0)
    if np.isinf(a.value) or np.isinf(b.value) or n < 2 or not b.value > 0:
        broken = np.isinf(a.value) != np.isinf(b.value)
        value = (inf if np.isinf(a.value) else 0.0) if broken else nan
        return Metric(value, n=n, method="no ratio: a run diverged, or there is no spread")
    ratio, degrees, tail = a.value / b.value, ((a.n or 0) - 1, (b.n or 0) - 1), (1 - level) / 2
    if r is None or a.n != b.n or n < 3:
        low, high = (ratio / sqrt(float(fdtri(*degrees, p))) for p in (1 - tail, tail))
        return Metric(ratio, low, high, level, n, method=f"ratio of spreads, F {degrees}")
    k = 1 + 2 * (1 - r**2) * float(stdtrit(n - 2, 1 - tail)) ** 2 / (n - 2)
    times = sqrt(k + sqrt(k**2 - 1))
    how = f"ratio of paired spreads, Pitman and Morgan, r = {r:.2f}"
    return Metric(ratio, ratio / times, ratio * times, level, n, method=how)


def paired_correlation(a: ArrayLike, b: ArrayLike, *, last: float) -> float:
    """Return how alike the same seeds move the late curves of two recipes, from -1 to 1.

    The correlation of what sets runs apart at each evaluation; 0 where nothing does.

    Args:
        a: ``(runs, evaluations)``.
        b: Of the same seeds in the same order.
        last: Share of the evaluations taken, from the end.
    """
    one, two = (late - late.mean(axis=0) for late in (_late(a, last), _late(b, last)))
    norm = sqrt(float((one**2).sum() * (two**2).sum()))
    return min(1.0, max(-1.0, float((one * two).sum()) / norm)) if norm > 0 else 0.0


def agreement(
    values: ArrayLike, *, eps: float = 0.01, patients: int, level: float = 0.95
) -> Metric:
    """Return the share of pairs of trainings whose metric differs by at most ``eps``.

    Disjoint pairs, first with second, third with fourth: pairs of all with all are not
    independent. A pair with a dead run does not agree.

    Args:
        values: The metric of each training, ``(runs,)``, not finite where it died.
        eps: Largest difference that counts as alike.
        patients: How many the metric was taken on; said in ``method``, since among few the same
            nets differ more.
        level: Nominal coverage of Wilson's interval.
    """
    runs = np.asarray(values, np.float64)
    pairs = len(runs) // 2
    how = f"disjoint pairs within {eps:g} on {patients} patients, Wilson"
    if pairs == 0:
        return Metric(nan, n=0, method=f"{how}; no value: fewer than two runs")
    first, second = runs[: 2 * pairs : 2], runs[1 : 2 * pairs : 2]
    both = np.isfinite(first) & np.isfinite(second)
    # 0.87 and 0.88 are 0.01 apart, and 0.010000000000000009 in binary
    alike = np.abs(np.where(both, first - second, inf)) <= eps * (1 + 1e-9)
    return _share(int(alike.sum()), pairs, how, level)


def bitwise(digests: Iterable[Sequence[str]], *, level: float = 0.95) -> Metric:
    """Return the share of trainings whose repeats (same seed, fresh process) are equal bit by bit.

    Args:
        digests: For each training the digests of its repeats, two or more.
        level: Nominal coverage of Wilson's interval.

    Raises:
        ValueError: Where a training was not repeated.
    """
    groups = list(digests)
    short = [g for g in groups if isinstance(g, str) or len(g) < 2]
    if short or not groups:
        raise ValueError(
            "each training needs the digests of at least two repeats, as [[first, again], ...]; "
            f"found {len(groups)} trainings, {len(short)} of them without. Run each seed again in "
            "a fresh process."
        )
    equal = sum(len(set(group)) == 1 for group in groups)
    return _share(equal, len(groups), "repeats bitwise equal, Wilson", level)


def crash_rate(crashed: int, runs: int, *, level: float = 0.95) -> Metric:
    """Return the share of runs that ended without usable weights.

    A run with a weight that is not finite is one of them, whatever its best checkpoint says.
    Wilson's interval; where none crashed the upper limit is one-sided, 1 - 0.05^(1/n), near 3/n.

    Raises:
        ValueError: For no runs, or more crashes than runs.
    """
    if not 0 <= crashed <= runs or runs < 1:
        raise ValueError(
            f"crashes must be between 0 and the number of runs, at least 1; got {crashed} of "
            f"{runs}. Count each run once, however often it was started again."
        )
    if crashed == 0:
        high = 1 - (1 - level) ** (1 / runs)
        return Metric(0.0, 0.0, high, level, runs, method="crashed runs, one-sided limit at 0")
    return _share(crashed, runs, "crashed runs, Wilson", level)


def diverged(curves: ArrayLike) -> NDArray[np.bool_]:
    """Return which runs have a value that is not finite, ``(runs, evaluations)`` to ``(runs,)``."""
    return np.asarray(~np.isfinite(np.asarray(curves, np.float64)).all(axis=1))


def _late(curves: ArrayLike, last: float) -> Floats:
    table = np.asarray(curves, np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(
            f"curves must be (runs, evaluations), at least one of each; got shape {table.shape}. "
            "Pad a run that stopped early with NaN: it counts as diverged."
        )
    if not 0 < last <= 1:
        raise ValueError(f"last must be in (0, 1], got {last}. 0.25 takes the last quarter.")
    return table[:, -max(1, round(last * table.shape[1])) :]


def _infinite(dead: NDArray[np.bool_], rest: Metric | None, level: float) -> Metric:
    how = f"{int(dead.sum())} of {len(dead)} runs diverged"
    if rest is not None and np.isfinite(rest.value):
        how += f"; the other {rest.n}: {rest}"
    return Metric(inf, level=level, n=len(dead), unit="%", method=how)


def _with_limits(value: float, n: int, level: float, how: str) -> Metric:
    two_sided(level)
    tail = (1 - level) / 2
    low, high = (value * sqrt((n - 1) / float(chdtri(n - 1, p))) for p in (tail, 1 - tail))
    return Metric(value, low, high, level, n, "%", how)


def _share(hits: int, n: int, how: str, level: float) -> Metric:
    low, high = wilson(hits, n, level=level)
    return Metric(hits / n, low, high, level, n, method=how)
