"""One line that says where a job is, from a file that may be old or torn."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from medkit.jobs import progress
from medkit.jobs.progress import ProgressLine

STATE = {
    "stage": "fit",
    "epoch": 1,
    "max_epochs": 4,
    "batch": 3,
    "batches": 10,
    "message": "training",
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(path: Path, stream: io.StringIO, expected: str) -> str:
    """Show progress until ``expected`` is said."""
    with ProgressLine(path, cells=5, stream=stream) as line:
        line.at_cell(2)
        deadline = time.monotonic() + 20
        while expected not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_LOOK_EVERY_S", 0.02)


def write(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(STATE | {"time": time.time() + 5} | changes))


def test_without_a_terminal_there_are_plain_lines(tmp_path: Path) -> None:
    write(tmp_path / "p.json")
    text = said(tmp_path / "p.json", io.StringIO(), "epoch")
    assert "cell 2/5  fit  epoch 2/4  batch 3/10  training\n" in text
    assert "\r" not in text


def test_on_a_terminal_there_is_one_bar_over_all_epochs(tmp_path: Path) -> None:
    write(tmp_path / "p.json")
    assert "| 32% [" in said(tmp_path / "p.json", Terminal(), "32%").replace("  ", " ")


@pytest.mark.parametrize("content", ["", "{", json.dumps(STATE | {"time": 1.0})])
def test_a_torn_or_old_file_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.json").write_text(content)
    text = said(tmp_path / "p.json", io.StringIO(), "cell 2/5")
    assert "cell 2/5\n" in text
    assert "epoch" not in text


def test_no_epoch_is_counted_beyond_the_last(tmp_path: Path) -> None:
    write(tmp_path / "p.json", epoch=4, batch=10)
    assert "epoch 4/4  batch 10/10  training" in said(tmp_path / "p.json", io.StringIO(), "epoch")


def test_a_fit_without_an_end_is_shown_without_a_share(tmp_path: Path) -> None:
    write(tmp_path / "p.json", max_epochs=-1, batches=None)
    text = said(tmp_path / "p.json", Terminal(), "batch 3")
    assert "epoch 2  batch 3  training" in text
