"""Numbers that can't be had: no interval from one patient, and words for what is no question."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from medkit import keyed
from medkit.metrics.calibration import ece, slope_and_intercept
from medkit.metrics.discrimination import auprc, auroc
from medkit.metrics.resample import bootstrap, interval
from medkit.metrics.survival import calibration_at, harrell_c, kaplan_meier, uno_c
from medkit.record.results import Metric

DRAW = keyed.generator(0, "test", "bad input")
Y = np.arange(100) % 5 % 2
PROB = np.clip(0.4 + 0.1 * (Y - 0.5) + 0.2 * DRAW.normal(size=100), 0.01, 0.99)
TIME = DRAW.exponential(100, 100)
ONE = np.zeros(100)

NUMBERS: dict[str, Callable[[np.ndarray | None], Metric]] = {
    "AUROC": lambda groups: auroc(Y, PROB, groups=groups),
    "AUPRC": lambda groups: auprc(Y, PROB, groups=groups),
    "AUPRC by the bootstrap": lambda groups: auprc(Y, PROB, groups=groups, interval="bootstrap"),
    "slope": lambda groups: slope_and_intercept(Y, PROB, groups=groups)[0],
    "intercept": lambda groups: slope_and_intercept(Y, PROB, groups=groups)[1],
    "ECE": lambda groups: ece(Y, PROB, groups=groups),
    "Harrell's c": lambda groups: harrell_c(TIME, Y, PROB, groups=groups),
    "Uno's c": lambda groups: uno_c(TIME, Y, PROB, groups=groups),
    "slope at a horizon": lambda groups: calibration_at(TIME, Y, PROB, 50, groups=groups).slope,
}


@pytest.mark.parametrize("name", list(NUMBERS))
def test_rows_of_one_patient_give_a_value_and_no_interval(name: str) -> None:
    found = NUMBERS[name](ONE)
    assert found.value == pytest.approx(NUMBERS[name](None).value)
    assert (found.low, found.high) == (None, None)
    assert "no interval" in found.method


@pytest.mark.parametrize("time", [-1.0, float("nan")])
def test_a_curve_has_no_value_before_its_start(time: float) -> None:
    with pytest.raises(ValueError, match=r"must be 0 or later, got .* Times count from the start"):
        kaplan_meier(TIME, Y).at(time)


def test_a_bootstrap_of_no_rows_is_refused() -> None:
    for call in (bootstrap, interval):
        with pytest.raises(ValueError, match=r"needs rows to draw, got n=0\. Leave the part out"):
            call(lambda weights: weights.sum(axis=1), 0)


def test_a_statistic_of_one_number_for_all_resamples_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"B values, one per resample; got shape \(\) for \(1, 9\)"
    ):
        interval(lambda weights: weights.mean(), 9)


def test_an_ece_compared_with_no_calibrated_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"draws must be at least 2, got 0\. 1,000 is usual"):
        ece(Y, PROB, draws=0)
