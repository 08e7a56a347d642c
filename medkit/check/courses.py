"""Do two fits take the same course: repeated, cut and resumed, in a fresh process?"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medkit.check.compare import Culprit, first_difference
from medkit.check.findings import Finding, broken, holds
from medkit.check.fits import Course, run_fit
from medkit.check.subject import Subject
from medkit.check.trace import START, Record
from medkit.record.files import read_json, write_json

_CUTS = (2, 6)  # in the middle of both epochs
_COMPONENTS = ("batch", "loss", "weights", "rate")
# a resume enters these elsewhere than a fit that runs through
_ENTERED = (START, "epoch ", "after ")
_NAMES = {"rate": "the learning rate", "metrics": "what callbacks see of the metrics"}


class Courses:
    """Compares fits of one subject.

    Args:
        subject: What is checked.
        folder: A folder for resume points and logs.
    """

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject = subject
        self.folder = folder
        self._count = 0
        self.whole = run_fit(subject, self._fresh(), number=0)

    def repeat_here(self) -> Finding:
        """Fit again in this process, under another history."""
        again = run_fit(self.subject, self._fresh(), number=1)
        found = _compare(self.whole, again)
        if not found:
            return holds("repeat")
        return self._name(
            "repeat",
            found,
            lambda clock: run_fit(self.subject, self._fresh(), number=1, traced=True, clock=clock),
        )

    def repeat_elsewhere(self) -> Finding:
        """Fit again in a fresh process, with another hash seed."""
        found = _compare(self.whole, self._in_fresh_process(traced=False))
        if not found:
            return holds("repeat")
        return self._name("repeat", found, lambda clock: self._in_fresh_process(traced=True))

    def resume(self) -> Finding:
        """Cut a fit in the middle of its epochs, resume it, and compare."""
        resumed = self._resumed("shifted", traced=False)
        reasons = self.whole.inexact + resumed.inexact
        if reasons:
            return Finding("resume", False, reasons[0], "that is what a resume would say")
        found = _compare(self.whole, resumed)
        if not found:
            return holds("resume")
        return self._name(
            "resume", found, lambda clock: self._resumed(clock, traced=True), _ENTERED
        )

    def _resumed(self, clock: str, *, traced: bool) -> Course:
        folder = self._fresh()
        for number, cut in enumerate(_CUTS, start=1):
            at = min(cut, len(self.whole.steps) - 1)
            run_fit(self.subject, folder, number=number, cut=at, clock=clock)
        return run_fit(self.subject, folder, number=3, traced=traced, clock=clock)

    def _name(
        self,
        promise: str,
        found: str,
        other: Callable[[str], Course],
        skip: tuple[str, ...] = (),
    ) -> Finding:
        """Do both again, line by line, and name the first line that differs."""
        culprit = Culprit()
        for clock in ("frozen", "shifted"):
            first = run_fit(self.subject, self._fresh(), number=0, traced=True, clock=clock)
            second = other(clock)
            if _compare(first, second):
                culprit = first_difference(first.records, second.records, skip)
                break
        return broken(promise, culprit, found)

    def _fresh(self) -> Path:
        self._count += 1
        return self.folder / f"fit-{self._count}"

    def _in_fresh_process(self, *, traced: bool) -> Course:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        paths = [str(Path(place or ".").absolute()) for place in sys.path]
        hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "medkit.check.fresh", self.subject.module_spec),
                *(self.subject.data_spec, str(folder), "traced" if traced else ""),
            ],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = " | ".join(done.stderr.splitlines()[-3:])
            raise RuntimeError(f"a fresh process could not do the fit that this one did: {last}")
        content = read_json(folder / "course.json")
        records = [Record(**record) for record in content.pop("records")]
        return Course(**content, records=records)


def write_course(course: Course, path: Path) -> None:
    """Write what a fit went through, for the process that compares."""
    content: dict[str, Any] = vars(course) | {
        "records": [vars(record) for record in course.records]
    }
    write_json(path, content)


def _compare(whole: Course, other: Course) -> str:
    """Say which component differs first and where; empty where nothing does."""
    for place, step in other.steps.items():
        for name in _COMPONENTS:
            if whole.steps.get(place, {}).get(name) != step.get(name):
                return f"{_NAMES.get(name, f'the {name}')} differs first, at {place} (epoch/batch)"
    for name, text in other.end.items():
        if whole.end.get(name) != text:
            return f"{_NAMES.get(name, name)} differs at the end"
    return ""
