"""Bad rows that are known before anything is fetched: those of tables in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.data.fetching import PlaceBatch
from medkit.data.keyed_loader import KeyedLoader
from medkit.data.quarantine import Finding, Row
from medkit.data.screen import Screen
from medkit.data.table_rows import RowsDataModule
from medkit.data.tables import Table


def look_through(
    loader: KeyedLoader,
    data: Any,
    screen: Screen,
    *,
    receive: Callable[[PlaceBatch, Sequence[Finding], bool], None],
    out: Callable[[int], frozenset[Row]] | None = None,
) -> list[Finding]:
    """Have a loader look at its samples; return what is known at once.

    Ranges of columns are those of the table as it was read, in its units: what a net sees is
    scaled and cut, and a value far out no longer tells itself from one at the edge.

    Args:
        loader: Whose samples are looked at.
        data: The DataModule; only the kit's own of tables matter here.
        screen: Ranges in it may name columns of the table; where none does, the contract's count.
        receive: See :meth:`KeyedLoader.quarantine`.
        out: See there.
    """
    limits: dict[str, tuple[Any, Any]] = {}
    table = data.table if isinstance(data, RowsDataModule) else None
    if table is not None:
        screen, limits = _split_ranges(screen, table, getattr(data, "contract", None))
    found = list(loader.quarantine(screen, receive=receive, out=out))
    bad = _outside(table, limits) if table is not None else {}
    if bad:
        names = [loader.name_of(row) for row in range(len(loader.dataset))]  # type: ignore[arg-type]
        known = {one.row for one in found}
        found += [bad[name] for name in names if name in bad and name not in known]
    return found


def _split_ranges(
    screen: Screen, table: Table, contract: Any
) -> tuple[Screen, dict[str, tuple[Any, Any]]]:
    own = screen.ranges.items()
    limits = {str(name): pair for name, pair in own if name in table.features}
    others = {name: pair for name, pair in own if name not in table.features}
    if not limits and contract is not None:
        rules = contract.columns.items()
        limits = {name: (rule.low, rule.high) for name, rule in rules if name in table.features}
    return Screen(others, screen.checks, screen.fields), limits


def _outside(table: Table, limits: Mapping[str, tuple[Any, Any]]) -> dict[Row, Finding]:
    """Return the rows with values outside their limits; NaN is a missing value, and none."""
    found: dict[Row, Finding] = {}
    for name, (low, high) in limits.items():
        column: NDArray[Any] = table.values[:, table.features.index(name)]
        for limit, below in ((low, True), (high, False)):
            if limit is None:
                continue
            for row in np.flatnonzero(column < limit if below else column > limit).tolist():
                word = "below" if below else "above"
                detail = f"{name}: {column[row]:.4g} {word} {limit:g}"
                found.setdefault(row, Finding(row, "out of range", detail))
    return found
