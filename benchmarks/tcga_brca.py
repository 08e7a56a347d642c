"""TCGA-BRCA: a published recipe whose c-index is a lottery, and what the kit's own gives there.

FLamby (Ogier du Terrail 2022) trains a linear Cox model on 866 patients of six regions, pooled:
Adam at 0.1, batches of 8, 30 epochs, columns as they are (age in years). Its published test
c-indices over seeds 42 to 46 are read from its result files. The same recipe is trained here, on
the same split and with the same seeds; then the kit's: columns scaled on the training patients, a
penalty chosen on them alone by cross-validated partial likelihood, a start at that penalised Cox
model, the whole training set in each risk set, decay to zero.

    MEDKIT_REAL_DATA=FOLDER python benchmarks/tcga_brca.py [--quick] [--json FILE]

FOLDER holds fed_tcga_brca (brca.csv, train_test_split.csv) and flamby_published.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from report import Report
from torch import Tensor

from medkit import keyed
from medkit.data.batches import Batch
from medkit.data.cox import choose_l2, fit_cox
from medkit.data.survival import SurvivalDataModule
from medkit.metrics.spread import mean_over_seeds, sd_over_seeds
from medkit.metrics.survival import calibration_at, harrell_c, uno_c
from medkit.models.schedules import rate_at
from medkit.models.survival import LitCox, warm_start
from medkit.trainer import stable_trainer, start_run

SEEDS = (42, 43, 44, 45, 46)
L2S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
HORIZON_DAYS = 1095.0
TAU_DAYS = 3650.0  # of Uno's c: later, few are still followed
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """The published recipe, and what is changed in it.

    Attributes:
        scaled: Columns as the kit scales them; else as they are in the file.
        batch: Patients in a risk set at most; None: all.
        decay: The rate falls along a cosine to zero.
    """

    scaled: bool = False
    batch: int | None = 8
    decay: bool = False
    lr: float = 0.1
    epochs: int = 30


def data_folder() -> Path:
    """Return the folder of real data, or leave saying what is missing."""
    folder = Path(os.environ.get("MEDKIT_REAL_DATA", "not set"))
    for name in ("fed_tcga_brca/brca.csv", "fed_tcga_brca/train_test_split.csv"):
        if not (folder / name).is_file():
            sys.stderr.write(
                "tcga_brca needs a folder of real data with fed_tcga_brca in it, which is not part "
                f"of the project; MEDKIT_REAL_DATA is {folder}, without {name}. Set it.\n"
            )
            sys.exit(2)
    return folder


def patients(folder: Path) -> tuple[pd.DataFrame, int]:
    """Return FLamby's pooled table with its train/test split, and how many are in no part of it."""
    table = pd.read_csv(folder / "fed_tcga_brca/brca.csv")
    split = pd.read_csv(folder / "fed_tcga_brca/train_test_split.csv")[["pid", "fold"]]
    both = table.merge(split, on="pid", validate="one_to_one")
    return both, len(table) - len(both)


def published_c(folder: Path) -> list[float]:
    """Return the published test c-indices of pooled training, one a seed."""
    files = sorted((folder / "flamby_published/fed_tcga_brca").glob("tcga_seed*.csv"))
    runs = pd.concat([pd.read_csv(file) for file in files])
    pooled = (runs["Method"] == "Pooled Training") & (runs["Test"] == "Pooled Test")
    return runs[pooled].sort_values("seed")["Metric"].tolist()


