"""Does a certificate find what does not repeat, and name it?

A small training with one bug planted in it is run in fresh processes and judged by
``medkit.study.certificate``; its verdict must name the component that the bug is in. The shipped
recipes are certified as ``medkit certify`` does it, in quick runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from _planted import BUGS
from report import Report

from medkit.jobs.plan import Request
from medkit.study.certificate import JobFailedError, certify
from medkit.study.certificate_command import notebook_job

HERE = Path(__file__).resolve().parent
RECIPES = ("01_first_training", "02_missing_and_rare", "03_kill_and_resume")
RECIPES += ("14_survival_between_hospitals",)
QUICK_BUGS = ("none", "wall clock in augmentation", "set order by PYTHONHASHSEED")
QUICK_BUGS += ("net outside run.init", "uuid in the step", "dropout from its own generator")
QUICK_BUGS += ("torch.empty read", "sum in random order", "atomic add in backward")
QUICK_BUGS += ("thread count 1 against 2",)
LEAST_BUGS = 8
STUCK_S = 300


def main() -> int:
    """Print the figures; 1 when a bug is misnamed or a recipe does not repeat."""
    report = Report(__doc__)
    _bugs(report)
    _recipes(report)
    return report.finish()


def _bugs(report: Report) -> None:
    named = planted = 0
    for bug, expected in BUGS.items():
        if report.quick and bug not in QUICK_BUGS:
            continue

        def job(folder: Path, more: Mapping[str, str], bug: str = bug) -> None:
            command = [sys.executable, str(HERE / "_planted.py"), bug, str(folder)]
            done = subprocess.run(
                command, env=os.environ | dict(more), capture_output=True, timeout=STUCK_S
            )
            if done.returncode:
                raise JobFailedError(done.stderr.decode(errors="replace")[-2000:])

        verdict = certify(job).verdict
        right = verdict.component == expected
        report.share(f"certificate/{bug}", int(right), 1, at_least=1.0, peers=verdict.component)
        if not right or bug != "none":
            report.note(*str(verdict).splitlines())
        planted, named = planted + (bug != "none"), named + (right and bug != "none")
    report.figure("certificate/bugs planted", planted, at_least=LEAST_BUGS, unit="bugs")
    report.share("certificate/bugs named", named, planted, at_least=1.0)


def _recipes(report: Report) -> None:
    for recipe in RECIPES[: 1 if report.quick else None]:
        path = HERE.parent / "notebooks" / f"{recipe}.ipynb"
        if not path.is_file():
            report.note(f"{path.name} is not there")
            continue
        with tempfile.TemporaryDirectory(prefix="certificate-") as folder:
            request = Request(notebook=str(path), given=(("quick", "True"),), cwd=Path(folder))
            found = certify(notebook_job(request))
        report.share(f"certificate/{recipe}", int(found.verdict.equal), 1, at_least=1.0)
        report.note(f"{found.runs[0].steps} steps; {found.verdict}")


if __name__ == "__main__":
    sys.exit(main())
