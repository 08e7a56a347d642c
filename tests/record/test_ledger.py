from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from medkit.record.ledger import Ledger, rows_named
from medkit.record.pseudonym import pseudonym


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def test_there_is_nothing_in_a_ledger_that_was_never_written(ledger: Ledger) -> None:
    assert ledger.read() == []


def test_a_line_comes_back_with_the_keys_that_are_promised(ledger: Ledger) -> None:
    ledger.append("spike", action="skipped", stage="fit", epoch=1, batch=2, step=3, rows=[7, "a1"])
    [row] = ledger.read()
    assert row.pop("time").endswith("+00:00")
    assert row == {
        "stage": "fit",
        "epoch": 1,
        "batch": 2,
        "step": 3,
        "event": "spike",
        "rows": [7, "a1"],
        "action": "skipped",
        "detail": "",
    }


def steps(ledger: Ledger) -> list[tuple[str, int | None]]:
    return [(row["stage"], row["step"]) for row in ledger.read()]


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    for stage, step in [("pretrain", 9), ("fit", 3), ("fit", None), ("fit", 4), ("fit", 5)]:
        ledger.append("spike", action="skipped", stage=stage, step=step)
    return ledger


def test_what_a_stage_wrote_after_its_resume_point_is_cut(filled: Ledger) -> None:
    assert filled.cut_after("fit", 4) == 1
    assert steps(filled) == [("pretrain", 9), ("fit", 3), ("fit", None), ("fit", 4)]


def test_a_stage_that_starts_afresh_loses_all_its_steps_and_no_other_does(filled: Ledger) -> None:
    assert filled.cut_after("fit", -1) == 3
    assert steps(filled) == [("pretrain", 9), ("fit", None)]


def test_cutting_nothing_leaves_the_file_as_it_is(filled: Ledger) -> None:
    before = filled.path.read_bytes()
    assert filled.cut_after("fit", 5) == 0
    assert filled.path.read_bytes() == before


def test_a_last_line_torn_by_a_kill_is_left_out(filled: Ledger) -> None:
    whole = filled.path.read_bytes()
    filled.path.write_bytes(whole[:-20])
    assert steps(filled) == [("pretrain", 9), ("fit", 3), ("fit", None), ("fit", 4)]


def test_a_line_written_after_a_torn_one_is_not_lost(filled: Ledger) -> None:
    filled.path.write_bytes(filled.path.read_bytes()[:-20])
    filled.append("spike", action="skipped", stage="fit", step=6)
    assert steps(filled)[-1] == ("fit", 6)


def test_damage_inside_is_an_error_that_names_the_line(filled: Ledger) -> None:
    lines = filled.path.read_text().splitlines(keepends=True)
    filled.path.write_text("".join([lines[0], "{torn\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"ledger\.jsonl line 2 must be JSON.*restore it"):
        filled.read()


def test_facts_are_kept_as_they_are(ledger: Ledger) -> None:
    facts = {"column": "lactate", "found": [{"what": "above 30", "cells": 3}]}
    ledger.append("contract broken", action="set missing", facts=facts)
    assert ledger.read()[0]["facts"] == facts


def test_lines_that_a_full_disk_keeps_out_wait_and_come_in_order(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ledger.append("first", action="skipped")
    before = ledger.path.read_bytes()
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_room)
        ledger.append("second", action="skipped", stage="fit", step=5)
        ledger.append("third", action="skipped", stage="fit", step=9)
        assert ledger.path.read_bytes() == before
        assert [row["event"] for row in ledger.read()] == ["first", "second", "third"]
        with pytest.raises(OSError, match="No space"):
            Ledger(ledger.path).flush()
    ledger.append("fourth", action="skipped")
    events = [json.loads(line)["event"] for line in ledger.path.read_text().splitlines()]
    assert events == ["first", "second", "third", "fourth"]


def test_waiting_lines_are_cut_as_the_others_are(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_room)
        for step in (5, 9):
            ledger.append("spike", action="skipped", stage="fit", step=step)
    assert ledger.cut_after("fit", 5) == 1
    ledger.append("later", action="skipped")
    assert [row["event"] for row in ledger.read()] == ["spike", "later"]


def test_what_is_no_full_disk_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Ledger(tmp_path / "nowhere" / "ledger.jsonl").append("spike", action="skipped")


def test_rows_behind_the_names_are_found_by_who_has_them(ledger: Ledger) -> None:
    ledger.append("NaN", action="skipped", rows=[pseudonym(7), pseudonym("b")])
    found = rows_named(ledger.path.parent, [*range(20), "a", "b"])
    assert found == {pseudonym(7): 7, pseudonym("b"): "b"}


def test_rows_of_other_data_are_refused(ledger: Ledger) -> None:
    assert rows_named(ledger.path.parent, range(5)) == {}
    ledger.append("NaN", action="skipped", rows=[pseudonym(7)])
    with pytest.raises(ValueError, match=r"must be those of the run.*none is among the 1.*Pass"):
        rows_named(ledger.path.parent, range(5))
