"""One run of a chaos suite: what it is, and what it came to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.record.folder import RunFolder
from medkit.record.results import METRICS_NAME, read_metrics
from medkit.study.faults import FAULTS, RESUMED

CLEAN, NAME, RUN = "clean", "ended.json", "run"
ASKED = (130, 143)  # exit codes of runs that were asked to end, and have saved


@dataclass(frozen=True)
class Trial:
    """One run of a suite.

    Attributes:
        fault: Name of its fault, or "clean".
        seed: Its seed.
        folder: Its own.
        again: How often it was started again by hand, or by a scheduler.
    """

    fault: str
    seed: int
    folder: Path
    again: int = 0

    @property
    def run_dir(self) -> Path:
        """Its run folder."""
        return self.folder / RUN

    def next_start(self, code: int) -> bool:
        """Whether what has just ended is to be started once more, and the cause is gone by then."""
        known = FAULTS.get(self.fault)
        if self.again or known is None:
            return False
        return code in ASKED or (known.must == RESUMED and code == 1)


@dataclass(frozen=True)
class Ended:
    """What a run came to.

    Attributes:
        fault: Name of its fault, or "clean".
        seed: Its seed.
        code: Exit code of its last process; 0: done.
        again: Starts by hand or by a scheduler, after a clean stop.
        happened: How often the fault has struck.
        batches: Training batches of the last process.
        no_step: How many of them no step came of.
        weights: SHA-256 of the final weights; "" where there are none.
        metrics: Its metrics.
        ledger: "event: action" of each line.
        restarts: Attempts after the first.
        seconds: Wall time.
    """

    fault: str
    seed: int
    code: int
    again: int
    happened: int
    batches: int
    no_step: int
    weights: str
    metrics: dict[str, float]
    ledger: list[str]
    restarts: int
    seconds: float = 0.0

    @property
    def struck(self) -> bool:
        """Whether the fault took place at all."""
        return self.fault == CLEAN or self.happened > 0


def read_ended(trial: Trial, code: int, *, seconds: float = 0.0) -> Ended:
    """Read what a run of the kit has left."""
    folder = RunFolder(trial.run_dir)
    facts: Mapping[str, Any] = folder.read() if folder.exists() else {}
    metrics = trial.run_dir / METRICS_NAME
    lines = folder.ledger.read() if folder.exists() else []
    return Ended(
        **witnessed(trial),
        code=code,
        weights=str(facts.get("weights_sha256", "")),
        metrics={n: m.value for n, m in read_metrics(metrics).items()} if metrics.exists() else {},
        ledger=[f"{line['event']}: {line['action']}" for line in lines],
        restarts=max(0, len(facts.get("attempts", [])) - 1),
        seconds=seconds,
    )


def witnessed(trial: Trial) -> dict[str, Any]:
    """Return what the injector has written down of a run."""
    path = trial.folder / "witness.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    last: dict[str, Any] = next(
        (line for line in reversed(lines) if line["event"] == "batches"), {}
    )
    return {
        "fault": trial.fault,
        "seed": trial.seed,
        "again": trial.again,
        "happened": sum(line["event"] == "happened" for line in lines),
        "batches": int(last.get("batches", 0)),
        "no_step": int(last.get("no_step", 0)),
    }
