"""metrics.json: numbers with their intervals, the same bytes for the same numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from medkit.record.files import read_json, write_json

METRICS_NAME = "metrics.json"
_NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+")


@dataclass(frozen=True)
class Metric:
    """One number and how far it can be trusted.

    Attributes:
        value: The point value.
        low: Lower limit of the interval, or None where no interval is meant.
        high: Upper limit, or None.
        level: Nominal coverage of the interval in (0, 1), or None.
        n: What was counted: rows, patients or seeds.
        unit: Unit of ``value``; empty for a plain ratio.
        method: How value and interval were computed, in a few words.
    """

    value: float
    low: float | None = None
    high: float | None = None
    level: float | None = None
    n: int | None = None
    unit: str = ""
    method: str = ""

    def __str__(self) -> str:
        text = f"{self.value:.4g}"
        if self.low is not None and self.high is not None:
            text += f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{text} {self.unit}".strip()


def write_metrics(path: Path | str, metrics: Mapping[str, Metric | float]) -> None:
    """Write ``name -> {value, low, high, level, n, unit, method}``; no times, sorted names.

    A value that is not finite is written as null: JSON has no NaN.

    Raises:
        ValueError: For a name that is not ``stage/name``.
    """
    table = {}
    for name, metric in metrics.items():
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"a metric must be named stage/name, such as 'test/auroc', got {name!r}. "
                "Letters, digits, '_', '-' and '.' are allowed around the slashes."
            )
        row = asdict(metric if isinstance(metric, Metric) else Metric(float(metric)))
        table[name] = {
            key: None if isinstance(plain, float) and not math.isfinite(plain) else plain
            for key, plain in ((key, _plain(v)) for key, v in row.items())
        }
    write_json(path, table)


def read_metrics(path: Path | str) -> dict[str, Metric]:
    """Read a metrics.json back; a value written as null comes back as NaN."""
    return {
        name: Metric(**(row | {"value": math.nan if row["value"] is None else row["value"]}))
        for name, row in read_json(path).items()
    }


def _plain(value: object) -> object:
    """Turn NumPy scalars into Python's, which JSON writes by their shortest exact form."""
    item = getattr(value, "item", None)
    return item() if callable(item) else value
