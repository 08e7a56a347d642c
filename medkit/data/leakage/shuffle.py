"""Labels drawn anew: whatever still predicts them on held-out rows is a leak.

Each record gets its label by a coin, all copies of a record and all rows of a patient the same
one, as if labels had been shuffled before rows were copied, split and drawn. A linear model is
then fitted on what is trained on and ranks the held-out rows. With nobody on two sides its AUROC
is 0.5 on average, exactly, whatever the table is like; with copies on both sides, or held-out rows
among the draws, it is above, since the model has seen their labels.

It can't see what labels that stay would show: a column made from the outcome, a choice of columns
on all rows. For those the whole notebook is run on shuffled labels: :func:`shuffled_table`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from medkit import keyed
from medkit.data.leakage.findings import ALPHA, Finding, two_sided

Rows = NDArray[np.int64]

DRAWS = 200
MOST_ROWS = 20_000  # trained on, and held out; more are sampled
_RIDGE = 1e-3  # share of the mean eigenvalue
_CHUNK = 50  # draws at a time


@dataclass(frozen=True)
class Shuffled:
    """AUROC on held-out rows after labels were drawn anew.

    Attributes:
        auroc: Mean over draws.
        low: Lower 95 % limit of that mean.
        high: Upper 95 % limit.
        p: Two-sided, that the mean is 0.5.
        draws: How many held both classes on both sides.
    """

    auroc: float
    low: float
    high: float
    p: float
    draws: int


def units(patients: Rows, group: Rows, pairs: Rows) -> Rows:
    """Return a number per row: one for all rows of a patient and of all copies of their records.

    Args:
        patients: Number of each row's patient, ``(N,)``.
        group: The same number for equal rows, ``(N,)``.
        pairs: Pairs of rows that are copies beyond chance, ``(P, 2)``; equal rows of other groups
            are taken for coincidences.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(pairs) == 0:
        return patients
    size = int(patients.max()) + 1
    links = [patients[pairs]]
    rows = np.flatnonzero(np.isin(group, group[pairs[:, 0]]))
    rows = rows[np.argsort(group[rows], kind="stable")]
    same = group[rows[:-1]] == group[rows[1:]]
    links.append(np.stack([patients[rows[:-1][same]], patients[rows[1:][same]]], axis=1))
    ends = np.concatenate(links)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return np.asarray(component[patients], np.int64)


def shuffled_auroc(
    x: NDArray[np.float32], unit: Rows, train: Rows, held: Rows, *, seed: int = 0
) -> Shuffled | None:
    """Fit a ridge regression to labels drawn by coin, and rank the held-out rows.

    Args:
        x: ``(N, F)`` as the net sees it, no missing values.
        unit: Whose label each row has, ``(N,)``.
        train: Rows trained on, as often as they are drawn.
        held: Held-out rows.
        seed: Decides the coins.

    Returns:
        None where there are too few rows to rank.
    """
    choose = keyed.generator(seed, "audit", "rows")
    train, held = (
        rows if len(rows) <= MOST_ROWS else choose.choice(rows, MOST_ROWS, replace=False)
        for rows in (train, held)
    )
    if len(train) < 10 or len(held) < 10:
        return None
    inner = x[train].astype(np.float64)
    middle = inner.mean(axis=0)
    inner -= middle
    outer = x[held].astype(np.float64) - middle
    gram = inner.T @ inner
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram) + 1e-12
    _, code = np.unique(np.concatenate([unit[train], unit[held]]), return_inverse=True)
    aurocs = []
    for start in range(0, DRAWS, _CHUNK):
        draw = keyed.generator(seed, "audit", "coins", start)
        coins = draw.random((int(code.max()) + 1, _CHUNK)) < 0.5
        labels = coins[code].astype(np.float64)
        seen, unseen = labels[: len(train)], labels[len(train) :]
        weights = np.linalg.solve(gram, inner.T @ (seen - seen.mean(axis=0)))
        scores = outer @ weights
        rank = np.empty_like(scores)
        np.put_along_axis(
            rank,
            np.argsort(scores, axis=0, kind="stable"),
            np.arange(1.0, len(held) + 1)[:, None],
            axis=0,
        )
        ones = unseen.sum(axis=0)
        zeros = len(held) - ones
        both = (ones > 0) & (zeros > 0)
        above = (rank * unseen).sum(axis=0) - ones * (ones + 1) / 2
        aurocs.append(above[both] / (ones * zeros)[both])
    found = np.concatenate(aurocs)
    if len(found) < DRAWS // 2:
        return None
    mean, error = float(found.mean()), float(found.std(ddof=1)) / sqrt(len(found))
    half = NormalDist().inv_cdf(0.975) * error
    p = two_sided((mean - 0.5) / error) if error > 0 else 1.0
    return Shuffled(mean, mean - half, mean + half, p, len(found))


def label_shuffle(
    x: NDArray[np.float32], unit: Rows, train: Rows, held: Rows, *, seed: int = 0
) -> list[Finding]:
    """Say what a linear model makes of labels drawn anew; see the module's text."""
    found = shuffled_auroc(x, unit, train, held, seed=seed)
    if found is None:
        return []
    words = f"AUROC {found.auroc:.3f} [{found.low:.3f}, {found.high:.3f}] on held-out rows"
    evidence = {"auroc": found.auroc, "low": found.low, "high": found.high, "p": found.p}
    evidence["draws"] = found.draws
    if found.p < ALPHA and found.auroc > 0.5:
        return [
            Finding(
                "leak",
                "label shuffle",
                f"with labels drawn by a coin a linear model has {words}, where 0.5 is all that "
                f"is honest (p = {found.p:.1g}): it was trained on copies of them.",
                evidence,
                "Look at the other findings for which rows; remove copies, and draw training rows "
                "from split.train alone.",
            )
        ]
    return [
        Finding(
            "note",
            "label shuffle",
            f"with labels drawn by a coin a linear model has {words}, as it must be.",
            evidence,
        )
    ]
