"""Three made-up breast clinics whose patients are followed until they die or are last seen.

Death follows a proportional-hazards model with a Weibull baseline, so the log hazard of every
patient is known (``Followed.eta``), and the probability of being alive at any day given it. The
clinics differ in their patients, in how long they follow them (C began late: most of its patients
are censored early) and in what they measure. About 12 % of the cells are blank: Ki-67 above all,
and HER2 at C, at random within a clinic. Times are whole days, and some are tied.

The table is the same bytes on any CPU (see :mod:`medkit.synth.exact`).

Run as ``python -m medkit.synth.survival OUT`` to write the tables and their SHA-256 sums.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medkit.synth.columns import by_site
from medkit.synth.exact import TERMS, Floats, exp, log, noise, uniforms
from medkit.synth.written import write_with_sums

_log = logging.getLogger(__name__)

PATIENTS = {"A": 500, "B": 350, "C": 350}
FOLLOW_UP_DAYS = {"A": 3600.0, "B": 2800.0, "C": 1500.0}  # longest; entry is even over it
BASELINE = {"A": 0.0, "B": 0.1, "C": 0.3}  # log hazard of a clinic beside its patients
SHAPE, SCALE_DAYS = 1.3, 7500.0  # Weibull: hazards rise a little with time
HORIZON_DAYS = 1095  # of the probabilities in truth.csv: three years
_TINY = 2.0**-53


@dataclass(frozen=True)
class Column:
    """One feature.

    Attributes:
        name: Column name.
        unit: Unit, or "0/1".
        center: Of an average patient: a value, or the share of ones where ``unit`` is "0/1".
        spread: Standard deviation; of the logarithm where ``skewed``.
        effect: Log hazard ratio per standard deviation (per 1 where "0/1").
        shift: Added to the standard score of patients at A, B, C.
        blank: Share of blank cells at A, B, C.
        skewed: Log-normal rather than normal.
        meaning: For the data dictionary.
    """

    name: str
    unit: str
    center: float
    spread: float
    effect: float
    shift: tuple[float, float, float]
    blank: tuple[float, float, float]
    meaning: str
    skewed: bool = False


COLUMNS = (
    Column("age", "years", 58.0, 13.0, 0.45, (0, 0.2, -0.1), (0, 0, 0), "age at diagnosis"),
    Column("tumour_mm", "mm", 21.0, 0.5, 0.4, (0, 0.1, 0.3), (0.03, 0.08, 0.05),
           "largest diameter", skewed=True),
    Column("nodes", "log(1+n)", 0.9, 0.8, 0.55, (0, 0.1, 0.2), (0.05, 0.1, 0.1),
           "logarithm of 1 + lymph nodes with tumour"),
    Column("ki67_percent", "%", 18.0, 0.6, 0.2, (0, 0, 0.1), (0.3, 0.6, 0.25),
           "share of dividing tumour cells", skewed=True),
    Column("bmi", "kg/m2", 26.5, 4.5, 0.05, (0, 0.2, 0), (0.1, 0.15, 0.2), "body mass index"),
    Column("haemoglobin", "g/dL", 13.0, 1.2, -0.15, (0, 0, 0), (0.1, 0.1, 0.15),
           "before treatment"),
    Column("er_positive", "0/1", 0.77, 0.0, -0.6, (0, 0, -0.2), (0.02, 0.05, 0.05),
           "oestrogen receptor found"),
    Column("her2_positive", "0/1", 0.16, 0.0, 0.3, (0, 0, 0), (0.1, 0.15, 1.0),
           "HER2 found; never asked for at C"),
    Column("metastasis", "0/1", 0.04, 0.0, 1.6, (0, 0.1, 0.2), (0.0, 0.02, 0.02),
           "spread to other organs at diagnosis"),
    Column("left_side", "0/1", 0.51, 0.0, 0.0, (0, 0, 0), (0, 0, 0), "left breast; says nothing"),
)  # fmt: skip


@dataclass(frozen=True)
class Followed:
    """The made-up patients, one entry of every array per row of the file.

    Attributes:
        patient: Patient ids, ``(N,)``.
        site: "A", "B" or "C", ``(N,)``.
        cells: Feature name -> the column as written: blank or a number.
        days: From diagnosis to death or the last look, whole days from 1, ``(N,)`` int64.
        died: 1 where it was death, ``(N,)`` int64.
        eta: Log relative hazard given all features (blank ones too) and the clinic, ``(N,)``: in
            the long run nothing ranks better.
    """

    patient: NDArray[np.str_]
    site: NDArray[np.str_]
    cells: dict[str, list[str]]
    days: NDArray[np.int64]
    died: NDArray[np.int64]
    eta: Floats

    def survival(self, days: float) -> Floats:
        """Return P(alive after ``days`` | all features, clinic), ``(N,)``."""
        since = np.full(len(self.eta), days / SCALE_DAYS)
        return exp(-exp(SHAPE * log(since) + self.eta))

    def patients_csv(self) -> str:
        """Return the table as CSV text: patient_id, site, the features, days, died."""
        columns = [self.patient, self.site, *self.cells.values(), self.days, self.died]
        header = ",".join(["patient_id", "site", *self.cells, "days", "died"])
        rows = (",".join(map(str, row)) for row in zip(*columns, strict=True))
        return "\n".join([header, *rows, ""])

    def truth_csv(self) -> str:
        """Return row number, log relative hazard and P(alive after 3 years) as CSV text."""
        pairs = enumerate(zip(self.eta, self.survival(HORIZON_DAYS), strict=True))
        rows = (f"{row},{eta:.6f},{alive:.6f}" for row, (eta, alive) in pairs)
        return "\n".join([f"row,eta,alive_{HORIZON_DAYS}", *rows, ""])


def make_survival(*, seed: int = 0, patients: Mapping[str, int] | None = None) -> Followed:
    """Draw the patients of all clinics, in an order that says nothing.

    Args:
        seed: Another seed, other patients of the same clinics.
        patients: Site -> number of patients; by default 500, 350 and 350 at A, B and C.
    """
    patients = dict(PATIENTS if patients is None else patients)
    if not patients or not set(patients) <= set(PATIENTS) or min(patients.values()) < 1:
        raise ValueError(
            "patients must give a positive number for some of the sites A, B and C, got "
            f"{patients}. Other clinics are not described in medkit.synth.survival."
        )
    site = np.repeat(np.array(list(patients)), list(patients.values()))
    eta, cells = by_site(BASELINE, site), {}
    for column in COLUMNS:
        score, texts = _draw(seed, column, site)
        eta = eta + column.effect * score
        cells[column.name] = texts
    hazard = np.maximum(-log(uniforms(seed, "death", shape=site.shape) + _TINY / 2), _TINY)
    death = SCALE_DAYS * exp((log(hazard) - eta) / SHAPE)
    seen = by_site(FOLLOW_UP_DAYS, site) * (0.05 + 0.95 * uniforms(seed, "entry", shape=site.shape))
    days = np.floor(np.minimum(death, seen)) + 1.0
    died = np.where(death <= seen, 1.0, 0.0)

    order = np.argsort(uniforms(seed, "rows", shape=site.shape), kind="stable")
    label = np.argsort(uniforms(seed, "labels", shape=site.shape), kind="stable") + 1
    return Followed(
        patient=np.array([f"F{label[row]:04d}" for row in order]),
        site=site[order],
        cells={name: [texts[row] for row in order] for name, texts in cells.items()},
        days=days[order].astype(np.int64),
        died=died[order].astype(np.int64),
        eta=eta[order],
    )


def _draw(seed: int, column: Column, site: NDArray[np.str_]) -> tuple[Floats, list[str]]:
    """Draw one column: how far each patient is from the average, and what the file says."""
    shift = by_site(dict(zip(PATIENTS, column.shift, strict=True)), site)
    draws = uniforms(seed, column.name, "value", shape=(TERMS, len(site)))
    if column.unit == "0/1":
        ones = np.where(draws[0] < column.center * (1.0 + shift), 1.0, 0.0)
        score, values, decimals = ones - column.center, ones, 0
    else:
        score = noise(draws) + shift
        values = column.center + column.spread * score
        if column.skewed:
            values = column.center * exp(column.spread * score)
        elif column.name == "nodes":
            values = np.maximum(values, 0.0)
        elif column.name == "age":
            values = np.minimum(np.maximum(values, 22.0), 95.0)
        decimals = 2 if column.name == "nodes" else 1
    gone = uniforms(seed, column.name, "blank", shape=site.shape)
    blank = gone < by_site(dict(zip(PATIENTS, column.blank, strict=True)), site)
    texts = [
        "" if none else f"{value:.{decimals}f}" for value, none in zip(values, blank, strict=True)
    ]
    return score, texts


def dictionary_csv() -> str:
    """Return the data dictionary: unit and meaning of each column."""
    lines = ["column,unit,meaning", "patient_id,,pseudonym; one row a patient"]
    lines += ['site,,"clinic A, B or C"']
    lines += [f"{c.name},{c.unit},{c.meaning}" for c in COLUMNS]
    lines += ["days,days,from diagnosis to death or the last look"]
    return "\n".join([*lines, "died,0/1,1: days is the day of death; 0: of the last look", ""])


def write_tables(folder: Path | str, *, seed: int = 0) -> dict[str, str]:
    """Write patients.csv, truth.csv, dictionary.csv and SHA256SUMS; return name -> SHA-256."""
    drawn = make_survival(seed=seed)
    texts = {
        "dictionary.csv": dictionary_csv(),
        "patients.csv": drawn.patients_csv(),
        "truth.csv": drawn.truth_csv(),
    }
    return write_with_sums(folder, texts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m medkit.synth.survival", description=__doc__)
    parser.add_argument("out", help="folder for the tables")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other patients")
    options = parser.parse_args(arguments)
    for name, digest in write_tables(options.out, seed=options.seed).items():
        _log.info("%s  %s", digest, name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
