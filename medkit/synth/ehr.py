"""Three made-up hospitals whose truth is known, as a messy table of encounters.

There are two families. In the additive one a single hidden severity per stay drives the outcome
and 20 features, so that a linear model is close to the best; in the interacting one patients also
die of what their values do together (:mod:`medkit.synth.interacting`). About 35 % of the cells are
missing: blank, or coded as 0, -1 or 999, each hospital in its own way. Creatinine, urea, BNP and
lactate are missing more often when they are normal (nobody ordered them), except that hospital C
takes lactate by routine; C never takes BNP. C writes creatinine in umol/L, B glucose in mmol/L.
A patient's stays share half of their severity.

The table is the same bytes on any CPU (see :mod:`medkit.synth.exact`), and the probability of the
outcome given the row as it stands in the file is known (``Hospitals.prob``): in the long run no
rule that sees one row ranks better.

Run as ``python -m medkit.synth.ehr OUT`` to write the tables and their SHA-256 sums.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medkit.synth import hospitals, interacting
from medkit.synth.columns import (
    GRID,
    Column,
    by_site,
    draw,
    likelihood,
    missing_given,
    standard_score,
)
from medkit.synth.exact import Floats, noise, noise_density, sigmoid, uniforms
from medkit.synth.hospitals import FEATURES, MISSING_CODES, PLAUSIBLE, STAYS, Feature
from medkit.synth.written import write_with_sums

__all__ = [
    "MISSING_CODES",
    "Hospitals",
    "contract_yaml",
    "dictionary_csv",
    "make_hospitals",
    "row_probability",
    "write_tables",
]

log = logging.getLogger(__name__)

FAMILIES = ("additive", "interacting")


@dataclass(frozen=True)
class Hospitals:
    """The made-up encounters, one entry of every array per row of the file.

    Attributes:
        patient: Patient ids, ``(N,)``.
        site: "A", "B" or "C", ``(N,)``.
        cells: Feature name -> the column as written: blank, a code or a number.
        y: 1 where the patient died in hospital, ``(N,)`` int64.
        prob: P(y = 1 | the row), what the best possible rule says, ``(N,)``. (It sees the numbers
            before they were rounded for the file, and no other stay of the patient.)
        prob_hidden: P(y = 1 | the hidden severity), in the interacting family also given every
            value, the missing ones too; from it ``y`` was drawn, ``(N,)``.
        missing: Feature name -> True where the value is missing or coded, ``(N,)``.
        family: "additive" or "interacting".
    """

    patient: NDArray[np.str_]
    site: NDArray[np.str_]
    cells: dict[str, list[str]]
    y: NDArray[np.int64]
    prob: Floats
    prob_hidden: Floats
    missing: dict[str, NDArray[np.bool_]]
    family: str = "additive"

    def encounters_csv(self) -> str:
        """Return the table as CSV text: patient_id, site, the features, died."""
        columns = [self.patient, self.site, *self.cells.values(), self.y]
        header = ",".join(["patient_id", "site", *self.cells, "died"])
        rows = (",".join(map(str, row)) for row in zip(*columns, strict=True))
        return "\n".join([header, *rows, ""])

    def truth_csv(self) -> str:
        """Return row number, P(died | row) and P(died | hidden severity) as CSV text."""
        pairs = enumerate(zip(self.prob, self.prob_hidden, strict=True))
        rows = (f"{row},{prob:.6f},{hidden:.6f}" for row, (prob, hidden) in pairs)
        return "\n".join(["row,prob,prob_hidden", *rows, ""])


def make_hospitals(
    *, seed: int = 0, stays: Mapping[str, int] | None = None, family: str = "additive"
) -> Hospitals:
    """Draw the encounters of all sites, in an order that says nothing.

    Args:
        seed: Another seed, other patients of the same hospitals.
        stays: Site -> number of encounters; by default 850, 550 and 600 at A, B and C.
        family: "additive", or "interacting": see :mod:`medkit.synth.interacting`.
    """
    if family not in FAMILIES:
        raise ValueError(
            f"family must be one of {list(FAMILIES)}, got {family!r}. "
            "'additive' is the one where a linear model does well."
        )
    stays = dict(STAYS if stays is None else stays)
    whole = all(n > 0 and n == int(n) for n in stays.values())
    if not stays or not set(stays) <= set(STAYS) or not whole:
        raise ValueError(
            "stays must give a positive whole number for some of the sites A, B and C, got "
            f"{stays}. Other hospitals are not described in medkit.synth.ehr."
        )
    site = np.repeat(np.array(list(stays)), list(stays.values()))
    again = uniforms(seed, "again", shape=site.shape) < hospitals.AGAIN
    again[0] = False
    again[1:] &= site[1:] == site[:-1]  # nobody is in two hospitals
    owner = np.cumsum(~again) - 1  # patient number of each row
    patients = int(owner[-1]) + 1

    halves = [
        uniforms(seed, "severity", "patient", shape=(6, patients))[:, owner],
        uniforms(seed, "severity", "stay", shape=(6, len(site))),
    ]
    severity = noise(np.concatenate(halves)) + by_site(hospitals.SEVERITY_SHIFT, site)
    columns = [draw(seed, f, site, owner, severity) for f in features_of(family)]
    if family == "interacting":
        prob_hidden = interacting.probability(columns, site, severity)
        prob = interacting.posterior(columns, site)
    else:
        prob_hidden = sigmoid(by_site(hospitals.INTERCEPT, site) + hospitals.SLOPE * severity)
        prob = _posterior(columns, site)
    y = (uniforms(seed, "outcome", shape=site.shape) < prob_hidden).astype(np.int64)

    order = np.argsort(uniforms(seed, "rows", shape=site.shape), kind="stable")
    label = np.argsort(uniforms(seed, "labels", shape=(patients,)), kind="stable") + 1
    return Hospitals(
        patient=np.array([f"P{label[i]:05d}" for i in owner[order]]),
        site=site[order],
        cells={c.feature.name: [c.cells[row] for row in order] for c in columns},
        missing={c.feature.name: c.missing[order] for c in columns},
        y=y[order],
        prob=prob[order],
        prob_hidden=prob_hidden[order],
        family=family,
    )


def features_of(family: str) -> tuple[Feature, ...]:
    """Return what the columns of a family are like."""
    return interacting.FEATURES if family == "interacting" else FEATURES


def _posterior(columns: Sequence[Column], site: NDArray[np.str_]) -> Floats:
    """Return P(y = 1 | the row) by summing over a grid of hidden severities.

    Given severity, the columns are independent, so a row's likelihood is a product: densities of
    the values that are there, probabilities of being missing for the others.
    """
    hit, total = np.zeros(len(site)), np.zeros(len(site))
    nodes = np.array(GRID)
    shift = by_site(hospitals.SEVERITY_SHIFT, site)
    intercept = by_site(hospitals.INTERCEPT, site)
    index = [list(STAYS).index(name) for name in site]
    gone = [np.array([missing_given(c.feature, s, nodes) for s in range(3)]) for c in columns]
    for g, node in enumerate(GRID):
        weight = noise_density(node - shift)
        for c, gone_at in zip(columns, gone, strict=True):
            there = likelihood(c, np.full(len(site), node))
            weight = weight * np.where(c.missing, gone_at[index, g], there)
        total = total + weight
        hit = hit + weight * sigmoid(intercept + hospitals.SLOPE * node)
    return hit / total


def row_probability(values: Floats, site: NDArray[np.str_], *, family: str = "additive") -> Floats:
    """Return P(y = 1 | the row) of any rows: the known truth that attributions are held against.

    What ``Hospitals.prob`` is for the rows that were drawn, but for rounding and for values at the
    ends of their range, which stand for all beyond.

    Args:
        values: The columns of :func:`features_of` in the units they have there, NaN where missing,
            ``(N, F)``.
        site: "A", "B" or "C", ``(N,)``: habits of measuring and the outcome's level differ.
        family: "additive" or "interacting".

    Raises:
        ValueError: For a row that can't be at its site.
    """
    columns = []
    for index, f in enumerate(features_of(family)):
        missing = values[:, index] != values[:, index]  # NaN
        score = standard_score(f, np.where(missing, f.center, values[:, index]))
        columns.append(Column(f, score, missing, []))
    with warnings.catch_warnings():  # 0 / 0 where a row can't be
        warnings.simplefilter("ignore", RuntimeWarning)
        prob = (interacting.posterior if family == "interacting" else _posterior)(columns, site)
    impossible = np.flatnonzero(prob != prob)
    if len(impossible):
        raise ValueError(
            "each row must be possible at its site (age is never missing at A, say); "
            f"{len(impossible)} of {len(site)} are not, the first is row {impossible[0]} at "
            f"{site[impossible[0]]}. Take rows, and background rows, of the same sites."
        )
    return prob


def dictionary_csv(family: str = "additive") -> str:
    """Return the data dictionary: unit, unit by site, codes for missing and meaning per column."""
    lines = ["column,unit,unit_by_site,missing_codes,meaning"]
    lines += ['patient_id,,,,"pseudonym; some have several stays, all at one site"']
    lines += ['site,,,,"hospital A, B or C"']
    for f in features_of(family):
        units = "; ".join(f"{site}: {unit}" for site, (_, unit, _) in (f.factor or {}).items())
        codes = "; ".join(f"{site}: {code}" for site, code in (f.codes or {}).items())
        lines += [f"{f.name},{f.unit},{units},{codes},{f.meaning}"]
    return "\n".join([*lines, "died,0/1,,,died in hospital; the target", ""])


def contract_yaml(family: str = "additive") -> str:
    """Return the data contract as a person would write it who has read the dictionary."""
    lines = ["version: 1", "target: died", "patient: patient_id", "site: site"]
    lines += [f"sites: [{', '.join(STAYS)}]", "columns:"]
    for f in features_of(family):
        units = ", ".join(f'{site}: "{unit}"' for site, (_, unit, _) in (f.factor or {}).items())
        codes = ", ".join(f"{site}: [{code}]" for site, code in (f.codes or {}).items())
        low, high = PLAUSIBLE.get(f.name, (0, 1))
        lines += [f"  {f.name}:", f"    kind: {'binary' if f.binary else 'number'}"]
        lines += [] if f.binary else [f'    unit: "{f.unit}"']
        lines += [f"    units_at: {{{units}}}"] if units else []
        lines += [f"    missing_at: {{{codes}}}"] if codes else []
        lines += [] if f.binary else [f"    low: {low}", f"    high: {high}"]
        lines += ["    recorded: before"] + ([f'    meaning: "{f.meaning}"'] if f.meaning else [])
    return "\n".join([*lines, ""])


def write_tables(folder: Path | str, *, seed: int = 0, family: str = "additive") -> dict[str, str]:
    """Write encounters, truth, dictionary, contract and SHA256SUMS; return name -> SHA-256."""
    drawn = make_hospitals(seed=seed, family=family)
    texts = {
        "contract.yaml": contract_yaml(family),
        "dictionary.csv": dictionary_csv(family),
        "encounters.csv": drawn.encounters_csv(),
        "truth.csv": drawn.truth_csv(),
    }
    return write_with_sums(folder, texts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m medkit.synth.ehr", description=__doc__)
    parser.add_argument("out", help="folder for the tables")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other patients")
    parser.add_argument("--family", choices=FAMILIES, default="additive", help="see above")
    options = parser.parse_args(arguments)
    sums = write_tables(options.out, seed=options.seed, family=options.family)
    for name, digest in sums.items():
        log.info("%s  %s", digest, name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
