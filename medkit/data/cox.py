"""Penalised linear Cox regression: what a net for survival starts from, and must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medkit import keyed
from medkit.data.follow_up import require_events, require_follow_up
from medkit.data.hazard import BaselineHazard, breslow

Floats = NDArray[np.float64]
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_STEPS, _HALVINGS = 60, 40
_DECREMENT = 1e-12  # Newton's estimate of what is left to gain, per event
_FARTHEST = 100.0  # log relative hazards this far apart: the likelihood has no maximum


@dataclass(frozen=True, eq=False)
class CoxBaseline:
    """A fitted linear Cox model.

    Attributes:
        coef: Log hazard ratio per unit of each feature, ``(F,)``.
        l2: The penalty it was fitted with.
        hazard: Baseline hazard of the training patients.
    """

    coef: Floats
    l2: float
    hazard: BaselineHazard

    def risk(self, x: ArrayLike) -> Floats:
        """Return log relative hazards, ``(B, F)`` to ``(B,)``; higher dies earlier."""
        rows = np.asarray(x, np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.coef):
            raise ValueError(
                f"x must have the {len(self.coef)} columns that the model was fitted on, (B, F); "
                f"got shape {rows.shape}. Pass dm.rows(part).x, or dm.apply(table).x."
            )
        return rows @ self.coef

    def survival(self, x: ArrayLike, horizon: float) -> Floats:
        """Return P(no event until ``horizon``) of each row, ``(B, F)`` to ``(B,)``."""
        return self.hazard.survival(self.risk(x), horizon)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint that loads with weights_only=True can hold."""
        return {"coef": self.coef.tolist(), "l2": self.l2, "hazard": self.hazard.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> CoxBaseline:
        """Rebuild from :meth:`state`."""
        hazard = BaselineHazard.from_state(state["hazard"])
        return cls(np.array(state["coef"], np.float64), float(state["l2"]), hazard)


def fit_cox(x: ArrayLike, time: ArrayLike, event: ArrayLike, *, l2: float = 0.0) -> CoxBaseline:
    """Fit by Newton's method, ties after Efron (1977).

    What is made small is the mean negative log partial likelihood per event plus
    ``l2 / 2 * |coef|^2``, the loss of ``LitCox`` with the same ``l2``.

    Args:
        x: Training rows, ``(N, F)``, columns of about unit variance where ``l2`` is not 0.
        time: Time of the event or of the last look, ``(N,)``.
        event: 1 where it was the event, ``(N,)``.
        l2: Strength of the penalty, per event. :func:`choose_l2` picks one.

    Raises:
        ValueError: For bad times, fewer than two events, or a fit without a maximum.
    """
    times, events = require_follow_up(time, event, part="training")
    require_events(events, part="training")
    if not l2 >= 0:
        raise ValueError(f"l2 must not be negative, got {l2}. 0 is no penalty, 0.1 a common one.")
    likelihood = PartialLikelihood(x, times, events)
    coef = np.zeros(likelihood.x.shape[1])
    now = likelihood.at(coef)
    for _ in range(_STEPS):
        gradient = now.gradient + l2 * coef
        curvature = now.hessian + l2 * np.eye(len(coef))
        # least squares: columns that repeat each other share, constant ones stay at 0
        step = np.linalg.lstsq(curvature, gradient, rcond=1e-12)[0]
        left = float(gradient @ step)
        if left < _DECREMENT:
            return CoxBaseline(coef, l2, breslow(times, events, np.asarray(x) @ coef))
        before = now.loss + l2 / 2 * coef @ coef
        for halving in range(_HALVINGS):
            trial = coef - step * 0.5**halving
            then = likelihood.at(trial)
            if then.loss + l2 / 2 * trial @ trial < before:
                break
        else:  # rounding: no shorter step gains anything either
            return CoxBaseline(coef, l2, breslow(times, events, np.asarray(x) @ coef))
        coef, now = trial, then
        if float(np.ptp(likelihood.x @ coef)) > _FARTHEST:
            break
    raise _RanAwayError(
        "Cox regression must have one best fit, and the coefficients ran away (largest "
        f"{np.abs(coef).max():.3g} with l2={l2:g}): some columns tell apart all who had the event, "
        f"with {int(events.sum())} events for {len(coef)} columns. Pass a larger l2, such as 0.1."
    )


class _RanAwayError(ValueError):
    """A likelihood without a maximum."""


class Derivatives(NamedTuple):
    """Mean negative log partial likelihood per event, its gradient and second derivative."""

    loss: float
    gradient: Floats
    hessian: Floats


class PartialLikelihood:
    """Cox's partial likelihood of a table, ties after Efron (1977), as a function of ``coef``."""

    def __init__(self, x: ArrayLike, time: Floats, event: Floats) -> None:
        rows, n = np.asarray(x, np.float64), len(time)
        if rows.ndim != 2 or len(rows) != n or rows.size == 0 or not np.isfinite(rows).all():
            raise ValueError(
                "x must be a finite table of one column at least and a row per time; got shape "
                f"{rows.shape} for {n} times. Fill gaps first: dm.rows('train').x has none."
            )
        order = np.argsort(time, kind="stable")
        self.x = rows[order]
        self.event = event[order] > 0
        at = time[order]
        self.first = np.searchsorted(at, at)  # of those with the same time
        after = np.searchsorted(at, at, side="right")
        counted = np.append(0, np.cumsum(self.event))
        tied = counted[after] - counted[self.first]
        place = counted[:-1] - counted[self.first]
        self.events = int(self.event.sum())
        self.share = (place / np.maximum(tied, 1))[self.event]  # 0, 1/d, 2/d, ... of those tied
        self.after = after

    def at(self, coef: Floats, *, loss_only: bool = False) -> Derivatives:
        """Return loss and derivatives at ``coef``."""
        eta = self.x @ coef
        top = float(eta.max())
        weight = np.exp(np.maximum(eta - top, -700.0))
        phi = self._over_risk(weight)
        loss = float(np.sum(np.log(phi) + top - eta[self.event])) / self.events
        if loss_only:
            return Derivatives(loss, np.empty(0), np.empty(0))
        # how much of each patient stands in all denominators together
        whole = np.zeros(len(eta))
        np.add.at(whole, self.first[self.event], 1 / phi)
        part = np.zeros(len(eta))
        np.add.at(part, self.first[self.event], self.share / phi)
        in_all = np.cumsum(whole)[self.after - 1] - self.event * part[self.first]
        weighted = weight * in_all
        gradient = self.x.T @ (weighted - self.event) / self.events
        means = np.column_stack([self._over_risk(weight * c) / phi for c in self.x.T])
        hessian = (self.x.T @ (weighted[:, None] * self.x) - means.T @ means) / self.events
        return Derivatives(loss, gradient, hessian)

    def _over_risk(self, values: Floats) -> Floats:
        """Sum over each event's risk set, less Efron's share of those tied: ``(events,)``."""
        rising = np.cumsum(values[::-1])[::-1]
        of_tied = np.zeros(len(values))
        np.add.at(of_tied, self.first, values * self.event)
        at = self.first[self.event]
        return rising[at] - self.share * of_tied[at]


def choose_l2(
    x: ArrayLike,
    time: ArrayLike,
    event: ArrayLike,
    *,
    l2s: Sequence[float] = PENALTIES,
    folds: int = 5,
    repeats: int = 1,
    split_seed: int = 0,
) -> tuple[float, dict[float, float]]:
    """Choose a penalty on training patients alone, by cross-validated partial likelihood.

    A fold's score is the log partial likelihood of all less that of those fitted on (Verweij and
    van Houwelingen 1993), so that held-out patients meet full risk sets: it is defined, and far
    less noisy than a c-index, with a handful of events a fold.

    Returns:
        The best of ``l2s``, and the score per event of each (higher is better).

    Raises:
        ValueError: When there is nothing to choose from or by.
    """
    if repeats < 1 or len(l2s) == 0:
        raise ValueError(
            "a penalty is chosen among one at least, by one round of folds at least; got "
            f"l2s={list(l2s)} and repeats={repeats}. Leave both at their defaults."
        )
    times, events = require_follow_up(time, event, part="training")
    rows = np.asarray(x, np.float64)
    every = PartialLikelihood(rows, times, events)
    scores = dict.fromkeys(l2s, 0.0)
    for repeat in range(repeats):
        fold = event_folds(events, folds=folds, split_seed=split_seed, repeat=repeat)
        for held in range(folds):
            kept = fold != held
            inside = PartialLikelihood(rows[kept], times[kept], events[kept])
            for l2 in l2s:
                try:
                    coef = fit_cox(rows[kept], times[kept], events[kept], l2=l2).coef
                except _RanAwayError:  # too weak for these columns: never the best
                    scores[l2] = -np.inf
                    continue
                gain = every.at(coef, loss_only=True).loss * every.events
                gain -= inside.at(coef, loss_only=True).loss * inside.events
                scores[l2] -= gain / (every.events * repeats)
    return max(scores, key=lambda l2: scores[l2]), scores


def event_folds(
    event: Floats, *, folds: int, split_seed: int, repeat: int = 0
) -> NDArray[np.int64]:
    """Deal patients into folds with as many events in each as goes, ``(N,)`` fold numbers."""
    if not 2 <= folds <= int((event > 0).sum()):
        raise ValueError(
            f"folds must be between 2 and the number of events, {int((event > 0).sum())}; got "
            f"{folds}. Each fold needs an event."
        )
    draw = keyed.generator(split_seed, "split", "cox folds", repeat)
    order = draw.permutation(len(event))
    order = order[np.argsort(-event[order], kind="stable")]
    fold = np.empty(len(event), np.int64)
    fold[order] = np.arange(len(event)) % folds
    return fold
