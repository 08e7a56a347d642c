"""Faults on purpose: which runs end by themselves, with which weights, and what was written down.

Each run has a folder of its own: ``<out>/<fault>/s<seed>`` with what was ordered, a witness of what
has happened, the run folder and, when it is over, ``ended.json``: a suite goes on where it stopped.
Undisturbed runs (``<out>/clean``) come first. A fault that is to be recovered from has the seed of
a clean run, to be compared with it bit for bit. The others have seeds of their own: their metric is
to lie where the next clean run's would, in the 99 % prediction interval of the clean ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from medkit.record.files import read_json, write_json
from medkit.study.chaos_trial import CLEAN, NAME, Ended, Trial
from medkit.study.faults import FAULTS, INSIDE, RECOVERED, RESUMED, Fault, batch_of
from medkit.study.faults_order import Order

LEVEL = 0.99


@dataclass(frozen=True)
class Verdict:
    """Whether a run made of its fault what it must.

    Attributes:
        unattended: Ended by itself, or (where the cause stays) stopped cleanly and was resumed.
        as_it_must: The bits of the clean run; the metric inside; the change flagged.
        written: What was done about it is in the ledger.
        why: What is wrong, in words.
    """

    unattended: bool
    as_it_must: bool
    written: bool
    why: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.unattended and self.as_it_must and self.written


@dataclass
class Suite:
    """Trials of faults x seeds, and what they are judged by.

    Attributes:
        out: Where its folders go.
        faults: Which faults.
        seeds: Runs of each.
        clean: Undisturbed runs, at least ``seeds``.
        protected: Whether only fits with the kit's resume points are disturbed.
        metric: What is compared; "" takes the first of the clean runs' metrics.
    """

    out: Path
    faults: Sequence[Fault]
    seeds: int
    clean: int
    protected: bool = True
    metric: str = ""
    first_seed: int = 0
    ended: dict[tuple[str, int], Ended] = field(default_factory=dict)

    def clean_trials(self) -> list[Trial]:
        """Return the undisturbed runs."""
        return [self._trial(CLEAN, self.first_seed + n) for n in range(self.clean)]

    def trials(self) -> list[Trial]:
        """Return the disturbed runs, fault by fault in turn, so that an early end shows all."""
        return [
            self._trial(fault.name, self.first_seed + n + (0 if _has_pair(fault) else self.clean))
            for n in range(self.seeds)
            for fault in self.faults
        ]

    def _trial(self, fault: str, seed: int) -> Trial:
        return Trial(fault, seed, self.out / fault / f"s{seed}")

    def is_over(self, trial: Trial) -> bool:
        """Whether this or an earlier process has seen a run end; it is read back."""
        key = (trial.fault, trial.seed)
        if key not in self.ended and (trial.folder / NAME).exists():
            self.ended[key] = Ended(**read_json(trial.folder / NAME))
        return key in self.ended

    def order(self, trial: Trial) -> Order:
        """Return what is to happen in a run; the clean runs are over.

        Raises:
            ValueError: Where clean runs counted no batch.
        """
        place = 0
        if trial.fault != CLEAN:
            counted = [e.batches for e in self.clean_runs() if e.batches]
            if not counted:
                raise ValueError(
                    "faults are placed by the training batches of the clean runs, and none was "
                    "counted. Train by stable_trainer(run, ...) in this notebook; its log is in "
                    f"{self.out / CLEAN}."
                )
            place = batch_of(FAULTS[trial.fault], trial.seed, min(counted))
        fault = "" if trial.fault == CLEAN else trial.fault
        folder, checkpoints = str(trial.folder), str(trial.run_dir)
        return Order(fault, trial.seed, place, folder, checkpoints, self.protected)

    def note(self, ended: Ended, folder: Path) -> None:
        """Keep what a run came to."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / NAME, asdict(ended))
        self.ended[ended.fault, ended.seed] = ended

    def clean_runs(self) -> list[Ended]:
        """Return the undisturbed runs that ended well."""
        return [e for e in self.ended.values() if e.fault == CLEAN and e.code == 0]

    def limits(self) -> tuple[str, float, float]:
        """Return the metric's name and the range of the next clean run."""
        runs = self.clean_runs()
        name = self.metric or first_metric(runs)
        values = [run.metrics.get(name, math.nan) for run in runs]
        return (name, *prediction_limits(values))

    def judge(self, ended: Ended) -> Verdict:
        """Judge one disturbed run."""
        fault = FAULTS[ended.fault]
        stops = fault.must == RESUMED or fault.name == "sigterm"
        unattended = ended.code == 0 and (ended.again == 0 or stops)
        if ended.code != 0:
            return Verdict(False, False, False, f"ended with code {ended.code}")
        why = []
        if fault.must in (RECOVERED, RESUMED):
            clean = self.ended.get((CLEAN, ended.seed))
            right = clean is not None and ended.weights == clean.weights != ""
            right = right and clean is not None and ended.metrics == clean.metrics
            why += [] if right else ["not the bits of the clean run"]
        elif fault.must == INSIDE:
            name, low, high = self.limits()
            value = ended.metrics.get(name, math.nan)
            right = low <= value <= high
            why += [] if right else [f"{name} {value:.4g}, clean {low:.4g} to {high:.4g}"]
        else:
            right = _says(ended, fault)
            why += [] if right else ["not flagged"]
        written = _is_written(ended, fault)
        why += [] if written else ["not in the ledger"]
        return Verdict(unattended, right, written, "; ".join(why))


def _has_pair(fault: Fault) -> bool:
    return fault.must in (RECOVERED, RESUMED)


def _says(ended: Ended, fault: Fault) -> bool:
    return any(word in line for line in ended.ledger for word in fault.ledger)


def _is_written(ended: Ended, fault: Fault) -> bool:
    """Whether each step left out has its line, and the fault one where something was done."""
    skipped = sum("step skipped" in line for line in ended.ledger)
    if not ended.restarts and ended.no_step > skipped:
        return False
    if fault.ledger:
        return _says(ended, fault)
    return not _has_pair(fault) or ended.restarts > 0


def prediction_limits(values: Iterable[float], *, level: float = LEVEL) -> tuple[float, float]:
    """Return Student's prediction interval of one more value; NaN from fewer than three."""
    found = np.array([value for value in values if math.isfinite(value)])
    n = len(found)
    if n < 3:
        return math.nan, math.nan
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * float(found.std(ddof=1)) * math.sqrt(1 + 1 / n)
    return float(found.mean()) - half, float(found.mean()) + half


def first_metric(runs: Sequence[Ended]) -> str:
    """Return the metric that runs are compared by where nobody has said: AUROC, else the first."""
    names = [name for name in (runs[0].metrics if runs else {}) if not name.startswith("run/")]
    ranking = [name for name in names if name.endswith("/auroc")]
    preferred = [name for name in ("val/auroc", "test/auroc", "val/loss") if name in names]
    return [*preferred, *ranking, *names, ""][0]
