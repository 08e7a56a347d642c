"""The logistic regression behind calibration slope and intercept, weighted where need be."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.special import expit, logit

from medkit.metrics.checks import Floats

_STEPS = 100
_LEAP = 4.0  # log odds a step may move any row
_CLOSE = 1e-18  # what another step would add to the log-likelihood, relative to it
_CUT = 1e-7  # what a float32 sigmoid can tell from 1


@dataclass(frozen=True)
class Fit:
    """A fitted logistic regression.

    Attributes:
        coef: Coefficients, ``(K,)``.
        covariance: Of ``coef`` if the model were right (inverse information), ``(K, K)``.
        parts: What each row adds to ``coef``, ``(N, K)``; the variance of their sum is the
            sandwich's (White 1982), right for a wrong model as well.
    """

    coef: Floats
    covariance: Floats
    parts: Floats


def log_odds(prob: Floats) -> Floats:
    """Return log odds; probabilities are cut at 1e-7 and 1 - 1e-7."""
    return np.asarray(logit(np.clip(prob, _CUT, 1 - _CUT)))


def overlap(labels: Floats, x: Floats) -> bool:
    """Return whether a logistic regression on one column has a finite solution.

    It has one unless some value of ``x`` parts ones and zeros (Albert and Anderson 1984).
    """
    ones, zeros = x[labels == 1], x[labels == 0]
    if not len(ones) or not len(zeros):
        return False
    return bool(ones.min() < zeros.max() and zeros.min() < ones.max())


def fit_logistic(
    labels: Floats,
    columns: Floats,
    *,
    offset: Floats | float = 0.0,
    weights: Floats | float = 1.0,
) -> Fit:
    """Maximise the likelihood by Newton's method with step halving.

    Args:
        labels: 0 and 1, ``(N,)``.
        columns: ``(N, K)``, the intercept's ones among them.
        offset: Known part of the log odds, ``(N,)``.
        weights: Of the rows, ``(N,)``.

    Raises:
        FloatingPointError: When it does not converge: the classes overlap too little.
    """

    def log_likelihood(eta: Floats) -> float:
        return float(np.sum(weights * -np.logaddexp(0, (1 - 2 * labels) * eta)))

    coef = np.zeros(columns.shape[1])
    now = log_likelihood(columns @ coef + offset)
    for _ in range(_STEPS):
        prob = expit(columns @ coef + offset)
        slopes = columns * np.broadcast_to(weights * (labels - prob), labels.shape)[:, None]
        curvature = np.broadcast_to(weights * prob * (1 - prob), labels.shape)
        information = (columns * curvature[:, None]).T @ columns
        try:
            covariance = np.linalg.inv(information)
        except np.linalg.LinAlgError:
            break
        step = covariance @ slopes.sum(0)
        if float(step @ slopes.sum(0)) < _CLOSE * (1 + abs(now)):
            return Fit(coef, covariance, slopes @ covariance)
        # where all probabilities are near 0 or 1 the curvature is none, and Newton leaps away
        step = step * min(1.0, _LEAP / float(np.abs(columns @ step).max()))
        for _ in range(40):
            found = log_likelihood(columns @ (coef + step) + offset)
            if found >= now - 1e-12 * (1 + abs(now)):
                break
            step = step / 2
        coef, now = coef + step, found
    raise FloatingPointError(
        f"logistic recalibration must converge; it had not after {_STEPS} steps, at coefficients "
        f"{np.round(coef, 3).tolist()}. Are the probabilities far from all outcomes? Score a "
        "larger part."
    )


def standardised(x: Floats, weights: Floats | float = 1.0) -> tuple[Floats, float]:
    """Return a column with mean 0 and sd 1, and the sd it had."""
    weights = np.broadcast_to(weights, x.shape)
    center = float(np.average(x, weights=weights))
    sd = sqrt(float(np.average((x - center) ** 2, weights=weights)))
    return (x - center) / sd, sd
