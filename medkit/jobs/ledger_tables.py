"""What the ledger says of the data: breaches of the contract and leaks, grouped for a reader."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_BREACHES = 40  # rows shown; the ledger has the rest
MAX_EVIDENCE = 300  # characters of one finding's numbers
_SEVERITIES = ("leak", "suspicious", "note")


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
