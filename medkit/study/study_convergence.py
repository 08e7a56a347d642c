"""How a recipe's trainings converge: where they end, how they jump, how soon they get there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from medkit.metrics.stability import convergence_band, jitter, late_spread
from medkit.metrics.stability_steps import steps_to_target
from medkit.study.study_arm import SPLIT, Arm, Line, ReportSettings, curves_of, over_cells
from medkit.study.study_numbers import honest


def convergence(arm: Arm, settings: ReportSettings) -> Iterator[Line]:
    """Yield the spread with the split free, on the same rows and on rows common to all."""
    seed, free = settings.chance, (SPLIT, *settings.chance)
    for what, spread, curve in (
        ("loss band", convergence_band, "loss"),
        ("late AUROC spread", late_spread, "auroc"),
    ):
        as_run = curves_of(arm.free, f"val/{curve}") if arm.free else None
        if as_run is not None:
            found = honest(spread(as_run[1]), len(as_run[1]))
            yield Line("convergence", f"{what}, as run", found, free)
        for where, rows in (("same rows", "val"), ("common monitor", "monitor")):
            inside = over_cells(arm, f"{rows}/{curve}", spread)
            if inside is not None:
                yield Line("convergence", f"{what}, {where}", honest(*inside), seed)
    table = curves_of(arm.main, "val/loss")
    if table is not None and round(0.25 * table[1].shape[1]) > 2:
        found = honest(jitter(table[1]), len(table[1]))
        yield Line("convergence", "jitter within a run", found)
    if settings.target is not None:
        yield from _speed(arm, settings, settings.target)


def _speed(arm: Arm, settings: ReportSettings, target: float) -> Iterator[Line]:
    table = curves_of(arm.main, "monitor/auroc") or curves_of(arm.main, "val/auroc")
    if table is None:
        return
    found = steps_to_target(table[0], table[1], target=target, events=settings.events)
    n, mean = len(table[1]), found.restricted_mean
    yield Line(
        "convergence",
        f"steps to {target:g}",
        honest(replace(mean, n=n, unit="steps", method=str(found)), n),
        settings.chance,
    )
    if not found.reason:
        spread = honest(found.band, n)
        yield Line("convergence", f"steps to {target:g}, spread", spread, settings.chance)
