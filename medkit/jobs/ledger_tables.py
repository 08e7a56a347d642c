"""What the ledger says, for a reader: interventions, breaches of the contract, leaks."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_BREACHES = 40  # rows shown; the ledger has the rest
MAX_ROWS = 40  # rows set aside that are shown
MAX_EVIDENCE = 300  # characters of one finding's numbers
_SET_ASIDE = re.compile(r"rows? set aside")
_SEVERITIES = ("leak", "suspicious", "note")


@dataclass(frozen=True)
class Interventions:
    """How often the kit stepped in, and whom it left out.

    Attributes:
        totals: ``(event, action, times, rows, epochs)``, in the order of their first time; rows are
            different ones, empty where none is named, and epochs from the first to the last.
        times: All of them.
        aside: ``(row, why, where)`` of the rows that were set aside, by their pseudonyms.
        more: Rows set aside that are not shown.
    """

    totals: tuple[tuple[str, str, str, str, str], ...]
    times: int
    aside: tuple[tuple[str, str, str], ...]
    more: int


def interventions(lines: Iterable[Mapping[str, Any]]) -> Interventions:
    """Count what was done by event and action, and list the rows that were set aside."""
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    aside: dict[str, tuple[str, str, str]] = {}
    for line in lines:
        grouped.setdefault((str(line.get("event", "")), str(line.get("action", ""))), []).append(
            line
        )
        if _SET_ASIDE.match(str(line.get("action", ""))):
            for row in map(str, line.get("rows", ())):
                why = f"{line.get('event', '')}: {line.get('detail', '')}"
                aside.setdefault(row, (row, why, _place(line)))
    totals = []
    for (event, action), those in grouped.items():
        # a contract's lines name the first few rows of a table by their number
        rows = {str(row) for line in those if "facts" not in line for row in line.get("rows", ())}
        epochs = [int(line["epoch"]) for line in those if line.get("epoch") is not None]
        span = "" if not epochs else f"{min(epochs)}"
        span += f" to {max(epochs)}" if epochs and max(epochs) > min(epochs) else ""
        totals.append((event, action, f"{len(those):,}", f"{len(rows):,}" if rows else "", span))
    shown = tuple(aside.values())
    times = sum(map(len, grouped.values()))
    return Interventions(tuple(totals), times, shown[:MAX_ROWS], len(shown[MAX_ROWS:]))


def _place(line: Mapping[str, Any]) -> str:
    if line.get("epoch") is None:
        return "before the first step"
    return f"epoch {line['epoch']}, batch {line.get('batch')}"


@dataclass(frozen=True)
class Breaches:
    """Cells that a data contract has changed.

    Attributes:
        rows: ``(column, site, what, cells, done)``: the columns with most cells first, and within
            one its sites and breaches with most.
        cells: In all rows, those not shown included.
        columns: How many columns are concerned.
        sites: How many sites; 0 where the table has none.
        more: Rows not shown.
        more_cells: Cells in those.
    """

    rows: tuple[tuple[str, str, str, str, str], ...]
    cells: int
    columns: int
    sites: int
    more: int
    more_cells: int


def breaches(lines: Iterable[Mapping[str, Any]], *, agreed: bool) -> Breaches | None:
    """Group what was done to cells: against the contract, or (``agreed``) as it says itself.

    Args:
        lines: Of the ledger; those without such facts are passed over.
        agreed: Codes that mean missing, units to convert: no breach.

    Returns:
        None where nothing was done.
    """
    cells: dict[tuple[str, str, str, str], int] = {}
    for line in lines:
        facts = line.get("facts") or {}
        for one in facts.get("found", ()):
            if one["agreed"] == agreed:
                key = (facts["column"], facts["site"], one["what"], one["done"])
                # two reads of one table (a fold's, a second look) are not twice as many cells
                cells[key] = max(cells.get(key, 0), int(one["cells"]))
    if not cells:
        return None
    of_column: Counter[str] = Counter()
    for (column, _, _, _), count in cells.items():
        of_column[column] += count
    order = sorted(cells, key=lambda key: (-of_column[key[0]], key[0], -cells[key], key))
    shown = [
        (*key[:3], f"{cells[key]:,}" if cells[key] else "all", key[3])
        for key in order[:MAX_BREACHES]
    ]
    rest = order[MAX_BREACHES:]
    return Breaches(
        rows=tuple(shown),
        cells=sum(cells.values()),
        columns=len(of_column),
        sites=len({site for _, site, _, _ in cells if site}),
        more=len(rest),
        more_cells=sum(cells[key] for key in rest),
    )


def findings(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return what an audit for leaks has written, worst first: severity, check, sentence, ..."""
    found = []
    for line in lines:
        facts = line.get("facts") or {}
        if "severity" in facts:
            evidence = json.dumps(facts["evidence"], ensure_ascii=False)
            if len(evidence) > MAX_EVIDENCE:
                evidence = evidence[:MAX_EVIDENCE] + " ... (whole in ledger.jsonl)"
            row = {key: str(facts[key]) for key in ("severity", "check", "remedy")}
            found.append(row | {"sentence": str(line["detail"]), "evidence": evidence})
    return sorted(found, key=lambda row: _SEVERITIES.index(row["severity"]))
