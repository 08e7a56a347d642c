"""The fresh process of ``medkit check``: fit once, and write down what happened."""

from __future__ import annotations

import sys
from pathlib import Path

from medkit.check import quiet
from medkit.check.courses import write_course
from medkit.check.fits import run_fit
from medkit.check.subject import load


def main(module_spec: str, data_spec: str, folder: str, traced: str) -> None:
    """Do the fit in ``folder``."""
    with quiet():
        course = run_fit(load(module_spec, data_spec), Path(folder), number=0, traced=bool(traced))
    write_course(course, Path(folder) / "course.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
