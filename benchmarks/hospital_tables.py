"""Made-up hospitals with a known truth: the default net, logistic regression and boosting.

Two families of hospitals, several draws of 2,000 stays each. In every draw each of the three
hospitals is left out once; everything is fitted on the other two, in five inner folds. Figures are
AUROCs on fresh stays that nobody trained on: *outside*, of the hospital that was left out, and
*inside*, of the other two. Intervals are Student's t over draws (mean over the three hospitals).
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
warnings.filterwarnings("ignore")

import numpy as np
import pandas as pd
import torch
from report import Interval, Report
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from medkit.data.ehr import EHRDataModule
from medkit.models.baseline import fit_boosting, fit_logistic
from medkit.models.classifier import LitClassifier
from medkit.models.ensemble import fit_folds
from medkit.models.tabular import warm_classifier
from medkit.synth.best import best_of
from medkit.synth.ehr import Hospitals, features_of, make_hospitals
from medkit.trainer import Run, keyed, stable_trainer, start_run

FAMILIES = ("interacting", "additive")
SITES = "ABC"
DRAWS, FRESH = 5, 4000  # draws of 2,000 stays; fresh stays per hospital to test on
FOLDS, EPOCHS = 5, 30
MODELS = ("best", "default", "logistic", "logistic_all", "boosting", "boosting_all", "mlp")
Scores = dict[str, np.ndarray]


def main() -> int:
    report = Report(__doc__)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    draws = 1 if report.quick else DRAWS
    for family in FAMILIES:
        found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        cpu_s: list[float] = []
        for draw in range(draws):
            drawn = make_hospitals(seed=draw, family=family)
            size = FRESH // 4 if report.quick else FRESH
            fresh = make_hospitals(
                seed=10_000 + draw, stays=dict.fromkeys(SITES, size), family=family
            )
            for left_out in SITES[-1:] if report.quick else SITES:
                scores = score(drawn, fresh, left_out, seed=draw, cpu_s=cpu_s)
                outside = fresh.site == left_out
                for place, rows in (("outside", outside), ("inside", ~outside)):
                    for model, prob in scores.items():
                        auroc = roc_auc_score(fresh.y[rows], prob[rows])
                        found[place, model, left_out].append(auroc)
        tell(report, family, found)
        report.figure(f"{family}/cpu_s_per_ensemble", float(np.median(cpu_s)), unit="s")
        best = best_of(fresh.prob)
        report.note(
            f"{family}, best possible on the last fresh draw (all sites): AUROC {best.auroc:.3f}, "
            f"F1 {best.f1:.3f}, Brier {best.brier:.3f}, prevalence {best.prevalence:.3f}"
        )
    return report.finish()


def score(
    drawn: Hospitals, fresh: Hospitals, left_out: str, *, seed: int, cpu_s: list[float]
) -> Scores:
    """Fit everything without ``left_out``; return each model's scores of the fresh stays."""
    arrivals = table_of(fresh)
    scores: Scores = {"best": fresh.prob}
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "table.csv"
        table_of(drawn).to_csv(csv, index=False)
        run = start_run(Path(folder) / "run", seed=seed, threads=1)
        module = partial(EHRDataModule, csv, target="died", site="site", test_site=left_out)
        trainer = partial(stable_trainer, run, max_epochs=EPOCHS, enable_progress_bar=False)
        began = time.process_time()
        ensemble = fit_folds(
            run,
            data=lambda fold: keyed(module(folds=FOLDS, fold=fold)),
            model=lambda dm: warm_classifier(dm, max_epochs=EPOCHS),
            trainer=trainer,
            folds=FOLDS,
        )
        cpu_s.append(time.process_time() - began)
        said = ensemble.predict(arrivals)
        scores |= {"default": said.prob, "logistic": said.baseline}
        dms = [member.dm for member in ensemble.members]
        scores |= on_the_same_rows(dms, arrivals)
        scores["mlp"] = plain_mlp(run, keyed(module()), trainer, arrivals)
        run.finish()
    return scores


