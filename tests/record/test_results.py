from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from medkit.record.results import Metric, read_metrics, write_metrics

METRIC = Metric(0.1, 0.05, 0.2, 0.95, n=40, method="bootstrap over patients")


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_metrics(path, {"val/auroc": METRIC, "test/site_b/auroc": 0.75})
    assert read_metrics(path) == {"test/site_b/auroc": Metric(0.75), "val/auroc": METRIC}


def test_the_same_numbers_give_the_same_bytes_in_any_order_and_type(tmp_path: Path) -> None:
    one, other = tmp_path / "a.json", tmp_path / "b.json"
    write_metrics(one, {"val/auroc": METRIC, "val/loss": 0.1})
    write_metrics(other, {"val/loss": np.float64(0.1), "val/auroc": METRIC})
    assert one.read_bytes() == other.read_bytes()


def test_a_float_is_written_exactly(tmp_path: Path) -> None:
    value = 0.1 + 0.2  # 0.30000000000000004
    write_metrics(tmp_path / "m.json", {"val/loss": value})
    assert read_metrics(tmp_path / "m.json")["val/loss"].value == value


def test_every_field_is_there_even_where_nothing_is_meant(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m.json", {"val/loss": 1.5})
    assert json.loads((tmp_path / "m.json").read_text()) == {
        "val/loss": {
            "value": 1.5,
            "low": None,
            "high": None,
            "level": None,
            "n": None,
            "unit": "",
            "method": "",
        }
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_a_number_that_is_none_is_written_as_null_and_read_as_nan(
    tmp_path: Path, value: float
) -> None:
    write_metrics(tmp_path / "m.json", {"val/auroc": Metric(value, low=math.nan)})
    row = json.loads((tmp_path / "m.json").read_text())["val/auroc"]
    assert row["value"] is None
    assert row["low"] is None
    assert math.isnan(read_metrics(tmp_path / "m.json")["val/auroc"].value)


def test_numpy_numbers_in_a_metric_are_plain_in_the_file(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m.json", {"val/auroc": Metric(np.float32(0.5), n=np.int64(3))})
    assert read_metrics(tmp_path / "m.json")["val/auroc"] == Metric(0.5, n=3)


def test_a_float32_that_is_not_finite_is_null_as_well(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m.json", {"val/auroc": Metric(np.float32("nan"))})
    assert math.isnan(read_metrics(tmp_path / "m.json")["val/auroc"].value)


@pytest.mark.parametrize(
    "name",
    [
        "auroc",
        "",
        "/auroc",
        "val/",
        "val//auroc",
        "val/ auroc",
        "val/../x\n",
        "val/auroc\n",
        "a\0/b",
    ],
)
def test_a_name_that_is_not_stage_and_name_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValueError, match="must be named stage/name"):
        write_metrics(tmp_path / "m.json", {name: 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_metric_reads_as_value_with_interval_and_unit() -> None:
    assert str(Metric(0.81234, 0.75, 0.86)) == "0.8123 [0.75, 0.86]"
    assert str(Metric(12.0, unit="ms")) == "12 ms"
