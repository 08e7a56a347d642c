"""Arms of a study against each other: paired by seed, for other patients too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, nan, sqrt

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.metrics.checks import Floats
from medkit.metrics.power import FEWEST_SEEDS
from medkit.metrics.ranking import placement_variance
from medkit.metrics.spread import mean_over_seeds, sd_over_seeds
from medkit.metrics.stability import spread_ratio
from medkit.metrics.two_level import Placed, TwoLevel
from medkit.record.results import Metric
from medkit.study.outcomes import Outcome

AUROC = "test/auroc"
_CURVES = ("monitor/loss", "val/loss")  # the first that all trainings have
Cell = tuple[int, str]


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
        spread: Of ``(runs, evaluations)``.

    Raises:
        ValueError: For no outcomes, or predictions of other rows.
    """

    def __init__(
        self,
        outcomes: Iterable[Outcome],
        *,
        metric: str,
        curve: str,
        spread: Callable[..., Metric],
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
        self.metric, self.spread = metric, spread
        self.curve = curve or (known[0] if known else "")
        self._scored = metric == AUROC and all(one.predictions is not None for one in done)
        self._placed: dict[tuple[str, Cell], tuple[Placed, list[int]]] = {}
        self._rows: dict[Cell, pd.DataFrame] = {}

    def cells(self, *arms: str) -> list[Cell]:
        """Return the cells that all of these arms have trainings in."""
        return [cell for cell in self.arms[arms[0]] if all(cell in self.arms[a] for a in arms)]

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
            why = f"no interval: fewer than {FEWEST_SEEDS} seeds" if few < FEWEST_SEEDS else "few"
            return Metric(found.value, n=few, method=why)
        low, high = found.limits()
        how = "two-level t, paired by seed" if self._scored else "t over seeds, these patients"
        return Metric(found.value, low, high, 0.95, few, method=f"{how}, p = {found.p:.2g}")

    def wider(self, a: str, b: str) -> Metric:
        """Return how many times as wide the spread of ``a`` is as that of ``b``."""
        cells = self.cells(a, b)
        return spread_ratio(self._spread(a, cells), self._spread(b, cells))

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
        found = []
        for cell in cells:
            runs = self.arms[name][cell]
            lengths = {len(one.curves[self.curve]) for one in runs if self.curve in one.curves}
            if len(lengths) != 1:
                return Metric(nan, n=len(runs), unit="%", method="no value: no curves alike")
            blank = np.full(lengths.pop(), nan)  # a training that raised has left no curve
            curves = [
                one.curves.get(self.curve, blank) if one.status == "done" else blank for one in runs
            ]
            found.append(self.spread(np.array(curves)))
        if len(found) == 1:
            return found[0]
        n = 1 + sum((m.n or 1) - 1 for m in found)
        if any(np.isinf(m.value) for m in found):
            return next(m for m in found if np.isinf(m.value))
        if not all(m.value > 0 for m in found):
            return Metric(nan, n=n, unit="%", method="no value: one run has no spread")
        value = exp(float(np.mean([log(m.value) for m in found])))
        return Metric(value, n=n, unit="%", method=f"geometric mean of {len(found)} cells")

    def _two_level(self, weights: Mapping[str, float], cell: Cell, seeds: list[int]) -> TwoLevel:
        values = np.zeros(len(seeds))
        above, below, placed = np.zeros(()), np.zeros(()), None
        for arm, weight in weights.items():
            if self._scored:
                whole, order = self._placements(arm, cell)
                placed = whole.of_seeds([order.index(seed) for seed in seeds])
                above = above + weight * placed.above.mean(axis=0)
                below = below + weight * placed.below.mean(axis=0)
                values += weight * placed.auroc
            else:
                runs = self._by_seed(arm, cell)
                values += weight * np.array([runs[seed].metrics[self.metric] for seed in seeds])
        n = len(seeds)
        over_seeds = float(values.var(ddof=1)) / n if n > 1 else nan
        over_patients = 0.0
        if placed is not None:
            variance = placement_variance(placed.labels, above, below, placed.owner)
            over_patients = max(variance, 0.0)
        return TwoLevel(float(values.mean()), over_seeds, over_patients, n - 1)

    def _placements(self, arm: str, cell: Cell) -> tuple[Placed, list[int]]:
        if (arm, cell) not in self._placed:
            runs = self._by_seed(arm, cell)
            scores: list[Floats] = []
            for one in runs.values():
                frame = _in_order(one)
                first = self._rows.setdefault(cell, frame)
                _require_same(first, frame, one)
                scores.append(frame["score"].to_numpy(np.float64))
            rows = self._rows[cell]
            patient: NDArray[np.str_] | None = None
            if "patient" in rows and rows["patient"].duplicated().any():
                patient = rows["patient"].to_numpy(np.str_)
            placed = Placed.of(rows["y"].to_numpy(), scores, patient)
            self._placed[arm, cell] = placed, list(runs)
        return self._placed[arm, cell]


def _combined(parts: Sequence[tuple[str, TwoLevel]]) -> TwoLevel:
    """Return the mean over cells, given the site of each."""
    many = len(parts)
    if many == 1:
        return parts[0][1]
    of_site: dict[str, float] = defaultdict(float)
    for site, part in parts:
        of_site[site] += sqrt(part.over_patients)
    seeds = [part.over_seeds for _, part in parts]
    squares = sum(part.over_seeds**2 / part.seed_freedom for _, part in parts)
    freedom = sum(seeds) ** 2 / squares if squares > 0 else 1.0
    return TwoLevel(
        float(np.mean([part.value for _, part in parts])),
        sum(seeds) / many**2,
        sum(sd**2 for sd in of_site.values()) / many**2,
        freedom,
    )


def _in_order(one: Outcome) -> pd.DataFrame:
    frame = one.predictions
    if frame is None:
        raise ValueError(f"{one.name} must have predictions, and has none. Yield them from train.")
    ids = [name for name in ("patient", "row") if name in frame]
    return frame.astype(dict.fromkeys(ids, str)).sort_values(ids).reset_index(drop=True)


def _require_same(first: pd.DataFrame, other: pd.DataFrame, one: Outcome) -> None:
    ids = [name for name in ("patient", "row", "y") if name in first]
    if any(name not in other for name in ids) or not first[ids].equals(other[ids]):
        raise ValueError(
            f"arms must score the same rows of a split and site; {one.name} has {len(other)} rows "
            f"where another training has {len(first)}, or other ids or labels. Let the split "
            "depend on split_seed and site alone."
        )
