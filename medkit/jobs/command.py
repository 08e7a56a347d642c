"""What ``medkit run`` and ``medkit params`` say."""

from __future__ import annotations

import os
import shlex
import sys

from medkit.jobs import causes
from medkit.jobs.ending import Ending, exit_code, last_words
from medkit.jobs.notebook import read_notebook
from medkit.jobs.parameters import read_parameters
from medkit.jobs.plan import Plan, Request, make_plan
from medkit.jobs.redact import Redactor
from medkit.jobs.tables import as_text, comparisons, metric_rows
from medkit.record.files import is_full_disk
from medkit.record.folder import RunFolder
from medkit.record.results import METRICS_NAME, read_metrics

MAX_ROWS = 20


def run_command(request: Request, *, dry_run: bool = False) -> int:
    """Plan a job, carry it out, say how it went; return the exit code."""
    plan = make_plan(request)
    if dry_run:
        sys.stdout.write(describe(plan))
        return 0
    if plan.finished:
        sys.stdout.write(f"{plan.run_dir} is done already; nothing to resume.\n")
        return 0
    from medkit.jobs.launcher import launch

    sys.stderr.write(f"run folder: {plan.run_dir}\n")
    try:
        ending, folder = launch(plan, request)
    except OSError as error:
        if not is_full_disk(error):
            raise
        sys.stderr.write(
            f"medkit: {plan.run_dir} could not be written: {error.strerror}. "
            f"Likely cause: {causes.hint(str(error))}\n"
        )
        return 1
    code = exit_code(ending, folder)
    if code == 0:
        sys.stdout.write(good_end(folder))
    else:
        sys.stderr.write(bad_end(plan, folder, ending))
    return code


def params_command(path: str) -> int:
    """List a notebook's parameters."""
    known = read_parameters(read_notebook(path))
    rows = [(p.name, p.annotation or "any", p.source, p.help) for p in known.values()]
    widths = [max(len(row[i]) for row in [*rows, ("", "", "", "")]) for i in range(3)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        sys.stdout.write("  ".join([*cells, row[3]]).rstrip() + "\n")
    return 0


def describe(plan: Plan) -> str:
    """Say what would be run."""
    lines = [
        f"notebook    {plan.notebook.path}",
        f"run folder  {plan.run_dir}" + ("  (resumed)" if plan.resuming else ""),
    ]
    lines += [f"{name}  {value!r}" for name, value in plan.environment.items()]
    lines += [f"not exact   {line}" for line in plan.differences]
    lines += [
        f"  {name} = {value!r}" + ("" if name in plan.injected else "  (default)")
        for name, value in plan.parameters.items()
    ]
    return "\n".join([*lines, "dry run: nothing was written or started", ""])


def good_end(folder: RunFolder) -> str:
    """Return the headline table and where the report is."""
    facts = folder.read()
    cost = facts.get("cost") or {}
    parts = [f"done  {os.path.basename(str(facts.get('notebook')))}  seed {facts.get('seed')}"]
    parts += ["quick run"] if facts.get("quick") else []
    least = "at least " if cost.get("at_least") else ""
    parts += [f"{least}{cost.get('wall_s', 0):.0f} s", f"{least}{cost.get('cpu_s', 0):.0f} CPU s"]
    if facts.get("exact") is not None:
        parts.append("exact" if facts["exact"] else "not exact")
    text = "  ".join(parts) + "\n"
    text += "".join(f"  not exact: {reason}\n" for reason in facts.get("inexact_reasons") or [])
    return text + metrics_table(folder) + f"report  {folder.path / 'report.html'}\n"


def metrics_table(folder: RunFolder) -> str:
    """Return a run's metrics as a table of text."""
    path = folder.path / METRICS_NAME
    if not path.is_file():
        return "this run has written no metrics.json\n"
    metrics = read_metrics(path)
    rows = metric_rows(metrics)
    shown = [(row.name, row.value, row.interval, row.n) for row in rows[:MAX_ROWS]]
    more = f"... and {len(rows) - MAX_ROWS} more in {path}\n" if len(rows) > MAX_ROWS else ""
    against = [str(found) for found in comparisons(metrics)]
    if len(against) > MAX_ROWS:
        against[MAX_ROWS:] = [f"and {len(against) - MAX_ROWS} more comparisons in the report"]
    said = "".join(f"{line}\n" for line in against)
    return as_text(("metric", "value", "interval", "n"), shown) + more + said


def bad_end(plan: Plan, folder: RunFolder, ending: Ending) -> str:
    """Return the last lines of the log, the likely cause, and how to go on."""
    where = f" in code cell {ending.cell}" if ending.cell else ""
    words = last_words(folder)
    clean = Redactor(os.environ).clean
    lines = [*(f"  | {line}" for line in words)] if words and ending.status != "interrupted" else []
    if lines:
        lines.insert(0, f"last lines of {folder.path / 'logs' / 'output.log'}:")
    lines.append(f"medkit: {ending.status}{where}: {clean(ending.error)}".rstrip(": "))
    if ending.cause:
        lines.append(f"likely cause: {ending.cause}")
    lines.append(f"report: {folder.path / 'report.html'}")
    again = ["medkit", "run", str(plan.notebook.path), "--out", str(folder.path), "--resume"]
    if ending.status == "failed":  # the same again would end the same
        anew = shlex.join(["medkit", "run", str(plan.notebook.path), "-p"])
        lines.append(
            "if code outside the notebook, data or the environment was the cause, mend it, then: "
            + shlex.join(again)
        )
        lines.append(f"to change a parameter or a cell, start a new run: {anew} NAME VALUE")
    else:
        lines.append(f"go on with: {shlex.join(again)}")
    return "\n".join([*lines, ""])
