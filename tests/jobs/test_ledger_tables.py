from __future__ import annotations

from typing import Any

from medkit.jobs.ledger_tables import MAX_ROWS, breaches, interventions


def test_a_column_as_a_whole_is_no_number_of_cells() -> None:
    def line(column: str, what: str, cells: int) -> dict[str, object]:
        found = [{"what": what, "cells": cells, "done": "gone", "agreed": False}]
        return {"facts": {"column": column, "site": "", "found": found}}

    found = breaches([line("sex", "not in the contract", 0), line("age", "high", 7)], agreed=False)
    assert found is not None
    assert found.cells == 7
    assert [row[3] for row in found.rows] == ["7", "all"]


def line(event: str, action: str, **more: Any) -> dict[str, Any]:
    return {"event": event, "action": action, "rows": [], "epoch": None, "detail": ""} | more


def test_interventions_are_counted_by_event_and_action_in_the_order_they_came() -> None:
    found = interventions(
        [
            line("non-finite loss", "step skipped", epoch=0, rows=["a", "b"]),
            line("resume point not written", "training went on without it", epoch=2, batch=4),
            line("non-finite loss", "step skipped", epoch=3, rows=["b"]),
        ]
    )
    assert found.totals == (
        ("non-finite loss", "step skipped", "2", "2", "0 to 3"),
        ("resume point not written", "training went on without it", "1", "", "2"),
    )
    assert found.times == 3
    assert found.aside == ()


def test_rows_set_aside_are_listed_once_with_their_first_reason() -> None:
    found = interventions(
        [
            line("unreadable sample", "row set aside, redrawn", rows=["r1"], detail="OSError"),
            line("loss spike", "rows set aside", rows=["r1", "r2"], epoch=1, batch=7),
        ]
    )
    assert found.aside == (
        ("r1", "unreadable sample: OSError", "before the first step"),
        ("r2", "loss spike: ", "epoch 1, batch 7"),
    )


def test_a_long_list_of_rows_is_cut_and_the_rest_counted() -> None:
    many = [f"r{number}" for number in range(MAX_ROWS + 5)]
    found = interventions([line("loss spike", "rows set aside", rows=many)])
    assert len(found.aside) == MAX_ROWS
    assert found.more == 5


def test_the_numbers_a_contract_names_are_no_rows_of_patients() -> None:
    found = interventions([line("contract broken", "set missing", rows=[0, 1], facts={"a": 1})])
    assert found.totals == (("contract broken", "set missing", "1", "", ""),)
