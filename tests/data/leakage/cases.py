"""Tables, splits and medians for the tests of the audit for leaks."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medkit import keyed
from medkit.data import splits
from medkit.data.leakage.findings import Finding
from medkit.data.preprocessing import Preprocessing, digest_ids, fit
from medkit.data.splits import Split
from medkit.data.tables import Table, TableSpec, read_table
from medkit.synth.ehr import MISSING_CODES

ENCOUNTERS = Path(__file__).parents[3] / "data_samples" / "ehr" / "encounters.csv"
SPEC = TableSpec("died", site="site", missing_codes=MISSING_CODES)


@lru_cache(maxsize=1)
def hospitals() -> Table:
    """The kit's made-up encounters."""
    return read_table(ENCOUNTERS, SPEC)


def split_of(table: Table, *, seed: int = 0, test: float = 0.2) -> Split:
    return splits.by_patient(table.patient, val_fraction=0.2, test_fraction=test, split_seed=seed)


def fitted(table: Table, rows: Any) -> Preprocessing:
    digest = digest_ids(table.patient[rows])
    return fit(table.values[rows], table.features, clip=4.0, fitted_on=digest)


def clean() -> tuple[Table, Split, Preprocessing]:
    table = hospitals()
    split = split_of(table)
    return table, split, fitted(table, split.train)


def numbers(rows: int, columns: int, *, seed: int = 0) -> Table:
    """A table of noise, labels too; every row another patient."""
    draw = keyed.generator(seed, "synth", "noise")
    values = draw.normal(size=(rows, columns)).astype(np.float32)
    y = (draw.random(rows) < 0.3).astype(np.int64)
    names = tuple(f"x{index}" for index in range(columns))
    patient = np.array([f"P{number:05d}" for number in draw.permutation(rows)])
    return Table(names, values, y, patient, np.full(rows, ""), None)


def with_rows(table: Table, rows: Any) -> Table:
    """Append copies of rows under new ids."""
    again = np.concatenate([np.arange(len(table.y)), rows])
    ids = np.array([f"E{number:06d}" for number in range(len(rows))])
    return replace(
        table,
        values=table.values[again].copy(),
        y=table.y[again],
        site=table.site[again],
        patient=np.concatenate([table.patient, ids]),
    )


def with_column(table: Table, name: str, column: Any) -> Table:
    values = np.column_stack([table.values, np.asarray(column, np.float32)])
    return replace(table, values=values, features=(*table.features, name))


def of(findings: list[Finding], check: str) -> list[Finding]:
    """Findings of one check that are more than notes."""
    return [f for f in findings if f.check == check and f.severity != "note"]


def alarms(findings: list[Finding]) -> list[str]:
    return [str(f) for f in findings if f.severity != "note"]
