"""Numbers for a reader: the same rows in the terminal and in the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medkit.record.results import Metric

_FIRST = ("test", "val", "train")


@dataclass(frozen=True)
class MetricRow:
    """One metric as text."""

    name: str
    value: str
    interval: str
    n: str
    method: str


def metric_rows(metrics: Mapping[str, Metric]) -> list[MetricRow]:
    """Return what a reader wants first first: test, then val, then train, then the rest."""

    def rank(name: str) -> tuple[int, str]:
        stage = name.split("/")[0]
        return (_FIRST.index(stage) if stage in _FIRST else len(_FIRST), name)

    return [_row(name, metrics[name]) for name in sorted(metrics, key=rank) if name != "run/quick"]


def _row(name: str, metric: Metric) -> MetricRow:
    unit = f" {metric.unit}" if metric.unit else ""
    return MetricRow(
        name,
        number(metric.value) + unit,
        interval(metric),
        "" if metric.n is None else f"{metric.n:,}",
        metric.method,
    )


def number(value: float) -> str:
    """Return four significant digits; a whole number below a million as it is."""
    if not math.isfinite(value):
        return "none"
    whole = float(value).is_integer() and abs(value) < 1e6
    return str(int(value)) if whole else f"{value:#.4g}"


def interval(metric: Metric, *, level: bool = True) -> str:
    """Return ``95 % [0.71, 0.84]``, or nothing where no interval is meant."""
    if metric.low is None or metric.high is None:
        return ""
    said = f"{metric.level * 100:g} % " if level and metric.level else ""
    return f"{said}[{number(metric.low)}, {number(metric.high)}]"


def as_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in plain text: words to the left, numbers to the right."""
    body = [list(row) for row in rows]
    table = [list(header), *body]
    columns = range(len(header))
    widths = [max(len(row[i]) for row in table) for i in columns]
    words = [any(row[i][:1].isalpha() for row in body) for i in columns]
    lines = []
    for row in table:
        cells = [
            row[i].ljust(widths[i]) if words[i] or i == 0 else row[i].rjust(widths[i])
            for i in columns
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"
