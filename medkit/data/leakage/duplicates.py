"""The same record twice: rows that are equal in every column, across parts or before the split.

One hash per row: O(N F + N log N). Equal rows that may be a coincidence (see
:mod:`medkit.data.leakage.surprise`) are noted, never called a leak.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.data.leakage.findings import ALPHA, Finding
from medkit.data.leakage.near import near_duplicates
from medkit.data.leakage.surprise import Surprise, cross_pairs, part_codes, row_hashes
from medkit.data.splits import Split
from medkit.data.tables import Table

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Copies:
    """Rows that are copies beyond chance.

    Attributes:
        group: ``(N,)`` the same number where rows are equal in every column.
        pairs: ``(P, 2)`` rows in two parts, one pair per copied record, near ones too.
    """

    group: Rows
    pairs: Rows


def duplicates(table: Table, split: Split, patients: Rows) -> tuple[list[Finding], Copies]:
    """Find copies across parts, near copies, and rows repeated before the split.

    Args:
        table: The table.
        split: Its split.
        patients: Number of each row's patient, ids normalised.
    """
    hashes = row_hashes(table.values)
    _, first, group, counts = np.unique(
        hashes, return_index=True, return_inverse=True, return_counts=True
    )
    part = part_codes(split, len(hashes))
    surprise = Surprise(table.values, first)
    findings, pairs = _exact(table, part, group, counts, surprise)
    findings += _oversampled(table, part, group, counts, surprise)
    near, near_pairs = near_duplicates(table, part, patients, hashes, surprise)
    pairs = np.concatenate([pairs, near_pairs])
    return findings + near, Copies(np.asarray(group, np.int64), pairs)


def _exact(
    table: Table, part: NDArray[np.int8], group: Rows, counts: Rows, surprise: Surprise
) -> tuple[list[Finding], Rows]:
    rows = np.flatnonzero((counts[group] > 1) & (part >= 0))
    if len(rows) == 0:
        return [], np.empty((0, 2), np.int64)
    rows = rows[np.lexsort((rows, part[rows], group[rows]))]
    starts = np.flatnonzero(np.diff(group[rows], prepend=-1))
    ends = np.append(starts[1:], len(rows)) - 1
    across = part[rows[starts]] != part[rows[ends]]
    pairs = np.stack([rows[starts[across]], rows[ends[across]]], axis=1)
    if len(pairs) == 0:
        return [], pairs
    copies, p = surprise.copies(pairs, cross_pairs(part))
    sure = len(copies)
    held = int((np.isin(group, group[pairs[:, 0]]) & (part > 0)).sum())
    shown = copies if sure else pairs
    equal = int((table.y[pairs[:, 0]] == table.y[pairs[:, 1]]).sum())
    evidence: dict[str, Any] = {"records": len(pairs), "beyond_chance": sure, "held_out_rows": held}
    evidence |= {"same_label": equal, "p": p, "rows": (shown[0] + 1).tolist()}
    where = f"(such as rows {shown[0, 0] + 1} and {shown[0, 1] + 1} below the header)"
    if sure == 0:
        return [
            Finding(
                "note",
                "exact duplicates",
                f"{len(pairs)} records are equal to one in another part {where}; with so few or so "
                f"coarse values that happens by chance (p = {p:.1g}).",
                evidence,
                "Look at them; nothing need be done if they are different patients.",
            )
        ], copies
    finding = Finding(
        "leak",
        "exact duplicates",
        f"{len(pairs)} records stand in two parts under different ids, equal in every column "
        f"{where}; {held} held-out rows are concerned.",
        evidence,
        "Remove the copies, or give all copies of a record one patient id, before the split.",
    )
    return [finding], copies


def _oversampled(
    table: Table, part: NDArray[np.int8], group: Rows, counts: Rows, surprise: Surprise
) -> list[Finding]:
    """Copies that are nearly all of one class were made to balance the classes."""
    n = len(group)
    order = np.argsort(group, kind="stable")
    first = order[np.cumsum(counts) - counts]
    second = order[np.minimum(np.cumsum(counts) - counts + 1, n - 1)]
    repeated = counts > 1
    if not repeated.any():
        return []
    pairs = np.stack([first[repeated], second[repeated]], axis=1)
    pairs, _ = surprise.copies(pairs, n * (n - 1) // 2)
    copied = pairs[:, 0]
    ones = int(table.y[copied].sum())
    distinct = table.y[first]
    share = float(distinct.mean())
    minority = 1 if share <= 0.5 else 0
    hits = ones if minority == 1 else len(copied) - ones
    rare = share if minority == 1 else 1 - share
    p = _binomial_tail(hits, len(copied), rare)
    if len(copied) < 5 or p >= ALPHA or hits < 0.8 * len(copied):
        return []
    groups = group[copied]
    copies = int(counts[groups].sum()) - len(copied)
    inside = np.isin(group, groups) & (part >= 0)
    low, high = np.full(len(counts), 9, np.int8), np.full(len(counts), -1, np.int8)
    np.minimum.at(low, group[inside], part[inside])
    np.maximum.at(high, group[inside], part[inside])
    across = int((high[groups] > low[groups]).sum())
    held = int((inside & (part > 0)).sum())
    prevalence = float(table.y.mean())
    return [
        Finding(
            "leak" if across else "suspicious",
            "oversampled before the split",
            f"{len(copied)} records of which {hits} have label {minority} stand in the table "
            f"{copies} times too often: the rarer class was repeated before the split. {across} "
            f"are in two parts; {held} held-out rows are copies, and label 1 has the share "
            f"{prevalence:.2f} instead of {share:.2f}.",
            {
                "records": len(copied),
                "copies": copies,
                "across_parts": across,
                "held_out_rows": held,
                "prevalence": prevalence,
                "prevalence_without_copies": share,
                "p": p,
            },
            "Split the table as it was collected; draw classes equally often in training only "
            '(draws="balanced"), if at all.',
        )
    ]


def _binomial_tail(hits: int, n: int, share: float) -> float:
    """Return Chernoff's upper bound of P(at least ``hits`` of ``n``)."""
    if n == 0 or hits <= share * n:
        return 1.0
    rate = hits / n
    divergence = rate * log2(rate / share)
    if rate < 1:
        divergence += (1 - rate) * log2((1 - rate) / (1 - share))
    return float(2.0 ** (-n * divergence))
