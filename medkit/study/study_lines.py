"""What is said of one recipe's trainings, line by line: how far results move, then the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan

import numpy as np

from medkit.metrics.checks import Floats
from medkit.metrics.decisions import Flags, flags_at, how
from medkit.metrics.discrimination import auroc
from medkit.metrics.power import FEWEST_SEEDS
from medkit.metrics.spread import mean_over_seeds, sd_over_seeds
from medkit.metrics.stability import (
    agreement,
    bitwise,
    convergence_band,
    crash_rate,
    jitter,
    late_spread,
)
from medkit.metrics.stability_steps import steps_to_target
from medkit.metrics.two_level import Placed
from medkit.record.results import Metric
from medkit.study.predictions import Predictions, require_same_rows
from medkit.study.study_arm import (
    Arm,
    curves_of,
    flip_rate,
    honest,
    linear_residual,
    mean_of_splits,
    over_cells,
    pooled,
    predictions_of,
    values_of,
)

SPLIT = "split"


@dataclass(frozen=True)
class ReportSettings:
    """What a study's report is asked for.

    Attributes:
        metric: The result whose spread comes first; empty: "test/auroc", or what there is.
        eps: Results at most this far apart count as alike.
        flag_rate: Share of the rows that each training flags, for decisions at a common rate.
        target: AUROC to be reached, for the speed; such as 0.5 + 0.9 x (AUROC of a logistic
            regression on the same rows - 0.5).
        events: Rows of the rarer class that the AUROC curves were measured on: from 200 on a
            speed can be had.
        linear: Recipe that is the logistic regression.
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


def lines_of(arm: Arm, linear: Arm | None, settings: ReportSettings, metric: str) -> Iterator[Line]:
    """Yield the lines of one recipe, in the order they are to be read.

    Args:
        arm: Its trainings.
        linear: Those of the logistic regression for the same site, where there is one.
        settings: Of the report.
        metric: The result that comes first.
    """
    if arm.fixed:
        value = float(values_of(arm.runs, metric).mean())
        said = "draws nothing: no spread is no merit of it"
        yield Line("result", metric, Metric(value, n=len(arm.runs), method=said))
    else:
        yield from _result(arm, settings, metric)
        yield from _convergence(arm, settings)
        yield from _reproducibility(arm, settings, metric)
    yield from _ends(arm)
    if not arm.fixed:
        yield from _learnt(arm, linear)
        yield from _ensemble(arm, settings)


def _result(arm: Arm, settings: ReportSettings, metric: str) -> Iterator[Line]:
    seed, free = settings.chance, (SPLIT, *settings.chance)
    cells = [_finite(values_of(runs, metric)) for runs in arm.cells.values()]
    cells = [values for values in cells if len(values) > 1]
    main = _finite(values_of(arm.main, metric))
    if cells:
        mean = mean_over_seeds(cells[0]) if len(cells) == 1 else mean_of_splits(cells)
        yield Line("result", metric, honest(mean, len(main)), seed)
        yield Line("result", "sd", _sd(cells), seed)
    apart = _finite(values_of(arm.free, metric))
    if len(apart) > 1:
        yield Line("result", "sd as run", _sd([apart]), free)
    if len(main) > 1:
        low, high = np.quantile(main, [0.25, 0.75])
        yield Line(
            "result", "IQR", Metric(float(high - low), n=len(main), method="q75 - q25"), seed
        )
        said = f"{main.min():.4g} to {main.max():.4g}; grows with n"
        whole = Metric(float(np.ptp(main)), n=len(main), method=said)
        yield Line("result", "range", whole, seed)
    for name, flags in _flags(arm, settings).items():
        yield Line("result", f"decisions flipped, {name}", _flips(flags, name), seed)
    others = sorted({name for run in arm.runs for name in run.metrics} - {metric})
    for other in others:
        tables = [_finite(values_of(runs, other)) for runs in arm.cells.values()]
        tables = [values for values in tables if len(values) > 1]
        if tables:
            yield Line("other results", f"sd of {other}", _sd(tables), seed)


def _convergence(arm: Arm, settings: ReportSettings) -> Iterator[Line]:
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


