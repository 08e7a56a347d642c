"""Published results compared: for other trainings on the same patients, and no further."""

from __future__ import annotations

import numpy as np

from medkit.metrics.checks import Floats
from medkit.metrics.power import FEWEST_SEEDS
from medkit.metrics.two_level import TwoLevel, over_seeds
from medkit.record.results import Metric
from medkit.study.compared import Compared, Line, improvement
from medkit.study.results_table import Results


def compare_results(a: Results, b: Results) -> Compared:
    """Compare published results: for other trainings only, since patients are not in them.

    Raises:
        ValueError: When they share no test set.
    """
    tests = [test for test in a.values if test in b.values]
    if not tests:
        raise ValueError(
            f"both must be of the same test sets; found {list(a.values)[:6]} and "
            f"{list(b.values)[:6]}. Compare what was measured on the same patients."
        )
    lines, chances, notes = [], {}, []
    paired = True
    for test in tests:
        mine, its = a.values[test], b.values[test]
        same = set(mine) == set(its)
        first = np.array([mine[seed] for seed in sorted(mine)])
        second = np.array([its[seed] for seed in sorted(its)])
        paired, n = paired and same, len(first)
        kind = f"no interval below {FEWEST_SEEDS} seeds"
        difference = Metric(float(first.mean() - second.mean()), n=n, method=kind)
        if min(len(first), len(second)) >= FEWEST_SEEDS:
            found = _over_seeds(first, second, paired=same)
            low, high = found.limits()
            kind = f"t over {n} seeds, these patients only, p = {found.p:.2g}"
            difference = Metric(found.value, low, high, 0.95, n, method=kind)
        name = test or "metric"
        lines.append(Line.of(name, first, second, difference))
        chances[name] = improvement(first, second)
    if len(tests) > 1:
        notes.append(
            f"{len(tests)} test sets: of 20 such intervals one leaves out the truth by chance"
        )
    higher = [line.name for line in lines if _side(line.difference) > 0]
    lower = [line.name for line in lines if _side(line.difference) < 0]
    verdict = (
        "No verdict for other patients: a table of results holds no variance over patients. "
        f"On these patients, for other trainings, A is higher on {', '.join(higher) or 'none'} and "
        f"B on {', '.join(lower) or 'none'} of the {len(tests)} test sets. A test over seeds alone "
        "has been seen to reject the truth on new patients in 44 % of cases at 5 seeds and in 62 % "
        "at 10 (benchmarks/compare_aa.py): compare predictions instead."
    )
    size = len(next(iter(a.values.values()))), len(next(iter(b.values.values())))
    return Compared(
        (a.name, b.name), size, paired, verdict, tuple(lines), chances, notes=tuple(notes)
    )


def _over_seeds(a: Floats, b: Floats, *, paired: bool) -> TwoLevel:
    value, variance, freedom = over_seeds(a, b, paired=paired)
    return TwoLevel(value, variance, 0.0, freedom)


def _side(metric: Metric) -> int:
    """Return 1 where the interval lies above 0, -1 where it lies below."""
    if metric.low is None or metric.high is None:
        return 0
    return int(metric.low > 0) - int(metric.high < 0)
