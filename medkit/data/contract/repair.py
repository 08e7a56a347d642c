"""A table repaired by its contract, and the count of what was done to how many cells.

Columns are repaired one at a time, so that a table of 10 million rows needs room for itself and
one column more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.data.contract import units
from medkit.data.contract.agreement import require_agreement, require_columns, require_site
from medkit.data.contract.breaches import FIRST_ROWS, NO_COLUMN, NO_FEATURE, NO_SITE, Broken
from medkit.data.contract.cells import cell_key, numbers_of, parse, plain, quoted
from medkit.data.contract.site_rows import Sites, sites_of

if TYPE_CHECKING:
    from medkit.data.contract.schema import Column, Contract


def apply(
    contract: Contract, frame: pd.DataFrame, site: str | None = None, *, new: bool = False
) -> tuple[pd.DataFrame, list[Broken]]:
    """Repair a table; see :meth:`medkit.data.contract.Contract.apply`."""
    columns: dict[str, Any] = {n: frame[n] for n in contract.roles.values() if n in frame}
    broken = list(unused(contract, frame, site, new=new))
    for values, found in repaired(contract, frame, site, new=new):
        columns.update({name: pd.Series(v, index=frame.index) for name, v in values.items()})
        broken += found
    return pd.DataFrame(columns, index=frame.index), broken


def unused(
    contract: Contract, frame: pd.DataFrame, site: str | None = None, *, new: bool = False
) -> Iterator[Broken]:
    """Check the table's columns and yield those that become no feature, and unknown sites."""
    require_columns(contract, frame, new=new)
    require_site(contract, frame, site)
    for name in map(str, frame.columns):
        rule = contract.columns.get(name)
        if rule is None and name not in contract.roles.values():
            what, expected = NO_COLUMN, False
        elif rule is not None and rule.recorded == "after":
            what, expected = "recorded after the outcome", True
        elif rule is not None and rule.kind == "text":
            what, expected = "text", True
        else:
            continue
        yield Broken(name, "", what, 0, (), NO_FEATURE, expected)
    for name, rows in sites_of(frame, contract.site, site):
        if contract.sites and name and name not in contract.sites:
            at = np.arange(len(frame))[rows]
            yield Broken(
                contract.site or "site",
                name,
                NO_SITE,
                len(at),
                tuple(at[:FIRST_ROWS].tolist()),
                "codes and units of all sites taken",
            )


def outside(contract: Contract, frame: pd.DataFrame, site: str | None = None) -> NDArray[np.bool_]:
    """Return ``(N,)`` True for rows with a cell that breaks the contract, or of an unknown site.

    What the contract announces itself (codes, other units) is no breach.
    """
    require_columns(contract, frame, new=True)
    require_site(contract, frame, site)
    rows_outside = np.zeros(len(frame), np.bool_)
    for _ in repaired(contract, frame, site, new=True, rows_outside=rows_outside):
        pass  # each column marks its rows
    for name, rows in sites_of(frame, contract.site, site):
        rows_outside[rows] |= bool(contract.sites and name) and name not in contract.sites
    return rows_outside


def repaired(
    contract: Contract,
    frame: pd.DataFrame,
    site: str | None = None,
    *,
    new: bool = False,
    rows_outside: NDArray[np.bool_] | None = None,
) -> Iterator[tuple[dict[str, NDArray[np.float64]], list[Broken]]]:
    """Yield column by column its features, name -> ``(N,)`` float64, and what was done.

    ``rows_outside`` ``(N,)`` becomes True where a cell breaks the contract.

    Raises:
        ValueError: Where most cells of a column at a site break the contract.
    """
    sites = sites_of(frame, contract.site, site)
    for name, rule in contract.columns.items():
        if not rule.is_feature:
            continue
        todo = Cells(contract, name, rule, sites, rows_outside)
        if rule.kind == "number":
            values = {name: todo.numbers(frame[name])}
        else:
            values = todo.levels(frame[name])
        if not new:
            require_agreement(contract, todo)
        yield values, todo.broken


