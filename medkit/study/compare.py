"""Is a gain real: two recipes compared for other trainings and other patients.

A verdict needs 5 trainings of each recipe for AUROC (the two-level t) and 10 for other metrics
(the two-level bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

import numpy as np

from medkit.metrics import decisions, power
from medkit.metrics.checks import Codes, Floats
from medkit.metrics.power import FEWEST_SEEDS
from medkit.metrics.ranking import Ranking
from medkit.metrics.resample import crossed
from medkit.metrics.two_level import (
    Placed,
    Scorer,
    TwoLevel,
    bootstrap_difference,
)
from medkit.record.results import Metric
from medkit.study.compared import Compared, Line, OneRun, Power, improvement
from medkit.study.predictions import Predictions, require_same_rows

FEWEST_FOR_BOOTSTRAP = 10
SIDES = ("A", "B")


def compare(
    a: Predictions,
    b: Predictions,
    *,
    gain: float = 0.01,
    threshold: float | None = None,
    flag_rate: float = 0.2,
    fixed: Collection[str] = (),
    draws: int = 1000,
) -> Compared:
    """Compare predictions of two recipes on the same rows.

    Args:
        a: One recipe.
        b: The other.
        gain: The difference in AUROC that matters.
        threshold: Rows at or above it are flagged, for F1 and flips.
        flag_rate: Without it: the share of rows that each training flags.
        fixed: "A" or "B": that recipe draws nothing (a logistic regression, a score sheet), so
            its one run is what any training of it would be.
        draws: Resamples of the bootstrap.

    Raises:
        ValueError: When they were scored on other rows, or a fixed one has several runs.
    """
    if not gain > 0:
        raise ValueError(
            f"gain must be above 0, got {gain}. 0.01 asks for a hundredth of AUROC: name the "
            "smallest difference that would change what you do."
        )
    require_same_rows(a, b)
    _require_fixed(a, b, fixed)
    seeds = tuple(
        0 if side in fixed else len(one.scores) for side, one in zip(SIDES, (a, b), strict=True)
    )
    paired, how = _pairing(a, b, seeds)
    groups = a.groups
    first, second = Placed.of(a.y, a.scores, groups), Placed.of(b.y, b.scores, groups)
    few = min(n for n in seeds if n)
    found = first.minus(second, paired=paired) if few >= FEWEST_SEEDS else None
    if found is not None:
        found = replace(found, both_ways=first.both_ways(second, paired=paired))
    if found is not None and not np.isfinite(found.over_patients):
        found, how = None, [*how, "one patient in a class: nothing can be said of other patients"]
    lines = [_auroc_line(first, second, found, len(a.y))]
    lines += _other_lines(a, b, paired, few, threshold, draws)
    patients = len(np.unique(a.patient))
    return Compared(
        names=(a.name, b.name),
        seeds=(seeds[0], seeds[1]),
        paired=paired,
        verdict=_verdict(found, gain, few, lines[0]),
        lines=tuple(lines),
        improvement={"AUROC": improvement(first.auroc, second.auroc)},
        rows=len(a.y),
        patients=patients,
        events=int(a.y.sum()),
        auroc=found,
        one_run=_one_run(first, second),
        flips=_flips(a, b, threshold, flag_rate),
        power=None if found is None else _power(found, gain, few, patients),
        notes=(*dict.fromkeys([*a.notes, *b.notes]), *how),
    )


def _require_fixed(a: Predictions, b: Predictions, fixed: Collection[str]) -> None:
    for side, one in zip(SIDES, (a, b), strict=True):
        if side in fixed and len(one.scores) != 1:
            raise ValueError(
                f"a recipe that draws nothing must have one run; {one.name} has "
                f"{len(one.scores)}. Leave --fixed {side} out, or keep one of them."
            )
    if len(set(fixed)) == len(SIDES):
        raise ValueError(
            "one recipe at least must draw something for a comparison of recipes; both are said "
            "to be fixed. For two score vectors use medkit.metrics.comparison's auroc_difference."
        )


def _pairing(a: Predictions, b: Predictions, seeds: tuple[int, ...]) -> tuple[bool, list[str]]:
    """Say whether the seeds are paired, and to the reader why not."""
    if 0 in seeds:
        return False, []
    if "?" in (*a.seeds, *b.seeds):
        return False, ["seeds are not all known, so they are not paired (Welch's variance)"]
    if a.seeds == b.seeds:
        return True, []
    shared = len(set(a.seeds) & set(b.seeds))
    return False, [
        f"seeds differ ({shared} in both), so they are not paired (Welch's variance); the same "
        "seeds in both arms would make better use of them"
    ]


def _auroc_line(a: Placed, b: Placed, found: TwoLevel | None, n: int) -> Line:
    if found is None:
        value = float(a.auroc.mean() - b.auroc.mean())
        return Line.of("AUROC", a.auroc, b.auroc, Metric(value, n=n, method="no interval"))
    low, high = found.limits()
    method = f"two-level t, p = {found.p:.2g}"
    difference = Metric(found.value, low, high, 0.95, n, method=method)
    return Line.of("AUROC", a.auroc, b.auroc, difference)


def _other_lines(
    a: Predictions, b: Predictions, paired: bool, few: int, threshold: float | None, draws: int
) -> list[Line]:
    """Return AUPRC, Brier where the scores are probabilities, and F1 where there is a threshold."""
    y, groups = a.y, a.groups
    kinds: dict[str, Callable[[Floats], Scorer]] = {
        "AUPRC": lambda score: Ranking(y, score).average_precision
    }
    lowest, highest = min(a.scores.min(), b.scores.min()), max(a.scores.max(), b.scores.max())
    if lowest >= 0 and highest <= 1:
        kinds["Brier (less is better)"] = lambda score: partial(_weighted_mean, (score - y) ** 2)
    if threshold is not None:
        kinds[f"F1 at {threshold:g}"] = lambda score: partial(
            _f1, y, (score >= threshold).astype(np.float64)
        )
    # a patient with an event in any row counts as one: strata are of patients
    had = y if groups is None else _any_of(y, np.unique(groups, return_inverse=True)[1])
    strata = crossed(a.site, had)
    lines, whole = [], np.ones((1, len(y)))
    for name, scorer in kinds.items():
        mine, its = [scorer(s) for s in a.scores], [scorer(s) for s in b.scores]
        values = [np.array([one(whole)[0] for one in side]) for side in (mine, its)]
        method = f"no interval below {FEWEST_FOR_BOOTSTRAP} seeds"
        gap = float(values[0].mean() - values[1].mean())
        difference = Metric(gap, n=len(y), method=method)
        if few >= FEWEST_FOR_BOOTSTRAP:
            value, low, high = bootstrap_difference(
                mine, its, len(y), paired=paired, groups=groups, strata=strata, draws=draws
            )
            method = "two-level bootstrap, by site and class"
            difference = Metric(value, low, high, 0.95, len(y), method=method)
        lines.append(Line.of(name, values[0], values[1], difference))
    return lines


def _one_run(a: Placed, b: Placed) -> OneRun:
    pairs = [(i, j) for i in range(len(a.above)) for j in range(len(b.above))]
    limits = [a.one_run(i, b, j).limits() for i, j in pairs]
    return OneRun(
        sum(low > 0 for low, _ in limits), sum(high < 0 for _, high in limits), len(pairs)
    )


def _flips(
    a: Predictions, b: Predictions, threshold: float | None, flag_rate: float
) -> dict[str, Metric]:
    low, high = min(a.scores.min(), b.scores.min()), max(a.scores.max(), b.scores.max())
    if threshold is not None and not low < threshold <= high:
        raise ValueError(
            f"threshold must lie among the scores, {low:.4g} to {high:.4g}, got {threshold:g}: "
            "all rows are on one side of it. Give one of the scores' own scale."
        )
    mine, its = (
        decisions.flags_at(one.scores, threshold=threshold, rate=flag_rate) for one in (a, b)
    )
    shares = {
        "between seeds of A": decisions.flips_between_seeds(mine),
        "between seeds of B": decisions.flips_between_seeds(its),
        "between A and B": decisions.flips_between_recipes(mine, its),
    }
    method = decisions.how(threshold, flag_rate)
    return {name: Metric(share, n=len(a.y), method=method) for name, share in shares.items()}


def _power(found: TwoLevel, gain: float, seeds: int, patients: int) -> Power:
    return Power(
        gain,
        found.power(gain),
        power.smallest_gain(found),
        power.seeds_needed(found, gain, seeds),
        power.patients_needed(found, gain, patients),
    )


def _verdict(found: TwoLevel | None, gain: float, few: int, line: Line) -> str:
    if found is None:
        return (
            f"No verdict: it needs {FEWEST_SEEDS} trainings of each recipe, and there are {few}. "
            f"The AUROCs are {line.difference.value:+.4f} apart, which may be luck of the seed."
            if few < FEWEST_SEEDS
            else "No verdict: one patient in a class says nothing of others."
        )
    low, high = found.limits()
    span = f"AUROC {found.value:+.4f} [{low:+.4f}, {high:+.4f}], p = {found.p:.2g}"
    whom = "for other trainings and other patients"
    if low <= 0 <= high:
        if max(-low, high) < gain:
            return f"A and B do not differ by {gain:g} or more {whom}: {span}."
        return (
            f"A and B are not shown to differ {whom}: {span}. A true gain of {gain:g} would have "
            f"been found in {found.power(gain):.0%} of such studies."
        )
    better, size = ("A", low) if low > 0 else ("B", -high)
    largest = high if low > 0 else -low
    how = f"by {gain:g} or more" if size >= gain else f"whether by {gain:g} or more is open"
    how = f"though by less than {gain:g}" if largest < gain else how
    return f"{better} ranks better {whom}, {how}: {span}."


def _any_of(y: Floats, owner: Codes) -> Floats:
    return np.asarray(np.bincount(owner, y)[owner] > 0, np.float64)


def _weighted_mean(values: Floats, weights: Floats) -> Floats:
    return np.asarray(weights @ values / weights.sum(axis=1))


def _f1(y: Floats, flagged: Floats, weights: Floats) -> Floats:
    return np.asarray(2 * (weights @ (y * flagged)) / (weights @ y + weights @ flagged))
