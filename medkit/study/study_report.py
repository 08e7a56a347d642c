"""What a study says: how far results move when only the seed does, with what that rests on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from medkit.jobs.tables import as_text, headline, interval, number
from medkit.metrics.power import FEWEST_SEEDS
from medkit.record.results import Metric
from medkit.study.study_arm import Arm, Line, ReportSettings
from medkit.study.study_lines import lines_of
from medkit.study.study_plan import SPREAD_SEEDS

if TYPE_CHECKING:
    from medkit.study.study import Study

__all__ = ["ArmReport", "Line", "ReportSettings", "StudyReport"]

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ max-width: 75rem; margin: 1.5rem auto; padding: 0 1rem; color: #222; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }}
table {{ border-collapse: collapse; font-size: .92em; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .2rem .7rem; text-align: left;
  vertical-align: top; }}
</style>
</head>
<body>
<h1>{title}</h1>
{report}
</body>
</html>
"""
_HEADER = ("", "value", "95 % interval", "n", "varied", "how")


@dataclass(frozen=True)
class ArmReport:
    """The lines of one recipe.

    Attributes:
        name: Recipe, and the site held out.
        title: How many trainings there are, and how many of them failed.
        lines: In the order they are to be read.
        reasons: Why trainings failed.
    """

    name: str
    title: str
    lines: tuple[Line, ...]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyReport:
    """A study's numbers; as text by ``str()``, as HTML in a notebook.

    Attributes:
        metric: The result whose spread comes first.
        arms: Recipe by recipe.
        notes: What a reader has to know.
    """

    metric: str
    arms: tuple[ArmReport, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, study: Study, settings: ReportSettings) -> StudyReport:
        """Report on what a study has so far.

        Raises:
            ValueError: Where nothing is trained yet, or no training has the metric asked for.
        """
        outcomes, again = study.outcomes, study.repeats
        if not outcomes:
            raise ValueError(
                f"{study.path} must hold at least one training to report on, and has none. Call "
                "run(train) first."
            )
        metric = _metric(sorted({n for one in outcomes for n in one.metrics}), settings.metric)
        arms = {}
        for key in dict.fromkeys((one.recipe, one.site) for one in outcomes):
            mine = [
                tuple(one for one in some if (one.recipe, one.site) == key)
                for some in (outcomes, again)
            ]
            arms[key] = Arm(*key, key[0] in study.plan.fixed, *mine)
        found = []
        for arm in arms.values():
            beside = [a for a in arms.values() if a.site == arm.site and a.fixed]
            linear = next((a for a in beside if settings.linear in a.recipe), None)
            lines = tuple(lines_of(arm, linear, settings, metric))
            reasons = {one.reason: None for one in arm.runs if one.status == "failed"}
            found.append(ArmReport(arm.name, _title(arm, settings), lines, tuple(reasons)))
        return cls(metric, tuple(found), tuple(_notes(study, list(arms.values()), settings)))

    @property
    def metrics(self) -> dict[str, Metric]:
        """Each number by its name, such as "warm/result/sd", as ``run.metrics`` takes them."""
        return {
            "/".join(_slug(part) for part in (arm.name, line.group, line.what)): line.metric
            for arm in self.arms
            for line in arm.lines
        }

    def __str__(self) -> str:
        """Return the tables in plain text."""
        parts = [as_text(self._header(), self._summary())] if len(self.arms) > 1 else []
        for arm in self.arms:
            parts.append(f"{arm.title}\n{as_text(_HEADER, _rows(arm.lines))}")
            parts[-1] += "".join(f"failed: {reason}\n" for reason in arm.reasons[:5])
        return "\n".join([*parts, *(f"{note}\n" for note in self.notes)])

    def _repr_html_(self) -> str:
        """Return a fragment of HTML without style of its own, for a notebook and the report."""
        parts = [_table(self._header(), self._summary())] if len(self.arms) > 1 else []
        for arm in self.arms:
            parts.append(f"<h4>{escape(arm.title)}</h4>{_table(_HEADER, _rows(arm.lines))}")
            parts += [f"<p>failed: {escape(reason)}</p>" for reason in arm.reasons[:5]]
        parts += [f"<p>{escape(note)}</p>" for note in self.notes]
        return f'<div class="study">{"".join(parts)}</div>'

    def page(self, title: str) -> str:
        """Return a page of HTML that loads nothing from elsewhere."""
        return _PAGE.format(title=escape(title), report=self._repr_html_())

    def _header(self) -> list[str]:
        return ["recipe", "trainings", self.metric, "sd", "flipped", "loss band", "failed"]

    def _summary(self) -> list[list[str]]:
        """Return a row per recipe; a logistic regression is among them where it is a recipe."""
        rows = []
        for arm in self.arms:
            at = {(line.group, line.what): line.metric for line in arm.lines}
            crashes = at["crashes", "runs without usable weights"]
            n = crashes.n or 0
            flips = [
                m for (_, what), m in at.items() if what.startswith("decisions flipped, at fl")
            ]
            wanted = [
                at.get(("result", self.metric)),
                at.get(("result", "sd"), at.get(("result", "sd as run"))),
                flips[0] if flips else None,
                at.get(("convergence", "loss band, same rows")),
            ]
            cells = [arm.name, str(n), *(_value(m) if m else "" for m in wanted)]
            rows.append([*cells, f"{round(crashes.value * n)} of {n}"])
        return rows


