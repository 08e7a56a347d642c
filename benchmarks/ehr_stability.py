"""How much a result moves when only the seed does: the script by hand, the kit's recipe, five nets.

20 seeds, on both families of made-up hospitals (5 data draws; 16 for what the recipe alone says)
and on UCI heart, each hospital left out in turn (real data by MEDKIT_REAL_DATA, or left out).

N0 is what a person in a hurry writes (``_hurried.py``): codes and units left, both classes drawn
equally often, Adam at a constant rate, the last of 40 epochs, a threshold of 0.5; N1 the same with
the clean data. *as run*: each seed has its own split, and its loss is that of other patients;
*same rows*: one split for all; *monitor*: fresh rows of the hospitals that are trained on. *recipe*
is the kit's default net on one split (``warm_classifier``), its validation rows saying how much of
it counts (as in ``fit_folds``) and where to flag; *five* are five seeds of it on that split. The
band (1.96 sd over mean of the loss in the last quarter) is of the nets as they are. N1's loss is
that of balanced draws, which is larger: a smaller band than with the prior put back.

Bars are on limits of Student's t interval over data draws, fresh patients in each. Steps to target
are a plain MLP's: the kit's net begins above it. F1 is the expected one, labels averaged over their
true probabilities, and so is the best possible rule's; beside the recipe's share are those of
boosting and logistic regression on the same 1,120 rows, and its own at the threshold that is best
for the rows it is measured on. Flips are of C's fresh stays.

Some 20 CPU minutes; with --json a run that is stopped goes on at the draw it was at.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import logging
import multiprocessing
import shutil
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import _hurried
import numpy as np
import pandas as pd
import torch
from _stable_tables import (
    MONITOR,
    TOGETHER,
    Cohort,
    Floats,
    Runs,
    digests,
    entropy,
    heart,
    hospitals,
    random_mlp,
    recipe,
)
from guard_faults import Poisoned
from hospital_tables import t_interval
from report import Interval, Report
from torch import Tensor
from tqdm import tqdm

from medkit.data.ehr import EHRDataModule
from medkit.data.tables import read_table
from medkit.metrics.calibration import ece, slope_and_intercept
from medkit.metrics.decisions import flags_at, flips_between_seeds
from medkit.metrics.spread import sd_over_seeds
from medkit.metrics.stability import agreement, bitwise, convergence_band, crash_rate, spread_ratio
from medkit.metrics.stability_steps import steps_to_target
from medkit.metrics.thresholds import choose
from medkit.metrics.two_level import Placed
from medkit.models.baseline import fit_boosting
from medkit.models.member_metrics import of_members
from medkit.record.files import read_json, write_json
from medkit.record.identity import git_commit
from medkit.record.results import Metric
from medkit.synth.best import best_of

FAMILIES = ("additive", "interacting")
SEEDS, DRAWS, MORE_DRAWS = 20, 5, 16
FRESH = 10_000  # of the hospitals trained on, and of the one left out
MLP_SEEDS = 40
ALONE = 3  # of the seeds that are trained again
GARBAGE = 0.005  # share of the training rows
HEART = ("cleveland", "hungarian", "switzerland", "va")
RIVALS = ("N0", "N1", "N1, 20 epochs", "logistic")
Found = dict[str, Metric]

# figure -> (at least, at most), on the limits of its interval; see the interacting family in tell()
BARS: dict[str, tuple[float | None, float | None]] = {
    "band/same rows/recipe": (None, 6.0),
    "band/same rows/five": (None, 3.0),
    "ratio/recipe over N1": (None, 0.45),
    "steps/plain MLP, five": (None, 12.0),
    "sd/recipe": (None, 0.005),
    "flips/recipe": (None, 0.035),
    "flips/five": (None, 0.02),
    "gain/recipe over N0": (0.10, None),
    "gain/recipe over N1": (0.03, None),
    "gain/recipe over logistic": (-0.005, None),
    "f1_share/recipe": (0.90, None),
    "calibration/slope": (0.85, 1.15),
    "calibration/ece": (None, 0.025),
}


def main() -> int:
    """Train, measure, print."""
    for name in ("pytorch_lightning", "medkit"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # runs that die are what is counted
    torch.set_num_threads(1)
    report = Report(__doc__)
    seeds = range(10 if report.quick else SEEDS)
    draws, more = (1, 1) if report.quick else (DRAWS, MORE_DRAWS)
    fresh = FRESH // 4 if report.quick else FRESH
    parts = Parts(report, f"{seeds} {fresh}")
    found: dict[str, dict[str, list[float]]] = {f: defaultdict(list) for f in FAMILIES}
    for draw in tqdm(range(more), desc="draws", disable=None):
        for family in FAMILIES:
            part = partial(measured, family, draw, fresh, seeds, full=draw < draws)
            for name, value in parts.get(f"{family}-{draw}", part).items():
                found[family][name].append(value)
    for family in FAMILIES:
        tell(report, family, found[family])
        again(report, family, fresh, seeds)
        with hospitals(family, 0, fresh) as cohort:
            garbage(report, family, cohort, seeds[:5] if report.quick else seeds)
    hearts(report, seeds)
    report.note(f"{time.process_time():.0f} CPU s")
    parts.forget()
    return report.finish()


class Parts:
    """What each draw gave, kept beside the JSON file until the end: a stopped run goes on there."""

    def __init__(self, report: Report, settings: str) -> None:
        self.folder = None if report.json is None else Path(f"{report.json}.parts")
        self.of = f"{git_commit(Path(__file__).parent)} {settings}"

    def get(self, name: str, part: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return a part, measured now or by the same code before."""
        if self.folder is None:
            return part()
        path = self.folder / f"{name}.json"
        kept = read_json(path) if path.is_file() else {}
        if kept.get("of") == self.of:
            return {figure: float(value) for figure, value in kept["found"].items()}
        found = part()
        self.folder.mkdir(parents=True, exist_ok=True)
        texts = {figure: repr(float(value)) for figure, value in found.items()}  # JSON has no NaN
        write_json(path, {"of": self.of, "found": texts})
        return found

    def forget(self) -> None:
        """Remove the parts: the report is whole."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def measured(
    family: str, draw: int, fresh: int, seeds: Sequence[int], *, full: bool
) -> dict[str, float]:
    """Return the values of one draw's figures."""
    with hospitals(family, draw, fresh) as cohort:
        return {name: m.value for name, m in measure(cohort, seeds, full=full).items()}


