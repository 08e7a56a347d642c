"""What AUROC and AUPRC are made of: placements (DeLong) and counts above each score."""

from __future__ import annotations

import numpy as np

from medkit.metrics.checks import Codes, Floats


class Ranking:
    """Rows in falling order of score, to be counted under many sets of weights at once.

    Args:
        labels: 0 and 1, ``(N,)``.
        scores: Higher means likelier 1, ``(N,)``; equal scores stay together.
    """

    def __init__(self, labels: Floats, scores: Floats) -> None:
        self.order = np.argsort(-scores, kind="stable")
        self.ones = np.asarray(labels, np.float64)[self.order]
        steps = np.flatnonzero(np.diff(scores[self.order]))
        self.ends = np.append(steps, len(self.order) - 1)  # last row of each run of ties

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return, for each distinct score, the ones and the rows at or above it: ``(B, E)``."""
        sorted_weights = weights[:, self.order]
        flagged = np.cumsum(sorted_weights, axis=1)
        hits = np.cumsum(sorted_weights * self.ones, axis=1)
        if len(self.ends) < len(self.order):
            flagged, hits = flagged[:, self.ends], hits[:, self.ends]
        return hits, flagged

    def auroc(self, weights: Floats) -> Floats:
        """Return AUROC under each set of weights, ``(B,)``; NaN where a class is missing."""
        hits, flagged = self.counts(weights)
        alarms = flagged - hits
        above = hits - np.diff(hits, prepend=0.0) / 2  # a tie counts one half
        area = np.sum(np.diff(alarms, prepend=0.0) * above, axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(area / (hits[:, -1] * alarms[:, -1]))

    def average_precision(self, weights: Floats) -> Floats:
        """Return the average precision under each set of weights, ``(B,)``; NaN without ones."""
        hits, flagged = self.counts(weights)
        precision = np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
        with np.errstate(invalid="ignore"):
            area = np.sum(np.diff(hits, prepend=0.0) * precision, axis=1)
            return np.asarray(area / hits[:, -1])

    def average_precision_parts(self) -> tuple[float, Floats]:
        """Return average precision, and its derivative with respect to each row's weight, ``(N,)``.

        The derivatives are its influence values; they sum to 0.
        """
        hits, flagged = (side[0] for side in self.counts(np.ones((1, len(self.order)))))
        own, total = np.diff(hits, prepend=0.0), hits[-1]
        value = float(np.sum(own * hits / flagged) / total)
        # a row adds to hits and to flagged at its own score and at all scores below it
        through_hits = np.cumsum((own / flagged)[::-1])[::-1]
        through_flagged = np.cumsum((own * hits / flagged**2)[::-1])[::-1]
        score = np.repeat(np.arange(len(self.ends)), np.diff(self.ends, prepend=-1))
        slope = self.ones * (hits / flagged + through_hits - value)[score] - through_flagged[score]
        parts = np.empty(len(self.order))
        parts[self.order] = slope / total
        return value, parts


def placements(labels: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """Return for each one the share of zeros below it, and for each zero the share of ones above.

    Both have AUROC for mean; ties count one half. By mid-ranks (Sun and Xu 2014).
    """
    ones, zeros = scores[labels == 1], scores[labels == 0]
    m, n = len(ones), len(zeros)
    rank = _midranks(np.concatenate([ones, zeros]))
    return (rank[:m] - _midranks(ones)) / n, 1 - (rank[m:] - _midranks(zeros)) / m


def placement_variance(
    labels: Floats, above: Floats, below: Floats, owner: Codes | None = None
) -> float:
    """Return DeLong's variance (1988) of the mean placement; Obuchowski's (1997) with patients.

    Placements of one score give the variance of its AUROC; differences of the placements of two
    scores give that of the difference. NaN with one row (or patient) in a class.

    Args:
        labels: 0 and 1, ``(N,)``.
        above: Placements of the ones, in their order among the rows.
        below: Placements of the zeros, in theirs.
        owner: Patient of each row, from 0; one patient may have rows of both classes.
    """
    m, n = len(above), len(below)
    if owner is None:
        if min(m, n) < 2:
            return float("nan")
        return float(above.var(ddof=1) / m + below.var(ddof=1) / n)
    of_ones, of_zeros = owner[labels == 1], owner[labels == 0]
    many = int(owner.max()) + 1
    up = np.bincount(of_ones, above - above.mean(), minlength=many) / m
    down = np.bincount(of_zeros, below - below.mean(), minlength=many) / n
    i10, i01 = len(np.unique(of_ones)), len(np.unique(of_zeros))
    if min(i10, i01) < 2:
        return float("nan")
    spread = i10 / (i10 - 1) * np.sum(up**2) + i01 / (i01 - 1) * np.sum(down**2)
    return float(spread + 2 * many / (many - 1) * np.sum(up * down))


def _midranks(values: Floats) -> Floats:
    """Return ranks from 1, ties sharing their mean."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[inverse])
