"""The numbers every model is reported with, named for metrics.json."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from medkit.metrics import thresholds
from medkit.metrics.calibration import brier, ece, slope_and_intercept
from medkit.metrics.checks import labels_and_scores, named_codes
from medkit.metrics.comparison import auroc_difference
from medkit.metrics.discrimination import auprc, auroc, prevalence
from medkit.metrics.survival import brier_at, calibration_at, harrell_c, uno_c
from medkit.metrics.within import auroc_difference_within, auroc_within
from medkit.record.results import Metric

_LINE = ("calibration_slope", "calibration_intercept")


def binary(
    y: ArrayLike,
    prob: ArrayLike,
    *,
    stage: str,
    seed: int = 0,
    groups: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    threshold: float | None = None,
    calibration: bool = False,
    draws: int = 1000,
) -> dict[str, Metric]:
    """Return the numbers of a binary model as ``stage/name``, each with its interval.

    ``auroc``, ``auprc``, ``prevalence`` and ``brier``; on request ``calibration_slope``,
    ``calibration_intercept`` and ``ece``; with a threshold ``sensitivity``, ``specificity``,
    ``ppv``, ``f1`` and ``flagged``.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        prob: Probability of label 1, ``(N,)``.
        stage: Such as "val", "test" or "test/site_b".
        seed: Decides what is drawn (for ECE's interval).
        groups: Patient of each row, ``(N,)``: rows of one patient are not independent.
        strata: Site of each row, ``(N,)``: other patients of the same sites, in the same shares.
        threshold: Chosen on other rows (:func:`medkit.metrics.thresholds.choose`).
        calibration: Report slope, intercept and ECE as well.
        draws: How many.

    Raises:
        ValueError: When a class is missing; :func:`by_group` reports such rows.
    """
    found = {
        "auroc": auroc(y, prob, groups=groups),
        "auprc": auprc(y, prob, groups=groups, strata=strata),
        "prevalence": prevalence(y, groups=groups),
        "brier": brier(y, prob, groups=groups, strata=strata),
    }
    if calibration:
        line = slope_and_intercept(y, prob, groups=groups, strata=strata)
        found |= dict(zip(_LINE, line, strict=True))
        found["ece"] = ece(y, prob, seed=seed, draws=draws, groups=groups)
    if threshold is not None:
        found |= thresholds.at(y, prob, threshold, groups=groups)
    return {f"{stage}/{name}": metric for name, metric in found.items()}


def compared(
    y: ArrayLike,
    probs: Mapping[str, ArrayLike],
    *,
    stage: str,
    seed: int = 0,
    groups: ArrayLike | None = None,
    within: ArrayLike | None = None,
    threshold: float | Mapping[str, float] | None = None,
    calibration: bool = False,
    draws: int = 1000,
) -> dict[str, Metric]:
    """Return a model's numbers beside its rivals' on the same rows, and what lies between them.

    ``stage/auroc``, ... of the model, ``stage/<rival>/auroc``, ... of each rival (as
    :func:`binary`), and ``stage/auroc_minus_<rival>`` with the paired interval::

        said = ensemble.test()
        rivals = {"logistic": said.baseline, "boosting": ensemble.boosting("test")}
        compared(said.y, {"": said.prob, **rivals}, stage="test", groups=patients)

    Rows of one class only keep what can be had of them; the rest is NaN and says why.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        probs: Name -> probability of label 1, ``(N,)``; the model's own name is "".
        stage: Such as "test" or "test/site_b".
        seed: Decides what is drawn (for ECE's interval).
        groups: Patient of each row, ``(N,)``.
        within: Place of each row, ``(N,)``, where each was scored by a model of its own, as where
            each hospital is left out in turn. Of several places only rows of the same one are
            ranked against each other (:mod:`medkit.metrics.within`), there is no ``auprc``, and
            other numbers are about patients of the same places, in the same shares.
        threshold: Chosen on other rows; one for all, or each its own by name.
        calibration: Report slope, intercept and ECE as well.
        draws: How many.

    Raises:
        ValueError: Where "" is not among ``probs``.
    """
    if "" not in probs:
        raise ValueError(
            f'probs must hold the model itself under the name "" beside its rivals; found '
            f'{sorted(probs)}. Pass {{"": prob, "logistic": baseline}}.'
        )
    labels = np.asarray(y)
    one_class = len(np.unique(labels)) < 2
    if within is not None and len(named_codes(within, len(labels), "within")[0]) < 2:
        within = None
    found: dict[str, Metric] = {}
    for name, prob in probs.items():
        own = threshold.get(name) if isinstance(threshold, Mapping) else threshold
        whose = f"{stage}/{name}" if name else stage
        found |= _scored(
            labels,
            prob,
            stage=whose,
            seed=seed,
            groups=groups,
            strata=within,
            threshold=own,
            calibration=calibration,
            draws=draws,
        )
        if within is not None:
            found[f"{whose}/auroc"] = auroc_within(labels, prob, within, groups=groups)
            del found[f"{whose}/auprc"]
        if not name:
            continue
        gap = Metric(float("nan"), n=len(labels), method="AUROC difference; one class only")
        if within is not None:
            gap = auroc_difference_within(labels, probs[""], prob, within, groups=groups)
        elif not one_class:
            gap = auroc_difference(labels, probs[""], prob, groups=groups)
        found[f"{stage}/auroc_minus_{name}"] = gap
    return found


def by_group(
    y: ArrayLike,
    prob: ArrayLike,
    group: ArrayLike,
    *,
    stage: str,
    seed: int = 0,
    groups: ArrayLike | None = None,
    threshold: float | None = None,
    calibration: bool = False,
    draws: int = 1000,
) -> dict[str, Metric]:
    """Return what :func:`binary` does for each site or subgroup, as ``stage/<group>/name``.

    A group of one class only has a prevalence, a Brier score, an ECE and what can be had at the
    threshold; its other numbers are NaN and their ``method`` says why, so that it stays in the
    table.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        prob: Probability of label 1, ``(N,)``.
        group: Site, sex, age band, ... of each row, ``(N,)``. In names, characters other than
            letters, digits, "_", "-" and "." become "_".
        stage: Such as "test".
        seed: Decides what is drawn (for ECE's interval).
        groups: Patient of each row, ``(N,)``.
        threshold: Chosen on other rows.
        calibration: Report slope, intercept and ECE as well.
        draws: How many.

    Raises:
        ValueError: When a row has no group, or two groups would get the same name.
    """
    labels, scores = labels_and_scores(y, prob)
    ids, code = named_codes(group, len(labels), "group")
    names = [re.sub(r"[^A-Za-z0-9_.-]", "_", str(one)) or "_" for one in ids]
    if len(set(names)) < len(names):
        raise ValueError(
            f"groups must differ in more than punctuation; found {ids}, which become {names}. "
            "Rename them."
        )
    owner = None if groups is None else np.asarray(groups)
    found: dict[str, Metric] = {}
    for number, name in enumerate(names):
        rows = code == number
        whose = None if owner is None else owner[rows]
        found |= _scored(
            labels[rows],
            scores[rows],
            stage=f"{stage}/{name}",
            seed=seed,
            groups=whose,
            strata=None,
            threshold=threshold,
            calibration=calibration,
            draws=draws,
        )
    return found


def survival(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    *,
    stage: str,
    prob: ArrayLike | None = None,
    horizon: float | None = None,
    tau: float | None = None,
    groups: ArrayLike | None = None,
) -> dict[str, Metric]:
    """Return ``stage/harrell_c`` and ``stage/uno_c``, and with a horizon what its risks are worth.

    Those are ``calibration_slope``, ``calibration_intercept``, ``observed`` (1 - Kaplan-Meier),
    ``predicted`` (the mean risk) and ``brier``, all at the horizon.

    Args:
        time: Time to the event or the end of follow-up, ``(N,)``.
        event: 1 where it happened, 0 where censored, ``(N,)``.
        risk: Higher means sooner, ``(N,)``.
        stage: Such as "test".
        prob: Predicted probability of the event by ``horizon``, ``(N,)``.
        horizon: In the unit of ``time``.
        tau: Uno's c counts events before it.
        groups: Patient of each row, ``(N,)``.

    Raises:
        ValueError: When one of ``prob`` and ``horizon`` is given without the other.
    """
    found = {
        "harrell_c": harrell_c(time, event, risk, groups=groups),
        "uno_c": uno_c(time, event, risk, tau=tau, groups=groups),
    }
    if (prob is None) != (horizon is None):
        raise ValueError(
            "prob and horizon go together: a risk is a probability of the event by some time; got "
            f"{'no prob' if prob is None else 'no horizon'}. Pass both or neither."
        )
    if prob is not None and horizon is not None:
        there = calibration_at(time, event, prob, horizon, groups=groups)
        n = there.observed.n
        found |= {
            "calibration_slope": there.slope,
            "calibration_intercept": there.intercept,
            "observed": there.observed,
            "predicted": Metric(there.predicted, n=n, method=f"mean risk by {horizon:g}"),
            "brier": brier_at(time, event, prob, horizon, groups=groups),
        }
    return {f"{stage}/{name}": metric for name, metric in found.items()}


def _scored(
    y: ArrayLike,
    prob: ArrayLike,
    *,
    stage: str,
    seed: int,
    groups: ArrayLike | None,
    strata: ArrayLike | None,
    threshold: float | None,
    calibration: bool,
    draws: int,
) -> dict[str, Metric]:
    """Return :func:`binary`, or what can be had of rows that all have the same label."""
    labels, scores = labels_and_scores(y, prob)
    n = len(labels)
    if 0 < labels.sum() < n:
        return binary(
            labels,
            scores,
            stage=stage,
            seed=seed,
            groups=groups,
            strata=strata,
            threshold=threshold,
            calibration=calibration,
            draws=draws,
        )
    why = f"no value: all {n} rows have label {labels[0]:.0f}"
    found = {
        name: Metric(float("nan"), n=n, method=f"{name}; {why}")
        for name in ("auroc", "auprc", *(_LINE if calibration else ()))
    }
    found["prevalence"] = prevalence(labels, groups=groups)
    found["brier"] = brier(labels, scores, groups=groups)
    if calibration:
        found["ece"] = ece(labels, scores, groups=groups, seed=seed, draws=draws)
    if threshold is not None:
        found |= thresholds.at(labels, scores, threshold, groups=groups)
    return {f"{stage}/{name}": metric for name, metric in found.items()}
