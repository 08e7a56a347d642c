"""Real tables: the default net, logistic regression and boosting, by runs of notebook 02.

    MEDKIT_REAL_DATA=FOLDER python benchmarks/real_tables.py [--quick] [--json FILE]

FOLDER holds physionet2012_a and uci_heart4. PhysioNet/CinC 2012 set A (Silva 2012): 4,000 ICU
stays, one of seven dies; each stay is scored once, by an ensemble that has not seen its fold. UCI
heart disease (Detrano 1989): each of four hospitals is left out in turn, and the ensemble of the
three others scores it; Switzerland has 8 patients without disease and no bar. Differences are
paired on the same patients, with DeLong's intervals. Boosting is scikit-learn's histogram trees
with the kit's settings; for PhysioNet it is fitted here, on the same folds, with others too, so
that the rival is no weak one.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from report import Interval, Report
from sklearn.ensemble import HistGradientBoostingClassifier

from medkit.data.ehr import EHRDataModule
from medkit.data.long.physionet2012 import read_table_2012
from medkit.metrics.discrimination import auroc, auroc_difference
from medkit.record.pseudonym import pseudonym
from medkit.record.results import Metric, read_metrics

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks/02_missing_and_rare.ipynb"
FILES = (
    "physionet2012_a/physionet2012_set_a.csv.gz",
    "physionet2012_a/Outcomes-a.txt",
    "uci_heart4/heart4.csv",
)
OTHER_BOOSTING: dict[str, dict[str, Any]] = {
    "boosting_as_it_comes": {},
    "boosting_300_trees": {
        **{"max_iter": 300, "learning_rate": 0.03, "max_leaf_nodes": 8, "min_samples_leaf": 20},
        **{"l2_regularization": 5.0, "early_stopping": False},
    },
}
NO_BAR = ("switzerland",)
FOLDS = 5


def main() -> int:
    folder = data_folder()
    report = Report(__doc__)
    logging.getLogger("medkit").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as private:
        physionet(report, folder, Path(private))
        heart(report, folder, Path(private))
    return report.finish()


def data_folder() -> Path:
    """Return the folder of real data, or leave saying what is missing."""
    folder = Path(os.environ.get("MEDKIT_REAL_DATA", "not set"))
    lost = [name for name in FILES if not (folder / name).is_file()]
    if lost:
        sys.stderr.write(
            f"real_tables needs a folder of real data with {', '.join(FILES)} in it, which is not "
            f"part of the project; MEDKIT_REAL_DATA is {folder}, without {lost[0]}. Set it.\n"
        )
        sys.exit(2)
    return folder


def physionet(report: Report, folder: Path, private: Path) -> None:
    """Print the bars of PhysioNet 2012: every stay is in the test of one of five folds."""
    records, outcomes, _ = (folder / name for name in FILES)
    table = read_table_2012(records, outcomes)
    csv = private / "physionet2012.csv"
    table.to_csv(csv, index=False)
    settings = {"csv_path": csv, "target": "In-hospital_death", "patient": "subject_id"}
    folds = 2 if report.quick else FOLDS
    whole = {"site": "", "contract_path": "", "truth_path": "", "test_site": ""}
    splits = {"test_folds": folds, "folds": folds}
    found, out = notebook(report, private, settings | whole | splits)
    report.note(f"physionet: {len(table)} stays, {table.shape[1] - 2} columns, {folds} folds")
    for model in ("", "logistic/", "boosting/"):
        figure(report, f"physionet/auroc/{model[:-1] or 'default'}", found[f"test/{model}auroc"])
    by_fold = [found[f"test/fold_{fold}/auroc"].value for fold in range(folds)]
    report.figure("physionet/auroc/default, mean of folds", float(np.mean(by_fold)))
    for rival, bar in (("logistic", 0.0), ("boosting", -0.01)):
        name = f"auroc_minus_{rival}"
        gaps = ", ".join(f"{found[f'test/fold_{fold}/{name}'].value:+.4f}" for fold in range(folds))
        label = f"physionet/default_minus_{rival}"
        figure(report, label, found[f"test/{name}"], at_least=bar, peers=f"folds {gaps}")
    for name, options in OTHER_BOOSTING.items():
        y, score, rival = beside(out, settings | splits, options)
        figure(report, f"physionet/auroc/{name}", auroc(y, rival))
        gap = auroc_difference(y, score, rival)
        figure(report, f"physionet/default_minus_{name}", gap, at_least=-0.01)


def heart(report: Report, folder: Path, private: Path) -> None:
    """Print the bars of UCI heart: each hospital is left out in turn."""
    csv = folder / FILES[2]
    columns: dict[str, Any] = {name: {"kind": "number"} for name in pd.read_csv(csv, nrows=0)}
    del columns["num"], columns["site"]
    columns["chol"]["missing"] = [0]
    contract = {"version": 1, "target": "num", "target_above": 0, "site": "site"}
    path = private / "heart.yaml"
    path.write_text(yaml.safe_dump(contract | {"columns": columns}))
    settings = {"csv_path": csv, "target": "num", "target_above": 0, "patient": "", "site": "site"}
    left_out = {"contract_path": path, "truth_path": "", "test_site": "*", "folds": FOLDS}
    found, _ = notebook(report, private, settings | left_out)
    suffix = "/auroc_minus_logistic"
    sites = [name.split("/")[1] for name in found if name.endswith(suffix) and name.count("/") == 2]
    for place in sorted(sites):
        site = place.removeprefix("site_")
        count = found[f"test/{place}/auroc"].n or 0
        healthy = round(count * (1 - found[f"test/{place}/prevalence"].value))
        peers = ", ".join(
            f"{name} {found[f'test/{place}/{name}/auroc'].value:.3f}"
            for name in ("logistic", "boosting")
        )
        peers += f"; {count} patients, {healthy} without disease"
        figure(report, f"heart/{site}/auroc", found[f"test/{place}/auroc"], peers=peers)
        gap = found[f"test/{place}{suffix}"]
        bar = None if site in NO_BAR else 0.0
        figure(report, f"heart/{site}/default_minus_logistic", gap, at_least=bar)
        figure(
            report,
            f"heart/{site}/default_minus_boosting",
            found[f"test/{place}/auroc_minus_boosting"],
        )


def notebook(
    report: Report, private: Path, settings: dict[str, Any]
) -> tuple[dict[str, Metric], Path]:
    """Run notebook 02 as a job; return its metrics.json and its folder."""
    out = private / f"run_{Path(settings['csv_path']).stem}"
    command = [sys.executable, "-m", "medkit.cli", "run", str(NOTEBOOK), "--out", str(out)]
    for name, value in (settings | {"quick": report.quick}).items():
        command += ["-p", name, str(value)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return read_metrics(out / "metrics.json"), out


def beside(
    out: Path, settings: dict[str, Any], options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, the run's scores, and those of boosting with other settings, same folds."""
    labels, scores, rivals = [], [], []
    for test_fold in range(settings["test_folds"]):
        each = []
        for fold in range(settings["folds"]):
            dm = EHRDataModule(**settings, test_fold=test_fold, fold=fold, baseline_c=None)
            dm.setup()
            model = HistGradientBoostingClassifier(**options, random_state=0)
            model.fit(dm.values("train"), dm.rows("train").y.numpy())
            each.append(model.predict_proba(dm.values("test"))[:, 1])
        said = pd.read_parquet(out / f"predictions/test_fold_{test_fold}.parquet")
        ids = [pseudonym(one) for one in dm.row_ids(dm.rows("test").row)]
        if said["row"].tolist() != ids:
            raise RuntimeError(
                f"fold {test_fold} of the run must hold the stays that it holds here, and holds "
                "others. Has the notebook another split_seed?"
            )
        labels.append(said["y"])
        scores.append(said["score"])
        rivals.append(np.mean(each, axis=0))
    return np.concatenate(labels), np.concatenate(scores), np.concatenate(rivals)


def figure(
    report: Report,
    name: str,
    metric: Metric,
    *,
    at_least: float | None = None,
    peers: str = "",
) -> None:
    """Print a metric with its interval."""
    limits: Interval | None = None
    if metric.low is not None and metric.high is not None:
        limits = metric.low, metric.high
    report.figure(name, metric.value, limits, at_least=at_least, peers=peers)


if __name__ == "__main__":
    sys.exit(main())
