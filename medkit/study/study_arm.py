"""The trainings of one recipe, sorted by what varied between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, stdtrit

from medkit.metrics.checks import Floats
from medkit.metrics.decisions import Flags, flips_between_seeds
from medkit.metrics.power import FEWEST_SEEDS
from medkit.record.results import Metric
from medkit.study.outcomes import Ints, Outcome
from medkit.study.predictions import Part, Predictions, joined

LEVEL = 0.95
_LIMITS = re.compile(r" \[[^\]]*\]")  # an interval in words


@dataclass(frozen=True)
class Arm:
    """The trainings of one recipe, for one site held out.

    Attributes:
        recipe: Its name.
        site: The hospital held out, or "".
        fixed: Whether the recipe draws nothing.
        runs: All trainings, failed ones too.
        again: Second trainings of the same seeds.
        cells: Split -> its trainings, where there are two or more: scored on the same rows.
        free: Trainings each of a split and a seed of its own, so independent.
    """

    recipe: str
    site: str
    fixed: bool
    runs: tuple[Outcome, ...]
    again: tuple[Outcome, ...] = ()
    cells: dict[int, tuple[Outcome, ...]] = field(init=False)
    free: tuple[Outcome, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Sort the trainings."""
        by_split: dict[int, list[Outcome]] = {}
        for run in self.runs:
            by_split.setdefault(run.split_seed, []).append(run)
        cells = {split: tuple(runs) for split, runs in by_split.items() if len(runs) > 1}
        object.__setattr__(self, "cells", cells)
        free: list[Outcome] = []
        for runs in sorted(by_split.values(), key=len):  # the fewest seeds choose first
            taken = {run.seed for run in free}
            free += [run for run in runs if run.seed not in taken][:1]
        object.__setattr__(self, "free", tuple(free) if len(free) > 1 else ())

    @property
    def name(self) -> str:
        """Recipe and site."""
        return f"{self.recipe} @ {self.site}" if self.site else self.recipe

    @property
    def main(self) -> tuple[Outcome, ...]:
        """The trainings of the split that has most, the first of several: on the same rows."""
        return max(self.cells.values(), key=len, default=self.runs[:1])


def values_of(runs: Iterable[Outcome], metric: str) -> Floats:
    """Return the metric of each training, NaN where it failed or does not have it."""
    done = [run.metrics.get(metric, nan) if run.status == "done" else nan for run in runs]
    return np.array(done, np.float64)


def curves_of(runs: Sequence[Outcome], name: str) -> tuple[Ints, Floats] | None:
    """Return steps and curves ``(n, T)``; a failed training counts as diverged from its end on.

    None where no training has the curve, or they were measured at different steps.
    """
    whole = [run for run in runs if name in run.curves and run.status == "done"]
    if not whole:
        return None
    steps = whole[0].steps
    if any(not np.array_equal(run.steps, steps) for run in whole):
        return None
    table = np.full((len(runs), len(steps)), nan)
    for row, run in zip(table, runs, strict=True):
        if run.status == "done" and name not in run.curves:
            return None
        curve = run.curves.get(name, np.empty(0))[: len(steps)]
        row[: len(curve)] = curve
        if run.status == "failed":
            row[-1] = nan
    return steps, table


def predictions_of(runs: Sequence[Outcome]) -> tuple[Predictions, list[float | None]] | None:
    """Return what the trainings that did not fail say of the same rows, and their thresholds.

    None where fewer than one says anything, or not all do.

    Raises:
        ValueError: Where they are of other rows.
    """
    done = [run for run in runs if run.status == "done"]
    parts = [
        Part(str(run.seed), run.predictions, run.name)
        for run in done
        if run.predictions is not None
    ]
    if not parts or len(parts) < len(done):
        return None
    return joined(done[0].recipe, parts, ()), [run.threshold for run in done]


