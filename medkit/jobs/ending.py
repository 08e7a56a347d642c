"""How an attempt ended: from what the engine saw to a status, an exit code and a likely cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medkit.jobs import causes
from medkit.jobs.control import JobControl
from medkit.record.folder import RunFolder

if TYPE_CHECKING:
    from medkit.jobs.execution import Result

EXIT_CODES = {"done": 0, "failed": 1, "killed": 1, "timeout": 124, "interrupted": 143}
_ASKED_TO_END = {"KeyboardInterrupt", "TrainingInterrupted", "SystemExit"}


@dataclass
class Ending:
    """How one attempt ended.

    Attributes:
        status: As ``run.json`` writes it.
        error: Type and message of what ended it; empty for a good end.
        cause: The likely cause, in words.
        cell: The code cell it ended in, counted from 1.
        retry: Whether to go on by itself: the kernel or a loader worker died.
    """

    status: str
    error: str = ""
    cause: str = ""
    cell: int = 0
    retry: bool = False


def judge(result: Result, folder: RunFolder, control: JobControl, oom_kills: int) -> Ending:
    """Turn what the engine saw into a status."""
    stopped = "timeout" if control.timed_out else "interrupted"
    if result.kind == "done":
        for name, stage in folder.read().get("stages", {}).items():
            if "not_finite" in stage:  # an error the notebook has caught may have been expected
                text = f"stage {name!r} ended in weights that are not finite: {stage['not_finite']}"
                return Ending("failed", text, causes.hint(text))
        return Ending("done")
    if result.kind == "stopped":
        return Ending(stopped, _why_stopped(control), cell=result.cell)
    if result.kind == "dead":
        cause = causes.death(result.exit_status, oom_kills)
        if control.stopping:
            return Ending(stopped, _why_stopped(control), "", result.cell)
        return Ending("killed", "the kernel died", cause, result.cell, retry=True)
    if result.kind == "timeout":
        return Ending("timeout", result.message, "", result.cell)
    error = f"{result.name}: {result.message}"
    asked = control.stopping or bool(folder.read().get("interrupted_by"))
    by_signal = result.name in _ASKED_TO_END and (asked or result.name != "SystemExit")
    if by_signal or (control.stopping and causes.worker_died(error)):
        return Ending(stopped, _why_stopped(control) or error, "", result.cell)
    retry = causes.worker_died(error)
    return Ending("failed", error, causes.hint(error), result.cell, retry=retry)


def _why_stopped(control: JobControl) -> str:
    if control.timed_out:
        return "the time limit was reached"
    return f"{control.received.name} was received" if control.received else ""


def exit_code(ending: Ending, folder: RunFolder) -> int:
    """Return the launcher's exit code."""
    if ending.status == "interrupted" and folder.read().get("interrupted_by") == "SIGINT":
        return 130
    return EXIT_CODES[ending.status]


def last_words(folder: RunFolder) -> list[str]:
    """Return the last lines that a run has printed, as a person wants to see them."""
    lines = causes.tail(folder.path / "logs" / "output.log")
    kernel = [
        line
        for line in causes.tail(folder.path / "logs" / "kernel.log", 10)
        if line.strip() and "ipykernel" not in line
    ]
    return lines + kernel