def _reproducibility(arm: Arm, settings: ReportSettings, metric: str) -> Iterator[Line]:
    first = {(run.split_seed, run.seed): run.weights_sha256 for run in arm.runs}
    twice = [
        (first.get((run.split_seed, run.seed), ""), run.weights_sha256)
        for run in arm.again
        if run.status == "done"
    ]
    twice = [digests for digests in twice if all(digests)]
    same = "not measured: Study(repeats=...), and weights_sha256 in its outcomes"
    equal = bitwise(twice) if twice else Metric(nan, n=0, method=same)
    yield Line("reproducibility", "bitwise, same seed", honest(equal, len(twice)))
    pairs = [values_of(runs, metric) for runs in arm.cells.values()]
    pairs = [values[: len(values) // 2 * 2] for values in pairs]  # a pair is of one split
    if pairs and sum(len(values) for values in pairs):
        said = _predictions(arm)
        rows = len(np.unique(said[0].patient)) if said else 0
        values = np.concatenate(pairs)
        found = agreement(values, eps=settings.eps, patients=rows)
        if not rows:
            method = found.method.replace("on 0 patients", "on an unknown number of patients")
            found = replace(found, method=method)
        what = f"{metric} within {settings.eps:g}"
        yield Line("reproducibility", what, honest(found, len(values)), settings.chance)
    for name, flags in _flags(arm, settings).items():
        flips = _flips(flags, name)
        low, high = flips.low, flips.high
        same_side = replace(
            flips,
            value=1 - flips.value,
            low=None if high is None else 1 - high,
            high=None if low is None else 1 - low,
        )
        yield Line("reproducibility", f"decisions alike, {name}", same_side, settings.chance)


def _ends(arm: Arm) -> Iterator[Line]:
    runs, failed = arm.runs, [run for run in arm.runs if run.status == "failed"]
    rate = honest(crash_rate(len(failed), len(runs)), len(runs))
    yield Line("crashes", "runs without usable weights", rate)
    epochs, skipped = sum(run.epochs for run in runs), sum(run.skipped_steps for run in runs)
    if epochs:
        said = f"{skipped} steps in {epochs} epochs, which are not independent: no interval"
        per_epoch = Metric(skipped / epochs, n=epochs, unit="per epoch", method=said)
        yield Line("crashes", "skipped steps", per_epoch)
    everything = (*runs, *arm.again)
    for what, spent in (
        ("CPU", sum(run.cpu_s for run in everything)),
        ("accelerator", sum(run.gpu_s for run in everything)),
    ):
        if spent or what == "CPU":
            said = f"{spent / len(everything):.4g} s a training"
            hours = Metric(spent / 3600, n=len(everything), unit="h", method=said)
            yield Line("cost", what, hours)
    wasted = float(sum(run.wasted_steps for run in everything))
    said = "trained twice, after a kill or a roll-back"
    yield Line("cost", "wasted steps", Metric(wasted, n=len(everything), method=said))


def _learnt(arm: Arm, linear: Arm | None) -> Iterator[Line]:
    """Compare with the logistic regression: no spread and nothing learned is not stability."""
    mine = _predictions(arm)
    its = (
        predictions_of([run for run in linear.runs if run.split_seed == arm.main[0].split_seed])
        if linear
        else None
    )
    if mine is None or its is None:
        return
    net, logistic = mine[0], its[0]
    require_same_rows(net, logistic)
    n = len(net.scores)
    groups = net.groups
    placed = [Placed.of(one.y, one.scores, groups) for one in (net, logistic)]
    gap = float(placed[0].auroc.mean() - placed[1].auroc.mean())
    found = Metric(gap, n=n, method="")
    if n >= FEWEST_SEEDS:
        test = placed[0].minus(placed[1], paired=False)
        low, high = test.limits()
        found = Metric(gap, low, high, 0.95, n, method="two-level t: other trainings and patients")
    yield Line("against logistic regression", "AUROC gained", honest(found, n))
    scores = np.vstack([net.scores, logistic.scores])
    if scores.min() >= 0 and scores.max() <= 1:
        share = mean_over_seeds(linear_residual(net.scores, logistic.scores[0]))
        share = replace(share, method=f"variance of the logit it does not explain, {share.method}")
        yield Line("against logistic regression", "share of the score", honest(share, n))


def _ensemble(arm: Arm, settings: ReportSettings) -> Iterator[Line]:
    """Yield what the mean of k members has, in groups that share no member."""
    mine, k = _predictions(arm), settings.members
    if mine is None or len(mine[0].scores) < 2 * k:
        return
    said = mine[0]
    groups = len(said.scores) // k
    scores = said.scores[: groups * k].reshape(groups, k, -1).mean(axis=1)
    values = np.array([auroc(said.y, score).value for score in scores])
    group, varied = f"mean of {k} members", settings.chance
    mean = mean_over_seeds(values)
    yield Line(group, "AUROC", honest(mean, groups), varied)
    yield Line(group, "sd", _sd([values]), varied)
    flags = [flags_at(scores, rate=settings.flag_rate)]
    name = f"at {how(None, settings.flag_rate)}"
    yield Line(group, f"decisions flipped, {name}", _flips(flags, name), varied)


def _sd(cells: Sequence[Floats]) -> Metric:
    return honest(pooled([sd_over_seeds(values) for values in cells]), sum(map(len, cells)))


def _flips(flags: Sequence[Flags], name: str) -> Metric:
    return honest(flip_rate(flags, name), sum(len(one) for one in flags))


def _flags(arm: Arm, settings: ReportSettings) -> dict[str, list[Flags]]:
    """Return who is flagged, split by split: at each training's own threshold, at a common rate."""
    said = [predictions_of(runs) for runs in arm.cells.values()]
    whole = [one for one in said if one is not None and len(one[0].scores) > 1]
    if not whole or len(whole) < len(said):
        return {}
    found: dict[str, list[Flags]] = {}
    own = [[t for t in thresholds if t is not None] for _, thresholds in whole]
    if all(len(one) == len(p.scores) for one, (p, _) in zip(own, whole, strict=True)):
        found["at own threshold"] = [
            np.asarray(p.scores >= np.array(one)[:, None])
            for one, (p, _) in zip(own, whole, strict=True)
        ]
    common = f"at {how(None, settings.flag_rate)}"
    found[common] = [flags_at(p.scores, rate=settings.flag_rate) for p, _ in whole]
    return found


def _predictions(arm: Arm) -> tuple[Predictions, list[float | None]] | None:
    return predictions_of(arm.main)


def _finite(values: Floats) -> Floats:
    return values[np.isfinite(values)]
