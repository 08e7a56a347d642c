"""Near copies of records: exported twice, rounded, jittered, or with a value brought up to date.

Rows that share a cell of a coarse grid on a few columns are compared with their neighbours there,
for ``BLOCKS`` choices of columns and grids: O(BLOCKS N log N) and at most BLOCKS * NEIGHBOURS * N
comparisons, never N^2. Near copies under one patient id in one part are no leak and not reported.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medkit import keyed
from medkit.data.leakage.findings import Finding
from medkit.data.leakage.surprise import FEWEST, Surprise, cross_pairs
from medkit.data.tables import Table

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

BLOCKS = 10  # a copy with 3 of 20 columns changed is missed by one block in two
NEIGHBOURS = 3  # compared after each row within a cell
CELL = 0.25  # width of the grid [scale of the column]
_CHUNK = 50_000  # pairs compared at a time


def near_duplicates(
    table: Table,
    part: NDArray[np.int8],
    patients: Rows,
    hashes: NDArray[np.uint64],
    surprise: Surprise,
) -> tuple[list[Finding], Rows]:
    """Find records that stand in two parts under two ids and differ a little.

    Args:
        table: The table.
        part: Part of each row, -1 for none.
        patients: Number of each row's patient.
        hashes: One per row, equal for equal rows: those are not near but exact copies.
        surprise: What agreement is worth.

    Returns:
        The finding, if there is one, and its pairs of rows, ``(P, 2)``.
    """
    none = np.empty((0, 2), np.int64)
    if len(surprise.columns) < FEWEST:
        return [], none
    candidates = []
    for block in range(BLOCKS):
        pairs = _neighbours(surprise, block)
        left, right = pairs[:, 0], pairs[:, 1]
        other = (part[left] != part[right]) & (part[left] >= 0) & (part[right] >= 0)
        other &= (patients[left] != patients[right]) & (hashes[left] != hashes[right])
        candidates.append(pairs[other])
    pairs = np.unique(np.concatenate(candidates), axis=0)
    bits = np.concatenate([np.empty(0)] + [surprise.agreement(c) for c in _chunks(pairs)])
    pairs = _one_each(pairs[bits > 0], bits[bits > 0])
    pairs, p = surprise.copies(pairs, cross_pairs(part))
    if len(pairs) == 0:
        return [], none
    one, other_row = (pairs[0] + 1).tolist()
    equal = int((table.y[pairs[:, 0]] == table.y[pairs[:, 1]]).sum())
    finding = Finding(
        "leak",
        "near duplicates",
        f"at least {len(pairs)} records stand in two parts under different ids with nearly the "
        f"same values (such as rows {one} and {other_row} below the header; p = {p:.1g}).",
        {"records": len(pairs), "same_label": equal, "p": p, "rows": [one, other_row]},
        "Find out whether an export was joined in twice, or rows were jittered or augmented before "
        "the split; give copies one patient id, or remove them.",
    )
    return [finding], pairs


def _neighbours(surprise: Surprise, block: int) -> Rows:
    """Return pairs of rows that share a cell of this block's grid, each row with the next few."""
    draw = keyed.generator(0, "audit", "block", block)
    n = len(surprise.values)
    key = np.zeros(n, np.uint64)
    along = np.zeros(n)
    enough, entropy = np.log2(n) + 4, 0.0
    for index in draw.permutation(len(surprise.columns)):
        x = surprise.values[:, surprise.columns[index]] / surprise.scale[index]
        along += draw.normal() * np.nan_to_num(x)
        if entropy >= enough:
            continue
        # a missing value is a cell of its own: copies lack the same values
        cell = np.nan_to_num(np.floor(x / CELL + draw.random()), nan=-(2.0**40)).astype(np.int64)
        factor = draw.integers(2**62, 2**64, dtype=np.uint64) | np.uint64(1)
        key = (key ^ cell.view(np.uint64)) * factor
        key ^= key >> np.uint64(31)
        _, counts = np.unique(cell, return_counts=True)
        entropy += float(-(counts / n) @ np.log2(counts / n))
    order = np.lexsort((along, key))
    found = []
    for step in range(1, NEIGHBOURS + 1):
        left, right = order[:-step], order[step:]
        same = key[left] == key[right]
        found.append(np.sort(np.stack([left[same], right[same]], axis=1), axis=1))
    return np.concatenate(found)


def _chunks(pairs: Rows) -> list[Rows]:
    return [pairs[at : at + _CHUNK] for at in range(0, len(pairs), _CHUNK)]


def _one_each(pairs: Rows, bits: Floats) -> Rows:
    """Keep the most surprising pairs so that no row is in two of them."""
    used: set[int] = set()
    kept = []
    for index in np.argsort(-bits, kind="stable"):
        left, right = pairs[index].tolist()
        if left not in used and right not in used:
            used |= {left, right}
            kept.append(index)
    return pairs[kept]
