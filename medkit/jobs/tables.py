"""Numbers for a reader: the same rows in the terminal and in the report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medkit.record.results import Metric

_FIRST = ("test", "val", "train")
_RANKING = ("auroc", "c_index", "harrell_c", "uno_c")
_MAIN = (*_RANKING, "auprc", "brier", "calibration_slope")
_DIFFERENCE = re.compile(r"(?P<stage>.+)/(?P<metric>[^/]+?)_minus_(?P<rival>[^/]+)")
_RIVALS = {
    "logistic": "logistic regression",
    "cox": "penalised Cox regression",
    "boosting": "gradient boosting",
    "best": "the best possible rule",
}
_SIMPLE = ("logistic", "cox")  # to be used unless the net is shown to be better
_LESS_IS_BETTER = {"brier", "integrated_brier", "ece", "loss", "log_loss", "nll", "mae", "rmse"}
_AT_BEST = {
    "calibration_slope",
    "calibration_intercept",
}  # 1 and 0: a difference has no better side


@dataclass(frozen=True)
class MetricRow:
    """One metric as text."""

    name: str
    value: str
    interval: str
    n: str
    method: str


def metric_rows(metrics: Mapping[str, Metric]) -> list[MetricRow]:
    """Return what a reader wants first first.

    That is test, then val, then train, then the rest; in each the model before its rivals (those
    it is compared with), and before all else how it ranks and whether its probabilities hold.
    """
    rank = _rank(metrics)
    return [_row(name, metrics[name]) for name in sorted(metrics, key=rank) if name != "run/quick"]


def headline(metrics: Mapping[str, Metric]) -> MetricRow | None:
    """Return the number that says most of a run: how its model ranks, in test before val.

    No threshold, for none is better than another; None where there is nothing else.
    """
    rank = _rank(metrics)

    def worth(name: str) -> tuple[Any, ...]:
        stage, of_rival, *rest = rank(name)
        return (of_rival, stage >= _FIRST.index("train"), not _ranks(name), stage, *rest)

    names = [n for n in metrics if n != "run/quick" and n.rpartition("/")[2] != "threshold"]
    best = min(names, key=worth, default=None)
    return None if best is None else _row(best, metrics[best])


def _rank(metrics: Mapping[str, Metric]) -> Callable[[str], tuple[Any, ...]]:
    """Return what names are sorted by: stage, whether a rival's, place, and what they measure."""
    found = (_DIFFERENCE.fullmatch(name) for name in metrics)
    rivals = {match["rival"] for match in found if match}

    def rank(name: str) -> tuple[Any, ...]:
        *place, metric = name.split("/")
        stage = _FIRST.index(place[0]) if place and place[0] in _FIRST else len(_FIRST)
        among = _MAIN.index(metric) if metric in _MAIN else len(_MAIN)
        return (stage, not rivals.isdisjoint(place), among == len(_MAIN), place, among, metric)

    return rank


def _ranks(name: str) -> bool:
    """Whether a metric says how well its model ranks."""
    return name.rpartition("/")[2] in _RANKING


@dataclass(frozen=True)
class Comparison:
    """A paired difference to a rival, in words.

    Attributes:
        name: Of the metric, such as "test/auroc_minus_logistic".
        what: What is compared, such as "test: auroc minus that of logistic regression".
        value: The difference, with its sign.
        interval: Its interval; empty where none was given.
        verdict: Which of the two to use, as far as the interval shows it.
        shown: Whether the net is shown to be better.
    """

    name: str
    what: str
    value: str
    interval: str
    verdict: str
    shown: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.value} {self.interval or '(no interval)'}: {self.verdict}"


def comparisons(metrics: Mapping[str, Metric]) -> list[Comparison]:
    """Return what the metrics named ``<stage>/<metric>_minus_<rival>`` say, as a reader wants it.

    A net that is not shown to be better than a linear model is not to be used: what it costs in
    upkeep, spread over seeds and opacity has bought nothing.
    """
    found = []
    for row in metric_rows(metrics):
        match = _DIFFERENCE.fullmatch(row.name)
        if match is None:
            continue
        stage, of, rival = match.groups()
        whose = _RIVALS.get(rival, rival.replace("_", " "))
        metric = metrics[row.name]
        verdict, shown = _verdict(metric, of, rival, whose)
        sign = "+" if metric.value > 0 else ""
        what = f"{stage}: {of} minus that of {whose}"
        value = sign + row.value
        found.append(Comparison(row.name, what, value, row.interval, verdict, shown))
    return found


def _verdict(metric: Metric, of: str, rival: str, whose: str) -> tuple[str, bool]:
    use = f"use {whose}"
    if metric.low is None or metric.high is None:
        return (
            f"without an interval nothing is shown{f': {use}' if rival in _SIMPLE else ''}",
            False,
        )
    if metric.low <= 0 <= metric.high:
        return use if rival in _SIMPLE else f"not shown to differ from {whose}", False
    if of in _AT_BEST:
        return f"differs from {whose}; which is better the difference does not say", False
    better = metric.high < 0 if of in _LESS_IS_BETTER else metric.low > 0
    if better and rival == "best":  # by chance once in forty samples
        return f"better than {whose}, which cannot be: is this the truth of these rows?", False
    if better:
        return f"better than {whose}", True
    # nobody has the best possible rule: it is known where the data are made up
    return f"worse than {whose}" if rival == "best" else f"worse: {use}", False


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
