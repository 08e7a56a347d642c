"""What a column's numbers give away: codes for missing, units, ranges, knowledge of the outcome.

Heuristics for :mod:`medkit.data.contract.proposal`; each finding comes with its evidence, for a
person to judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf, isfinite, log

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from medkit.data.contract import units

Floats = NDArray[np.float64]

# What people write for "missing" in a column of numbers; small ones first.
CODES = (
    *(0, -1, -9, 9, 77, 88, 99, -77, -88, -99, 777, 888, 999, -777, -888, -999, 7777, 8888),
    *(9999, -9999, 99999, -99999, 999999, -999999),
)
TEXT_CODES = {"?", "na", "n/a", "n.a.", "nan", "null", "none", "-", "--", ".", "missing", "nd"}
TEXT_CODES |= {"unknown", "not done", "not known", "unk", "<na>", "n.d.", "*", "k.a."}
_ENOUGH = 10  # values; fewer have no distribution
_FEWEST = 3  # cells with the same value that make a code of it
_AFTER = {
    *("los", "discharge", "discharged", "death", "died", "dead", "mortality", "survival", "dod"),
    *("survived", "outcome", "autopsy", "readmission", "readmitted", "disposition", "followup"),
    *("expired", "deceased", "hospice", "burial", "alive"),
}
_AFTER_PHRASES = ("length of stay", "follow up", "days to", "time to", "cause of", "stay days")


def codes(by_site: Mapping[str, Floats]) -> dict[float, dict[str, str]]:
    """Find values that stand apart as codes do.

    A code lies outside the other values of its site, comes up at least three times (0.5 % of the
    cells), and keeps a distance from them: at least five steps of the column's grid and 15 % of
    the distance to their median, or so that it is 20 times as frequent as all values next to it;
    or it is negative where all others are not. (Zero for "none given" of a drug looks the same:
    the evidence is for a person to judge.) A site that holds
    nothing but the code is judged by the other sites' values. Where the same value stands amid
    the others at some site, it is no code anywhere.

    Args:
        by_site: Site -> its values, without NaN.

    Returns:
        Code -> site -> evidence in words.
    """
    found: dict[float, dict[str, str]] = {}
    left = dict(by_site)
    for code in (float(c) for c in CODES):
        evidence: dict[str, str] = {}
        enough = amid = False
        for site, values in left.items():
            count = int((values == code).sum())
            if not count:
                continue
            others, whose = values[values != code], "the others there"
            if len(others) < _ENOUGH and count > 0.9 * len(values):
                others = np.concatenate(
                    [v[v != code] for s, v in left.items() if s != site] or [[]]
                )
                whose = "those of other sites"
            apart = _apart(code, count, others)
            amid |= not apart and count >= _FEWEST
            enough |= bool(apart) and count >= max(_FEWEST, 0.005 * len(values))
            if apart:
                share = f"{count} of {len(values)} cells are {code:g}"
                evidence[site] = f"{share}; {whose} {apart}"
        if enough and not amid:
            found[code] = evidence
            left.update({site: left[site][left[site] != code] for site in evidence})
    return found


def _apart(code: float, count: int, others: Floats) -> str:
    """Say how far the other values are from a code; "" where they are not apart."""
    grid = np.unique(others)
    if len(others) < _ENOUGH or len(grid) < 2 or (code in {0.0, 1.0} and set(grid) <= {0.0, 1.0}):
        return ""
    low, median = code < grid[0], float(np.median(others))
    inside = others[others > code] if code < median else others[others < code]
    if len(others) - len(inside) > 0.01 * len(others):
        return ""
    nearest = float(inside.min() if code < median else inside.max())
    gap, step = abs(nearest - code), float(np.diff(grid).min())
    negative = low and code < 0 <= grid[0]
    wide = gap >= 0.15 * abs(median - code)
    next_to_it = np.abs(inside - nearest) <= gap
    spike = count > 20 * next_to_it.sum()
    if not negative and not (gap >= 5 * step * (1 - 1e-9) and (wide or spike)):
        return ""
    return f"{'begin' if code < median else 'end'} at {nearest:g} (median {median:g})"


def unit_of(
    column: str, by_site: Mapping[str, Floats]
) -> tuple[str, dict[str, str], dict[str, str]]:
    """Guess the unit of a column and of the sites that write it in another.

    Returns:
        Unit of most rows ("" where nothing is known), site -> unit where it is another, and
        site ("" for all) -> evidence.
    """
    median = {s: float(np.median(v)) for s, v in by_site.items() if len(v) >= _ENOUGH}
    median = {s: m for s, m in median.items() if m > 0}
    analyte = units.analyte_of(column)
    if analyte is None or not median:
        return "", {}, _far_apart(median)
    entry = units.ANALYTES[analyte]

    def away(site: str, unit: str, target: float) -> float:
        there = units.convert(median[site], unit, entry.usual[0], analyte)
        return abs(log(there / target)) if there > 0 else inf

    rows: dict[str, int] = {}
    for site in median:  # the unit of most rows, by how near the medians are to what is usual
        best = min(entry.usual, key=lambda unit: away(site, unit, entry.typical))
        rows[best] = rows.get(best, 0) + len(by_site[site])
    unit = max(rows, key=lambda u: rows[u])
    base = [s for s in median if min(entry.usual, key=lambda u: away(s, u, entry.typical)) == unit]
    first = max(base, key=lambda s: len(by_site[s]))
    if away(first, unit, entry.typical) > log(5):
        text = f"{analyte}? its median {median[first]:.3g} fits none of {list(entry.usual)}"
        return "", {}, {"": f"{text}: write the unit", **_far_apart(median)}
    middle = units.convert(median[first], unit, entry.usual[0], analyte)
    remarks = {"": f"{analyte}: median {median[first]:.3g} fits {unit}"}
    other: dict[str, str] = {}
    for site in median:
        best = min(entry.usual, key=lambda u: (away(site, u, middle), u != unit))
        ratio = median[site] / median[first]
        if best == unit or away(site, best, middle) > 0.5 * away(site, unit, middle):
            continue
        factor = units.convert(1.0, unit, best, analyte)
        said = f"median {median[site]:.3g} against {median[first]:.3g} at {first or 'the others'}"
        said += f", ratio {ratio:.3g}; from {unit} to {best} the factor is {factor:.3g}"
        if max(ratio, 1 / ratio) < 2:
            remarks[site] = f"{said}: too near to tell, look it up"
            continue
        other[site] = best
        remarks[site] = said
    return unit, other, remarks


def _far_apart(median: Mapping[str, float]) -> dict[str, str]:
    if len(median) < 2 or max(median.values()) < 5 * min(median.values()):
        return {}
    said = ", ".join(f"{m:.3g} at {site}" for site, m in median.items())
    return {"": f"medians differ fivefold or more: {said}. Another unit? Add unit and units_at"}


def limits(values: Floats) -> tuple[float, float] | None:
    """Return a plausible range: the middle 99 % and a margin as wide as it (or of factor 3).

    Columns of positive numbers that span more than a factor of 3 get the margin by factor.
    """
    if len(values) < _ENOUGH or values.min() == values.max():
        return None
    low, high = (float(q) for q in np.quantile(values, (0.005, 0.995)))
    if low > 0 and high > 3 * low:
        return _rounded(low / 3, up=False), _rounded(high * 3, up=True)
    margin = high - low
    lowest = low - margin if values.min() < 0 else max(low - margin, low / 3)
    return _rounded(lowest, up=False), _rounded(high + margin, up=True)


def _rounded(value: float, *, up: bool) -> float:
    """Round outwards to two digits."""
    if value == 0 or not isfinite(value):
        return value
    unit = 10.0 ** (np.floor(np.log10(abs(value))) - 1)
    return float(f"{(np.ceil if up else np.floor)(round(value / unit, 6)) * unit:.6g}")


def after_by_name(column: str) -> str:
    """Return the word in a column's name that speaks of a time after the outcome, or ""."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", column).lower())
    plain = " ".join(words)
    phrases = [p for p in _AFTER_PHRASES if f" {p} " in f" {plain} "]
    return next(iter([*phrases, *(word for word in words if word in _AFTER)]), "")


def knows_outcome(values: Floats, y: Floats) -> str:
    """Return why a column seems to know the outcome, or "".

    Args:
        values: ``(N,)``, NaN where missing.
        y: ``(N,)`` in {0, 1}, NaN where unknown.
    """
    for what, score in (("it", values), ("that it is missing", np.isnan(values) * 1.0)):
        use = ~np.isnan(score) & ~np.isnan(y)
        area = _auroc(score[use], y[use])
        if max(area, 1 - area) >= 0.99:
            return f"{what} alone ranks the outcome with AUROC {max(area, 1 - area):.3f}"
    return ""


def _auroc(score: Floats, y: Floats) -> float:
    ones = int((y == 1).sum())
    zeros = len(y) - ones
    if min(ones, zeros) < _FEWEST:
        return 0.5
    ranks = rankdata(score)
    return float((ranks[y == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))
