"""Which practice buys what: left out of the recipe, added to a plain start, and two by two.

On tables (made-up hospitals, additive family; C held out) and on rare nodules (made-up CT of three
hospitals, 1:50; C held out, 500 batches of 32). ``gain``: test AUROC with the practice minus
without it, paired by seed, two-level t interval (other seeds and other patients of these
hospitals). ``wider``: how many times as wide the spread over seeds is without it (tables: band of
the loss; nodules: late spread of validation AUROC), F or Pitman-Morgan interval. Below 5 seeds
there is no interval, and no bar.

Bars are the directions that earlier measurements state, on the interval's limit: units and weight
decay, warm-up with cosine and plain shuffling for tables, clip and EMA nothing there; for nodules
balanced draws and augmentation, each of which the recipe needs, and which together gain more than
the sum of what they gain alone.

The figure is written beside the file of ``--json``. ``ABLATION_DIR`` names a folder to keep the
trainings in: what it has is not trained again.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

warnings.filterwarnings("ignore")

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from report import Report

from medkit import plot
from medkit.plot.style import interval
from medkit.record.results import Metric
from medkit.study import image_practices, table_practices
from medkit.study.ablation import WAYS
from medkit.study.effects import Effects
from medkit.study.image_practices import image_ablation
from medkit.study.study import Study
from medkit.study.table_practices import table_ablation
from medkit.synth.chest_ct import SITES, write_candidates
from medkit.synth.ehr import contract_yaml, make_hospitals

TABLE_SEEDS, NODULE_SEEDS, QUICK_SEEDS = 12, 8, 2
DATA_SEED = 0  # not one of 100 to 104, which the nodules' difficulty was set on
SKIPPED = ("ranges", "robust scaling", "missing indicators", "dropout", "SGD", "five folds")
Bar = tuple[str, str, str]  # practice, way, "gain" or "wider"
PAIR = f"{image_practices.BALANCED} and {image_practices.AUGMENTED}"
TOGETHER = "plain shuffling and warm-up and cosine"
AT_LEAST: Mapping[str, Mapping[Bar, float]] = {
    "tables": {
        ("units", "left out", "gain"): 0.0,
        ("weight decay 3.0", "left out", "wider"): 1.0,
        ("warm-up and cosine", "added", "wider"): 1.0,
        (TOGETHER, "added", "wider"): 1.0,
    },
    "nodules": {
        (image_practices.BALANCED, "left out", "gain"): 0.0,
        (image_practices.AUGMENTED, "left out", "gain"): 0.0,
        (PAIR, "added", "gain"): 0.0,
        (PAIR, "more than their sum", "gain"): 0.0,
    },
}
NOTHING = 0.005  # AUROC: what clip and EMA may do to tables, either way
NO_EFFECT: Mapping[str, tuple[Bar, ...]] = {
    "tables": (("gradient clip 1.0", "tried", "gain"), ("EMA 0.98", "tried", "gain")),
    "nodules": (),
}
# By what is to be known first: a folder that is only half trained says the most of it.
NODULE_ARMS = (
    "start",
    f"start with {PAIR}",
    *(f"start with {one}" for one in (image_practices.BALANCED, image_practices.AUGMENTED)),
    "recipe",
    *(f"recipe without {one}" for one in (image_practices.BALANCED, image_practices.AUGMENTED)),
    *("recipe without another scanner", "recipe without EMA 0.98", "recipe with GroupNorm"),
)


def main() -> int:
    report = Report(__doc__)
    mpl.use("Agg")
    torch.set_num_threads(1)
    kept = os.environ.get("ABLATION_DIR")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(kept or temporary)
        for name, ablate in (("tables", tables), ("nodules", nodules)):
            began = time.monotonic()
            found, cpu_s = ablate(folder / name, quick=report.quick)
            tell(report, name, found)
            said = [] if report.quick else found.sentences()  # of two seeds nothing can be said
            report.note(
                *(f"{name}: {sentence}" for sentence in said),
                *(f"{name}: {line}" for line in arms_of(found)),
                f"{name}: {cpu_s:.0f} CPU s of training, {time.monotonic() - began:.0f} s",
            )
            if report.json is not None:
                draw(found, report.json.with_name(f"{report.json.stem}-{name}.png"))
    return report.finish()


def tables(folder: Path, *, quick: bool) -> tuple[Effects, float]:
    """Train the arms of the kit's recipe for tables, all seeds of one in a stack."""
    drawn = make_hospitals(seed=DATA_SEED)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(drawn.encounters_csv())
    (folder / "contract.yaml").write_text(contract_yaml())
    columns = {"target": "died", "site": "site", "contract": str(folder / "contract.yaml")}
    ablation = table_ablation(
        folder / "table.csv",
        columns,
        leave_out=SKIPPED if quick else (),
        epochs=4 if quick else 30,
        looks=20 if quick else 80,
    )
    seeds = range(QUICK_SEEDS if quick else TABLE_SEEDS)
    study = ablation.study(folder / "study", seeds=seeds, sites=["C"])
    study.run(table_practices.train)
    return ablation.effects(study.outcomes), sum(one.cpu_s for one in study.outcomes)


