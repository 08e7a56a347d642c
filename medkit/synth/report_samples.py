"""A small sample of the made-up reports: two hospitals, three tasks, and a table as OpenI's.

Run as ``python -m medkit.synth.report_samples data_samples/reports``. The studies' numbers are
above those that tutorials train on, so the sample is held out.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from medkit.record.files import sha256_file, write_text
from medkit.synth.reports import TASKS, Study, make_studies, write_reports

__all__ = ["write_samples"]

FIRST = 9000  # number of the first study
SITES = ("A", "B")
_TABLE = ("uid", "image", "findings", "impression", "patient", "site", "Nodule")


def write_samples(folder: Path | str, *, count: int = 40, several: int = 8) -> list[Path]:
    """Write ``fields.jsonl``, ``report.jsonl``, ``questions.jsonl``, ``slices.jsonl``, the table.

    Args:
        folder: Where to; pictures go to its ``images``. Files that are there are written anew.
        count: Studies of each hospital, one slice each.
        several: Studies of hospital A with three slices each, in ``slices.jsonl``.

    Returns:
        The files with text, ``SHA256SUMS`` of these last.
    """
    folder = Path(folder)
    studies = [one for site in SITES for one in make_studies(count, site=site, first=FIRST)]
    written = [write_reports(folder, studies, name=task, task=task) for task in TASKS]
    whole = make_studies(several, first=FIRST + count, slices=3)
    written.append(write_reports(folder, whole, name="slices"))
    written.append(folder / "reports.csv")
    write_text(written[-1], _table(studies))
    sums = "".join(f"{sha256_file(path)}  {path.name}\n" for path in written)
    written.append(folder / "SHA256SUMS")
    write_text(written[-1], sums)
    return written


def _table(studies: Sequence[Study]) -> str:
    """Return a report a row; the first sentence is the findings, the others the impression."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_TABLE)
    for study in studies:
        findings, _, impression = study.report.partition(". ")
        image = f"images/{study.name}_0.png"
        coded = int(study.finding.nodule)
        row = (study.name, image, f"{findings}.", impression, study.patient, study.site, coded)
        writer.writerow(row)
    return text.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sample into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m medkit.synth.report_samples")
    parser.add_argument("out", type=Path, help="folder for the sample")
    for path in write_samples(parser.parse_args(arguments).out):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
