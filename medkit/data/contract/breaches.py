"""What broke a data contract: entries, their table, their lines in the log and the ledger."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd

from medkit.record.ledger import Ledger

log = logging.getLogger(__name__)

FIRST_ROWS = 5
BROKEN, APPLIED = "contract broken", "contract applied"  # events in the ledger
NO_COLUMN, NO_SITE = "column is not in the contract", "site is not in the contract"
NO_FEATURE = "not a feature"  # what is done to a column as a whole
_FEW = 8  # names in a line of the log


@dataclass(frozen=True)
class Broken:
    """What was done to the cells of one column at one site.

    Attributes:
        column: Name in the table.
        site: Site; empty where the table has none.
        what: What was found, such as "above 45 degC".
        count: How many cells; 0: the column as a whole.
        rows: Positions of the first few rows, from 0; none of a column as a whole.
        action: What was done, such as "set missing".
        expected: The contract says so itself (codes, units): no breach of it.
    """

    column: str
    site: str
    what: str
    count: int
    rows: tuple[int, ...]
    action: str
    expected: bool = False


def broken_table(broken: Sequence[Broken]) -> pd.DataFrame:
    """Return what was done as a table for a notebook or report: one row per entry."""
    return pd.DataFrame(
        {
            "column": [b.column for b in broken],
            "site": [b.site for b in broken],
            "found": [b.what for b in broken],
            "cells": [b.count for b in broken],
            "done": [b.action for b in broken],
            "as agreed": [b.expected for b in broken],
        }
    )


def to_ledger(broken: Sequence[Broken], ledger: Ledger, *, stage: str = "") -> None:
    """Write one line per column and site; lines that are there already are not written again.

    The event is "contract broken", or "contract applied" where everything was as agreed. A
    resumed notebook comes through here a second time, hence the check.
    """
    there = {_key(line) for line in ledger.read()}
    for column, site in dict.fromkeys((b.column, b.site) for b in broken):
        here = [b for b in broken if (b.column, b.site) == (column, site)]
        breaches = [b for b in here if not b.expected]
        name = f"{column} at {site}" if site else column
        line: dict[str, Any] = {
            "stage": stage,
            "event": BROKEN if breaches else APPLIED,
            "rows": [row for b in breaches for row in b.rows][:FIRST_ROWS],
            "action": "; ".join(dict.fromkeys(b.action for b in here)),
            "detail": f"{name}: " + "; ".join(f"{b.count or ''} {b.what}".strip() for b in here),
        }
        if _key(line) in there:
            continue
        found = [
            {"what": b.what, "cells": b.count, "done": b.action, "agreed": b.expected} for b in here
        ]
        ledger.append(
            line.pop("event"), facts={"column": column, "site": site, "found": found}, **line
        )


def summary(broken: Sequence[Broken], *, where: str, features: int) -> list[str]:
    """Return what broke the contract as a line each for columns, sites and cells.

    Args:
        broken: What was found in a table.
        where: Name of the table.
        features: How many of its columns the contract makes features of.
    """
    breaches = [b for b in broken if not b.expected]
    lines = []
    columns = [b.column for b in breaches if b.what == NO_COLUMN]
    if columns:
        total = features + sum(b.action == NO_FEATURE for b in broken)
        are, no = ("is", "a feature") if len(columns) == 1 else ("are", "features")
        lines.append(
            f"{len(columns)} of {total} columns of {where} {are} not in the contract and {are} no "
            f"{no}: {_few(columns)}. Add them to it; those of kind: text stay none."
        )
    sites = [f"{b.site} ({b.count} rows)" for b in breaches if b.what == NO_SITE]
    if sites:
        lines.append(
            f"{_number(len(sites), 'site')} of {where} that the contract does not name: "
            f"{_few(sites)}; codes and units of all sites taken. Add them to its sites, with codes "
            "and units of their own."
        )
    cells = [b for b in breaches if b.what not in (NO_COLUMN, NO_SITE)]
    if cells:
        worst = max(cells, key=lambda b: b.count)
        at = f" at {worst.site}" if worst.site else ""
        what = worst.what.partition(":")[0]  # texts of cells stay out of the log
        lines.append(
            f"{where} breaks the contract in {_number(sum(b.count for b in cells), 'cell')} of "
            f"{_number(len({b.column for b in cells}), 'column')}, most: {worst.column}{at}, "
            f"{_number(worst.count, 'cell')} {what}, {worst.action}. See dm.table.broken and the "
            "run's ledger."
        )
    return lines


@cache
def warn_once(text: str) -> None:
    """Log a warning, the same text once a process: each fold of a table says the same."""
    log.warning("%s", text)


def _number(count: int, of: str) -> str:
    return f"{count:,} {of}" if count == 1 else f"{count:,} {of}s"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def _key(line: dict[str, Any]) -> tuple[str, ...]:
    return (line["stage"], line["event"], str(line["rows"]), line["action"], line["detail"])
