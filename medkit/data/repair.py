"""A table repaired by its contract, and the count of what was done to how many cells.

Columns are repaired one at a time, so that a table of 10 million rows needs room for itself and
one column more.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.data import units
from medkit.data.breaches import FIRST_ROWS, Broken
from medkit.data.cells import cell_key, numbers_of, parse, plain, quoted, rows_of

if TYPE_CHECKING:
    from medkit.data.contract import Column, Contract

_ENOUGH = 10  # cells; fewer say nothing about a whole site


@dataclass(frozen=True)
class Sites:
    """The rows of each site; one unnamed site where nobody said."""

    names: tuple[str, ...]
    rows: tuple[NDArray[np.int64] | slice, ...]

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.int64] | slice]]:
        return iter(zip(self.names, self.rows, strict=True))


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
    _require_columns(contract, frame, new=new)
    _require_site(contract, frame, site)
    everything = tuple(range(min(FIRST_ROWS, len(frame))))
    for name in map(str, frame.columns):
        rule = contract.columns.get(name)
        if rule is None and name not in contract.roles.values():
            what, expected = "column is not in the contract", False
        elif rule is not None and rule.recorded == "after":
            what, expected = "recorded after the outcome", True
        elif rule is not None and rule.kind == "text":
            what, expected = "text", True
        else:
            continue
        yield Broken(name, "", what, len(frame), everything, "not a feature", expected)
    for name, rows in sites_of(frame, contract.site, site):
        if contract.sites and name and name not in contract.sites:
            at = np.arange(len(frame))[rows]
            yield Broken(
                contract.site or "site",
                name,
                "site is not in the contract",
                len(at),
                tuple(at[:FIRST_ROWS].tolist()),
                "codes and units of all sites taken",
            )


def repaired(
    contract: Contract, frame: pd.DataFrame, site: str | None = None, *, new: bool = False
) -> Iterator[tuple[dict[str, NDArray[np.float64]], list[Broken]]]:
    """Yield column by column its features, name -> ``(N,)`` float64, and what was done.

    Raises:
        ValueError: Where most cells of a column at a site break the contract.
    """
    sites = sites_of(frame, contract.site, site)
    for name, rule in contract.columns.items():
        if not rule.is_feature:
            continue
        todo = _Cells(contract, name, rule, sites)
        if rule.kind == "number":
            values = {name: todo.numbers(frame[name])}
        else:
            values = todo.levels(frame[name])
        if not new:
            _require_agreement(contract, todo)
        yield values, todo.broken


class _Cells:
    """The cells of one column on their way; keeps count."""

    def __init__(self, contract: Contract, name: str, rule: Column, sites: Sites) -> None:
        self.contract = contract
        self.name = name
        self.rule = rule
        self.sites = sites
        self.broken: list[Broken] = []
        self.filled: dict[str, int] = {}  # site -> cells that are neither blank nor coded
        self.median: dict[str, float] = {}  # site -> of the cells as written

    def numbers(self, column: pd.Series) -> NDArray[np.float64]:
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
        at = np.flatnonzero(mask)
        first = at[:FIRST_ROWS] if isinstance(rows, slice) else rows[at[:FIRST_ROWS]]
        self.broken.append(
            Broken(self.name, site, what, len(at), tuple(first.tolist()), action, expected)
        )


def _not_a_number(words: pd.Series, rows: Any, strange: Any) -> str:
    return f"not a number: {quoted(words.iloc[rows][strange])}" if strange.any() else ""


def sites_of(frame: pd.DataFrame, column: str | None, site: str | None = None) -> Sites:
    """Return the rows of each site of a table; ``site``: all rows are of that one."""
    if site is not None:
        return Sites((site,), (slice(None),))
    if column is None or column not in frame:
        return Sites(("",), (slice(None),))
    number, cells = pd.factorize(frame[column])  # few different ones: no text per row
    names = [str(cell).strip() for cell in cells]
    different = sorted({name for name in names if name})
    at = np.array([*(different.index(n) if n else -1 for n in names), -1])
    number = at[number]
    if (number < 0).any():
        raise ValueError(
            f"the site column {column!r} must be filled in each row; it is empty in "
            f"{rows_of(number < 0)}. Codes and units are the site's: fill it in, or leave those "
            "rows out."
        )
    order = np.argsort(number, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(number, minlength=len(different)))[:-1])
    return Sites(tuple(different), tuple(rows))


def _require_columns(contract: Contract, frame: pd.DataFrame, *, new: bool) -> None:
    found = [str(name) for name in frame.columns]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ValueError(
            f"a table must name each column once, and {twice} stand there more than once. "
            "Rename or remove one of each: which of them the contract means can't be guessed."
        )
    if len(frame) == 0:
        raise ValueError(
            "a table must have at least one row below its column names, and it has none. "
            "Was the export cut off, or its filter too narrow?"
        )
    needed = [name for name, rule in contract.columns.items() if rule.is_feature]
    roles = contract.roles
    needed += [] if new else list(roles.values())
    missing = [name for name in needed if name not in found]
    if missing:
        close = difflib.get_close_matches(missing[0], found, n=1)
        raise ValueError(
            f"the table must have the contract's columns, and {missing} are not among {found}. "
            + (f"Did you mean {close[0]!r}? " if close else "")
            + "Rename them, or take them out of the contract."
        )


def _require_site(contract: Contract, frame: pd.DataFrame, site: str | None) -> None:
    there = site is not None or (contract.site is not None and contract.site in frame)
    own = [n for n, rule in contract.columns.items() if rule.units_at or rule.missing_at]
    if own and not there:
        raise ValueError(
            f"units and codes of {own} differ between sites, so each row must say whose it is; "
            f"the site column is {contract.site!r} and the table has none. Add the column, or pass "
            "site= where all rows are of one."
        )


def _require_agreement(contract: Contract, cells: _Cells) -> None:
    for site, filled in cells.filled.items():
        found = [b for b in cells.broken if b.site == site and not b.expected]
        count = sum(b.count for b in found)
        if filled < _ENOUGH or count <= contract.tolerance * filled:
            continue
        worst = max(found, key=lambda b: b.count)
        median = cells.median.get(site, np.nan)
        at = f" at site {site!r}" if site else ""
        raise ValueError(
            f"the contract and the data contradict each other: {cells.name!r}{at} breaks it in "
            f"{count} of {filled} cells ({worst.what}: {worst.count}, first in row "
            f"{worst.rows[0] + 1} below the header"
            + (f"; their median as written is {median:.4g}" if np.isfinite(median) else "")
            + "). "
            + _advice(cells.rule, worst, site)
        )


def _advice(rule: Column, worst: Broken, site: str) -> str:
    if rule.kind != "number" or worst.what.startswith("not a number"):
        return "Correct its kind, its levels or its codes for missing in the contract."
    where = f"units_at: {{{site}: ...}}" if site else "unit"
    return (
        f"Is that in another unit ({where})? Else widen low and high; tolerance: 1 would let it "
        "pass."
    )
