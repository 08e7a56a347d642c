"""What the recipe for rare nodules buys, at a hospital that was not trained on, and how steadily.

Three made-up hospitals, 12,000 candidates at 1:50; the generator's difficulty was set with the
recipe alone on data seeds 100 to 104, the arms run on others. 500 steps of 32 patches of 24^3,
one net (52,000 weights). *naive*: HU / 1000, plain shuffling, no augmentation, constant rate, last
step. *fair*: window, flips, best epoch, else as naive, as tutorials have it. *balanced*: fair with
half a batch positive and the prior put back. *recipe*: the kit's. Intervals of differences are for
other seeds and other patients; spreads over seeds are of validation AUROC above chance, late half.

Trainings are kept in the folder named by ``CT_DIR`` (a temporary one without), and not done again.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from numpy.typing import NDArray
from report import Report
from scipy.special import logit

from medkit.metrics.calibration import slope_and_intercept
from medkit.metrics.discrimination import auprc
from medkit.metrics.spread import mean_over_seeds
from medkit.metrics.stability import jitter, late_spread
from medkit.metrics.thresholds import at
from medkit.record.results import Metric
from medkit.study import image_practices
from medkit.study.contrast import Contrast
from medkit.study.outcomes import Outcome
from medkit.study.study import Study
from medkit.synth.chest_ct import DIFFICULTY, SITES, read_candidates, write_candidates

DRAWS, SEEDS, SPREAD_SEEDS, OUTSIDE = (0, 1), 10, 20, "C"
LONGER, LONG_SEEDS, SITE_SEEDS, BROKEN_SEEDS = 4, 3, 5, 4
BROKEN_SHARE = 0.005
PLAIN: dict[str, Any] = {
    "reference": False, "schedule": "constant", "ema": None, "draws": "shuffled",
    "quarantine": False, "turns": False,
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "naive": PLAIN | {"intensity": "raw", "augment": "none"},
    "fair": PLAIN | {"augment": "flips", "best_epoch": True},
    "balanced": PLAIN | {"augment": "flips", "best_epoch": True, "draws": "half positive"},
    "recipe": {},
}
TWO_BY_TWO: dict[str, dict[str, Any]] = {
    "recipe without balanced draws": {"draws": "shuffled"},
    "recipe without augmentation": {"augment": "none"},
    "recipe without either": {"draws": "shuffled", "augment": "none"},
    "recipe without another scanner": {"augment": "flips"},
    "recipe without the exam's reference": {"reference": False},
    "recipe without EMA": {"ema": None},
    "recipe without warm-up and cosine": {"schedule": "constant"},
    "recipe without the mean over turns": {"turns": False},
}


def main() -> int:
    report = Report(__doc__)
    quick = report.quick
    root = os.environ.get("CT_DIR")
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(root or temp) / ("quick" if quick else "full")
        draws = DRAWS[:1] if quick else DRAWS
        main_arms: list[Outcome] = []
        for draw in draws:
            main_arms += trained(
                folder, draw, "arms", ARMS, seeds=range(3 if quick else SEEDS), q=quick
            )
        tell_arms(report, main_arms)
        for draw in draws:  # a spread's interval is narrower for more seeds
            more = range(3, 4) if quick else range(SEEDS, SPREAD_SEEDS)
            found = trained(folder, draw, "spread", {"recipe": {}}, seeds=more, q=quick)
            found += [o for o in main_arms if o.recipe == "recipe" and o.split_seed == draw]
            spread = late_spread([one.curves["val/auroc"] for one in found])
            show(
                report, f"spread/recipe/late_draw{draw}_{len(found)}_seeds", spread,
                at_most=8.0, on_limit=True,
            )  # fmt: skip
        sites = []
        for draw in draws:
            sites += trained(
                folder, draw, "sites", {"recipe": {}, "naive": ARMS["naive"]},
                seeds=range(2 if quick else SITE_SEEDS), sites=["A", "B"], q=quick,
            )  # fmt: skip
        tell_sites(report, [*sites, *(one for one in main_arms if one.recipe == "recipe")])
        tell_broken(report, folder, draws[0], quick)
        few = trained(
            folder, draws[0], "practices", TWO_BY_TWO, seeds=range(2 if quick else 5), q=quick
        )
        tell_practices(report, few, main_arms)
        if not quick:
            longer = {name: arm | {"steps": 500 * LONGER} for name, arm in ARMS.items()}
            found = trained(folder, draws[0], "longer", longer, seeds=range(LONG_SEEDS), q=False)
            for name in longer:
                show(report, f"longer/{LONGER}x_steps_{name}/auroc", aurocs(found, name))
    return report.finish()


def trained(
    folder: Path, draw: int, name: str, arms: dict[str, dict[str, Any]], *, seeds: range,
    sites: Sequence[str] = (OUTSIDE,), q: bool,
) -> list[Outcome]:  # fmt: skip
    """Train arms on one draw of hospitals, those that are not there yet."""
    data = folder / f"draw{draw}"
    if not (data / "candidates.csv").is_file():
        few = dict.fromkeys(SITES, 1000) if q else SITES
        write_candidates(data, seed=draw, sites=few, difficulty=DIFFICULTY)
    common = {"folder": str(data), "steps": 120 if q else 500}
    recipes = {arm: common | settings for arm, settings in arms.items()}
    study = Study(folder / f"{name}{draw}", recipes, seeds=seeds, sites=list(sites))
    study.run(image_practices.train, jobs=len(os.sched_getaffinity(0)), seeds_per_job=1)
    # other draws are other patients: other cells, whose patients are independent
    return [replace(one, split_seed=draw, site=f"{one.site}{draw}") for one in study.outcomes]


def tell_arms(report: Report, found: list[Outcome]) -> None:
    contrast = Contrast(found, metric="test/auroc", curve="val/auroc", spread="late")
    for name in ARMS:
        own = [one for one in found if one.recipe == name]
        report.note(f"{name}: {len(own)} runs, {sum(o.status == 'failed' for o in own)} failed")
        arm = contrast.arm(name)
        show(report, f"outside/{name}/auroc", arm.mean)
        show(report, f"outside/{name}/sd_over_seeds", arm.sd)
        ap = [auprc(o.predictions["y"], o.predictions["score"]).value for o in own]  # type: ignore[index]
        show(report, f"outside/{name}/auprc", mean_over_seeds(ap))
        for draw in sorted({one.split_seed for one in own}):
            curves = [o.curves["val/auroc"] for o in own if o.split_seed == draw]
            show(report, f"spread/{name}/late_draw{draw}_{len(curves)}_seeds", late_spread(curves))
        curves = [one.curves["val/auroc"] for one in own]
        bar = {"at_most": 3.0} if name == "recipe" else {}
        show(report, f"spread/{name}/jitter_in_a_run", jitter(curves, last=0.5, chance=0.5), **bar)
        reached = [np.flatnonzero(np.asarray(c) >= 0.85) for c in curves]
        hits = sum(len(r) > 0 for r in reached)
        report.share(
            f"reach/{name}/auroc_.85", hits, len(own),
            at_least=1.0 if name == "recipe" else None,
        )  # fmt: skip
        when = [float(own[0].steps[r[0]]) for r in reached if len(r)]
        if len(when) > 1:
            cv = 196 * float(np.std(when, ddof=1) / np.mean(when))
            report.note(f"{name}: steps to .85 {np.median(when):.0f} (median), 1.96 sd {cv:.0f} %")
        lost = [o.metrics["test/auroc"] - o.metrics["test/auroc_unscaled"] for o in own]
        bar = {"at_most": 0.02, "on_limit": True} if name == "recipe" else {}
        show(report, f"rescale_forgotten/{name}/auroc_lost", mean_over_seeds(lost), **bar)
        operating(report, name, own)
    bars = {"naive": (0.15, 0.12), "fair": (0.12, None), "balanced": (0.03, 0.0)}
    for name, (least, lower) in bars.items():
        gain = contrast.gain({"recipe": 1, name: -1})
        show(report, f"gain/recipe_over_{name}", gain, at_least=least)
        if lower is not None and gain.low is not None:
            report.figure(f"gain/recipe_over_{name}/lower_limit", gain.low, at_least=lower)


def operating(report: Report, name: str, own: list[Outcome]) -> None:
    """Print what the carried threshold and the probabilities are worth outside."""
    sens, spec, slopes, ratios = [], [], [], []
    for one in own:
        if one.predictions is None or one.threshold is None:
            continue
        y, score = one.predictions["y"].to_numpy(), one.predictions["score"].to_numpy()
        known = np.isfinite(score)
        if not known.all():
            continue
        point = at(y, score, one.threshold)
        sens.append(point["sensitivity"].value)
        spec.append(point["specificity"].value)
        inside = np.clip(score, 1e-9, 1 - 1e-9)
        if np.ptp(logit(inside)) > 0:
            slopes.append(slope_and_intercept(y, inside)[0].value)
        ratios.append(float(score.sum() / y.sum()))
    for what, values in (
        ("sensitivity_at_carried_threshold", sens), ("specificity_there", spec),
        ("calibration_slope", slopes), ("expected_over_observed", ratios),
    ):  # fmt: skip
        if len(values) > 1:
            show(report, f"outside/{name}/{what}", mean_over_seeds(values))


def tell_sites(report: Report, found: list[Outcome]) -> None:
    for name in ("recipe", "naive"):
        worst: list[tuple[float, str, Metric]] = []
        for site in sorted({one.site[0] for one in found}):
            values = [
                o.metrics["test/auroc"] for o in found if o.recipe == name and o.site[0] == site
            ]
            if len(values) < 2:
                continue
            metric = mean_over_seeds(values)
            show(report, f"left_out/{site}/{name}", metric)
            worst.append((metric.value, site, metric))
        if name == "recipe":
            show(report, "left_out/worst/recipe", min(worst)[2], at_least=0.90)


def tell_broken(report: Report, folder: Path, draw: int, quick: bool) -> None:
    """Half a per cent of the training rows broken: not finite, constant, half padded.

    Those of validation and test stay sound: there the kit refuses to go on.
    """
    data, broken = folder / f"draw{draw}", folder / f"broken{draw}"
    dm = image_practices.ImageRecipe.of({"folder": str(data)}).data(0, OUTSIDE)
    dm.setup()
    assert dm.split is not None
    rows = _break(data, broken, dm.split.train)
    arms = {"naive": ARMS["naive"], "recipe": {}}
    steps = 120 if quick else 500
    seeds = 2 if quick else BROKEN_SEEDS
    study = Study(
        folder / f"broken_study{draw}",
        {n: {"folder": str(broken), "steps": steps} | a for n, a in arms.items()},
        seeds=range(seeds), sites=[OUTSIDE],
    )  # fmt: skip
    study.run(image_practices.train, jobs=len(os.sched_getaffinity(0)), seeds_per_job=1)
    found = study.outcomes
    own = [one for one in found if one.recipe == "recipe"]
    report.share(
        "broken_rows/recipe/ended_well", sum(o.status == "done" for o in own), len(own),
        at_least=1.0,
    )  # fmt: skip
    naive = [one for one in found if one.recipe == "naive"]
    report.share("broken_rows/naive/died", sum(o.status != "done" for o in naive), len(naive))
    named = image_practices.set_aside({"folder": str(broken)}, 0, OUTSIDE)
    hit = len(set(rows) & set(named))
    report.share("broken_rows/found_and_named", hit, len(rows), at_least=1.0)
    report.share("broken_rows/sound_rows_set_aside", len(named) - hit, len(dm.split.train))


def _break(data: Path, broken: Path, train: NDArray[np.int64]) -> list[int]:
    """Write a copy in which some of these rows are broken; return them."""
    candidates = read_candidates(data)
    rows = train[:: round(1 / BROKEN_SHARE)]
    if not (broken / "candidates.csv").is_file():
        broken.mkdir(parents=True, exist_ok=True)
        volumes = np.array(candidates.volume_hu, np.float32)
        for number, row in enumerate(rows):
            if number % 3 == 0:
                volumes[row, 5:9] = np.nan
            elif number % 3 == 1:
                volumes[row] = -1024
            else:
                volumes[row, :, :, 12:] = -1024
        np.save(broken / "volume_hu.npy", volumes)
        candidates.table.to_csv(broken / "candidates.csv", index=False)
    return rows.tolist()


def tell_practices(report: Report, few: list[Outcome], arms: list[Outcome]) -> None:
    draw = few[0].split_seed
    seeds = {one.seed for one in few}
    same = [o for o in arms if o.recipe == "recipe" and o.split_seed == draw and o.seed in seeds]
    contrast = Contrast([*few, *same], metric="test/auroc", curve="val/auroc", spread="late")
    for name in TWO_BY_TWO:
        gain = contrast.gain({"recipe": 1, name: -1})
        show(report, f"practice/{name.removeprefix('recipe ')}/auroc_lost", gain)


def aurocs(found: list[Outcome], name: str) -> Metric:
    return mean_over_seeds([o.metrics["test/auroc"] for o in found if o.recipe == name])


def show(report: Report, name: str, metric: Metric, **bar: Any) -> None:
    limits = None if metric.low is None or metric.high is None else (metric.low, metric.high)
    if limits is None:
        bar.pop("on_limit", None)
    report.figure(name, metric.value, limits, unit=metric.unit, **bar)


if __name__ == "__main__":
    sys.exit(main())
