"""Where to flag, chosen on validation rows, and what flagging there does on others."""

from __future__ import annotations

import logging
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

from medkit.metrics.checks import Floats, both_classes, codes, labels_and_scores, probabilities
from medkit.metrics.intervals import share
from medkit.metrics.ranking import Ranking
from medkit.record.results import Metric

log = logging.getLogger(__name__)

RULES = ("expected_f1", "labels")
_FAR = 4.0  # standard errors between the mean probability and the prevalence


def choose(y: ArrayLike | None, prob: ArrayLike, *, rule: str = "expected_f1") -> float:
    """Return the threshold for F1; rows at or above it are flagged.

    A threshold tuned on the labels of few events is the largest source of spread in F1 between
    trainings; the label-free rule had a third of its spread, and a higher F1.

    Args:
        y: Labels 0 and 1 of the validation rows, ``(N,)``. "expected_f1" can do without (None):
            it only compares their share with the mean probability, and warns where they are far
            apart.
        prob: Probability of label 1, ``(N,)``, calibrated for "expected_f1" (balanced draws need
            their prior put back).
        rule: "expected_f1": half of the largest F1 to expect if each probability is right (Lipton
            2014). "labels": the largest F1 on these rows, half way down to the next probability.

    Raises:
        ValueError: When the rule is unknown, or asks for labels that are not there.
    """
    if rule not in RULES:
        raise ValueError(
            f"rule must be one of {list(RULES)}, got {rule!r}. 'expected_f1' is the default."
        )
    if y is None:
        if rule == "labels":
            raise ValueError(
                "rule 'labels' needs y, got None. Pass validation labels, or take 'expected_f1'."
            )
        y = np.zeros(np.shape(prob))
        known = False
    else:
        known = True
    labels, scores = labels_and_scores(y, prob)
    probabilities(scores, "a threshold for F1")
    if rule == "labels":
        both_classes(labels, "a threshold by labels")
        return _largest_f1(labels, scores)
    if known:
        _warn_if_uncalibrated(labels, scores)
    expected = scores.sum()
    if expected == 0:
        raise ValueError(
            "a threshold by expected F1 needs a probability above 0; all are 0. Pass the "
            "probabilities of a fitted model."
        )
    falling = np.sort(scores)[::-1]
    f1 = 2 * np.cumsum(falling) / (np.arange(1, len(scores) + 1) + expected)
    return float(f1.max() / 2)


def at(
    y: ArrayLike,
    prob: ArrayLike,
    threshold: float,
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> dict[str, Metric]:
    """Return sensitivity, specificity, ppv, f1 and flagged (a share) of flagging at a threshold.

    All intervals are Wilson's. F1 is F = 2J / (1 + J) of J, the share of true positives among the
    rows that are flagged or positive, so its limits are those of J carried over (Lam 2023). The
    threshold is taken as given: on the rows it was tuned on, F1 is too good.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        prob: What the threshold is for, ``(N,)``; rows at or above it are flagged.
        threshold: Finite.
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.
    """
    labels, scores = labels_and_scores(y, prob)
    if not np.isfinite(threshold):
        raise ValueError(
            f"threshold must be finite, got {threshold}. Choose one on validation rows: "
            "thresholds.choose(y, prob)."
        )
    owner = None if groups is None else codes(groups, len(labels), "groups")
    flagged = (scores >= threshold).astype(np.float64)

    def of(hit: Floats, among: Floats, name: str) -> Metric:
        return share(hit, among, f"{name} at {threshold:.4g}", level=level, owner=owner)

    either = np.maximum(labels, flagged)
    jaccard = of(labels * flagged, either, "F1")
    return {
        "sensitivity": of(labels * flagged, labels, "sensitivity"),
        "specificity": of((1 - labels) * (1 - flagged), 1 - labels, "specificity"),
        "ppv": of(labels * flagged, flagged, "PPV"),
        "f1": Metric(
            _f1(jaccard.value),
            None if jaccard.low is None else _f1(jaccard.low),
            None if jaccard.high is None else _f1(jaccard.high),
            jaccard.level,
            len(labels),
            method=jaccard.method,
        ),
        "flagged": of(flagged, np.ones(len(labels)), "share flagged"),
    }


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)


def _largest_f1(labels: Floats, scores: Floats) -> float:
    ranking = Ranking(labels, scores)
    hits, flagged = (side[0] for side in ranking.counts(np.ones((1, len(labels)))))
    distinct = scores[ranking.order][ranking.ends]  # falling
    best = int(np.argmax(2 * hits / (flagged + labels.sum())))
    below = distinct[best + 1] if best + 1 < len(distinct) else distinct[best]
    middle = float((distinct[best] + below) / 2)
    return middle if middle > below else float(distinct[best])  # neighbours in floating point


def _warn_if_uncalibrated(labels: Floats, scores: Floats) -> None:
    spread = sqrt(float(np.sum(scores * (1 - scores))))
    gap = float(np.sum(labels - scores))
    if abs(gap) > _FAR * spread:
        log.warning(
            "a threshold by expected F1 needs calibrated probabilities; they say %.3g on average "
            "and the labels %.3g. Put the prior of balanced draws back, or recalibrate.",
            scores.mean(),
            labels.mean(),
        )
