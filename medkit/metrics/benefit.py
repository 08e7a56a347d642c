"""Decision curves: is flagging by the model worth more than flagging everybody or nobody?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from medkit.metrics.checks import Codes, Floats, codes, labels_and_scores, probabilities
from medkit.metrics.intervals import mean, over
from medkit.record.results import Metric


@dataclass(frozen=True)
class NetBenefit:
    """One point of a decision curve; to treat nobody has net benefit 0.

    Attributes:
        threshold: Probability at or above which a patient is treated; its odds are how many
            needless treatments one needed treatment is worth.
        model: Net benefit of treating by the model [true positives per patient].
        treat_all: Net benefit of treating everybody.
        gain: ``model`` minus the better of ``treat_all`` and 0, on the same rows. Where its
            interval holds 0 the model is not shown to help at this threshold.
    """

    threshold: float
    model: Metric
    treat_all: Metric
    gain: Metric


def net_benefit(
    y: ArrayLike,
    prob: ArrayLike,
    thresholds: Iterable[float],
    *,
    level: float = 0.95,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> list[NetBenefit]:
    """Return the decision curve (Vickers and Elkin 2006), one point per threshold.

    Net benefit is true positives per row minus false positives per row times the threshold's odds,
    a mean over rows; intervals are normal ones of that mean.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        prob: Probability of label 1, ``(N,)``; it must be calibrated, as the threshold is a
            probability.
        thresholds: Each in (0, 1).
        level: Nominal coverage.
        groups: Patient of each row, ``(N,)``.
        strata: Site of each row, ``(N,)``.
    """
    labels, scores = labels_and_scores(y, prob)
    probabilities(scores, "net benefit")
    n = len(labels)
    owner = None if groups is None else codes(groups, n, "groups")
    stratum = None if strata is None else codes(strata, n, "strata")

    def metric(values: Floats, name: str) -> Metric:
        return _mean(values, name, level, owner, stratum)

    curve = []
    for threshold in thresholds:
        if not 0 < threshold < 1:
            raise ValueError(
                f"a threshold of net benefit must be between 0 and 1, got {threshold}. It is the "
                "probability at which treating and not treating are worth the same."
            )
        everybody = labels - (1 - labels) * threshold / (1 - threshold)
        model = everybody * (scores >= threshold)
        default = everybody if everybody.mean() > 0 else np.zeros(n)
        curve.append(
            NetBenefit(
                float(threshold),
                metric(model, "net benefit"),
                metric(everybody, "net benefit of treating all"),
                metric(model - default, "net benefit above the better default"),
            )
        )
    return curve


def _mean(
    values: Floats, name: str, level: float, owner: Codes | None, stratum: Codes | None
) -> Metric:
    value, low, high = mean(values, level=level, owner=owner, stratum=stratum)
    if low is None:
        return Metric(value, n=len(values), method=f"{name}; no interval from one row or patient")
    how = f"{name}, normal interval{over(owner)}"
    return Metric(value, low, high, level, len(values), method=how)