def on_the_same_rows(dms: list[EHRDataModule], arrivals: pd.DataFrame) -> Scores:
    """Boosting on the same folds; both baselines on all development rows at once."""
    names = list(dms[0].table.features)
    raw = arrivals[names].to_numpy(np.float32)
    folds = [fit_boosting(dm.values("train"), dm.rows("train").y).prob(raw) for dm in dms]
    first = dms[0]
    values = np.concatenate([first.values(part) for part in ("train", "val")])
    parts = [first.rows(part) for part in ("train", "val")]
    x, y = (torch.cat([getattr(part, name) for part in parts]) for name in ("x", "y"))
    return {
        "boosting": np.mean(folds, axis=0),
        "boosting_all": fit_boosting(values, y).prob(raw),
        "logistic_all": fit_logistic(x, y).prob(first.apply(arrivals).x),
    }


def plain_mlp(run: Run, dm: EHRDataModule, trainer: partial, arrivals: pd.DataFrame) -> np.ndarray:
    """One net from random weights on one split, the way it is usually done."""
    dm.setup()
    with run.init("mlp"):
        steps = EPOCHS * dm.batches_per_epoch
        arguments = {"inputs": dm.num_features}
        model = LitClassifier("medkit.models.nets:mlp", arguments, total_steps=steps)
    trainer(name="mlp").fit(model, dm, ckpt_path=run.resume("mlp"))
    with torch.no_grad():
        return model.eval().prob(dm.apply(arrivals).x).numpy()


def table_of(drawn: Hospitals) -> pd.DataFrame:
    """The table as its dictionary says to read it: codes are missing, one unit per column."""
    columns: dict[str, object] = {"patient_id": drawn.patient, "site": drawn.site}
    for feature in features_of(drawn.family):
        values = pd.to_numeric(pd.Series(drawn.cells[feature.name])).to_numpy(np.float64, copy=True)
        values[drawn.missing[feature.name]] = np.nan
        for site in SITES:
            values[drawn.site == site] /= feature.unit_at(site)[0]
        columns[feature.name] = values
    return pd.DataFrame(columns | {"died": drawn.y})


def tell(report: Report, family: str, found: dict[tuple[str, str, str], list[float]]) -> None:
    """Print the AUROCs of a family, and the differences with their bars."""
    sites = sorted({site for _, _, site in found})

    def of(place: str, model: str, over: list[str]) -> np.ndarray:
        return np.mean([found[place, model, site] for site in over], axis=0)

    for place in ("outside", "inside"):
        for model in MODELS:
            by_draw = of(place, model, sites)
            peers = ", ".join(f"{s} {np.mean(found[place, model, s]):.3f}" for s in sites)
            name = f"{family}/{place}/auroc/{model}"
            report.figure(name, float(by_draw.mean()), t_interval(by_draw), peers=peers)
    for place in ("outside", "inside"):
        for other in MODELS[2:]:
            gap = of(place, "default", sites) - of(place, other, sites)
            name = f"{family}/{place}/default_minus_{other}"
            value, interval = float(gap.mean()), t_interval(gap)
            by_site = {s: of(place, "default", [s]) - of(place, other, [s]) for s in sites}
            peers = ", ".join(f"{s} {gap.mean():+.4f}" for s, gap in by_site.items())
            at_least = None
            if family == "interacting" and place == "outside":
                at_least = {"l": 0.02, "b": -0.01}.get(other[0])
            report.figure(name, value, interval, at_least=at_least, peers=peers)
            if at_least == 0.02 and interval is not None:
                report.figure(f"{name}/limit", value, interval, at_least=0.0, on_limit=True)
            if family == "additive" and other.startswith("logistic"):
                worst = min(float(gap.mean()) for gap in by_site.values())
                report.figure(f"{name}/worst_site", worst, at_least=-0.005)
    gap = of("outside", "mlp", sites) - of("outside", "logistic", sites)
    report.figure(f"{family}/outside/mlp_minus_logistic", float(gap.mean()), t_interval(gap))


def t_interval(by_draw: np.ndarray) -> Interval | None:
    """Student's 95 % interval of the mean over draws; None for one draw."""
    n = len(by_draw)
    if n < 2:
        return None
    half = student.ppf(0.975, n - 1) * by_draw.std(ddof=1) / np.sqrt(n)
    return float(by_draw.mean() - half), float(by_draw.mean() + half)


if __name__ == "__main__":
    sys.exit(main())
