"""What broke a data contract: entries, their table, their lines in the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medkit.record.ledger import Ledger

FIRST_ROWS = 5
BROKEN, APPLIED = "contract broken", "contract applied"  # events in the ledger


@dataclass(frozen=True)
class Broken:
    """What was done to the cells of one column at one site.

    Attributes:
        column: Name in the table.
        site: Site; empty where the table has none.
        what: What was found, such as "above 45 degC".
        count: How many cells.
        rows: Positions of the first few rows, from 0.
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
            "detail": f"{name}: " + "; ".join(f"{b.count} {b.what}" for b in here),
        }
        if _key(line) in there:
            continue
        found = [
            {"what": b.what, "cells": b.count, "done": b.action, "agreed": b.expected} for b in here
        ]
        ledger.append(
            line.pop("event"), facts={"column": column, "site": site, "found": found}, **line
        )


def _key(line: dict[str, Any]) -> tuple[str, ...]:
    return (line["stage"], line["event"], str(line["rows"]), line["action"], line["detail"])
