"""Is a table still like the one that a recipe was made for? What is not is written down.

A training does not fail on a table whose labels were mixed up or whose laboratory has moved: it
learns something else. Compared with a table of the same source that is trusted, such changes show.
Copies of patients need no such table; the audit for leaks finds them.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from medkit import keyed
from medkit.data.leakage.audit import write_down
from medkit.data.leakage.findings import ALPHA, Finding, two_sided
from medkit.data.linear import fit_logistic
from medkit.data.preprocessing import fit
from medkit.data.table_module import Source, TableDataModule
from medkit.data.tables import Table, read_table

CHECK = "changed data"
_ENOUGH = 50  # rows of a site in both tables
_CLIP = 4.0  # scaled values, as DataModules cut them
_REMEDY = "Ask where the table comes from what has changed before you believe its results."
Floats = NDArray[np.float64]


def compare_with(dm: TableDataModule, reference: Source) -> list[Finding]:
    """Compare a DataModule's table with a trusted one; findings go into the run's ledger too.

    Args:
        dm: After ``setup``, of 0/1 labels.
        reference: CSV, Parquet or DataFrame of the same columns, other patients or earlier ones.

    Returns:
        The findings, none where the tables are alike.

    Raises:
        RuntimeError: Before ``setup``.
    """
    if dm.table is None:
        raise RuntimeError(
            "a table is compared once it has been read, and setup() has not run. Call dm.setup()."
        )
    trusted = read_table(reference, dm.spec, features=list(dm.table.features), contract=dm.contract)
    found = differences(dm.table, trusted)
    write_down(dm.table, found)
    return found


def differences(table: Table, reference: Table) -> list[Finding]:
    """Return how a table differs from a trusted one by more than chance.

    Missing shares and values are compared column by column within each site (two proportions;
    Kolmogorov and Smirnov), labels by how well logistic regression fitted on the trusted rows
    predicts them, against how well it predicts trusted rows that it was not fitted on. Each of the
    three kinds says something of like tables with a chance of 1e-5 at most; a patient's several
    rows make that somewhat more.
    """
    sites = [s for s in np.unique(reference.site) if min(_count(table, s), _count(reference, s))
             >= _ENOUGH]  # fmt: skip
    limit = ALPHA / max(1, len(sites) * len(table.features))
    found = [
        finding
        for site in sites
        for column in range(len(table.features))
        for finding in _column(table, reference, str(site), column, limit)
    ]
    return [*found, *_labels(table, reference)]


def _count(table: Table, site: str) -> int:
    return int((table.site == site).sum())


def _column(table: Table, reference: Table, site: str, column: int, limit: float) -> list[Finding]:
    now, was = (t.values[t.site == site, column].astype(np.float64) for t in (table, reference))
    name = f"{table.features[column]!r}" + (f" at {site!r}" if site else "")
    found = []
    gone = [float(np.isnan(values).mean()) for values in (was, now)]
    both = (gone[0] * len(was) + gone[1] * len(now)) / (len(was) + len(now))
    se = sqrt(both * (1 - both) * (1 / len(was) + 1 / len(now)))
    if se > 0 and (p := two_sided((gone[1] - gone[0]) / se)) < limit:
        text = f"{name} is missing in {gone[1]:.0%} of the rows, it was in {gone[0]:.0%}."
        found.append(_finding(text, "missing", p))
    was, now = was[~np.isnan(was)], now[~np.isnan(now)]
    if min(len(was), len(now)) < _ENOUGH:
        return found
    if (p := float(ks_2samp(was, now, method="asymp").pvalue)) < limit:
        text = f"{name} has a median of {np.median(now):.4g}, it had {np.median(was):.4g}."
        found.append(_finding(text, "values", p))
    return found


def _labels(table: Table, reference: Table) -> list[Finding]:
    half = _half(reference.patient)
    if min(len(np.unique(reference.y[part])) for part in (half, ~half)) < 2:
        return []
    prepared = fit(reference.values, reference.features, clip=_CLIP, fitted_on="")
    x, new = prepared.apply(reference.values), prepared.apply(table.values)
    was, now = np.zeros(len(x)), np.zeros(len(new))
    for part in (half, ~half):  # each half predicted by the other's, the new rows by both
        model = fit_logistic(x, reference.y, rows=np.flatnonzero(part))
        was[~part] = _loss(model.prob(x[~part]), reference.y[~part])
        now += _loss(model.prob(new), table.y) / 2
    z = (now.mean() - was.mean()) / sqrt(now.var() / len(now) + was.var() / len(was))
    p = two_sided(z)
    if p >= ALPHA:
        return []
    rates = f"{table.y.mean():.1%} of the rows have label 1, {reference.y.mean():.1%} had"
    text = (
        f"labels follow from the columns otherwise than they did: log loss {now.mean():.3f}, it "
        f"was {was.mean():.3f}; {rates}."
    )
    return [_finding(text, "labels", p)]


def _half(patient: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Return a random half of the patients as a mask of rows, ``(N,)``."""
    known, owner = np.unique(patient, return_inverse=True)
    coins: NDArray[np.bool_] = keyed.generator(0, "audit", "halves").random(len(known)) < 0.5
    half: NDArray[np.bool_] = coins[owner]
    return half


def _loss(prob: NDArray[np.floating], y: NDArray[np.int64]) -> Floats:
    p = np.clip(np.asarray(prob, np.float64), 1e-6, 1 - 1e-6)
    return -np.where(y == 1, np.log(p), np.log1p(-p))


def _finding(text: str, what: str, p: float) -> Finding:
    return Finding("suspicious", CHECK, text, {"what": what, "p": p}, _REMEDY)
