"""Three made-up hospitals whose truth is known, as a messy table of encounters.

One hidden severity per stay drives the outcome and 20 features. About 35 % of the cells are
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medkit.record.files import sha256_file, write_text
from medkit.synth import hospitals
from medkit.synth.exact import TERMS, Floats, exp, noise, noise_density, sigmoid, uniforms
from medkit.synth.hospitals import FEATURES, MISSING_CODES, STAYS, Feature

__all__ = ["MISSING_CODES", "Hospitals", "dictionary_csv", "make_hospitals", "write_tables"]

log = logging.getLogger(__name__)

_GRID = [step / 10 for step in range(-60, 61)]  # nodes for the hidden severity [sd]


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
        prob_hidden: P(y = 1 | the hidden severity), from which ``y`` was drawn, ``(N,)``.
        missing: Feature name -> True where the value is missing or coded, ``(N,)``.
    """

    patient: NDArray[np.str_]
    site: NDArray[np.str_]
    cells: dict[str, list[str]]
    y: NDArray[np.int64]
    prob: Floats
    prob_hidden: Floats
    missing: dict[str, NDArray[np.bool_]]

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


def make_hospitals(*, seed: int = 0, stays: Mapping[str, int] | None = None) -> Hospitals:
    """Draw the encounters of all sites, in an order that says nothing.

    Args:
        seed: Another seed, other patients of the same hospitals.
        stays: Site -> number of encounters; by default 850, 550 and 600 at A, B and C.
    """
    stays = dict(STAYS if stays is None else stays)
    if not set(stays) <= set(STAYS) or not all(n > 0 for n in stays.values()):
        raise ValueError(
            f"stays must give a positive number for some of the sites A, B and C, got {stays}. "
            "Other hospitals are not described in medkit.synth.ehr."
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
    severity = noise(np.concatenate(halves)) + _by_site(hospitals.SEVERITY_SHIFT, site)
    prob_hidden = sigmoid(_by_site(hospitals.INTERCEPT, site) + hospitals.SLOPE * severity)
    y = (uniforms(seed, "outcome", shape=site.shape) < prob_hidden).astype(np.int64)

    order = np.argsort(uniforms(seed, "rows", shape=site.shape), kind="stable")
    label = np.argsort(uniforms(seed, "labels", shape=(patients,)), kind="stable") + 1
    columns = [_draw(seed, feature, site, owner, severity) for feature in FEATURES]
    prob = _posterior(columns, site)
    return Hospitals(
        patient=np.array([f"P{label[i]:05d}" for i in owner[order]]),
        site=site[order],
        cells={c.feature.name: [c.cells[row] for row in order] for c in columns},
        missing={c.feature.name: c.missing[order] for c in columns},
        y=y[order],
        prob=prob[order],
        prob_hidden=prob_hidden[order],
    )


@dataclass(frozen=True)
class _Column:
    feature: Feature
    score: Floats  # standard scores before units, or 0/1
    missing: NDArray[np.bool_]
    cells: list[str]


def _draw(
    seed: int, f: Feature, site: NDArray[np.str_], owner: NDArray[np.int64], severity: Floats
) -> _Column:
    """Draw one column: its scores, which of them are missing, and what the file says."""
    per_row = owner if f.per_patient else np.arange(len(site))
    draws = uniforms(seed, f.name, "value", shape=(TERMS, int(per_row[-1]) + 1))[:, per_row]
    if f.binary:
        score = (draws[0] < _share_of_ones(f, severity)).astype(np.float64)
    else:
        score = f.loading * severity + f.own * noise(draws)
    missing = np.zeros(len(site), dtype=np.bool_)
    gone = uniforms(seed, f.name, "missing", shape=(2, len(site)))
    cells = [""] * len(site)
    for index, name in enumerate(STAYS):
        here = site == name
        missing[here] = gone[0, here] < _share_missing(f, index, score[here])
        code = (f.codes or {}).get(name)
        factor, _, decimals = f.unit_at(name)
        values = factor * _in_units(f, score[here])
        for row, value in zip(np.flatnonzero(here), values, strict=True):
            if not missing[row]:
                cells[row] = f"{value:.{decimals}f}"
            elif code is not None and gone[1, row] < hospitals.CODED_SHARE:
                cells[row] = str(code)
    return _Column(f, score, missing, cells)


def _in_units(f: Feature, score: Floats) -> Floats:
    if f.binary:
        return score
    if f.skewed:
        return f.center * exp(f.spread * score)
    return np.minimum(np.maximum(f.center + f.spread * score, f.lowest), f.highest)


def _share_of_ones(f: Feature, severity: Floats) -> Floats:
    return np.minimum(np.maximum(f.center + f.spread * severity, 0.01), 0.99)


def _share_missing(f: Feature, site: int, score: Floats) -> Floats:
    """Return P(missing | value) at a site; lower for higher values where they prompt the order."""
    base = f.missing[site]
    if base in (0.0, 1.0):
        return np.full_like(score, base)
    return np.minimum(np.maximum(base - f.ordered[site] * score, 0.02), 0.98)


def _posterior(columns: Sequence[_Column], site: NDArray[np.str_]) -> Floats:
    """Return P(y = 1 | the row) by summing over a grid of hidden severities.

    Given severity, the columns are independent, so a row's likelihood is a product: densities of
    the values that are there, probabilities of being missing for the others.
    """
    hit, total = np.zeros(len(site)), np.zeros(len(site))
    nodes = np.array(_GRID)
    index = [list(STAYS).index(name) for name in site]
    gone = [np.array([_missing_given(c.feature, s, nodes) for s in range(3)]) for c in columns]
    for g, node in enumerate(_GRID):
        weight = noise_density(node - _by_site(hospitals.SEVERITY_SHIFT, site))
        for c, gone_at in zip(columns, gone, strict=True):
            at_node = np.full(len(site), node)
            if c.feature.binary:
                ones = _share_of_ones(c.feature, at_node)
                there = np.where(c.score == 1, ones, 1 - ones)
            else:
                there = noise_density((c.score - c.feature.loading * node) / c.feature.own)
            weight = weight * np.where(c.missing, gone_at[index, g], there)
        total = total + weight
        hit = hit + weight * sigmoid(_by_site(hospitals.INTERCEPT, site) + hospitals.SLOPE * node)
    return hit / total


def _missing_given(f: Feature, site: int, severity: Floats) -> Floats:
    """Return P(missing | severity) at a site; a sum over the column's own noise."""
    if f.binary or not f.ordered[site]:
        return _share_missing(f, site, np.zeros_like(severity))
    hit, total = np.zeros_like(severity), 0.0
    for node in _GRID:
        weight = float(noise_density(np.array(node)))
        hit = hit + weight * _share_missing(f, site, f.loading * severity + f.own * node)
        total += weight
    return hit / total


def _by_site(values: Mapping[str, float], site: NDArray[np.str_]) -> Floats:
    return np.array([values[name] for name in site])


def dictionary_csv() -> str:
    """Return the data dictionary: unit, unit by site, codes for missing and meaning per column."""
    lines = ["column,unit,unit_by_site,missing_codes,meaning"]
    lines += ['patient_id,,,,"pseudonym; some have several stays, all at one site"']
    lines += ['site,,,,"hospital A, B or C"']
    for f in FEATURES:
        units = "; ".join(f"{site}: {unit}" for site, (_, unit, _) in (f.factor or {}).items())
        codes = "; ".join(f"{site}: {code}" for site, code in (f.codes or {}).items())
        lines += [f"{f.name},{f.unit},{units},{codes},{f.meaning}"]
    return "\n".join([*lines, "died,0/1,,,died in hospital; the target", ""])


def write_tables(folder: Path | str, *, seed: int = 0) -> dict[str, str]:
    """Write encounters.csv, truth.csv, dictionary.csv and SHA256SUMS; return name -> SHA-256."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = make_hospitals(seed=seed)
    texts = {
        "dictionary.csv": dictionary_csv(),
        "encounters.csv": drawn.encounters_csv(),
        "truth.csv": drawn.truth_csv(),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    sums = {name: sha256_file(folder / name) for name in texts}
    write_text(folder / "SHA256SUMS", "".join(f"{sums[n]}  {n}\n" for n in sums))
    return sums


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m medkit.synth.ehr", description=__doc__)
    parser.add_argument("out", help="folder for the tables")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other patients")
    options = parser.parse_args(arguments)
    for name, digest in write_tables(options.out, seed=options.seed).items():
        log.info("%s  %s", digest, name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
