"""A/A: re-trainings of one recipe compared with each other, where every difference is false."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medkit import keyed
from medkit.metrics import decisions
from medkit.metrics.intervals import wilson
from medkit.metrics.power import FEWEST_SEEDS
from medkit.metrics.spread import sd_over_seeds
from medkit.metrics.two_level import Placed, TwoLevel
from medkit.record.results import Metric
from medkit.study.predictions import Predictions

REGROUPED = 200


@dataclass(frozen=True)
class SameRecipe:
    """What would be claimed of a recipe against itself.

    Attributes:
        name: Of the recipe.
        seeds: Trainings.
        rows: Rows they are scored on.
        one_run: Share of disjoint pairs of trainings that DeLong's test calls different.
        two_level: The same of disjoint groups of 5 by the two-level t; None below 10 trainings.
        regrouped: The same share over random groups that use trainings again: no interval.
        spread: Standard deviation of AUROC over the trainings.
        flips: Share of decisions that flip between two trainings.
        notes: What the reader has to know.
    """

    name: str
    seeds: int
    rows: int
    one_run: Metric
    two_level: Metric | None
    regrouped: Metric | None
    spread: Metric
    flips: Metric
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, Metric]:
        """The same, named for metrics.json."""
        found = {
            "aa/one_run_delong_called_different": self.one_run,
            "aa/two_level_t_called_different": self.two_level,
            "aa/two_level_t_regrouped": self.regrouped,
            "aa/auroc_sd": self.spread,
            "aa/decisions_flipped": self.flips,
        }
        return {name: metric for name, metric in found.items() if metric is not None}


def compare_with_itself(
    recipe: Predictions, *, threshold: float | None = None, flag_rate: float = 0.2
) -> SameRecipe:
    """Compare disjoint pairs of trainings of one recipe, in a keyed order.

    Raises:
        ValueError: When there are fewer than two trainings.
    """
    many = len(recipe.scores)
    if many < 2:
        raise ValueError(
            f"A/A needs at least 2 trainings of a recipe, and {recipe.name} has {many}. "
            "Train it with other seeds; 10 give one comparison of 5 with 5, 20 give two."
        )
    placed = Placed.of(recipe.y, recipe.scores, recipe.groups)
    order = keyed.generator(0, "a/a", many).permutation(many).tolist()
    pairs = list(zip(order[0::2], order[1::2], strict=False))
    one_run = [_differs(placed.one_run(i, placed, j)) for i, j in pairs]
    flags = decisions.flags_at(recipe.scores, threshold=threshold, rate=flag_rate)
    two_level = regrouped = None
    if many >= 2 * FEWEST_SEEDS:
        groups = [
            order[at : at + 2 * FEWEST_SEEDS]
            for at in range(0, many - 2 * FEWEST_SEEDS + 1, 2 * FEWEST_SEEDS)
        ]
        called = [_groups_differ(placed, group) for group in groups]
        two_level = _share(called, f"disjoint groups of {FEWEST_SEEDS}, two-level t")
        drawn = (keyed.generator(0, "a/a", many, k).permutation(many) for k in range(REGROUPED))
        again = [_groups_differ(placed, one.tolist()[: 2 * FEWEST_SEEDS]) for one in drawn]
        method = f"{REGROUPED} random groups of {FEWEST_SEEDS}, trainings used again: no interval"
        regrouped = Metric(float(np.mean(again)), n=REGROUPED, method=method)
    return SameRecipe(
        recipe.name,
        many,
        len(recipe.y),
        _share(one_run, "disjoint pairs, one-run DeLong"),
        two_level,
        regrouped,
        sd_over_seeds(placed.auroc),
        Metric(
            decisions.flips_between_seeds(flags),
            n=len(recipe.y),
            method=decisions.how(threshold, flag_rate),
        ),
        recipe.notes,
    )


def _differs(found: TwoLevel) -> bool:
    low, high = found.limits()
    return low > 0 or high < 0


def _groups_differ(placed: Placed, seeds: Sequence[int]) -> bool:
    first, second = seeds[:FEWEST_SEEDS], seeds[FEWEST_SEEDS:]
    return _differs(placed.of_seeds(first).minus(placed.of_seeds(second), paired=False))


def _share(called: Sequence[bool], method: str) -> Metric:
    hits, n = int(sum(called)), len(called)
    low, high = wilson(hits, n)
    return Metric(hits / n, low, high, 0.95, n, method=f"{method}, Wilson")
