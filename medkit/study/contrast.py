"""Arms of a study against each other: paired by seed, for other patients too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log, nan, sqrt
from typing import Literal

import numpy as np

from medkit.metrics.power import FEWEST_SEEDS
from medkit.metrics.ranking import placement_variance
from medkit.metrics.spread import mean_over_seeds, sd_over_seeds
from medkit.metrics.stability import (
    convergence_band,
    late_spread,
    paired_correlation,
    spread_ratio,
)
from medkit.metrics.two_level import Placed, TwoLevel
from medkit.record.results import Metric
from medkit.study.outcomes import Outcome
from medkit.study.predictions import Predictions, require_same_rows
from medkit.study.study_arm import curves_of, predictions_of
from medkit.study.study_numbers import honest

AUROC = "test/auroc"
_CURVES = ("monitor/loss", "val/loss")  # the first that all trainings have
Cell = tuple[int, str]
Spread = Literal["band", "late"]
SPREADS: Mapping[Spread, tuple[Callable[..., Metric], float]] = {
    "band": (convergence_band, 0.25),
    "late": (late_spread, 0.5),
}


@dataclass(frozen=True)
class Arm:
    """One arm in numbers.

    Attributes:
        mean: Of the metric over seeds, t interval.
        sd: Of the metric over seeds, chi-square interval.
        spread: Of the curve over seeds; NaN where there are no curves.
        runs: Trainings.
        failed: Of those.
    """

    mean: Metric
    sd: Metric
    spread: Metric
    runs: int
    failed: int


class Contrast:
    """The outcomes of a study, to be set against each other arm by arm.

    Cells (splits, held-out sites) count alike. Seeds are independent between them; patients are
    independent between sites, and between the splits of a site taken for the same.

    Args:
        outcomes: Failed ones too.
        metric: "test/auroc" comes from the predictions where all have them.
        curve: Whose spread; empty: see ``Ablation.effects``.
        spread: See ``Ablation.effects``.

    Raises:
        ValueError: For no outcomes, or predictions of other rows.
    """

    def __init__(
        self,
        outcomes: Iterable[Outcome],
        *,
        metric: str,
        curve: str,
        spread: Spread,
    ) -> None:
        self.arms: dict[str, dict[Cell, list[Outcome]]] = {}
        for one in outcomes:
            cells = self.arms.setdefault(one.recipe, defaultdict(list))
            cells[one.split_seed, one.site].append(one)
        done = [one for one in self._all() if one.status == "done"]
        if not any(metric in one.metrics for one in done):
            raise ValueError(
                f"a training that ended well must have the metric {metric!r}; found "
                f"{sorted({name for one in done for name in one.metrics})} in {len(done)} of "
                f"them. Run the study first, or name another metric."
            )
        traced = [one for one in done if len(one.steps)]
        known = [name for name in _CURVES if all(name in one.curves for one in traced)]
        self.metric, (self.spread, self._last) = metric, SPREADS[spread]
        self.curve = curve or (known[0] if known else "")
        self._scored = metric == AUROC and all(one.predictions is not None for one in done)
        self._placed: dict[tuple[str, Cell], tuple[Placed, list[int]]] = {}
        self._first: dict[Cell, Predictions] = {}

    def cells(self, *arms: str) -> list[Cell]:
        """Return the cells that all of these arms have trainings in.

        Cells of one training, such as free splits, only where there are no others.
        """
        fewest = {
            cell: min(len(self.arms[arm].get(cell, ())) for arm in arms)
            for cell in self.arms[arms[0]]
        }
        several = [cell for cell, n in fewest.items() if n > 1]
        return several or [cell for cell, n in fewest.items() if n]

    def same(self, a: str, b: str) -> bool:
        """Whether two arms left the same numbers, bit for bit, in all trainings they share."""
        pairs = [
            (mine[seed], theirs[seed])
            for cell in self.cells(a, b)
            for mine, theirs in [(self._by_seed(a, cell), self._by_seed(b, cell))]
            for seed in mine.keys() & theirs.keys()
        ]
        return bool(pairs) and all(
            one.metrics == other.metrics
            and one.curves.keys() == other.curves.keys()
            and all(np.array_equal(one.curves[name], other.curves[name]) for name in one.curves)
            for one, other in pairs
        )

    def gain(self, weights: Mapping[str, float]) -> Metric:
        """Return a weighted sum of arms' mean metric, such as one minus another, with interval.

        Over the seeds that ended well in all of them: a failed training has no metric.
        """
        parts, seeds = [], []
        for cell in self.cells(*weights):
            shared = set.intersection(*(set(self._by_seed(arm, cell)) for arm in weights))
            if shared:
                seeds.append(len(shared))
                parts.append((cell[1], self._two_level(weights, cell, sorted(shared))))
        if not parts:
            return Metric(nan, n=0, method="no value: no seed ended well in all arms")
        found, few = _combined(parts), min(seeds)
        if few < FEWEST_SEEDS or not np.isfinite(found.se):
            of = f"{FEWEST_SEEDS} seeds" if few < FEWEST_SEEDS else "2 patients in a class"
            return Metric(found.value, n=few, method=f"no interval: fewer than {of}")
        low, high = found.limits()
        how = "two-level t, paired by seed" if self._scored else "t over seeds, these patients"
        return Metric(found.value, low, high, 0.95, few, method=f"{how}, p = {found.p:.2g}")

    def wider(self, a: str, b: str) -> Metric:
        """Return how many times as wide the spread of ``a`` is as that of ``b``."""
        cells = self.cells(a, b)
        r = self._correlation(a, b, cells)
        ratio = spread_ratio(self._spread(a, cells), self._spread(b, cells), r=r)
        return honest(ratio, ratio.n or 0)

    def arm(self, name: str) -> Arm:
        """Return an arm in numbers."""
        cells = self.cells(name)
        each: dict[int, list[float]] = defaultdict(list)
        for cell in cells:
            for seed, one in self._by_seed(name, cell).items():
                each[seed].append(one.metrics[self.metric])
        values = [float(np.mean(runs)) for runs in each.values() if len(runs) == len(cells)]
        runs = [one for cell in cells for one in self.arms[name][cell]]
        none = Metric(nan, n=0, method="no value: no seed ended well in all cells")
        return Arm(
            mean=mean_over_seeds(values) if values else none,
            sd=sd_over_seeds(values) if values else none,
            spread=self._spread(name, cells),
            runs=len(runs),
            failed=self.failed(name),
        )

    def failed(self, name: str) -> int:
        """Return how many trainings of an arm failed."""
        cells = self.arms[name].values()
        return sum(one.status == "failed" for runs in cells for one in runs)

    def _all(self) -> list[Outcome]:
        return [one for cells in self.arms.values() for runs in cells.values() for one in runs]

    def _by_seed(self, arm: str, cell: Cell) -> dict[int, Outcome]:
        """Return the trainings of a cell that ended well with the metric."""
        return {
            one.seed: one
            for one in self.arms[arm][cell]
            if one.status == "done" and self.metric in one.metrics
        }

    def _spread(self, name: str, cells: Sequence[Cell]) -> Metric:
        """Return the geometric mean over cells, with the degrees of freedom of all."""
        tables = [curves_of(self.arms[name][cell], self.curve) for cell in cells]
        found = [self.spread(table[1]) for table in tables if table is not None and len(table[0])]
        if len(found) < len(tables) or not found:
            return Metric(nan, n=0, unit="%", method="no value: no curves at the same steps")
        bad = [one for one in found if not 0 < one.value < inf]
        if bad or len(found) == 1:
            return (bad or found)[0]
        n = 1 + sum((one.n or 1) - 1 for one in found)
        value = exp(float(np.mean([log(one.value) for one in found])))
        return Metric(value, n=n, unit="%", method=f"geometric mean of {len(found)} cells")

    def _correlation(self, a: str, b: str, cells: Sequence[Cell]) -> float | None:
        """Return how alike the seeds act on the curves; None where they are not the same."""
        found = []
        for cell in cells:
            runs = [sorted(self.arms[arm][cell], key=lambda one: one.seed) for arm in (a, b)]
            tables = [curves_of(of_arm, self.curve) for of_arm in runs]
            seeds = [[one.seed for one in of_arm] for of_arm in runs]
            if seeds[0] != seeds[1] or any(t is None or not len(t[0]) for t in tables):
                return None
            found.append(paired_correlation(*(t[1] for t in tables if t), last=self._last))
        return float(np.mean(found)) if np.isfinite(found).all() else None

    def _two_level(self, weights: Mapping[str, float], cell: Cell, seeds: list[int]) -> TwoLevel:
        values, n, over_patients = np.zeros(len(seeds)), len(seeds), 0.0
        if self._scored:
            placed = {arm: self._placements(arm, cell, seeds) for arm in weights}
            any_one = next(iter(placed.values()))
            above, below = np.zeros(any_one.above.shape[1]), np.zeros(any_one.below.shape[1])
            for arm, weight in weights.items():
                values += weight * placed[arm].auroc
                above += weight * placed[arm].above.mean(axis=0)
                below += weight * placed[arm].below.mean(axis=0)
            variance = placement_variance(any_one.labels, above, below, any_one.owner)
            over_patients = max(variance, 0.0)  # rounding; NaN stays NaN
        else:
            for arm, weight in weights.items():
                runs = self._by_seed(arm, cell)
                values += weight * np.array([runs[seed].metrics[self.metric] for seed in seeds])
        over_seeds = float(values.var(ddof=1)) / n if n > 1 else nan
        return TwoLevel(float(values.mean()), over_seeds, over_patients, n - 1)

    def _placements(self, arm: str, cell: Cell, seeds: list[int]) -> Placed:
        if (arm, cell) not in self._placed:
            found = predictions_of(tuple(self._by_seed(arm, cell).values()))
            if found is None:  # asked for only where all have them
                raise RuntimeError(f"{arm} has lost its predictions; read the study again")
            said = found[0]
            require_same_rows(self._first.setdefault(cell, said), said)
            placed = Placed.of(said.y, said.scores, said.groups)
            self._placed[arm, cell] = placed, [int(seed) for seed in said.seeds]
        placed, order = self._placed[arm, cell]
        return placed.of_seeds([order.index(seed) for seed in seeds])


def _combined(parts: Sequence[tuple[str, TwoLevel]]) -> TwoLevel:
    """Return the mean over cells, given the site of each."""
    many = len(parts)
    if many == 1:
        return parts[0][1]
    of_site: dict[str, float] = defaultdict(float)
    for site, part in parts:
        of_site[site] += sqrt(part.over_patients)
    seeds = [part.over_seeds for _, part in parts]
    # one seed has no variance (NaN) and no degree of freedom
    squares = sum(part.over_seeds**2 / max(part.seed_freedom, 1) for _, part in parts)
    freedom = sum(seeds) ** 2 / squares if squares > 0 else 1.0
    return TwoLevel(
        float(np.mean([part.value for _, part in parts])),
        sum(seeds) / many**2,
        sum(sd**2 for sd in of_site.values()) / many**2,
        freedom,
    )