def nodules(folder: Path, *, quick: bool) -> tuple[Effects, float]:
    """Train some arms of the recipe for rare nodules, a process a training."""
    sites = dict.fromkeys(SITES, 200) if quick else SITES
    if not (folder / "data" / "candidates.csv").is_file():
        write_candidates(folder / "data", seed=DATA_SEED, sites=sites)
    ablation = image_ablation(folder / "data", ways=WAYS, steps=20 if quick else 500)
    arms = ablation.arms()
    study = Study(
        folder / "study",
        {name: arms[name] for name in (NODULE_ARMS[:5] if quick else NODULE_ARMS)},
        seeds=range(QUICK_SEEDS if quick else NODULE_SEEDS),
        sites=["C"],
    )
    jobs = min(8, len(os.sched_getaffinity(0)))
    study.run(image_practices.train, jobs=jobs, seeds_per_job=1)
    found = ablation.effects(study.outcomes, curve="val/auroc", spread="late")
    return found, sum(one.cpu_s for one in study.outcomes)


def tell(report: Report, name: str, found: Effects) -> None:
    """Print both numbers of each effect; bars where there is an interval."""
    for row in found.rows:
        for what in ("gain", "wider"):
            metric: Metric = getattr(row, what)
            if not np.isfinite(metric.value):
                continue
            place = (row.practice, row.way, what)
            sure = metric.low is not None and metric.high is not None
            low, high = AT_LEAST[name].get(place), None
            if place in NO_EFFECT[name]:
                low, high = -NOTHING, NOTHING
            report.figure(
                f"{name}/{row.practice}, {row.way}/{what}",
                metric.value,
                (metric.low, metric.high) if sure else None,  # type: ignore[arg-type]
                at_least=low if sure else None,
                at_most=high if sure else None,
                on_limit=sure and low is not None,
            )


def arms_of(found: Effects) -> list[str]:
    """Return a line per arm: mean and sd of the metric, spread of the curve."""
    return [
        f"{name}: {found.label} {arm.mean.value:.3f} (sd {arm.sd.value:.3f}), spread of the curve "
        f"{interval(arm.spread, '.1f')} %, {arm.failed} of {arm.runs} failed"
        for name, arm in found.arms.items()
    ]


def draw(found: Effects, path: Path) -> None:
    """Draw gains and widths side by side."""
    pairs = {row.practice: row for row in found.rows if row.way == "more than their sum"}
    gains = found.of("gain") | {
        "more than their sum": {name: row.gain for name, row in pairs.items()}
    }
    widths = {
        way: {name: m for name, m in of.items() if np.isfinite(m.value)}
        for way, of in found.of("wider").items()
    }
    rows = len({name for of in gains.values() for name in of})
    figure, (left, right) = plt.subplots(1, 2, figsize=(17, 1.5 + 0.75 * rows))
    plot.effects(left, {k: v for k, v in gains.items() if v}, xlabel=f"gain in {found.label}")
    label = "times as wide without it [spread over seeds]"
    plot.effects(right, {k: v for k, v in widths.items() if v}, xlabel=label, nothing=1.0)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
