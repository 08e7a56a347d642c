"""One column of the made-up hospitals: its values, what goes missing, and how likely that was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medkit.synth.exact import TERMS, Floats, exp, log, noise, noise_density, uniforms
from medkit.synth.hospitals import CODED_SHARE, STAYS, Feature

GRID = [step / 10 for step in range(-60, 61)]  # nodes for the hidden severity [sd]


@dataclass(frozen=True)
class Column:
    """A drawn column, one entry per row before the rows are put in order.

    Attributes:
        feature: What it is like.
        score: Standard scores before units, or 0 and 1, ``(N,)``.
        missing: Where the value is missing, ``(N,)``.
        cells: What the file says.
    """

    feature: Feature
    score: Floats
    missing: NDArray[np.bool_]
    cells: list[str]


def draw(
    seed: int, f: Feature, site: NDArray[np.str_], owner: NDArray[np.int64], severity: Floats
) -> Column:
    """Draw one column: its scores, which of them are missing, and what the file says."""
    per_row = owner if f.per_patient else np.arange(len(site))
    draws = uniforms(seed, f.name, "value", shape=(TERMS, int(per_row[-1]) + 1))[:, per_row]
    if f.binary:
        score = (draws[0] < share_of_ones(f, severity)).astype(np.float64)
    else:
        score = f.loading * severity + f.own * noise(draws)
    missing = np.zeros(len(site), dtype=np.bool_)
    gone = uniforms(seed, f.name, "missing", shape=(2, len(site)))
    cells = [""] * len(site)
    for index, name in enumerate(STAYS):
        here = site == name
        missing[here] = gone[0, here] < share_missing(f, index, score[here])
        code = (f.codes or {}).get(name)
        factor, _, decimals = f.unit_at(name)
        values = factor * in_units(f, score[here])
        for row, value in zip(np.flatnonzero(here), values, strict=True):
            if not missing[row]:
                cells[row] = f"{value:.{decimals}f}"
            elif code is not None and gone[1, row] < CODED_SHARE:
                cells[row] = str(code)
    return Column(f, score, missing, cells)


def in_units(f: Feature, score: Floats) -> Floats:
    """Return standard scores as values in the feature's unit (0 and 1 as they are)."""
    if f.binary:
        return score
    if f.skewed:
        return f.center * exp(f.spread * score)
    return np.minimum(np.maximum(f.center + f.spread * score, f.lowest), f.highest)


def standard_score(f: Feature, value: Floats) -> Floats:
    """Return values in the feature's unit as standard scores, the inverse of :func:`in_units`."""
    if f.binary:
        return value
    if f.skewed:
        return log(np.maximum(value / f.center, 2.0**-20)) / f.spread
    return (value - f.center) / f.spread


def share_of_ones(f: Feature, severity: Floats) -> Floats:
    """Return P(1 | severity) of a binary column."""
    return np.minimum(np.maximum(f.center + f.spread * severity, 0.01), 0.99)


def share_missing(f: Feature, site: int, score: Floats) -> Floats:
    """Return P(missing | value) at a site; lower for higher values where they prompt the order."""
    base = f.missing[site]
    if base in (0.0, 1.0):
        return np.full_like(score, base)
    return np.minimum(np.maximum(base - f.ordered[site] * score, 0.02), 0.98)


def missing_given(f: Feature, site: int, severity: Floats) -> Floats:
    """Return P(missing | severity) at a site; a sum over the column's own noise."""
    if f.binary or not f.ordered[site]:
        return share_missing(f, site, np.zeros_like(severity))
    hit, total = np.zeros_like(severity), 0.0
    for node in GRID:
        weight = float(noise_density(np.array(node)))
        hit = hit + weight * share_missing(f, site, f.loading * severity + f.own * node)
        total += weight
    return hit / total


def likelihood(c: Column, severity: Floats) -> Floats:
    """Return the density (or probability) of a column's values given severity.

    ``severity`` broadcasts against the scores, which are taken as they are, missing or not.
    """
    f = c.feature
    if not f.binary:
        return noise_density((c.score - f.loading * severity) / f.own)
    ones = share_of_ones(f, severity)
    return np.where(c.score == 1, ones, 1 - ones)


def by_site(values: Mapping[str, float], site: NDArray[np.str_]) -> Floats:
    """Return each row's value, given one per site."""
    return np.array([values[name] for name in site])
