"""How unlikely it is that two records are equal by chance.

Whether two equal rows are a copy or a coincidence is a matter of how surprising their equality
is. A value shared by a hundredth of the rows is worth log2(100) bits; a row is worth the sum over
its measured columns, less what each shares with others (log2 of the standard deviation that they
leave it); those that follow from others, as the first and the last of one measurement, count once.
Coarse tables, such as ten yes-or-no columns, hold equal rows by nature.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from medkit import keyed
from medkit.data.splits import PARTS, Split

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

MARGIN = 10.0  # bits off each coincidence: one hidden severity moves all columns together
_SAMPLE = 4000  # rows from which the columns' overlap is estimated
_OWN = 0.02  # share of its variance that others must leave to a column for it to count


def part_codes(split: Split, n: int) -> NDArray[np.int8]:
    """Return 0, 1, 2 for rows of train, val and test, -1 for rows of none."""
    code = np.full(n, -1, np.int8)
    for number, part in enumerate(PARTS):
        code[split.part(part)] = number
    return code


def row_hashes(values: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return 64 bits per row: equal for equal rows, missing equal to missing."""
    factors = keyed.generator(0, "audit", "hash").integers(
        2**62, 2**64, size=values.shape[1], dtype=np.uint64
    )
    found = np.full(len(values), 0x9E3779B97F4A7C15, np.uint64)
    for index, factor in enumerate(factors | np.uint64(1)):
        column = values[:, index] + np.float32(0)  # a copy in which -0 is 0
        column[np.isnan(column)] = np.nan  # one NaN of the many
        found = (found ^ column.view(np.uint32)) * factor
        found ^= found >> np.uint64(29)
    return found


def cross_pairs(part: NDArray[np.int8]) -> int:
    """Return how many pairs of rows stand in two parts."""
    sizes = [int((part == number).sum()) for number in range(len(PARTS))]
    return sum(a * b for a, b in combinations(sizes, 2))


class Surprise:
    """How unlikely it is that another row has these values, in bits.

    Args:
        values: ``(N, F)``.
        first: One row of each group of equal rows: copies must not make themselves common.
    """

    def __init__(self, values: NDArray[np.float32], first: Rows) -> None:
        self.values = values
        scaled, columns, scales = _scaled(values, first)
        keep, own = _independent(scaled)
        self.columns = columns[keep]
        self.scale = scales[keep]
        self.shared = -0.5 * np.log2(own)
        self.sorted = []
        for column in self.columns:
            there = values[first, column].astype(np.float64)
            self.sorted.append(np.sort(there[~np.isnan(there)]))

    def bits(self, rows: Rows, tolerance: float) -> Floats:
        """Return bits per row and kept column, ``(R, K)``; 0 where the value is missing."""
        found = np.zeros((len(rows), len(self.columns)))
        for index, column in enumerate(self.columns):
            x = self.values[rows, column].astype(np.float64)
            there = self.sorted[index]
            reach = tolerance * self.scale[index]
            near = np.searchsorted(there, x + reach, "right") - np.searchsorted(there, x - reach)
            with np.errstate(divide="ignore"):
                found[:, index] = np.where(np.isnan(x), 0, -np.log2(near / len(there)))
        return np.maximum(found - self.shared, 0)


def _scaled(values: NDArray[np.float32], rows: Rows) -> tuple[Floats, Rows, Floats]:
    """Return a sample in robust scales (missing 0), the columns that vary, and their scales."""
    if len(rows) > _SAMPLE:
        rows = np.sort(keyed.generator(0, "audit", "sample").choice(rows, _SAMPLE, replace=False))
    scaled, columns, scales = [], [], []
    for column in range(values.shape[1]):
        x = values[rows, column].astype(np.float64)
        there = np.sort(x[~np.isnan(x)])
        if len(there) < 2 or there[0] == there[-1]:
            continue
        low, middle, high = there[[len(there) // 4, len(there) // 2, 3 * len(there) // 4]]
        scale = (high - low) / 1.349 or float(there.std())
        columns.append(column)
        scales.append(scale)
        scaled.append(np.clip(np.nan_to_num((x - middle) / scale), -4, 4))
    return np.array(scaled).reshape(len(columns), -1), np.array(columns, int), np.array(scales)


def _independent(scaled: Floats) -> tuple[Rows, Floats]:
    """Return the columns to which those taken before leave enough, and what share that is."""
    rest = scaled - scaled.mean(axis=1, keepdims=True)
    whole = (rest**2).sum(axis=1)
    keep, shares = [], []
    for index in range(len(rest)):
        own = float(rest[index] @ rest[index])
        if own <= _OWN * whole[index]:
            continue
        keep.append(index)
        shares.append(own / whole[index])
        unit = rest[index] / np.sqrt(own)
        rest = rest - np.outer(rest @ unit, unit)
    return np.array(keep, int), np.array(shares)