def train_published(train: Batch, test: Batch, recipe: Recipe, *, seed: int) -> Floats:
    """Train the linear model as published (but for ``recipe``); return test scores."""
    with keyed.globals_keyed(seed, "init", "fit"):
        net = torch.nn.Linear(train.x.shape[1], 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr)
    size = recipe.batch or len(train.x)
    steps = recipe.epochs * -(-len(train.x) // 8)  # as many steps, however large the risk sets
    step, epoch = 0, 0
    while step < steps:
        order = torch.from_numpy(keyed.generator(seed, "order", epoch).permutation(len(train.x)))
        for at in order.split(size)[: steps - step]:
            if recipe.decay:
                share = rate_at(step, total=steps, rising=1)
                optimizer.param_groups[0]["lr"] = recipe.lr * share
            optimizer.zero_grad()
            published_loss(net(train.x[at])[:, 0], train.y[at]).backward()
            optimizer.step()
            step += 1
        epoch += 1
    with torch.no_grad():
        return net(test.x)[:, 0].double().numpy()


def published_loss(eta: Tensor, y: Tensor) -> Tensor:
    """FLamby's loss: ties in whatever order, the mean over patients, events or not."""
    order = torch.argsort(y[:, 0], descending=True, stable=True)
    eta, event = eta[order], y[order, 1]
    return ((torch.logcumsumexp(eta, 0) - eta) * event).mean()


def train_kit(table: pd.DataFrame, *, l2: float, seed: int, epochs: int, folder: Path) -> LitCox:
    """Train the kit's recipe with one seed."""
    run = start_run(folder / str(seed), seed=seed, threads=1)
    dm = data(table)
    dm.setup()
    train = dm.rows("train")
    start = fit_cox(train.x, *train.y.numpy().T, l2=l2)
    with run.init("fit"):
        model = LitCox(**warm_start(start), l2=l2, total_steps=epochs)
    trainer = stable_trainer(run, max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(model, dm)
    model.eval()
    run.finish()
    return model


def data(table: pd.DataFrame) -> SurvivalDataModule:
    """Return the kit's DataModule on the published split."""
    settings = {"time": "T", "event": "E", "patient": "pid", "split_column": "fold"}
    return SurvivalDataModule(table, **settings, scale="standard", clip=None, indicators=False)


def other_splits(dm: SurvivalDataModule, l2: float, *, splits: int) -> list[float]:
    """Return test c-indices of penalised Cox on random splits into parts of the same sizes."""
    found, every = [], dm.follow_up
    x, event = every.table.values.astype(np.float64), every.table.y
    for split in range(splits):
        order = keyed.generator(split, "split", "tcga_brca").permutation(len(x))
        train, test = np.split(order, [len(dm.split.train)])
        spread = x[train].std(axis=0)
        scaled = (x - x[train].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        eta = fit_cox(scaled[train], every.time[train], event[train], l2=l2).risk(scaled[test])
        found.append(harrell_c(every.time[test], event[test], eta).value)
    return found


def pairs(time: Floats, event: Floats) -> NDArray[np.bool_]:
    """Mark (i, j) where i had the event before j was last seen free of it: pairs to be ranked."""
    later = time[None, :] > time[:, None]
    censored_then = (time[None, :] == time[:, None]) & (event[None, :] == 0)
    return (event[:, None] > 0) & (later | censored_then)


def paired_difference(
    y: Floats, ones: list[Floats], other: Floats, *, draws: int
) -> tuple[float, float, float]:
    """Return mean c-index of ``ones`` less that of ``other``, with a 95 % bootstrap interval.

    Patients are drawn again, and both are scored on the same ones; runs are averaged, not drawn.
    """
    ranked = pairs(*y.T).astype(np.float64)

    def right(score: Floats) -> Floats:
        return ranked * (np.sign(score[:, None] - score[None, :]) + 1) / 2

    gain = np.mean([right(score) for score in ones], axis=0) - right(other)
    draw = keyed.generator(0, "bootstrap", "tcga_brca")
    found = []
    for _ in range(draws):
        n = np.bincount(draw.integers(len(y), size=len(y)), minlength=len(y)).astype(np.float64)
        found.append((n @ gain @ n) / (n @ ranked @ n))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(gain.sum() / ranked.sum()), float(low), float(high)


def main() -> int:
    folder = data_folder()
    report = Report(__doc__)
    for name in ("pytorch_lightning", "medkit"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    table, left_out = patients(folder)
    dm = data(table)
    dm.setup()
    train, test = dm.rows("train"), dm.rows("test")
    raw_x = torch.from_numpy(dm.follow_up.table.values)
    raw = [part._replace(x=raw_x[part.row].contiguous()) for part in (train, test)]
    y = test.y.double().numpy()
    report.note(
        f"{len(train.y)} training patients with {int(train.y[:, 1].sum())} events, {len(y)} test "
        f"patients with {int(y[:, 1].sum())} events; {left_out} are in no part of the split"
    )

    def c(score: Floats) -> float:
        return harrell_c(y[:, 0], y[:, 1], score).value

    def figures(name: str, values: list[float], **bars: float) -> None:
        """Print mean and spread; a bar on the mean is ``mean``, on the spread ``sd_...``."""
        mean, sd = mean_over_seeds(values), sd_over_seeds(values)
        limits = (mean.low, mean.high), (sd.low, sd.high)
        report.figure(f"{name}/c_index", mean.value, limits[0], at_least=bars.get("mean"))
        least, most = bars.get("sd_at_least"), bars.get("sd_at_most")
        report.figure(f"{name}/sd", sd.value, limits[1], at_least=least, at_most=most)

    from_files = published_c(folder)
    if from_files:
        figures("published files", from_files)
    seeds = SEEDS if not report.quick else SEEDS[:3]

    def arm(recipe: Recipe) -> list[float]:
        rows = (train, test) if recipe.scaled else raw
        return [c(train_published(*rows, recipe, seed=seed)) for seed in seeds]

    figures("published recipe", arm(Recipe()), sd_at_least=0.06)
    report.note("why it spreads: one thing changed, as many steps")
    figures("  decay to zero", arm(Recipe(decay=True)))
    if not report.quick:
        figures("  risk sets of all patients", arm(Recipe(batch=None)))
    figures("  columns scaled", arm(Recipe(scaled=True)))
    figures("  scaled, decay to zero", arm(Recipe(scaled=True, decay=True)))

    repeats = 1 if report.quick else 5
    l2, scores = choose_l2(train.x, *train.y.numpy().T, l2s=L2S, repeats=repeats)
    listed = ", ".join(f"{value:g}: {score:.3f}" for value, score in scores.items())
    report.note(f"penalty by cross-validated partial likelihood per event: {listed}; taken {l2:g}")
    cox = fit_cox(train.x, *train.y.numpy().T, l2=l2)
    eta_cox = cox.risk(test.x)
    report.figure("penalised Cox/c_index", c(eta_cox))

    elsewhere = other_splits(dm, l2, splits=20 if report.quick else 100)
    low, high = np.quantile(elsewhere, (0.025, 0.975))
    report.note("the same penalised Cox on random splits into parts of the same sizes")
    report.figure("  c_index, mean and 95 % of the splits", float(np.mean(elsewhere)), (low, high))

    kit, alive = [], []
    with tempfile.TemporaryDirectory() as runs:
        for seed in seeds:
            model = train_kit(table, l2=l2, seed=seed, epochs=300, folder=Path(runs))
            with torch.no_grad():
                kit.append(model(test.x).double().numpy())
            alive.append(model.survival(test.x, HORIZON_DAYS).double().numpy())
    figures("kit", [c(eta) for eta in kit], mean=0.835, sd_at_most=0.02)
    value, low, high = paired_difference(y, kit, eta_cox, draws=200 if report.quick else 2000)
    report.figure("kit/minus_penalised_cox", value, (low, high))
    if low <= 0 <= high:
        report.note("the interval covers 0: use penalised Cox")
    for name, eta in (("kit, first seed", kit[0]), ("penalised Cox", eta_cox)):
        uno = uno_c(y[:, 0], y[:, 1], eta, tau=TAU_DAYS)
        report.figure(f"{name}/uno_c", uno.value, (uno.low, uno.high))
    at = calibration_at(y[:, 0], y[:, 1], 1 - np.mean(alive, axis=0), HORIZON_DAYS)
    report.figure(
        "kit/events by 3 years, seen", at.observed.value, (at.observed.low, at.observed.high)
    )
    report.figure("kit/events by 3 years, predicted", at.predicted)
    report.figure("kit/calibration slope at 3 years", at.slope.value, (at.slope.low, at.slope.high))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