class Cells:
    """The cells of one column on their way; keeps count."""

    def __init__(
        self,
        contract: Contract,
        name: str,
        rule: Column,
        sites: Sites,
        rows_outside: NDArray[np.bool_] | None,
    ) -> None:
        self.contract = contract
        self.name = name
        self.rule = rule
        self.sites = sites
        self.rows_outside = rows_outside
        self.broken: list[Broken] = []
        self.filled: dict[str, int] = {}  # site -> cells that are neither blank nor coded
        self.median: dict[str, float] = {}  # site -> of the cells as written

    def numbers(self, column: pd.Series) -> NDArray[np.float64]:
        """Repair a column of numbers: ``(N,)`` in the contract's unit."""
        values, text = parse(column)
        values, text = values.copy(), text.copy()  # parse may return the frame's own
        words = plain(column) if text.any() else column
        for site, rows in self.sites:
            here, strange = values[rows], text[rows]
            self._codes(site, rows, here, strange, words)
            self._note(site, rows, strange, _not_a_number(words, rows, strange), "set missing")
            endless = np.isinf(here)
            self._note(site, rows, endless, "not finite", "set missing")
            here[endless] = np.nan
            there = ~np.isnan(here)
            self.filled[site] = int(there.sum() + endless.sum() + strange.sum())
            self.median[site] = float(np.median(here[there])) if there.any() else np.nan
            here = self._to_unit(site, rows, here, there)
            self._range(site, rows, here)
            values[rows] = here
        return values

    def _codes(self, site: str, rows: Any, here: Any, strange: Any, words: pd.Series) -> None:
        codes = self.rule.codes_at(site)
        coded = np.isin(here, numbers_of(codes))
        if strange.any():
            texts = [code.strip() for code in codes if isinstance(code, str)]
            coded |= strange & words.iloc[rows].isin(texts).to_numpy(np.bool_)
        said = ", ".join(str(code) for code in codes)
        self._note(site, rows, coded, f"coded as missing ({said})", "set missing", expected=True)
        here[coded] = np.nan
        strange &= ~coded

    def _to_unit(self, site: str, rows: Any, here: Any, there: Any) -> Any:
        unit = self.rule.units_at.get(site, self.rule.unit)
        if unit == self.rule.unit:
            return here
        way = f"converted to {self.rule.unit}"
        self._note(site, rows, there, f"in {unit}", way, expected=True)
        return units.convert(here, unit, self.rule.unit, self.contract.analyte(self.name))

    def _range(self, site: str, rows: Any, here: Any) -> None:
        clip = self.rule.outside == "clip"
        limits = (("below", self.rule.low, np.less), ("above", self.rule.high, np.greater))
        for word, limit, beyond in limits:
            if limit is None:
                continue
            outside = beyond(here, limit)  # NaN is neither below nor above
            what = f"{word} {limit:g} {self.rule.unit}".strip()
            action = f"set to {limit:g}" if clip else "set missing"
            self._note(site, rows, outside, what, action)
            here[outside] = limit if clip else np.nan

    def levels(self, column: pd.Series) -> dict[str, NDArray[np.float64]]:
        """Repair a binary column, or turn a category into a 0/1 column per level."""
        rule = self.rule
        known = [cell_key(level) for level in rule.levels or (0, 1)]
        number, cells = pd.factorize(plain(column))  # -1 where missing
        keys = [cell_key(cell) for cell in cells]
        # per different cell: the level's number, or none
        code = np.array([*(known.index(key) if key in known else -1 for key in keys), -1])
        level = code[number]
        for site, rows in self.sites:
            codes = {cell_key(c) for c in rule.codes_at(site)}
            meant = np.array([*(key in codes for key in keys), False])[number[rows]]
            said = ", ".join(map(str, rule.codes_at(site)))
            what = f"coded as missing ({said})"
            self._note(site, rows, meant, what, "set missing", expected=True)
            strange = (number[rows] >= 0) & (level[rows] < 0) & ~meant
            what = f"none of the levels {', '.join(known)}"
            self._note(site, rows, strange, what, "set missing")
            self.filled[site] = int(((number[rows] >= 0) & ~meant).sum())
        gone = level < 0
        if rule.kind == "binary":
            return {self.name: np.where(gone, np.nan, level)}
        return {
            f"{self.name}={key}": np.where(gone, np.nan, level == place)
            for place, key in enumerate(known)
        }

    def _note(
        self, site: str, rows: Any, mask: Any, what: str, action: str, *, expected: bool = False
    ) -> None:
        if not mask.any():
            return
        if self.rows_outside is not None and not expected:
            self.rows_outside[rows] |= mask
        at = np.flatnonzero(mask)
        first = at[:FIRST_ROWS] if isinstance(rows, slice) else rows[at[:FIRST_ROWS]]
        self.broken.append(
            Broken(self.name, site, what, len(at), tuple(first.tolist()), action, expected)
        )


def _not_a_number(words: pd.Series, rows: Any, strange: Any) -> str:
    return f"not a number: {quoted(words.iloc[rows][strange])}" if strange.any() else ""
