"""What a chaos suite came to, as a table and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medkit.jobs.tables import as_text
from medkit.metrics.intervals import wilson
from medkit.study.chaos import Suite, Verdict
from medkit.study.chaos_trial import Ended
from medkit.study.faults import FLAGGED, INSIDE, RECOVERED, RESUMED, Fault

_MUST = {
    RECOVERED: "same bits as undisturbed",
    RESUMED: "stopped, resumed: same bits",
    INSIDE: "inside the clean range",
    FLAGGED: "flagged",
}


@dataclass(frozen=True)
class Row:
    """One fault's runs.

    Attributes:
        fault: The fault.
        runs: Runs it struck.
        unattended: Of them, those that ended by themselves, or stopped cleanly and were resumed.
        as_they_must: Bitwise, inside or flagged.
        written: With all that was done in the ledger.
        missed: Runs it did not strike.
        why: What was wrong, seed by seed.
    """

    fault: Fault
    runs: int
    unattended: int
    as_they_must: int
    written: int
    missed: int
    why: list[str]


def rows(suite: Suite) -> list[Row]:
    """Return a row a fault."""
    found = []
    for fault in suite.faults:
        of = [ended for ended in suite.ended.values() if ended.fault == fault.name]
        judged = [(ended, suite.judge(ended)) for ended in of if ended.struck]
        found.append(_row(suite.out, fault, judged, len(of) - len(judged)))
    return found


def _row(out: Path, fault: Fault, judged: Sequence[tuple[Ended, Verdict]], missed: int) -> Row:
    return Row(
        fault,
        len(judged),
        sum(verdict.unattended for _, verdict in judged),
        sum(verdict.as_it_must for _, verdict in judged),
        sum(verdict.written for _, verdict in judged),
        missed,
        [
            f"seed {ended.seed}: {verdict.why}{_reason(out, ended)}"
            for ended, verdict in judged
            if verdict.why
        ],
    )


def _reason(out: Path, ended: Ended) -> str:
    """Return what `medkit run` said of a run that failed, from the trial's log; "" for others."""
    log = out / ended.fault / f"s{ended.seed}" / "log"
    if ended.code == 0 or not log.is_file():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    # further lines of the log, after medkit's own, advise how to go on
    said = [line for line in said if line.startswith("medkit: ")] or said
    return f": {said[-1].removeprefix('medkit: ')[:300]}" if said else ""


def lost(found: Sequence[Row]) -> int:
    """Return how many runs did not come out as they must."""
    return sum(row.runs - min(row.unattended, row.as_they_must, row.written) for row in found)


def in_words(suite: Suite) -> str:
    """Return the table, what it means, and what went wrong."""
    found = rows(suite)
    struck = [row for row in found if row.runs]
    cells = [
        (
            row.fault.name,
            f"{row.unattended}/{row.runs}",
            f"{row.as_they_must}/{row.runs} {_MUST[row.fault.must]}",
            f"{row.written}/{row.runs}",
        )
        for row in struck
    ]
    clean = suite.clean_runs()
    text = f"{len(clean)} undisturbed runs, {sum(row.runs for row in struck)} with a fault\n"
    header = ("fault", "ended by itself", "came out", "written down")
    text += as_text(header, cells) if cells else ""
    text += "".join(_sentence(struck, must) for must in _MUST)
    name, low, high = suite.limits()
    if name and low == low:  # not NaN
        text += (
            f"clean range of {name}: {low:.4g} to {high:.4g}, where 99 % of further clean runs are "
            f"expected, from {len(clean)}\n"
        )
        text += "Of so few runs that range is wide.\n" if len(clean) < 20 else ""
    for row in found:
        if row.missed or not row.runs:
            needs = f": it needs {row.fault.needs}" if row.fault.needs else ""
            text += f"{row.fault.name} has struck {row.runs} of {row.runs + row.missed}{needs}\n"
    alarms = sum(any("skipped" in line for line in run.ledger) for run in clean)
    text += f"undisturbed runs in which a step was left out: {alarms} of {len(clean)}\n"
    if any(row.fault.must == FLAGGED and row.as_they_must < row.runs for row in struck):
        text += (
            "changed data are flagged where the notebook compares its table with a trusted one: "
            "medkit.study.faults_reference.compare_with(dm, path)\n"
        )
    if any(row.fault.must == INSIDE and row.as_they_must < row.runs for row in struck):
        text += (
            "bad samples, exploding losses and too little memory are dealt with by guards that the "
            "notebook switches on: stable_trainer(..., spike_guard=True, quarantine=True, "
            "memory_guard=True)\n"
        )
    for row in struck:
        text += "".join(f"LOST  {row.fault.name}, {why}\n" for why in row.why)
    return text


def _sentence(found: Sequence[Row], must: str) -> str:
    of = [row for row in found if row.fault.must == must]
    runs, good = sum(row.runs for row in of), sum(row.as_they_must for row in of)
    if not runs:
        return ""
    low, high = wilson(good, runs)
    return f"{_MUST[must]}: {good} of {runs}, {good / runs:.1%} [{low:.1%}, {high:.1%}]\n"
