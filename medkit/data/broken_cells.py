"""How a cell breaks the data contract, in words, and the unit in which a site's cells would not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.data.contract import repair, units
from medkit.data.contract.agreement import ENOUGH
from medkit.data.contract.cells import parse, plain
from medkit.data.contract.schema import Contract

_LONGEST = 20
_FEW = 3  # hints
_CONVERT = "convert them, or say so of a new site (units_at, by --contract FILE)"
# almost a number: what a person's name is not
_ALMOST = re.compile(r"[<>~=]{0,2}\s?[+-]?\d[\d.,']{0,8}\s?\S{0,4}")


@dataclass
class Breaches:
    """Cells of new tables that break a data contract: a text for each, and counts of all.

    Args:
        contract: The contract.
    """

    contract: Contract
    _counts: dict[str, Counter[str]] = field(default_factory=dict)
    _hints: dict[str, list[str]] = field(default_factory=dict)

    def of(
        self, frame: pd.DataFrame, site: NDArray[np.str_]
    ) -> Iterator[tuple[str, str, NDArray[np.bool_], list[str]]]:
        """Yield column by column: its name, the reason to count, rows ``(N,)``, a text for each.

        Args:
            frame: The rows as they were read.
            site: Site of each, ``(N,)``.
        """
        rows = np.zeros(len(frame), np.bool_)
        for _, found in repair.repaired(self.contract, frame, new=True, rows_outside=rows):
            if not rows.any():
                continue
            name = found[0].column
            reason, cells = f"{name} breaks the contract", frame[name]
            counts = self._counts.setdefault(reason, Counter())
            for broken in found:
                if not broken.expected:  # texts of cells stay out of it
                    counts[broken.what.partition(":")[0]] += broken.count
            if self.contract.columns[name].kind == "number":
                if almost := example(cells[rows]):
                    self._hint(reason, f"such as {almost!r}")
                for where in np.unique(site[rows]).tolist():
                    there = site == where
                    most = self.contract.tolerance * cells[there].notna().sum()
                    enough = rows[there].sum() >= max(ENOUGH, most)
                    unit = fitting_unit(self.contract, name, cells[there], where) if enough else ""
                    if unit:
                        at = f" at {where!r}" if where else ""
                        self._hint(reason, f"as {unit}{at} they would fit: {_CONVERT}")
            words = in_words(self.contract, name, cells[rows], site[rows].tolist())
            yield name, reason, rows.copy(), words
            rows[:] = False  # the next column's

    def why(self, reason: str) -> str:
        """Return what was counted for a reason, such as ": 3 above 45 degC"; "" for another's."""
        what = self._counts.get(reason, Counter()).most_common(3)
        said = ": " + ", ".join(f"{count} {each}" for each, count in what) if what else ""
        return said + "".join(f"; {hint}" for hint in self._hints.get(reason, ()))

    def _hint(self, reason: str, hint: str) -> None:
        hints = self._hints.setdefault(reason, [])
        kind = hint.partition(" ")[0]  # one example, and some units
        if hint not in hints and (kind == "as" or not any(h.startswith(kind) for h in hints)):
            hints[:] = [*hints, hint][:_FEW]


def in_words(contract: Contract, name: str, cells: pd.Series, sites: Sequence[str]) -> list[str]:
    """Return a text per cell, such as "age 630 above 110 years".

    Args:
        contract: The contract.
        name: The column's.
        cells: Those that break it, as they were read.
        sites: Site of each.
    """
    rule, analyte = contract.columns[name], contract.analyte(name)
    quotes = [repr(str(cell).strip()[:_LONGEST]) for cell in cells]
    if rule.kind != "number":
        return [f"{name} {quote} is none of its levels" for quote in quotes]
    numbers, text = parse(cells)
    said = []
    for quote, number, no_number, site in zip(quotes, numbers.tolist(), text, sites, strict=True):
        unit = rule.units_at.get(site, rule.unit)
        if no_number:
            said.append(f"{name} {quote} is not a number")
        elif not isfinite(number):
            said.append(f"{name} {number} is not finite")
        else:
            value = units.convert(number, unit, rule.unit, analyte) if unit != rule.unit else number
            low = rule.high is None or (rule.low is not None and value < rule.low)
            limit = f"below {rule.low:g}" if low else f"above {rule.high:g}"
            written = f"{number:g} {unit}" if unit != rule.unit else f"{number:g}"
            said.append(f"{name} {written} {limit} {rule.unit}".strip())
    return said


def example(cells: pd.Series) -> str:
    """Return a text among cells that is almost a number, such as "1,5"; "" where none is."""
    words = plain(cells)[parse(cells)[1]].astype(str)
    return next((word for word in words if _ALMOST.fullmatch(word)), "")


def fitting_unit(contract: Contract, name: str, cells: pd.Series, site: str) -> str:
    """Return the unit in which most of a site's cells would keep to the contract, or "".

    Args:
        contract: The contract.
        name: The column's.
        cells: All cells of the site.
        site: The site; it has the contract's unit where units_at says no other.
    """
    rule, analyte = contract.columns[name], contract.analyte(name)
    numbers = parse(cells)[0]
    numbers = numbers[np.isfinite(numbers)]
    if analyte is None or not rule.unit or len(numbers) == 0:
        return ""
    now = rule.units_at.get(site, rule.unit)
    low = -np.inf if rule.low is None else rule.low
    high = np.inf if rule.high is None else rule.high
    for unit in units.ANALYTES[analyte].usual:
        if unit == now:
            continue
        try:
            there = units.convert(numbers, unit, rule.unit, analyte)
        except ValueError:  # no way from one to the other is known
            continue
        if np.mean((there >= low) & (there <= high)) > 0.9:
            return unit
    return ""
