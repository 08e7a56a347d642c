"""What an ablation found: a table, sentences, and what the forest plot takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medkit.plot.style import counted, interval
from medkit.record.results import Metric
from medkit.study.contrast import Arm

MORE = "more than their sum"


@dataclass(frozen=True)
class Effect:
    """What one practice, or a pair, did.

    Attributes:
        practice: Its name.
        way: "left out", "tried", "added", or "more than their sum".
        gain: Metric with the practice minus without it.
        wider: Spread without it over spread with it: above 1 it makes trainings more alike.
        failed_with: Trainings that failed with it.
        failed_without: And without.
        same: With and without it all numbers are the same bit for bit.
    """

    practice: str
    way: str
    gain: Metric
    wider: Metric
    failed_with: int = 0
    failed_without: int = 0
    same: bool = False

    def sentence(self, of: str) -> str:
        """Return it in words; ``of`` names the metric."""
        name = f"{self.practice} ({self.way})"
        if self.same:
            return f"{name}: never acted, all numbers are the same bit for bit."
        said = []
        for failed, how in ((self.failed_without, "without"), (self.failed_with, "with")):
            if failed:
                said.append(f"{counted(failed, 'training')} failed {how} it")
        if shown(self.wider, 1):
            ratio, how = self.wider, "without"
            if ratio.value < 1:
                ratio, how = _inverse(ratio), "with"
            said.append(f"the band is {interval(ratio, '.2f')} times as wide {how} it")
        if shown(self.gain, 0):
            more = self.gain.value > 0
            size = self.gain if more else _negative(self.gain)
            form = ".3f" if size.value > 5e-4 else ".1g"
            said.append(f"it {'raises' if more else 'lowers'} {of} by {interval(size, form)}")
        if said and self.way == MORE:
            said.append("beyond what the two do alone")
        if said:
            return f"{name}: {'; '.join(said)}."
        if self.gain.low is None and self.wider.low is None:
            return f"{name}: nothing can be said; {self.gain.method}."
        band = "" if self.wider.low is None else f"band x{interval(self.wider, '.2f')}, "
        return f"{name}: no effect shown ({band}{of} {interval(self.gain, '+.3f')})."


@dataclass(frozen=True)
class Effects:
    """All effects of an ablation.

    Attributes:
        rows: Practice by practice.
        arms: Name -> the arm in numbers.
        metric: Name of the metric.
    """

    rows: tuple[Effect, ...]
    arms: Mapping[str, Arm]
    metric: str

    @property
    def label(self) -> str:
        """The metric in words: "test AUROC"."""
        part, _, name = self.metric.rpartition("/")
        return f"{part} {name.upper() if name.startswith('au') else name}".strip()

    def sentences(self) -> list[str]:
        """Return one sentence per effect, and how far to trust so many."""
        said = [row.sentence(self.label) for row in self.rows]
        many = sum(m.low is not None for row in self.rows for m in (row.gain, row.wider))
        if many:
            said.append(
                f"Of {many} intervals of 95 % about {0.05 * many:.0f} would leave out no effect "
                "by chance alone."
            )
        return said

    def table(self) -> pd.DataFrame:
        """Return a row per effect: its two numbers with their limits."""
        columns: dict[str, list[object]] = {
            "practice": [row.practice for row in self.rows],
            "way": [row.way for row in self.rows],
        }
        for name in ("gain", "wider"):
            found = [getattr(row, name) for row in self.rows]
            columns |= {name: [m.value for m in found], f"{name}_low": [m.low for m in found]}
            columns |= {f"{name}_high": [m.high for m in found]}
        columns["seeds"] = [row.gain.n for row in self.rows]
        columns["failed"] = [row.failed_with + row.failed_without for row in self.rows]
        return pd.DataFrame(columns)

    @property
    def practices(self) -> list[str]:
        """Names in order, for the rows of a figure."""
        return list(dict.fromkeys(row.practice for row in self.rows))

    def of(self, what: str) -> dict[str, dict[str, Metric]]:
        """Return way -> practice -> "gain" or "wider", for ``medkit.plot.effects``."""
        found: dict[str, dict[str, Metric]] = {}
        for row in self.rows:
            if row.way != MORE:
                found.setdefault(row.way, {})[row.practice] = getattr(row, what)
        return found

    def arms_table(self) -> pd.DataFrame:
        """Return a row per arm: mean and sd of the metric, spread of the curve, failures."""
        rows = []
        for name, arm in self.arms.items():
            rows.append(
                {
                    "arm": name,
                    self.label: arm.mean.value,
                    "sd": arm.sd.value,
                    "band_%": arm.spread.value,
                    "band_low": arm.spread.low,
                    "band_high": arm.spread.high,
                    "runs": arm.runs,
                    "failed": arm.failed,
                }
            )
        return pd.DataFrame(rows)

    def metrics(self) -> dict[str, Metric]:
        """Return name -> number for ``metrics.json``."""
        found = {}
        for row in self.rows:
            name = re.sub(r"[^A-Za-z0-9.]+", "_", f"{row.practice}/{row.way}".replace("/", "-"))
            found[f"ablation/{name}/gain"] = row.gain
            if np.isfinite(row.wider.value):
                found[f"ablation/{name}/wider"] = row.wider
        return found

    def __str__(self) -> str:
        return "\n".join(self.sentences())


def shown(metric: Metric, nothing: float) -> bool:
    """Whether an interval leaves out no effect."""
    if metric.low is None or metric.high is None:
        return False
    return not metric.low <= nothing <= metric.high


def _inverse(ratio: Metric) -> Metric:
    low, high = ratio.low, ratio.high
    swapped = (None, None) if low is None or high is None else (1 / high, 1 / low)
    return replace(ratio, value=1 / ratio.value, low=swapped[0], high=swapped[1])


def _negative(gain: Metric) -> Metric:
    low, high = gain.low, gain.high
    swapped = (None, None) if low is None or high is None else (-high, -low)
    return replace(gain, value=-gain.value, low=swapped[0], high=swapped[1])
