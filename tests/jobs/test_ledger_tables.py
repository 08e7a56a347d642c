from __future__ import annotations

from medkit.jobs.ledger_tables import breaches


def test_a_column_as_a_whole_is_no_number_of_cells() -> None:
    def line(column: str, what: str, cells: int) -> dict[str, object]:
        found = [{"what": what, "cells": cells, "done": "gone", "agreed": False}]
        return {"facts": {"column": column, "site": "", "found": found}}

    found = breaches([line("sex", "not in the contract", 0), line("age", "high", 7)], agreed=False)
    assert found is not None
    assert found.cells == 7
    assert [row[3] for row in found.rows] == ["7", "all"]
