"""Trainings of one cell of a study, here or in a process of their own.

``python -m medkit.study.study_job STUDY JOB`` is what a study starts; nobody else need.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medkit.jobs import watch
from medkit.record.attempts import used_cpu_s
from medkit.record.files import read_json, write_text
from medkit.study.outcomes import OUTCOME_NAME, Outcome, OutcomeError

_log = logging.getLogger(__name__)

STUDY_NAME = "study.json"
LOGS = "logs"
TRACEBACK_NAME = "traceback.txt"  # beside the outcome of a training that raised
PARENT = "MEDKIT_STUDY_PID"
NOT_AS_ASKED = 3  # exit code where train itself is not what a study can use

Train = Callable[[Any, Sequence[int], int, str], Iterable[Outcome]]
"""``train(recipe, seeds, split_seed, site)`` yields one Outcome per seed, in any order."""


class TrainError(OutcomeError):
    """The function that trains is not what a study can use."""


@dataclass(frozen=True)
class Job:
    """Members of one cell that are trained by one call.

    Attributes:
        recipe: Its name.
        seeds: Of the members.
        split_seed: Of the cell.
        site: Of the cell.
        again: Whether it repeats members that are stored, to see whether the bits are the same.
    """

    recipe: str
    seeds: tuple[int, ...]
    split_seed: int
    site: str
    again: bool = False

    @property
    def name(self) -> str:
        """The job in a few words that can name a file."""
        return "-".join([*self._cell(), *(f"s{seed}" for seed in self.seeds[:1]), *self._more()])

    def folder(self, study: Path, seed: int) -> Path:
        """Return the folder of a member."""
        return study.joinpath(*self._cell(), f"s{seed}{'-again' if self.again else ''}")

    def stored(self, study: Path, seed: int) -> bool:
        """Whether a member has left its outcome."""
        return (self.folder(study, seed) / OUTCOME_NAME).is_file()

    def left(self, study: Path) -> tuple[int, ...]:
        """Return the seeds of members that are still to be trained."""
        return tuple(seed for seed in self.seeds if not self.stored(study, seed))

    def of(self, seeds: tuple[int, ...]) -> Job:
        """Return the job of some of its seeds."""
        return replace(self, seeds=seeds)

    def failed(self, seed: int, reason: str, cpu_s: float = 0.0) -> Outcome:
        """Return what a training that died leaves."""
        outcome = Outcome(seed=seed, status="failed", reason=reason, cpu_s=cpu_s)
        return self.own(outcome)

    def own(self, outcome: Outcome) -> Outcome:
        """Return an outcome under this job's names; train need not know them."""
        mine = {"recipe": self.recipe, "split_seed": self.split_seed, "site": self.site}
        return replace(outcome, **mine)  # type: ignore[arg-type]

    def _cell(self) -> list[str]:
        return [self.recipe, f"split{self.split_seed}{f'-{self.site}' if self.site else ''}"]

    def _more(self) -> list[str]:
        further = [f"and-{len(self.seeds) - 1}"] if len(self.seeds) > 1 else []
        return [*further, *(["again"] if self.again else [])]


def train_job(
    study: Path,
    job: Job,
    recipe: Any,
    train: Train,
    told: Callable[[], object] = lambda: None,
) -> None:
    """Train a job's members, and store each as soon as it is yielded.

    Where the call raises, each member it has not yielded is trained alone: only those that raise
    alone have failed. They are stored too, with their traceback, and stay in the count.

    Raises:
        OutcomeError: Where ``train`` does not yield one Outcome for each of its seeds.
    """
    left = list(job.seeds)
    before = used_cpu_s()

    def store(outcome: Outcome, trace: str = "") -> None:
        nonlocal before
        outcome = job.own(outcome).checked()
        spent, before = used_cpu_s() - before, used_cpu_s()
        if outcome.cpu_s == 0:  # train has not measured it; a stack's first member has it all
            outcome = replace(outcome, cpu_s=spent)
        file = job.folder(study, outcome.seed) / TRACEBACK_NAME
        if trace:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, trace)
        else:
            file.unlink(missing_ok=True)  # of an earlier try
        outcome.save(file.parent)
        if outcome.status == "failed":
            _log.warning("%s failed: %s", outcome.name, outcome.reason)
        left.remove(outcome.seed)
        told()

    found, died, trace = _yielded(train, recipe, job), "", ""
    while not died:
        try:
            outcome = next(found, None)
        except OutcomeError:
            raise
        except Exception as error:  # any: a training that died is stored, named and counted
            died, trace = f"{type(error).__name__}: {error}"[:500], traceback.format_exc()
            continue
        if outcome is None:
            break
        if not isinstance(outcome, Outcome) or outcome.seed not in left:
            got = f"seed {outcome.seed}" if isinstance(outcome, Outcome) else repr(outcome)[:80]
            raise TrainError(
                f"train must yield one Outcome for each of its seeds, still {left}; it yielded "
                f"{got}. Yield Outcome(seed=seed, ...) once for each."
            )
        store(outcome)
    if died and len(job.seeds) == 1 and left:
        store(job.failed(left[0], died), trace)
    elif died:
        owed = [job.folder(study, seed) / OUTCOME_NAME for seed in left]
        for seed in left:
            train_job(study, job.of((seed,)), recipe, train, told)
        if all(read_json(file)["reason"] != died for file in owed):
            _log.warning("%s raised together, and none of its members alone:\n%s", job.name, trace)
    elif left:
        raise TrainError(
            f"train must yield one Outcome for each of its seeds, {list(job.seeds)}; it ended "
            f"without {left}. Yield a training that died as status='failed', or raise."
        )


def _yielded(train: Train, recipe: Any, job: Job) -> Iterator[Outcome]:
    found = train(recipe, list(job.seeds), job.split_seed, job.site)
    if not isinstance(found, Iterable):
        raise TrainError(
            f"train must return or yield Outcomes, got {type(found).__name__}. Write "
            "`yield Outcome(...)` for each seed, or return a list of them."
        )
    yield from found


def main(words: Sequence[str]) -> int:
    """Train one job in this process, which ends when its study is dead."""
    study, said = Path(words[0]), json.loads(words[1])
    watch.watch_launcher(int(os.environ.pop(PARENT, "0")) or None)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        module, _, name = said.pop("train").partition(":")
        train = getattr(importlib.import_module(module), name)
        job = Job(**said | {"seeds": tuple(said["seeds"])})
        train_job(study, job, read_json(study / STUDY_NAME)["recipes"][job.recipe], train)
    except (OutcomeError, ImportError, AttributeError) as error:
        _log.error("%s: %s", type(error).__name__, error)
        return NOT_AS_ASKED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
