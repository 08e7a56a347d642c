"""A run knows what broke the contract of its table, for whoever only fits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medkit.data.contract.schema import Column, Contract
from medkit.data.ehr import EHRDataModule
from medkit.models.classifier import LitClassifier
from medkit.run import Run
from medkit.trainer import keyed, stable_trainer, start_run

CSV = Path(__file__).parents[2] / "data_samples" / "ehr" / "encounters.csv"
CONTRACT = Contract(
    {
        "heart_rate": Column(unit="/min", high=120),
        "lactate": Column(unit="mmol/L", low=0, high=100, missing=[-1]),
    },
    target="died",
    patient="patient_id",
    site="site",
    tolerance=1,
)

pytestmark = pytest.mark.usefixtures("_as_before_a_run")


@pytest.fixture
def module() -> EHRDataModule:
    return keyed(EHRDataModule(CSV, target="died", site="site", contract=CONTRACT), seed=1)


def fit(run: Run, dm: EHRDataModule, *, epochs: int = 1) -> None:
    dm.setup()
    with run.init("fit"):
        model = LitClassifier(
            net="medkit.models.nets:mlp", net_args={"inputs": dm.num_features}, total_steps=10
        )
    trainer = stable_trainer(run, max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(model, dm, ckpt_path=run.resume("fit"))


def breaches(run: Run) -> Counter[tuple[str, str]]:
    """Return cells that broke the contract, by column and site."""
    counted: Counter[tuple[str, str]] = Counter()
    for line in run.ledger.read():
        facts: dict[str, Any] = line.get("facts") or {}
        for one in facts.get("found", ()):
            if not one["agreed"]:
                counted[facts["column"], facts["site"]] += one["cells"]
    return counted


def too_fast() -> dict[tuple[str, str], int]:
    table = pd.read_csv(CSV)
    by_site = table[table["heart_rate"] > 120].groupby("site").size()
    return {("heart_rate", str(site)): int(count) for site, count in by_site.items()}


def test_a_fit_leaves_the_breaches_in_the_ledger_and_a_resume_does_not_double_them(
    tmp_path: Path, module: EHRDataModule
) -> None:
    run = start_run(tmp_path / "a", seed=1)
    fit(run, module)
    found = breaches(run)
    assert {k: n for k, n in found.items() if k[0] == "heart_rate"} == too_fast()
    lines = len(run.ledger.read())
    run.stage_begun("more")  # a run that is not over
    run.finish()
    again = keyed(EHRDataModule(CSV, target="died", site="site", contract=CONTRACT), seed=1)
    resumed = start_run(tmp_path / "a", seed=1)
    fit(resumed, again)
    assert breaches(resumed) == found
    assert len(resumed.ledger.read()) == lines


def test_a_table_read_before_the_run_began_is_in_its_ledger_too(
    tmp_path: Path, module: EHRDataModule
) -> None:
    module.setup()
    first = start_run(tmp_path / "a", seed=1)
    fit(first, module)
    second = start_run(tmp_path / "b", seed=2)
    fit(second, module)
    assert breaches(first) == breaches(second)
    assert breaches(second)


def test_the_ledger_names_no_patient(tmp_path: Path, module: EHRDataModule) -> None:
    run = start_run(tmp_path / "a", seed=1)
    fit(run, module)
    said = run.ledger.path.read_text()
    assert not any(name in said for name in pd.read_csv(CSV)["patient_id"].astype(str).unique())