def _metric(known: Sequence[str], asked: str) -> str:
    if asked and asked not in known:
        raise ValueError(
            f"the metric of a report must be one that trainings have left, {known[:8]}; got "
            f"{asked!r}. Name one of them, or put it into the outcomes' metrics."
        )
    first = headline({name: Metric(0.0) for name in known})
    return asked or (first.name if first else "")


def _title(arm: Arm, settings: ReportSettings) -> str:
    failed = sum(one.status == "failed" for one in arm.runs)
    splits = len({one.split_seed for one in arm.runs})
    count = f"{len(arm.runs)} training{'s' if len(arm.runs) > 1 else ''}"
    where = "one split" if splits == 1 else f"{splits} splits"
    drawn = "draws nothing" if arm.fixed else f"the seed decided {', '.join(settings.chance)}"
    return f"{arm.name}: {count} on {where}, {failed} failed; {drawn}"


def _notes(study: Study, arms: Sequence[Arm], settings: ReportSettings) -> list[str]:
    notes = []
    if study.missing:
        notes.append(f"{study.missing} trainings are not over: run the study again to go on.")
    fewest = min((len(arm.main) for arm in arms if not arm.fixed), default=SPREAD_SEEDS)
    if fewest < FEWEST_SEEDS:
        notes.append(
            f"A smoke test: {fewest} seeds say nothing about spread, so there is no interval. It "
            f"takes {FEWEST_SEEDS} seeds to compare two recipes and {SPREAD_SEEDS} to state a "
            "spread."
        )
    elif fewest < SPREAD_SEEDS:
        half = 100 * 1.96 / math.sqrt(2 * (fewest - 1))
        notes.append(
            f"From {fewest} seeds a spread is known to about ±{half:.0f} %: enough to compare "
            f"recipes; a statement about spread takes {SPREAD_SEEDS}."
        )
    if not any(arm.free for arm in arms):
        notes.append(
            "With the split left free, as run, nothing was measured (Study(free_splits=...)): "
            "most of the spread there is that of other validation rows."
        )
    named = {arm.recipe for arm in arms} | {name for arm in arms for name in arm.main[0].metrics}
    if not any(settings.linear in name for name in named):
        notes.append(
            "No logistic regression stands beside it: for tables add it as a recipe named "
            f"{settings.linear!r}, since no spread and nothing learned is not stability."
        )
    return notes


def _rows(lines: Iterable[Line]) -> list[list[str]]:
    rows = []
    for line in lines:
        metric, n = line.metric, line.metric.n
        cells = [_value(metric), interval(metric, level=False), "" if n is None else str(n)]
        rows.append([f"{line.group}: {line.what}", *cells, ", ".join(line.varied), metric.method])
    return rows


def _value(metric: Metric) -> str:
    value = "infinite" if math.isinf(metric.value) else number(metric.value)
    return f"{value} {metric.unit}".strip()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table><thead>{row(header, 'th')}</thead><tbody>{body}</tbody></table>"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")