def pooled(found: Sequence[Metric]) -> Metric:
    """Return one spread from those of several splits: root of their mean square by degrees.

    Each split has rows of its own, so only trainings of one split are compared.
    """
    if len(found) == 1:
        return found[0]
    degrees = np.array([(metric.n or 1) - 1 for metric in found], np.float64)
    n, total = int(sum(metric.n or 0 for metric in found)), float(degrees.sum())
    how = f"{found[0].method}; root mean square of {len(found)} splits"
    if any(metric.value == inf for metric in found):
        whole = [metric for metric in found if metric.value != inf]
        how = f"a run diverged in {len(found) - len(whole)} of {len(found)} splits"
        how += f"; the others: {pooled(whole)}" if whole else ""
        return replace(found[0], value=inf, low=None, high=None, n=n, method=how)
    squares = np.array([metric.value**2 for metric in found])
    value = sqrt(float((degrees * squares).sum()) / total) if total else nan
    low, high = (value * sqrt(total / float(chdtri(total, p))) for p in (0.025, 0.975))
    return Metric(value, low, high, LEVEL, n, found[0].unit, how)


def mean_of_splits(values: Sequence[Floats]) -> Metric:
    """Return the mean over splits of their means, with a t interval over the splits."""
    means = np.array([v.mean() for v in values])
    n, how = int(sum(len(v) for v in values)), f"mean of {len(means)} splits, t over the splits"
    half = float(stdtrit(len(means) - 1, 0.975)) * float(means.std(ddof=1)) / sqrt(len(means))
    mean = float(means.mean())
    return honest(
        Metric(mean, mean - half, mean + half, LEVEL, n, method=how), len(means), of="splits"
    )


def flip_rate(tables: Sequence[Flags], how: str) -> Metric:
    """Return the share of rows whose flag another seed turns, with a jackknife over the seeds.

    All pairs of trainings give the value; the interval leaves out one training at a time, since
    pairs that share one are not independent (Arvesen 1969). It is for other trainings and these
    rows; it covered in 92 to 97 of 100 trials where 95 is meant, from 5 to 20 trainings.

    Args:
        tables: Flags ``(n, N)`` of each split; their mean is taken.
        how: Where rows are flagged.
    """
    shares = [flips_between_seeds(flags) for flags in tables]
    n, rows = sum(len(flags) for flags in tables), tables[0].shape[1]
    value = float(np.mean(shares))
    said = f"{how}, all pairs of {n} trainings on {rows} rows"
    if min(len(flags) for flags in tables) < 3:
        return Metric(value, n=n, method=said)
    variance = 0.0
    for flags in tables:
        left = [flips_between_seeds(np.delete(flags, one, axis=0)) for one in range(len(flags))]
        variance += float(np.var(left)) * (len(flags) - 1)
    half = float(stdtrit(n - len(tables), 0.975)) * sqrt(variance) / len(tables)
    low, high = max(0.0, value - half), min(1.0, value + half)
    return Metric(value, low, high, LEVEL, n, method=f"{said}, jackknife over trainings")


def honest(metric: Metric, n: int, *, of: str = "trainings") -> Metric:
    """Return a metric without its interval where it rests on fewer than 5 trainings."""
    if n >= FEWEST_SEEDS or metric.n == 0:
        return metric
    said = _LIMITS.sub("", f"{metric.method}; no interval below {FEWEST_SEEDS} {of}")
    return replace(metric, low=None, high=None, level=None, method=said)


def over_cells(
    arm: Arm, curve: str, spread: Callable[[Floats], Metric]
) -> tuple[Metric, int] | None:
    """Return a spread of curves inside the splits, and over how many trainings."""
    tables = [curves_of(runs, curve) for runs in arm.cells.values()]
    found = [table[1] for table in tables if table is not None]
    if not found or len(found) < len(tables):
        return None
    return pooled([spread(table) for table in found]), sum(len(table) for table in found)


def linear_residual(scores: Floats, linear: Floats) -> Floats:
    """Return the share of the variance of each logit that a linear model's does not explain.

    1 - r² between the logit of each training and that of the linear model on the same rows: 0 for
    a net that says what logistic regression says, whatever its scale.

    Args:
        scores: Probabilities ``(n, N)``.
        linear: Of the linear model, ``(N,)``.
    """
    logits = _logit(np.vstack([linear[None], scores]))
    return np.array([1 - np.corrcoef(logits[0], logit)[0, 1] ** 2 for logit in logits[1:]])


def _logit(prob: Floats) -> NDArray[np.float64]:
    inside = np.clip(prob, 1e-7, 1 - 1e-7)  # a score of 0 or 1 has no logit
    return np.asarray(np.log(inside / (1 - inside)))
