"""Free-response ROC (FROC): how many nodules are found at how many false positives a scan.

As the LUNA16 challenge defines it (Setio et al. 2017, Medical Image Analysis)::

    found = match(candidates, nodules, excluded, exams=scans)  # tables with x, y, z in mm
    said = froc(found)
    said.cpm  # 0.804 [0.771, 0.836]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medkit.metrics import resample
from medkit.metrics.checks import Codes, Floats, codes, labels_and_scores
from medkit.metrics.detection_match import FALSE, IGNORED, Matched, coded, match
from medkit.metrics.intervals import two_sided
from medkit.record.results import Metric

__all__ = ["FALSE", "FROC", "IGNORED", "RATES", "Matched", "froc", "froc_of_labels", "match"]

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_GRID = 2.0 ** np.linspace(-3, 3, 49)  # eight steps an octave


class Curve(NamedTuple):
    """A point for each distinct score: false positives a scan, and sensitivity, at or above it."""

    false_per_scan: Floats
    sensitivity: Floats
    score: Floats


class Band(NamedTuple):
    """Pointwise limits of the sensitivity at false positives a scan from 1/8 to 8."""

    false_per_scan: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, eq=False)
class FROC:
    """A FROC curve.

    Attributes:
        points: False positives a scan -> sensitivity; ``n`` counts nodules.
        cpm: Competition performance metric: the mean sensitivity at these rates.
        curve: All of it, as measured.
        band: None where there is no interval.
        nodules: How many.
        scans: How many.
    """

    points: dict[float, Metric]
    cpm: Metric
    curve: Curve
    band: Band | None
    nodules: int
    scans: int

    def metrics(self, stage: str) -> dict[str, Metric]:
        """Return ``stage/cpm``, ``stage/sensitivity_at_0.125_fp``, ... for metrics.json."""
        named = {f"{stage}/sensitivity_at_{rate:g}_fp": m for rate, m in self.points.items()}
        return {f"{stage}/cpm": self.cpm, **named}


def froc(
    matched: Matched,
    *,
    rates: Sequence[float] = RATES,
    groups: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> FROC:
    """Return the sensitivity at each rate of false positives, and the mean of these (CPM).

    Of several candidates on a nodule the best counts and the others are ignored. As in LUNA16 a
    point between two scores is interpolated, which matters for ties alone, and past the last false
    positive the curve is flat: such a point is free, and its ``method`` says so. Intervals are
    percentiles over resampled scans, as LUNA16's. On made-up candidates of 20 to 300 scans those
    of CPM covered 90 to 94 % where 95 was meant.

    Args:
        matched: From :func:`match`.
        rates: False positives a scan.
        groups: Patient of each of ``matched.exams``, where some have several: they are drawn whole.
        seed: Decides the resamples.
        draws: Resamples.
        level: Nominal coverage.

    Raises:
        ValueError: Without nodules, where there is no sensitivity.
    """
    nodules, scans, wanted = len(matched.nodule_score), len(matched.exams), list(rates)
    if not nodules or not wanted or not all(0 <= rate < np.inf for rate in wanted):
        raise ValueError(
            "a FROC curve needs nodules, and rates of 0 or more false positives a scan; found "
            f"{nodules} nodules in {scans} scans, and rates {wanted}. Without nodules report the "
            "false positives a scan at a threshold."
        )
    two_sided(level)
    marks = _Marks(matched)
    at = np.array([*wanted, *_GRID])
    value = marks.sensitivity(np.ones((1, scans)), at)[0, : len(wanted)]
    owner = None if groups is None else codes(groups, scans, "groups")
    units, of = (scans, "scan") if owner is None else (int(owner.max()) + 1, "patient")
    samples = _resampled(marks, at, owner, seed, draws) if units > 1 else None
    tails = [(1 - level) / 2, (1 + level) / 2]

    def metric(number: float, drawn: Floats | None, name: str) -> Metric:
        how = f"{name}; {nodules} nodules in {scans} scans"
        if drawn is None:
            return Metric(number, n=nodules, method=f"{how}; no interval from one {of}")
        if np.ptp(drawn) == 0:
            return Metric(number, n=nodules, method=f"{how}; no interval: resamples all alike")
        low, high = np.quantile(drawn, tails).tolist()
        how += f"; percentile bootstrap over {units} {of}s"
        return Metric(number, low, high, level, nodules, method=how)

    curve, points = marks.curve(), {}
    most = curve.false_per_scan[-1]
    for number, rate in enumerate(wanted):
        name = f"sensitivity at {rate:g} false positives a scan"
        if rate > most:
            name += f" (free: there are only {most:.3g})"
        drawn = None if samples is None else samples[:, number]
        points[float(rate)] = metric(float(value[number]), drawn, name)
    drawn = None if samples is None else samples[:, : len(wanted)].mean(axis=1)
    cpm = metric(float(value.mean()), drawn, f"mean sensitivity at {len(wanted)} rates")
    band = None
    if samples is not None:
        low, high = np.quantile(samples[:, len(wanted) :], tails, axis=0)
        band = Band(_GRID, low, high)
    return FROC(points, cpm, curve, band, nodules, scans)


def froc_of_labels(
    exam: ArrayLike,
    y: ArrayLike,
    score: ArrayLike,
    *,
    exams: ArrayLike | None = None,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> FROC:
    """Return the FROC curve of candidates whose label is known, each positive one a nodule.

    Warning: this measures the classifier, not the detector. Nodules without a candidate don't
    count, and with few candidates a scan the points at many false positives are free: of 20 a
    scan, 8 is nearly half of them. Compare such a CPM only on the same candidates.

    Args:
        exam: Of each candidate, ``(N,)``.
        y: 1 for a nodule, 0 for anything else, ``(N,)``; several rows of one nodule are several.
        score: Higher means likelier a nodule, ``(N,)``.
        exams: All exams, where some have no candidate.
        rates: As in :func:`froc`.
        seed: Decides the resamples.
        draws: Resamples.
        level: Nominal coverage.
    """
    labels, scores = labels_and_scores(y, score)
    names = np.asarray(exam)
    codes(names, len(labels), "exam")
    ids, (of, _, _) = coded(exams, names, names[:0], names[:0])
    nodule = labels == 1
    on = np.where(nodule, np.cumsum(nodule) - 1, FALSE)
    found = Matched(ids, of[nodule], scores[nodule], of, scores, on)
    return froc(found, rates=rates, seed=seed, draws=draws, level=level)


class _Marks:
    """Nodules that are found and false positives, from the highest score down."""

    def __init__(self, matched: Matched) -> None:
        found, false = matched.nodule_score > -np.inf, matched.candidate_on == FALSE
        score = np.append(matched.nodule_score[found], matched.candidate_score[false])
        exam = np.append(matched.nodule_exam[found], matched.candidate_exam[false])
        order = np.argsort(-score, kind="stable")
        self.score, self.exam, self.hit = score[order], exam[order], (order < found.sum()) * 1.0
        self.ends = np.flatnonzero(np.diff(self.score, append=np.nan) != 0)  # last of equal ones
        self.nodules = np.bincount(matched.nodule_exam, minlength=len(matched.exams)) * 1.0

    def counts(self, weight: Floats, most: float = np.inf) -> tuple[Floats, Floats]:
        """Return false positives and hits at or above each score, until more than ``most`` false.

        Only the first are looked at where they are enough: of 750,000 candidates of LUNA16 a few
        thousand lie before the eighth false positive a scan.
        """
        for part in (int(min(4 * most + 1000, len(self.ends))), len(self.ends)):
            ends = self.ends[:part]
            each = weight[self.exam[: ends[-1] + 1 if part else 0]]
            hits = np.cumsum(each * self.hit[: len(each)])[ends]
            false = np.cumsum(each)[ends] - hits
            if part and false[-1] > most:
                break
        return np.append(0.0, false), np.append(0.0, hits)

    def sensitivity(self, weights: Floats, rates: Floats) -> Floats:
        """Return the sensitivity at each rate, ``(B, R)``; NaN where a resample has no nodule."""
        out = np.full((len(weights), len(rates)), np.nan)
        for row, (weight, nodules) in enumerate(zip(weights, weights @ self.nodules, strict=True)):
            if nodules:
                at = rates * weight.sum()
                out[row] = np.interp(at, *self.counts(weight, float(at.max()))) / nodules
        return out

    def curve(self) -> Curve:
        """Return the curve of the scans as they are."""
        false, hits = self.counts(np.ones(len(self.nodules)))
        score = np.append(np.inf, self.score[self.ends])
        return Curve(false / len(self.nodules), hits / self.nodules.sum(), score)


def _resampled(marks: _Marks, rates: Floats, owner: Codes | None, seed: int, draws: int) -> Floats:
    """Return the sensitivities of resampled scans, ``(draws, R)``; those without nodule anew."""
    if draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}. 1,000 is usual.")
    found: list[Floats] = []
    have = tried = 0
    for weights in resample.blocks(len(marks.nodules), groups=owner, seed=seed):
        values = marks.sensitivity(weights, rates)
        found.append(values[np.isfinite(values[:, 0])])
        have, tried = have + len(found[-1]), tried + len(values)
        if have >= draws or tried >= 10 * draws:
            break
    if have < draws:
        raise ValueError(
            f"most resamples must have a nodule; {have} of {tried} had. There are too few scans "
            "with nodules: score a larger part."
        )
    return np.concatenate(found)[:draws]