def measure(cohort: Cohort, seeds: Sequence[int], *, full: bool) -> Found:
    """Return all figures of one development table; without ``full`` those of the recipe alone."""
    dm = cohort.data()
    runs = recipe(cohort, dm, seeds, monitor=full and len(cohort.monitor) == MONITOR)
    bands = {
        "same rows/recipe": band(runs, "val"),
        "same rows/five": band(runs, "val", TOGETHER),
    }
    (one, one_val, weight), (five, five_val, _) = runs.prob(), runs.prob(TOGETHER)
    found: Found = {"weight of the net": Metric(float(weight.mean()))}
    prob: dict[str, Floats] = {"recipe": one, "five": five, "logistic": linear(runs)[None]}
    for name, mine, val in (("recipe", one, one_val), ("five", five, five_val)):
        own = np.array([choose(None, p) for p in val])
        at_own = mine >= own[:, None]
        at_rate = flags_at(mine[:, cohort.outside], rate=0.2)
        found[f"flips/{name}"] = Metric(flips_between_seeds(at_own[:, cohort.outside]))
        found[f"flips/{name}, flagging 20 %"] = Metric(flips_between_seeds(at_rate))
        if cohort.prob is not None:
            found[f"f1_share/{name}"] = Metric(f1_share(cohort, at_own))
    if cohort.prob is not None:
        found |= rival_f1(cohort, dm, one, prob["logistic"][0])
        inside = ~cohort.outside
        each = [(slope_and_intercept(cohort.y[inside], p[inside])[0].value,
                 ece(cohort.y[inside], p[inside], draws=2).value) for p in one]  # fmt: skip
        for name, column in zip(("slope", "ece"), np.mean(each, axis=0), strict=True):
            found[f"calibration/{name}"] = Metric(float(column))
    if full:
        free = [cohort.data(split_seed=seed) for seed in seeds]
        bands |= by_hand(cohort, dm, free, seeds, prob, found)
        bands |= free_recipe(cohort, free, seeds, prob)
        if "monitor" in runs.watch.rows:
            bands["monitor/recipe"] = band(runs, "monitor", y=cohort.y[cohort.monitor])
            bands["monitor/five"] = band(runs, "monitor", TOGETHER, y=cohort.y[cohort.monitor])
            found |= speed(cohort, dm, range(max(MLP_SEEDS, len(seeds))))
        for name in ("recipe", "five"):
            for rival in ("N1", "N1, 20 epochs"):
                ratio = spread_ratio(bands[f"same rows/{name}"], bands[f"same rows/{rival}"])
                found[f"ratio/{name} over {rival}"] = ratio
    found |= {f"band/{name}": metric for name, metric in bands.items()}
    return found | outside_gains(cohort, prob)


