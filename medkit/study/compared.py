"""What a comparison of two recipes has found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from medkit.metrics.checks import Floats
from medkit.metrics.discrimination import auroc
from medkit.metrics.two_level import TwoLevel
from medkit.record.results import Metric


@dataclass(frozen=True)
class Line:
    """One metric of both recipes.

    Attributes:
        name: Of the metric.
        a: Mean over the seeds of A.
        b: Mean over those of B.
        difference: A minus B.
        a_sd: Standard deviation over the seeds of A; NaN of one.
        b_sd: Over those of B.
    """

    name: str
    a: float
    b: float
    difference: Metric
    a_sd: float
    b_sd: float

    @classmethod
    def of(cls, name: str, a: Floats, b: Floats, difference: Metric) -> Line:
        """Return the line of a metric's values, one per seed."""
        sds = [float(x.std(ddof=1)) if len(x) > 1 else float("nan") for x in (a, b)]
        return cls(name, float(a.mean()), float(b.mean()), difference, *sds)


@dataclass(frozen=True)
class OneRun:
    """What DeLong's test of one training against one would have claimed."""

    a_better: int
    b_better: int
    pairs: int


@dataclass(frozen=True)
class Power:
    """What it takes to find a true gain in AUROC.

    Attributes:
        gain: The gain that matters.
        now: How often a study like this one finds it.
        smallest: The gain that it finds in 80 % of cases.
        seeds: Seeds of each recipe that find ``gain`` in 80 %, on these patients; None: none do.
        patients: Patients such as these that do, with these seeds.
    """

    gain: float
    now: float
    smallest: float
    seeds: int | None
    patients: int | None


@dataclass(frozen=True)
class Compared:
    """Two recipes side by side.

    Attributes:
        names: Of A and B.
        seeds: Trainings of A and B; 0 of a recipe that draws nothing.
        paired: Whether they were paired, seed by seed.
        rows: Rows; ``patients``: patients; ``events``: rows with y = 1. All 0 where only results
            were published.
        lines: Each metric of both.
        auroc: The difference in AUROC at both levels, or None where no verdict can be given.
        improvement: Probability that a training of A beats one of B.
        one_run: What one training against one would have claimed.
        flips: Share of decisions that flip: between seeds of A, of B, and between the recipes.
        power: What it takes to find the gain that matters.
        verdict: In a sentence.
        notes: What the reader has to know.
    """

    names: tuple[str, str]
    seeds: tuple[int, int]
    paired: bool
    verdict: str
    lines: tuple[Line, ...]
    improvement: dict[str, Metric]
    rows: int = 0
    patients: int = 0
    events: int = 0
    auroc: TwoLevel | None = None
    one_run: OneRun | None = None
    flips: dict[str, Metric] = field(default_factory=dict)
    power: Power | None = None
    notes: tuple[str, ...] = ()


def improvement(a: Floats, b: Floats) -> Metric:
    """Return P(a training of A beats one of B) over all pairs, ties one half (Agarwal 2021)."""
    which = np.repeat([1, 0], [len(a), len(b)])
    found = auroc(which, np.concatenate([a, b]))
    method = "over pairs of seeds, these patients"
    return Metric(found.value, found.low, found.high, found.level, len(a) * len(b), method=method)
