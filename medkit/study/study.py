"""Recipes x seeds x (splits, sites), member by member: what is stored is not trained again."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from medkit import keyed
from medkit.jobs.processes import Slot, share_out
from medkit.record.files import read_json
from medkit.record.lock import RunLock
from medkit.study.outcomes import OUTCOME_NAME, Outcome
from medkit.study.study_job import STUDY_NAME, Job, Train, TrainError, train_job
from medkit.study.study_plan import SPREAD_SEEDS, Plan, as_json, no_texts
from medkit.study.study_processes import run_apart, spec_of
from medkit.study.study_raised import raised_alike

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from medkit.study.study_report import ReportSettings, StudyReport


class Study:
    """Trainings of several recipes that differ in their seed alone, and what they say.

    ::

        def train(recipe, seeds, split_seed, site):  # in a module
            for seed in seeds:
                ...
                yield Outcome(seed=seed, steps=steps, curves={"val/loss": losses}, ...)

        study = Study("studies/warm", {"warm": {"lr": 2e-3}, "logistic": {}}, fixed=["logistic"])
        study.run(train, jobs=2, seeds_per_job=1)
        study.report()

    ``seed`` decides init, order and dropout; ``split_seed`` who is in which part. Trainings of one
    recipe, split and site differ by the first alone and are scored on the same rows.

    Nothing is written before :meth:`run`. Seeds, splits, sites and recipes may be added to a folder
    that has some; what is there may not change.

    Args:
        path: The study's folder.
        recipes: Name -> anything that JSON can hold, handed to ``train``.
        seeds: 20 for a statement about spread, 5 for a comparison of two recipes, 3 to see whether
            it runs (then no interval is printed).
        split_seeds: Each is trained with all seeds.
        sites: Hospitals to be held out, one at a time; "" holds none out.
        fixed: Recipes that draw nothing, such as logistic regression: trained by the first seed.
        free_splits: So many further trainings of each recipe, the i-th with the i-th seed and a
            split of its own: what is seen where nobody fixes the split.
        repeats: So many members of the first split are trained a second time, in a fresh process,
            to see whether the same seed gives the same bits.

    Raises:
        ValueError: For names that can't be folders, one thing where a list must be, or a folder
            that holds something else.
    """

    def __init__(
        self,
        path: Path | str,
        recipes: Mapping[str, Any],
        *,
        seeds: Sequence[int] = range(SPREAD_SEEDS),
        split_seeds: Sequence[int] = (0,),
        sites: Sequence[str] = ("",),
        fixed: Collection[str] = (),
        free_splits: int = 0,
        repeats: int = 0,
    ) -> None:
        no_texts(sites=sites, fixed=fixed)
        self.path = Path(path).absolute()
        self.plan = Plan(
            as_json(recipes),
            keyed.seeds_of(seeds),
            keyed.seeds_of(split_seeds, "split_seeds"),
            tuple(sites),
            tuple(fixed),
            free_splits,
            repeats,
        )
        self.plan.check_folder(self.path)
        self._swept: list[Outcome] | None = None  # of a sweep's folder, with the runs not over
        self._running = 0

    @classmethod
    def open(cls, path: Path | str) -> Study:
        """Return the study that a folder holds, as it was planned, or that of a sweep's folder.

        Raises:
            ValueError: Where it holds neither.
        """
        path = Path(path).absolute()
        if (path / "sweep.json").is_file():
            return cls.of_sweep(path)
        plan = Plan.read(path)
        if plan is None:
            raise ValueError(
                f"{path} must be the folder of a study or of a sweep; it has neither {STUDY_NAME} "
                "nor sweep.json. Name the folder that Study(...) or medkit sweep --out was given."
            )
        return cls._of(path, plan)

    @classmethod
    def of_sweep(
        cls, folder: Path | str, *, split: str = "split_seed", site: str = "test_site"
    ) -> Study:
        """Return the runs of a ``medkit sweep`` as a study; it is read, and can't be run.

        Its grid points are the recipes, but for two parameters: ``split`` and ``site`` name what
        decides the split and which hospital is held out, where the sweep had ``-g`` for them.

        Raises:
            ValueError: Where the folder holds no sweep, or none of its runs is over.
        """
        from medkit.study.study_sweep import outcomes_of

        path = Path(folder).absolute()
        found, running = outcomes_of(path, split=split, site=site)
        plan = Plan(
            {outcome.recipe: None for outcome in found},
            tuple(sorted({outcome.seed for outcome in found})),
            tuple(sorted({outcome.split_seed for outcome in found})),
            tuple(sorted({outcome.site for outcome in found})),
        )
        return cls._of(path, plan, found, running)

    def run(
        self,
        train: Train,
        *,
        jobs: int = 1,
        seeds_per_job: int | None = None,
        devices: Sequence[int] = (),
        retry_failed: bool = False,
    ) -> None:
        """Train what is missing.

        Args:
            train: ``train(recipe, seeds, split_seed, site)`` yields an :class:`Outcome` for each
                of ``seeds``, each stored at once. It is called with one seed or with several.
                Where it raises, the members it owes are trained one by one, and those that raise
                alone are stored as failed. Where all of two or more raise the same and none was
                done before, none is stored: that is a bug of ``train``.
            jobs: Processes at a time, each with its share of the cores; ``train`` is then imported
                by name. 1 trains in this process, but for ``repeats``.
            seeds_per_job: Seeds that one call is given; None: all that a cell lacks, as a
                ``SeedEnsemble`` wants them.
            devices: Numbers of accelerators to share out among the processes.
            retry_failed: Train failed members again. They no longer count then: say so.

        Raises:
            TrainError: Where ``train`` can't be imported, yields other than it must, or can't train
                at all.
            ValueError: For a sweep's folder.
        """
        if self._swept is not None:
            raise ValueError(
                "a study must be run by Study(...).run; "
                f"{self.path} holds a sweep, whose runs are only read here. Go on with it by "
                f"medkit sweep ... --out {self.path}."
            )
        if jobs < 1 or (seeds_per_job is not None and seeds_per_job < 1):
            raise ValueError(
                f"jobs and seeds_per_job must be at least 1, got {jobs} and {seeds_per_job}. "
                "seeds_per_job=None trains all seeds of a cell by one call."
            )
        spec = spec_of(train) if jobs > 1 or self.plan.repeats else ""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = RunLock(self.path)
        lock.acquire(wait_s=1.0)
        todo: list[Job] = []
        try:
            kept = read_json(self.path / STUDY_NAME) if Plan.read(self.path) else {}
            width = int(kept.get("cores_per_job", 0))
            self.plan.write(self.path, cores_per_job=width)
            if retry_failed:
                self._forget_failed()
            todo = list(self._missing(seeds_per_job))
            if jobs > 1 and todo:
                numbers = [str(device) for device in devices]
                slots: list[Slot[Job]] = share_out(
                    jobs, at_most=len(todo), devices=numbers, width=width
                )
                self.plan.write(self.path, cores_per_job=len(slots[0].cores))
                run_apart(self.path, todo, spec, slots)
            elif todo:
                self._run_here([job for job in todo if not job.again], train)
                # with the cores and threads of this process, which decide the bits
                run_apart(self.path, [job for job in todo if job.again], spec, [Slot()])
        except KeyboardInterrupt:
            _log.warning("stopped; run it again for the %d trainings that are left", self.missing)
            raise
        finally:  # after Ctrl-C too: nobody wants a bug among the results
            alike = raised_alike(self.path, todo)
            lock.release()
        if alike:
            raise TrainError(alike)
        if failed := [one.name for one in self.outcomes if one.status == "failed"]:
            _log.warning(
                "%d of %d trainings failed, and count as such (%s). Their reasons are in their "
                "outcomes; run(train, retry_failed=True) trains them again.",
                *(len(failed), len(self.outcomes), ", ".join(failed[:3])),
            )

    @property
    def outcomes(self) -> list[Outcome]:
        """What the members have left so far, failed ones too, in the order of the plan."""
        return self._read(again=False) if self._swept is None else self._swept

    @property
    def repeats(self) -> list[Outcome]:
        """What members that were trained a second time have left."""
        return self._read(again=True) if self._swept is None else []

    @property
    def missing(self) -> int:
        """How many trainings are not over yet."""
        if self._swept is not None:
            return self._running
        return sum(len(job.seeds) for job in self._missing(None))

    def report(self, settings: ReportSettings | None = None) -> StudyReport:
        """Return how much the results move when only the seed does, recipe by recipe.

        Raises:
            ValueError: Where nothing is trained yet.
        """
        from medkit.study.study_report import ReportSettings, StudyReport

        return StudyReport.of(self, settings or ReportSettings())

    @classmethod
    def _of(
        cls, path: Path, plan: Plan, swept: list[Outcome] | None = None, running: int = 0
    ) -> Study:
        study = cls.__new__(cls)
        study.path, study.plan, study._swept, study._running = path, plan, swept, running
        return study

    def _missing(self, seeds_per_job: int | None) -> Iterator[Job]:
        for job in self.plan.jobs():
            left = job.left(self.path)
            size = seeds_per_job or max(1, len(left))
            for start in range(0, len(left), size):
                yield job.of(left[start : start + size])

    def _read(self, *, again: bool) -> list[Outcome]:
        return [
            Outcome.load(job.folder(self.path, seed))
            for job in self.plan.jobs()
            for seed in job.seeds
            if job.again == again and job.stored(self.path, seed)
        ]

    def _forget_failed(self) -> None:
        for job in self.plan.jobs():
            for seed in job.seeds:
                file = job.folder(self.path, seed) / OUTCOME_NAME
                if file.is_file() and read_json(file)["status"] == "failed":
                    file.unlink()

    def _run_here(self, todo: Sequence[Job], train: Train) -> None:
        total = sum(len(job.seeds) for job in todo)
        with tqdm(total=total, disable=not sys.stderr.isatty(), leave=False, unit="run") as bar:
            for job in todo:
                bar.set_postfix_str(job.name)
                recipe = self.plan.recipes[job.recipe]
                train_job(self.path, job, recipe, train, told=bar.update)
