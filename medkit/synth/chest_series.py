"""Whole chest CT series of the three made-up hospitals, with nodules of known place and size.

A chest of formulas (body, ribs, spine, heart, airways, a tree of vessels, fissures) is drawn at
1 mm, nodules and look-alikes are put into it, and the hospital's scanner takes it. Nodules, scars,
blobs and granulomas are those of :mod:`medkit.synth.chest_ct`, and exam number n has the scanner of
its exam n. Slices are as thick as the step between them; the 1 mm of follow-up exams are 2 mm here.

What is a guess: everything one sees. The anatomy is one adult's, small, without contrast, arms,
shoulders, breasts or lobes that differ; noise is the same everywhere in a slice; there are no
streaks, no breathing, no beam hardening; three in ten exams have no nodule. A score on these says
nothing of real ones. The bytes are the same on any CPU.

Run as ``python -m medkit.synth.chest_series OUT`` to write two series a hospital as DICOM (6 MB).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medkit.record.files import sha256_file, write_text
from medkit.synth.chest_ct_scanner import SCANNERS, exam_of
from medkit.synth.chest_series_exam import SLICE_MM, ChestSeries, make_series
from medkit.synth.chest_series_files import MAKERS, Files, write_slices

__all__ = ["ChestSeries", "make_series", "write_hospitals", "write_series"]

PER_SITE = 2  # series the command writes
PIXELS, LENGTH_MM = 128, 88.0  # of these
_log = logging.getLogger(__name__)


def write_series(folder: Path | str, series: ChestSeries) -> Path:
    """Write one series as DICOM below ``folder/patient/study``; return its own folder."""
    own = Path(folder) / series.patient_id / f"{series.name}-chest"
    own = own / f"1-{series.kernel}-{series.spacing_mm[2]:g}mm"
    own.mkdir(parents=True, exist_ok=True)
    files = Files(
        MAKERS[series.site], series.uid, series.patient_id, series.name, series.protocol,
        series.spacing_mm, series.origin_mm,
    )  # fmt: skip
    write_slices(own, series.volume_hu.transpose(2, 0, 1), files)
    return own


class Truth(NamedTuple):
    """Tables of several series, a list of rows each."""

    series: list[dict[str, object]]
    candidates: list[dict[str, object]]
    annotations: list[dict[str, object]]


def write_hospitals(
    folder: Path | str,
    *,
    seed: int = 0,
    per_site: int = PER_SITE,
    pixels: int = PIXELS,
    length_mm: float = LENGTH_MM,
) -> None:
    """Write series of each hospital, what is known of them, and SHA256SUMS.

    ``candidates.csv`` and ``annotations.csv`` have the columns of LUNA16 (LPS, mm) and more;
    ``series.csv`` says how each was taken. Other files in the folder stay as they are.

    Args:
        folder: Where to.
        seed: Another seed, other patients.
        per_site: Series a hospital, those of exams 0, 1, ...
        pixels: Rows and columns.
        length_mm: Of each scan.
    """
    folder = Path(folder)
    truth, names = Truth([], [], []), []
    for site in SCANNERS:
        for number in range(per_site):
            step = exam_of(seed, site, number).slice_mm
            depth = round(length_mm / SLICE_MM.get(step, step))
            series = make_series(seed=seed, site=site, number=number, size=(pixels, pixels, depth))
            own = write_series(folder, series).relative_to(folder)
            names += sorted(f"{own}/{file.name}" for file in (folder / own).iterdir())
            _note(truth, series, str(own))
    for name, rows in truth._asdict().items():
        csv = pd.DataFrame(rows).to_csv(index=False, float_format="%.3f", lineterminator="\n")
        write_text(folder / f"{name}.csv", csv)
        names.append(f"{name}.csv")
    sums = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in names)
    write_text(folder / "SHA256SUMS", sums)


def _note(truth: Truth, series: ChestSeries, own: str) -> None:
    """Add what is known of a series to the tables."""
    truth.series.append(
        {
            "seriesuid": series.uid, "site": series.site, "patient_id": series.patient_id,
            "exam": series.name, "protocol": series.protocol, "kernel": series.kernel,
            "slice_mm": series.spacing_mm[2], "pixel_mm": series.spacing_mm[0],
            "air_hu": series.air_hu, "muscle_hu": series.muscle_hu,
            "nodules": len(series.nodules), "folder": own,
        }
    )  # fmt: skip
    for y, table in ((1, series.nodules), (0, series.look_alikes)):
        for row in table.to_dict("records"):
            at = {"seriesuid": series.uid}
            found = {f"coord{axis}": row[f"found_{axis.lower()}_mm"] for axis in "XYZ"}
            of = {"site": series.site, "patient_id": series.patient_id, "exam": series.name}
            size = {"diameter_mm": row["diameter_mm"]}
            known = {"air_hu": series.air_hu, "muscle_hu": series.muscle_hu}
            truth.candidates.append(
                at | found | {"class": y} | of | {"kind": row["kind"]} | size | known
            )
            if y:
                true = {f"coord{axis}": row[f"{axis.lower()}_mm"] for axis in "XYZ"}
                more = {"kind": row["kind"], "density_hu": row["density_hu"], "where": row["where"]}
                truth.annotations.append(at | true | size | more)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the series into the folder named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medkit.synth.chest_series", description=__doc__
    )
    parser.add_argument("out", type=Path, help="folder for the series and their tables")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other patients")
    parser.add_argument("--per-site", type=int, default=PER_SITE, help="series a hospital")
    parser.add_argument("--pixels", type=int, default=PIXELS, help="rows and columns")
    parser.add_argument("--length-mm", type=float, default=LENGTH_MM, help="of each scan")
    options = parser.parse_args(arguments)
    write_hospitals(
        options.out, seed=options.seed, per_site=options.per_site, pixels=options.pixels,
        length_mm=options.length_mm,
    )  # fmt: skip
    _log.info("written to %s", options.out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