def band(runs: Runs, rows: str, together: int = 1, y: Any = None) -> Metric:
    """Return the band of the recipe's losses in the last quarter of the looks."""
    logits = runs.watch.curves(rows)
    labels = runs.y_val if y is None else y
    late = logits[-(len(runs.watch.steps["val"]) // 4) :]
    return convergence_band(entropy(late, torch.as_tensor(labels), together), last=1)


def late_band(curves: Sequence[tuple[Tensor, Any]], last: float = 0.25) -> Metric:
    """Return the band of runs that may have other rows: logits ``(looks, rows)`` with labels."""
    many = round(min(len(logits) for logits, _ in curves) * last)
    losses = [entropy(g[-many:, None], torch.as_tensor(y))[0] for g, y in curves]
    return convergence_band(np.stack(losses), last=1)


def by_hand(
    cohort: Cohort,
    dm: EHRDataModule,
    free: Sequence[EHRDataModule],
    seeds: Sequence[int],
    prob: dict[str, Floats],
    found: Found,
) -> dict[str, Metric]:
    """Train the script by hand, N0 and N1, split free and fixed; return its bands."""
    bands: dict[str, Metric] = {}
    for arm, clean in (("N0", False), ("N1", True)):
        rows = scaled(cohort, dm, clean=clean)
        for split, whose in (("as run", free), ("same rows", [dm] * len(seeds))):
            runs = [hurried(cohort, own, rows, s) for own, s in zip(whose, seeds, strict=True)]
            labels = [own.rows("val").y for own in whose]
            for short, share in (("", 1.0), (", 20 epochs", 0.5)):
                curves = [
                    (run.logits["val"][: round(share * len(run.logits["val"]))], y)
                    for run, y in zip(runs, labels, strict=True)
                ]
                bands[f"{split}/{arm}{short}"] = late_band(curves)
                if split == "as run":
                    at = round(_hurried.EPOCHS * share)
                    prob[arm + short] = np.array([run.prob[at] for run in runs])
            if len(cohort.monitor) == MONITOR:
                y = torch.as_tensor(cohort.y[cohort.monitor])
                name = "monitor" if split == "same rows" else "monitor, split free"
                bands[f"{name}/{arm}"] = late_band(
                    [(run.logits["monitor"], y) for run in runs], 1.0
                )
            if split == "as run":
                flags = prob[arm] >= 0.5
                found[f"flips/{arm}"] = Metric(flips_between_seeds(flags[:, cohort.outside]))
                if cohort.prob is not None:
                    found[f"f1_share/{arm}"] = Metric(f1_share(cohort, flags))
    return bands


def scaled(cohort: Cohort, dm: EHRDataModule, *, clean: bool) -> tuple[Tensor, Tensor]:
    """Return the table and the new rows as the script by hand scales them.

    Args:
        cohort: Where they come from.
        dm: For the names of columns, the contract and who is in development.
        clean: With codes missing and one unit a column, as the contract has it.
    """
    assert dm.table is not None
    assert dm.split is not None
    names = list(dm.table.features)
    old, new = pd.read_csv(cohort.csv)[names], cohort.new[names]
    if clean:
        repaired = read_table(cohort.new, dm.spec, features=names, contract=dm.contract)
        old, new = (
            pd.DataFrame(table.values.astype(float), columns=names)
            for table in (dm.table, repaired)
        )
    known = np.concatenate([dm.split.part(part) for part in ("train", "val")])
    scale = _hurried.Scaled.of(old.iloc[known])
    return scale(old), scale(new)


def hurried(
    cohort: Cohort,
    dm: EHRDataModule,
    rows: tuple[Tensor, Tensor],
    seed: int,
    *,
    share_bad: float = 0.0,
) -> _hurried.Trained:
    """Run the script once on the split of ``dm``; ``share_bad`` of its rows hold an infinity."""
    assert dm.table is not None
    assert dm.split is not None
    x, x_new = rows
    train, val = dm.split.part("train"), dm.split.part("val")
    mine = x[train]
    for place in bad_places(len(train), share_bad):
        mine[place, place % x.shape[1]] = torch.inf
    y = torch.as_tensor(dm.table.y)[train]
    watch = {"val": x[val], "monitor": x_new[cohort.monitor]}
    epochs = _hurried.EPOCHS // 2, _hurried.EPOCHS
    return _hurried.train(
        mine, y, seed=seed, watch=watch, new=x_new, late=["monitor"], epochs=epochs
    )


def free_recipe(
    cohort: Cohort, free: Sequence[EHRDataModule], seeds: Sequence[int], prob: dict[str, Floats]
) -> dict[str, Metric]:
    """Train the recipe with a split for each seed, one by one; return its bands."""
    whole = len(cohort.monitor) == MONITOR
    runs = [recipe(cohort, dm, [seed], monitor=whole) for dm, seed in zip(free, seeds, strict=True)]
    prob["recipe, split free"] = np.concatenate([run.prob()[0] for run in runs])
    curves = [(run.watch.curves("val")[:, 0], run.y_val) for run in runs]
    bands = {"as run/recipe": late_band(curves)}
    if whole:
        y = torch.as_tensor(cohort.y[cohort.monitor])
        late = [(run.watch.curves("monitor")[:, 0], y) for run in runs]
        bands["monitor, split free/recipe"] = late_band(late, 1.0)
    return bands


def speed(cohort: Cohort, dm: EHRDataModule, seeds: Sequence[int]) -> Found:
    """Steps of a plain MLP to 0.9 of what logistic regression is above chance, on the monitor."""
    watch = random_mlp(cohort, dm, seeds)
    rows = cohort.monitor
    y = torch.as_tensor(cohort.y[rows])
    linear_logits = dm.baseline.logits(dm.apply(cohort.new.iloc[rows]).x)
    linear_auroc = float(of_members(torch.as_tensor(linear_logits)[None], y)["auroc"][0])
    found: Found = {}
    for name, together in (("one", 1), ("five", TOGETHER)):
        curves = []
        for logits in watch.logits["monitor"]:
            prob = torch.sigmoid(logits.double()).view(-1, together, len(y)).mean(1)
            curves.append(of_members(torch.logit(prob), y)["auroc"][:-1].numpy())
        reached = steps_to_target(
            watch.steps["monitor"],
            np.array(curves).T,
            target=0.5 + 0.9 * (linear_auroc - 0.5),
            events=int(y.sum()),
        )
        found[f"steps/plain MLP, {name}"] = reached.band
        found[f"steps_mean/plain MLP, {name}"] = reached.restricted_mean
        found[f"steps_never/plain MLP, {name}"] = Metric(reached.censored / len(reached.steps))
    return found


def outside_gains(cohort: Cohort, prob: dict[str, Floats]) -> Found:
    """AUROC at the hospital left out: mean and sd over seeds, gains with two-level intervals."""
    out = cohort.outside
    groups = None if cohort.patient is None else cohort.patient[out]
    placed = {name: Placed.of(cohort.y[out], p[:, out], groups) for name, p in prob.items()}
    found: Found = {}
    for name, one in placed.items():
        found[f"auroc/{name}"] = Metric(float(one.auroc.mean()))
        if len(one.auroc) > 2:
            found[f"sd/{name}"] = sd_over_seeds(one.auroc)
            found[f"within_0.01/{name}"] = agreement(one.auroc, patients=int(out.sum()))
    for name in ("recipe", "five"):
        for rival in (rival for rival in RIVALS if rival in placed):
            paired = len(placed[name].auroc) == len(placed[rival].auroc)
            gap = placed[name].minus(placed[rival], paired=paired)
            low, high = gap.limits()
            found[f"gain/{name} over {rival}"] = Metric(gap.value, low, high)
            if name == "recipe" and rival in ("N0", "N1"):
                found[f"gain_above_0/{name} over {rival}"] = Metric(float(low > 0))
    return found


def linear(runs: Runs) -> Floats:
    """Return log odds of the logistic regression of the recipe's training rows."""
    return runs.start[0]


def f1_share(cohort: Cohort, flags: Any) -> float:
    """Return the mean expected F1 of flags inside, as a share of the best possible rule's."""
    assert cohort.prob is not None
    p = cohort.prob[~cohort.outside]
    flagged = flags[:, ~cohort.outside]
    f1 = 2 * (flagged * p).sum(1) / (flagged.sum(1) + p.sum())
    return float(f1.mean()) / best_of(p).f1


def rival_f1(cohort: Cohort, dm: EHRDataModule, one: Floats, logistic: Floats) -> Found:
    """Say what else reaches which F1: other models, and the recipe where it could not flag better.

    Args:
        cohort: The new rows.
        dm: The recipe's split.
        one: Its probabilities, ``(seeds, rows)``.
        logistic: Log odds of its logistic regression.
    """
    assert dm.table is not None
    names = list(dm.table.features)
    new = read_table(cohort.new, dm.spec, features=names, contract=dm.contract)
    trees = fit_boosting(dm.values("train"), dm.rows("train").y)
    boosted, validated = trees.prob(new.values.astype(np.float32)), trees.prob(dm.values("val"))
    linear_prob = 1 / (1 + np.exp(-logistic))
    inside = ~cohort.outside
    thresholds = np.linspace(0.05, 0.6, 56)
    best = [max(f1_share(cohort, p[None] >= at) for at in thresholds) for p in one]
    return {
        "f1_share/recipe, best threshold": Metric(float(np.mean(best))),
        "f1_share/boosting": Metric(f1_share(cohort, boosted[None] >= choose(None, validated))),
        "f1_share/logistic": Metric(
            f1_share(cohort, linear_prob[None] >= choose(None, linear_prob[inside]))
        ),
    }


def bad_places(rows: int, share: float) -> range:
    """Return so many places among the training rows, evenly."""
    return range(5, rows, round(1 / share)) if share else range(0)


def again(report: Report, family: str, fresh: int, seeds: Sequence[int]) -> None:
    """Train here and in a fresh process; print the share of trainings that say the same bits."""
    arguments = (family, 0, fresh, list(seeds), ALONE)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        there = process.submit(digests, *arguments)
        found = list(zip(digests(*arguments), there.result(), strict=True))
    report.share(
        f"{family}/bitwise_rerun", round(bitwise(found).value * len(found)), len(found),
        at_least=1.0, peers=f"a fresh process; {len(seeds)} together, {ALONE} alone",
    )  # fmt: skip


def garbage(report: Report, family: str, cohort: Cohort, seeds: Sequence[int]) -> None:
    """Put infinities into 0.5 % of the training rows, after all cleaning: who lives, the price."""

    def bad() -> Poisoned:
        dm = cohort.data(Poisoned)
        assert isinstance(dm, Poisoned)
        assert dm.split is not None
        dm.poisoned = bad_places(len(dm.split.part("train")), GARBAGE)
        return dm

    dm = cohort.data()
    rows = scaled(cohort, dm, clean=True)
    dead = [not hurried(cohort, dm, rows, seed, share_bad=GARBAGE).finite for seed in seeds]
    few = list(seeds)[:ALONE]
    without = [not recipe(cohort, bad(), [s], monitor=False).finite.all() for s in few]
    hit = [recipe(cohort, bad(), [s], monitor=False, spike_guard=True) for s in seeds]
    died = [not run.finite.all() for run in hit]
    rate = crash_rate(sum(died), len(died))
    report.figure(
        f"{family}/dead_runs_of_{len(died)}", float(sum(died)), at_most=0.0,
        peers=f"share at most {rate.high:.2f}; N1 {sum(dead)}/{len(dead)}, "
        f"recipe without spike_guard=True {sum(without)}/{len(without)}",
    )  # fmt: skip
    clean = recipe(cohort, dm, seeds, monitor=False).prob()[0]
    out = cohort.outside
    groups = None if cohort.patient is None else cohort.patient[out]
    if not any(died):
        spoilt = np.concatenate([run.prob()[0] for run in hit])
        pair = [Placed.of(cohort.y[out], p[:, out], groups) for p in (clean, spoilt)]
        lost = pair[0].minus(pair[1], paired=True)
        report.figure(
            f"{family}/auroc_lost_to_garbage", lost.value, lost.limits(), at_most=0.005,
            on_limit=True,
        )  # fmt: skip


def tell(report: Report, family: str, found: dict[str, list[float]]) -> None:
    """Print the figures of a family with their intervals over draws, and the bars."""
    for name in sorted(found):
        values = np.array(found[name])
        if name.startswith("gain_above_0/"):
            report.share(f"{family}/{name}", int(values.sum()), len(values), at_least=1.0)
            continue
        at_least, at_most = BARS.get(name, (None, None))
        if family == "interacting" and name == "gain/recipe over logistic":
            at_least = 0.0  # stability must not come from not learning
        value, limits = mean_of(name, values)
        report.figure(
            f"{family}/{name}", value, limits, at_least=at_least, at_most=at_most,
            on_limit=limits is not None, peers=f"{len(values)} draws",
        )  # fmt: skip


def mean_of(name: str, values: Floats) -> tuple[float, Interval | None]:
    """Return mean and interval over draws; of a ratio that of its logarithm."""
    if not name.startswith("ratio/"):
        return float(values.mean()), t_interval(values)
    limits = t_interval(np.log(values))
    low_high = None if limits is None else (float(np.exp(limits[0])), float(np.exp(limits[1])))
    return float(np.exp(np.log(values).mean())), low_high


def hearts(report: Report, seeds: Sequence[int]) -> None:
    """Print UCI heart, each hospital left out; the ratio of bands has a bar."""
    csv = Path(os.environ.get("MEDKIT_REAL_DATA", "not set")) / "uci_heart4" / "heart4.csv"
    if not csv.is_file():
        report.note(f"UCI heart left out: {csv} is not there. Set MEDKIT_REAL_DATA.")
        return
    ratios: dict[str, list[float]] = defaultdict(list)
    gains: dict[str, list[float]] = defaultdict(list)
    for site in tqdm(HEART[:1] if report.quick else HEART, desc="heart", disable=None):
        with heart(csv, site) as cohort:
            found = measure(cohort, seeds, full=True)
        for name, metric in sorted(found.items()):
            if name.startswith("gain_above_0/"):
                continue
            limits = (
                None if metric.low is None or metric.high is None else (metric.low, metric.high)
            )
            report.figure(f"heart/{site}/{name}", metric.value, limits)
            if name.startswith("ratio/"):
                ratios[name].append(metric.value)
            if name.startswith("gain/"):
                gains[name].append(metric.value)
    for name, values in gains.items():
        report.figure(f"heart/mean/{name}", float(np.mean(values)), t_interval(np.array(values)))
    for name, values in ratios.items():
        value, limits = mean_of(name, np.array(values))
        bar = 0.7 if name == "ratio/recipe over N1" else None
        report.figure(f"heart/mean/{name}", value, limits, at_most=bar, on_limit=limits is not None)


if __name__ == "__main__":
    sys.exit(main())
