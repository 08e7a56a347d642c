"""A sweep in one table: each grid point's numbers with their interval over seeds."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medkit.jobs.grid import SweepRun
from medkit.jobs.notebook import UsageError
from medkit.jobs.tables import as_text, interval, number
from medkit.record.files import write_text
from medkit.record.folder import RunFolder
from medkit.record.results import METRICS_NAME, Metric, read_metrics

_LOWER_IS_BETTER = re.compile(r"loss|error|brier|ece|nll|mae|mse|hd95|perplexity|deviance")
MAX_COLUMNS = 4


def check_best_by(best_by: str) -> None:
    """Refuse to choose on the test set.

    Raises:
        UsageError: For a metric that is not a validation metric.
    """
    name = best_by.removeprefix("min:").removeprefix("max:")
    if name and not name.startswith("val/"):
        raise UsageError(
            f"--best-by must be a validation metric such as val/auroc, got {best_by!r}. A choice "
            "made on the test set has used it up: its number is then no estimate any more."
        )


def summarise(runs: list[SweepRun], best_by: str) -> dict[str, Any]:
    """Return the table, the best point, and how it was chosen, as ``sweep.json`` holds them.

    Only a point all of whose seeds are done can be the best: a seed that died may have been the
    one that diverged, and leaving it out would flatter the point.
    """
    values = {run.path: _metrics(run) for run in runs}
    name, sign = _criterion(best_by, [m for m in values.values() if m])
    points: dict[str, list[SweepRun]] = {}
    for run in runs:
        points.setdefault(run.name, []).append(run)
    table, best = [], None
    for point, members in points.items():
        done = [values[run.path] for run in members if values[run.path]]
        names = sorted(set().union(*done)) if done else []
        row = {
            "point": members[0].point,
            "name": point,
            "seeds": len(members),
            "done": len(done),
            "quick": any(m.get("run/quick", Metric(0)).value == 1 for m in done),
            "metrics": {
                key: _over_seeds([m[key].value for m in done if key in m])
                for key in names
                if key != "run/quick"
            },
        }
        table.append(row)
        if row["done"] == row["seeds"] and _of(row, name) is not None:
            better = best is None or sign * (_of(row, name) or 0.0) > sign * (
                _of(best, name) or 0.0
            )
            best = row if better else best
    return {
        "best_by": name,
        "best_is": "lowest" if sign < 0 else "highest",
        "best": best["name"] if best else None,
        "table": table,
    }


def table_text(summary: dict[str, Any]) -> str:
    """Return the table as a terminal shows it."""
    rows, by = summary["table"], summary["best_by"]
    every = sorted({name for row in rows for name in row["metrics"]})
    columns = [by] if by in every else []
    columns += [n for n in every if n.startswith("test/")][: MAX_COLUMNS - len(columns)]
    header = ["point", "seeds", *columns]
    lines = []
    for row in rows:
        mark = " *" if row["name"] == summary["best"] else ""
        seeds = f"{row['done']}/{row['seeds']}" if row["done"] < row["seeds"] else str(row["seeds"])
        cells = [_cell(row["metrics"].get(name)) for name in columns]
        lines.append([row["name"] + mark, seeds, *cells])
    text = as_text(header, lines)
    text += "mean over seeds [95 % Student's t interval]; it says nothing of other patients\n"
    if any(row["quick"] for row in rows):
        text += "quick runs: a shortened path, not a result\n"
    if len(rows) > 1:
        text += _choice(summary)
    missing = [row["name"] for row in rows if row["done"] < row["seeds"]]
    if missing:
        text += f"not all seeds are done: {', '.join(missing)}\n"
    return text


def write_csv(path: Path, runs: list[SweepRun]) -> None:
    """Write one line a run: grid values, seed, status and every metric."""
    values = {run.path: _metrics(run) for run in runs}
    names = sorted(set().union(*values.values())) if values else []
    axes = list(runs[0].point) if runs else []
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*axes, "seed", "status", "path", *names])
    for run in runs:
        folder = RunFolder(run.path)
        found = values[run.path]
        writer.writerow(
            [
                *run.point.values(),
                run.seed,
                folder.status if folder.exists() else "",
                run.path.relative_to(path.parent),
                *(repr(found[name].value) if name in found else "" for name in names),
            ]
        )
    write_text(path, buffer.getvalue())


def _metrics(run: SweepRun) -> dict[str, Metric]:
    """Return a done run's metrics; those of an unfinished one are not its result yet."""
    folder, path = RunFolder(run.path), run.path / METRICS_NAME
    done = folder.exists() and folder.status == "done" and path.is_file()
    return read_metrics(path) if done else {}


def _criterion(best_by: str, found: list[dict[str, Metric]]) -> tuple[str, int]:
    """Return the metric to choose by, and 1 where high is good, -1 where low is."""
    kind, _, name = best_by.rpartition(":")
    validation = sorted({n for metrics in found for n in metrics if n.startswith("val/")})
    if not name:
        # the first one that a clinician would ask for: a loss only where there is nothing else
        good = [n for n in validation if not _LOWER_IS_BETTER.search(n)]
        name = next(iter([*good, *validation]), "")
    low = kind == "min" or (kind != "max" and bool(_LOWER_IS_BETTER.search(name)))
    return name, -1 if low else 1


def _over_seeds(values: list[float]) -> dict[str, Any]:
    from medkit.metrics.spread import mean_over_seeds

    bad = sum(not math.isfinite(value) for value in values)
    if bad:  # named, not left out; JSON has no NaN
        method = f"{bad} of {len(values)} not finite"
        return asdict(Metric(math.nan, n=len(values), method=method)) | {"value": None}
    return asdict(mean_over_seeds(values))


def _of(row: dict[str, Any], name: str) -> float | None:
    value: float | None = row["metrics"].get(name, {}).get("value")
    return value


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return ""
    if metric["value"] is None:
        return str(metric["method"])
    found = Metric(**metric)
    return f"{number(found.value)} {interval(found, level=False)}".strip()


def _choice(summary: dict[str, Any]) -> str:
    by, how = summary["best_by"], summary["best_is"]
    if summary["best"] is None:
        return "no best point: none has all its seeds done and a finite validation metric\n"
    rows = {row["name"]: row["metrics"].get(by) for row in summary["table"]}
    best = rows.pop(summary["best"])
    text = f"* best by {by} ({how} mean): {summary['best']}\n"
    near = [
        name
        for name, other in rows.items()
        if other and best["low"] is not None and other["low"] is not None
        if other["low"] <= best["high"] and best["low"] <= other["high"]
    ]
    if near:
        text += (
            f"  its interval overlaps that of {', '.join(near)}: not told apart by these seeds\n"
        )
    if best["low"] is None:
        text += "  one seed each: say --seeds 5 to see whether the difference is more than luck\n"
    return text
