"""The rounds of a check, in the order in which one promise stands on another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medkit import keyed as keys
from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.check.courses import Courses
from medkit.check.data import DATA_PROMISES, DataProbe
from medkit.check.findings import PROMISES, Finding, failed, guarded, skipped
from medkit.check.fits import make_trainer
from medkit.check.history import Twice
from medkit.check.module import STEP_PROMISES, ProbedEnoughError, StepProbe, initial_weights
from medkit.check.subject import SEED, SpecError, Subject

_FIRST = "mend what is broken above first"


class Rounds:
    """Looks at one promise after another.

    Args:
        subject: What is checked.
        folder: A folder for the fits.
        progress: Called with promise, number and their number.
    """

    def __init__(
        self,
        subject: Subject,
        folder: Path,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.subject = subject
        self.folder = folder
        self.progress = progress or (lambda promise, number, total: None)
        text = subject.sources()
        unshiftable = "datetime" in text or "from time import" in text
        self.twice = Twice(roots=subject.roots, pause_s=1.1 if unshiftable else 0.0)
        self.findings: list[Finding] = []

    def run(self) -> list[Finding]:
        """Return a finding for each promise."""
        self._data()
        self._look("initial weights", lambda: initial_weights(self.subject, self.twice))
        self._steps()
        self._fits()
        order = list(PROMISES)
        return sorted(self.findings, key=lambda finding: order.index(finding.promise))

    def _look(self, promise: str, call: Callable[[], Finding]) -> bool:
        self.progress(promise, len(self.findings) + 1, len(PROMISES))
        finding = guarded(promise, self.subject.roots, call)
        self.findings.append(finding)
        return bool(finding.holds)

    def _skip(self, *promises: str) -> None:
        self.findings += [skipped(promise, _FIRST) for promise in promises]

    def _holds(self, *promises: str) -> bool:
        verdicts = {finding.promise: finding.holds for finding in self.findings}
        return all(verdicts.get(promise) is not False for promise in promises)

    def _data(self) -> None:
        trainer = make_trainer(self.folder, [])
        try:
            probe = DataProbe(self.subject, self.twice, trainer)
        except SpecError:
            raise
        except Exception as error:
            self.findings.append(failed("positions", error, self.subject.roots))
            self._skip(*DATA_PROMISES[1:])
            return
        if not self._look("positions", probe.positions):
            self._skip(*DATA_PROMISES[1:])
            return
        self._look("order", probe.order)
        if not self._look("augmentation", probe.augmentation):
            self._skip("collate", "data set-up", "workers")
            return
        self._look("data set-up", probe.set_up)
        if not self._look("collate", probe.collate):
            self._skip("workers")
            return
        self._look("workers", probe.workers)

    def _steps(self) -> None:
        if not self._holds("positions"):
            self._skip(*STEP_PROMISES)
            return
        self.progress("training step", len(self.findings) + 1, len(PROMISES))
        steps = KeyedSteps(seed=SEED)
        probe = StepProbe(self.twice, steps)
        try:
            with keys.globals_keyed(SEED, "init", "fit"):
                module = self.subject.make_module()
            make_trainer(self.folder, [steps, probe]).fit(module, self.subject.data())
        except ProbedEnoughError:
            self.findings += probe.findings
        except Exception as error:
            self.findings.append(failed("training step", error, self.subject.roots))
        done = {finding.promise for finding in self.findings}
        self._skip(*(promise for promise in STEP_PROMISES if promise not in done))

    def _fits(self) -> None:
        if any(finding.holds is False for finding in self.findings):
            self._skip("resume", "repeat")
            return
        courses: list[Courses] = []

        def here() -> Finding:
            courses.append(Courses(self.subject, self.folder))
            return courses[0].repeat_here()

        self.progress("repeat", len(self.findings) + 1, len(PROMISES))
        finding = guarded("repeat", self.subject.roots, here)
        if not finding.holds:
            self.findings.append(finding)
            self._skip("resume")
            return
        self._look("resume", courses[0].resume)
        self._look("repeat", courses[0].repeat_elsewhere)
