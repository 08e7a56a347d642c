"""Long tables and settings that nothing sensible can be made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medkit.data.long.physionet2012 import read_records
from medkit.data.long.wide import wide_from_long

EVENTS = pd.DataFrame(
    {
        "subject_id": ["a", "a", "b", "b"],
        "time": [0.0, 1.0, 0.0, 2.0],
        "code": ["HR", "LAC", "HR", "LAC"],
        "numeric_value": [80.0, 2.0, 90.0, 3.0],
    }
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aggregates": []}, r"different ones of .* got \[\]"),
        ({"codes": []}, r"one code at least, or be None .* got none\. A column"),
        ({"time_limit": "48"}, r"hours after the start, or None for all events, got '48'\. 48 is"),
    ],
)
def test_settings_that_leave_nothing_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    EVENTS.to_parquet(tmp_path / "events.parquet")
    with pytest.raises(ValueError, match=message):
        wide_from_long(tmp_path / "events.parquet", **({"time_limit": None} | settings))


@pytest.mark.parametrize("column", ["subject_id", "code"])
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_spaces_are_no_patient_and_no_code(tmp_path: Path, column: str, ending: str) -> None:
    path = tmp_path / f"events.{ending}"
    spaced = EVENTS.assign(**{column: EVENTS[column].where(EVENTS.index != 2, "  ")})
    spaced.to_parquet(path) if ending == "parquet" else spaced.to_csv(path, index=False)
    with pytest.raises(ValueError, match=rf"{column} must be filled in each row, .* spaces alone"):
        wide_from_long(path, time_limit=None)


@pytest.mark.parametrize("wrong", ["-1:00", "soon", "10:99"])
def test_the_time_that_can_not_be_read_is_named(tmp_path: Path, wrong: str) -> None:
    lines = ["Time,Parameter,Value", "00:00,Age,54", "00:07,HR,80", "01:00,HR,90", f"{wrong},HR,5"]
    (tmp_path / "1.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"HH:MM since the start, or hours; found '{wrong}'"):
        read_records(tmp_path)


def test_the_one_text_among_dates_is_named(tmp_path: Path) -> None:
    dates = ["2026-01-01", "2026-01-02", "later", "2026-01-03"]
    EVENTS.assign(time=dates).to_csv(tmp_path / "events.csv", index=False)
    with pytest.raises(ValueError, match=r"found 'later'\. Write all"):
        wide_from_long(tmp_path / "events.csv", time_limit=None)
