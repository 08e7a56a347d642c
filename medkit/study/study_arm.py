"""The trainings of one recipe, sorted by what varied between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import nan

import numpy as np

from medkit.metrics.checks import Floats
from medkit.record.results import Metric
from medkit.study.outcomes import Ints, Outcome
from medkit.study.predictions import Part, Predictions, joined
from medkit.study.study_numbers import pooled

SPLIT = "split"


@dataclass(frozen=True)
class ReportSettings:
    """What a study's report is asked for.

    Attributes:
        metric: The result whose spread comes first; empty: how the nets rank, on test rows if any.
        eps: Results at most this far apart count as alike.
        flag_rate: Share of the rows that each training flags, for decisions at a common rate.
        target: AUROC to be reached, for the speed; such as 0.5 + 0.9 x (AUROC of a logistic
            regression on the same rows - 0.5).
        events: Rows of the rarer class that the AUROC curves were measured on: from 200 on a
            speed can be had.
        linear: What the name of the recipe holds that is the logistic regression: a fixed one.
        members: Of an ensemble.
        chance: What the seed decides in these trainings.
    """

    metric: str = ""
    eps: float = 0.01
    flag_rate: float = 0.2
    target: float | None = None
    events: int = 0
    linear: str = "logistic"
    members: int = 5
    chance: tuple[str, ...] = ("init", "order", "dropout")


@dataclass(frozen=True)
class Line:
    """One number of a report.

    Attributes:
        group: What it is about, such as "result".
        what: Its name within the group.
        metric: The number.
        varied: Which sources of chance varied between the trainings; empty where that is not it.
    """

    group: str
    what: str
    metric: Metric
    varied: tuple[str, ...] = ()


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


def values_of(runs: Sequence[Outcome], metric: str) -> Floats:
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


@lru_cache(
    maxsize=4
)  # several lines ask for the same cell, and putting rows in order takes a while
def predictions_of(runs: tuple[Outcome, ...]) -> tuple[Predictions, list[float | None]] | None:
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


def on_same_rows(runs: Sequence[Outcome]) -> bool:
    """Whether trainings of several splits were all scored on the same rows, as outside tests are.

    Rows without an id could be any, so they are not.
    """
    frames = [run.predictions for run in runs if run.status == "done"]
    ids = [
        frozenset(frame["patient" if "patient" in frame else "row"].astype(str))
        for frame in frames
        if frame is not None
    ]
    return len(ids) == len(frames) and len(set(ids)) == 1


def over_cells(
    arm: Arm, curve: str, spread: Callable[[Floats], Metric]
) -> tuple[Metric, int] | None:
    """Return a spread of curves inside the splits, and over how many trainings."""
    tables = [curves_of(runs, curve) for runs in arm.cells.values()]
    found = [table[1] for table in tables if table is not None]
    if not found or len(found) < len(tables):
        return None
    return pooled([spread(table) for table in found]), sum(len(table) for table in found)
