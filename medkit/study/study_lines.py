"""What is said of one recipe's trainings, line by line: how far results move, then the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import nan

import numpy as np

from medkit.metrics.checks import Floats
from medkit.metrics.decisions import Flags, flags_at, how
from medkit.metrics.discrimination import auroc
from medkit.metrics.power import FEWEST_SEEDS
from medkit.metrics.spread import mean_over_seeds, sd_over_seeds
from medkit.metrics.stability import agreement, bitwise, crash_rate
from medkit.metrics.two_level import Placed
from medkit.record.results import Metric
from medkit.study.outcomes import Outcome
from medkit.study.predictions import require_same_rows
from medkit.study.study_arm import (
    SPLIT,
    Arm,
    Line,
    ReportSettings,
    on_same_rows,
    predictions_of,
    values_of,
)
from medkit.study.study_convergence import convergence
from medkit.study.study_numbers import (
    flip_rate,
    honest,
    linear_residual,
    mean_of_splits,
    pooled,
)


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
        yield from convergence(arm, settings)
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
        if not cells:
            yield Line("result", metric, honest(mean_over_seeds(apart), len(apart)), free)
        yield Line("result", "sd as run", _sd([apart]), free)
    if len(main) > 1:
        low, high = np.quantile(main, [0.25, 0.75])
        yield Line(
            "result", "IQR", Metric(float(high - low), n=len(main), method="q75 - q25"), seed
        )
        said = f"{main.min():.4g} to {main.max():.4g}; grows with n"
        whole = Metric(float(np.ptp(main)), n=len(main), method=said)
        yield Line("result", "range", whole, seed)
    for name, flags in _flags(arm.cells.values(), settings).items():
        yield Line("result", f"decisions flipped, {name}", _flips(flags, name), seed)
    outside = [arm.free] if on_same_rows(arm.free) else []
    for name, flags in _flags(outside, settings).items():
        yield Line("result", f"decisions flipped as run, {name}", _flips(flags, name), free)
    others = sorted({name for run in arm.runs for name in run.metrics} - {metric})
    for other in others:
        tables = [_finite(values_of(runs, other)) for runs in arm.cells.values()]
        tables = [values for values in tables if len(values) > 1]
        if any(np.ptp(values) for values in tables):  # not a prevalence, nor what draws nothing
            found, level = _sd(tables), float(np.mean([values.mean() for values in tables]))
            said = f"mean {level:.4g}; {found.method}"
            yield Line("other results", f"sd of {other}", replace(found, method=said), seed)


def _reproducibility(arm: Arm, settings: ReportSettings, metric: str) -> Iterator[Line]:
    first = {(run.split_seed, run.seed): run.weights_sha256 for run in arm.runs}
    twice = [
        (first.get((run.split_seed, run.seed), ""), run.weights_sha256)
        for run in arm.again
        if run.status == "done"
    ]
    twice = [digests for digests in twice if all(digests)]
    lacking = "weights_sha256, which train has to put into its outcomes"
    if any(run.status == "done" for run in arm.again):
        same = f"not measured: only the digest is missing, {lacking}"
    else:
        same = f"not measured: it takes Study(repeats=...), and {lacking}"
    equal = bitwise(twice) if twice else Metric(nan, n=0, method=same)
    yield Line("reproducibility", "bitwise, same seed", honest(equal, len(twice)))
    said = predictions_of(arm.main)
    rows = len(np.unique(said[0].patient)) if said else 0
    pairs = [values_of(runs, metric) for runs in arm.cells.values()]
    pairs = [values[: len(values) // 2 * 2] for values in pairs]  # a pair is of one split
    what = f"{metric} within {settings.eps:g}"
    for name, values, varied in (
        (what, np.concatenate([np.empty(0), *pairs]), settings.chance),
        (f"{what}, as run", values_of(arm.free, metric), (SPLIT, *settings.chance)),
    ):
        if len(values) < 2 or not metric:
            continue
        found = agreement(values, eps=settings.eps, patients=rows)
        if not rows:
            method = found.method.replace("on 0 patients", "on an unknown number of patients")
            found = replace(found, method=method)
        yield Line("reproducibility", name, honest(found, len(values)), varied)
    for name, flags in _flags(arm.cells.values(), settings).items():
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
            size, unit = (1.0, "s") if spent < 600 else (3600.0, "h")
            used = Metric(spent / size, n=len(everything), unit=unit, method=said)
            yield Line("cost", what, used)
    wasted = float(sum(run.wasted_steps for run in everything))
    said = "trained twice, after a kill or a roll-back"
    yield Line("cost", "wasted steps", Metric(wasted, n=len(everything), method=said))


def _learnt(arm: Arm, linear: Arm | None) -> Iterator[Line]:
    """Compare with the logistic regression: no spread and nothing learned is not stability."""
    mine, split = predictions_of(arm.main), arm.main[0].split_seed
    beside = tuple(run for run in linear.runs if run.split_seed == split) if linear else ()
    its = predictions_of(beside)
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
    mine, k = predictions_of(arm.main), settings.members
    if mine is None or len(mine[0].scores) < 2 * k:
        return
    said = mine[0]
    groups = len(said.scores) // k
    scores = said.scores[: groups * k].reshape(groups, k, -1).mean(axis=1)
    values = np.array([auroc(said.y, score).value for score in scores])
    group = f"mean of {k} members"
    flags = [flags_at(scores, rate=settings.flag_rate)]
    name = f"at {how(None, settings.flag_rate)}"
    for what, metric in (
        ("AUROC", mean_over_seeds(values)),
        ("sd", sd_over_seeds(values)),
        (f"decisions flipped, {name}", flip_rate(flags, name)),
    ):
        yield Line(group, what, honest(metric, groups, of="such ensembles"), settings.chance)


def _sd(cells: Sequence[Floats]) -> Metric:
    return honest(pooled([sd_over_seeds(values) for values in cells]), sum(map(len, cells)))


def _flips(flags: Sequence[Flags], name: str) -> Metric:
    return honest(flip_rate(flags, name), sum(len(one) for one in flags))


def _flags(
    cells: Iterable[tuple[Outcome, ...]], settings: ReportSettings
) -> dict[str, list[Flags]]:
    """Return who is flagged, cell by cell: at each training's own threshold, at a common rate."""
    said = [predictions_of(runs) for runs in cells]
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


def _finite(values: Floats) -> Floats:
    return values[np.isfinite(values)]
