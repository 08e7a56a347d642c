"""How unlikely it is that two records are equal by chance.

Whether two equal rows are a copy or a coincidence is a matter of how surprising their equality
is. A value shared by a hundredth of the rows is worth log2(100) bits; a row is worth the sum over
its measured columns, less what each shares with others (log2 of the standard deviation that they
leave it); those that follow from others, as the first and the last of one measurement, count once.
Coarse tables, such as ten yes-or-no columns, hold equal rows by nature. So do questionnaires whose
items all go one way; what counts in the end is therefore each value given that of the column it
hangs together with most, as Chow and Liu (1968) take a joint distribution to pieces.
What this does not see: a wide table made by curved formulas from three or four coarse measurements;
its equal rows are called copies.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from medkit import keyed
from medkit.data.leakage.findings import more_than_chance
from medkit.data.splits import PARTS, Split

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

MARGIN = 6.0  # bits off each coincidence, for columns that hang together three at a time
TOLERANCES = (0.0, 0.02, 0.05, 0.1)  # differences that count as agreement [scale of the column]
FEWEST = 6  # columns measured in both rows, below which copies can't be told
_AGREE = 0.6  # share of those columns that must agree before the bits are counted
_FAMILY = 20  # near copies of one record at most; with more it is the table's nature
_OTHERS = 1000  # rows among which they are counted
_TESTED = 100  # pairs whose values are looked at given each other
_SAMPLE = 4000  # rows from which the columns' overlap is estimated
_OWN = 0.02  # share of its variance that others must leave to a column for it to count
_TOGETHER = 0.25  # correlation from which a column is looked at given another


def part_codes(split: Split, n: int) -> NDArray[np.int8]:
    """Return 0, 1, 2 for rows of train, val and test, -1 for rows of none."""
    code = np.full(n, -1, np.int8)
    for number, part in enumerate(PARTS):
        code[split.part(part)] = number
    return code


def row_hashes(values: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return 64 bits per row: equal for equal rows, missing equal to missing."""
    drawn = keyed.generator(0, "audit", "hash").integers(
        2**62, 2**64, size=values.shape[1], dtype=np.uint64
    )
    factors: NDArray[np.uint64] = np.bitwise_or(drawn, np.uint64(1))
    found = np.full(len(values), 0x9E3779B97F4A7C15, np.uint64)
    for index, factor in enumerate(factors):
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
        self.first = first
        self.given = _strongest(scaled[keep])
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

    def given_bits(self, rows: Rows, tolerance: float) -> Floats:
        """Return bits per row and kept column given the column it hangs together with most.

        Never more than :meth:`bits`; few rows with such a value of the other column give few bits.
        """
        draw = keyed.generator(0, "audit", "others")
        others = self.first
        if len(others) > _SAMPLE:
            others = draw.choice(others, _SAMPLE, replace=False)
        others = others[~np.isin(others, rows)]
        found = self.bits(rows, tolerance)

        def near(index: int) -> NDArray[np.bool_]:
            x = self.values[:, self.columns[index]].astype(np.float64)
            reach = max(tolerance, TOLERANCES[1]) * self.scale[index]
            return np.asarray(np.abs(x[rows, None] - x[None, others]) <= reach)

        for index, given in enumerate(self.given.tolist()):
            if given >= 0:
                alike = near(given)
                both = (alike & near(index)).sum(axis=1)
                bits = np.log2(alike.sum(axis=1) + 1) - np.log2(both + 1)
                known = ~np.isnan(self.values[rows, self.columns[given]])
                found[known, index] = np.minimum(found[known, index], bits[known])
        return found

    def agreement(self, pairs: Rows, *, given: bool = False) -> Floats:
        """Return how surprising the agreement of each pair of rows is; 0 where too little agrees.

        The bits of the columns that agree, less log2 of the ways to choose which ones may differ,
        of the tolerances tried and of the numbers of columns: the chance of such a pair is then at
        most 2^-bits for independent columns.

        Args:
            pairs: ``(P, 2)`` rows.
            given: Count each value given another column's: slower, and fair to tables whose
                columns hang together.
        """
        worth = self.given_bits if given else self.bits
        left, right = (
            self.values[rows][:, self.columns].astype(np.float64) / self.scale for rows in pairs.T
        )
        apart = np.abs(left - right)  # NaN where one of the two is missing
        measured = (~np.isnan(apart)).sum(axis=1)
        best = np.zeros(len(pairs))
        for tolerance in TOLERANCES:
            agree = apart <= tolerance * (1 + 1e-6)
            count = agree.sum(axis=1)
            rows = np.flatnonzero((measured >= FEWEST) & (count >= _AGREE * measured))
            if len(rows) == 0:
                continue
            bits = np.where(agree[rows], worth(pairs[rows, 0], tolerance), 0).sum(axis=1)
            bits -= _log2_choose(measured[rows], count[rows])
            bits -= np.log2(measured[rows] + 1) + np.log2(len(TOLERANCES))
            best[rows] = np.maximum(best[rows], bits)
        return best

    def _crowded(self, pairs: Rows) -> NDArray[np.bool_]:
        """Say for each pair whether many more records are half as near as these two."""
        draw = keyed.generator(0, "audit", "crowd")
        others = self.first
        if len(others) > _OTHERS:
            others = draw.choice(others, _OTHERS, replace=False)
        most = max(2.0, _FAMILY * len(others) / len(self.first))
        found = np.zeros(len(pairs), np.bool_)
        for index, (row, other) in enumerate(pairs.tolist()):
            rest = np.append(others[(others != row) & (others != other)], other)
            bits = self.agreement(np.stack([np.full(len(rest), row), rest], axis=1))
            found[index] = (bits[:-1] >= bits[-1] / 2).sum() > most
        return found

    def copies(self, pairs: Rows, chances: int) -> tuple[Rows, float]:
        """Return those pairs that are copies beyond chance, the surest first, and the p-value.

        Args:
            pairs: ``(P, 2)`` rows that look alike, no row in two of them.
            chances: Pairs of rows among which they were found.
        """
        bits = self.agreement(pairs)
        order = np.argsort(-bits, kind="stable")
        pairs, bits = pairs[order], bits[order]
        alike, _ = more_than_chance(bits.tolist(), chances, margin=MARGIN)
        tested = pairs[: min(alike, _TESTED)]
        bits = np.where(self._crowded(tested), 0, self.agreement(tested, given=True))
        order = np.argsort(-bits, kind="stable")
        sure, p = more_than_chance(bits.tolist(), chances, margin=MARGIN)
        if 2 * sure > len(tested):  # the rest of a table full of copies is not looked at one by one
            return np.concatenate([tested[order[:sure]], pairs[len(tested) : alike]]), p
        return tested[order[:sure]], p


def _log2_choose(n: Rows, k: Rows) -> Floats:
    log2_factorial = np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, n.max() + 1)))])
    return np.asarray(log2_factorial[n] - log2_factorial[k] - log2_factorial[n - k])


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
    shape = (len(columns), len(rows))  # a table of constants has no column left
    return np.array(scaled).reshape(shape), np.array(columns, int), np.array(scales)


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


def _strongest(scaled: Floats) -> Rows:
    """Return for each column the earlier one it is correlated with most, -1 for none."""
    found = np.full(len(scaled), -1)
    if len(scaled) > 1:
        strength = np.tril(np.abs(np.corrcoef(scaled)), k=-1)
        best = strength.argmax(axis=1)
        enough = strength[np.arange(len(scaled)), best] >= _TOGETHER
        found[enough] = best[enough]
    return found
