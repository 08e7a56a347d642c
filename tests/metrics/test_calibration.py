from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import brier_score_loss

from medkit.metrics.calibration import brier, calibration_points


def test_brier_of_two_rows_by_hand() -> None:
    assert brier([1, 0], [0.8, 0.4]).value == pytest.approx((0.04 + 0.16) / 2)


def test_brier_equals_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    prob = draw.random(200)
    y = draw.random(200) < prob
    assert brier(y, prob).value == pytest.approx(brier_score_loss(y, prob), abs=1e-12)


def test_brier_interval_is_close_to_scipys_bootstrap() -> None:
    draw = np.random.default_rng(1)
    prob = draw.random(500)
    y = (draw.random(500) < prob).astype(float)
    got = brier(y, prob)
    want = bootstrap([(prob - y) ** 2], np.mean, rng=np.random.default_rng(2)).confidence_interval
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=0.002)


def test_brier_refuses_logits() -> None:
    with pytest.raises(ValueError, match=r"probabilities between 0 and 1; found -2 to 3.*sigmoid"):
        brier([0, 1], [-2.0, 3.0])


def test_calibration_points_hold_equally_many_rows_in_rising_order() -> None:
    prob = np.linspace(0.01, 0.99, 40)
    points = calibration_points((prob > 0.5).astype(int), prob, bins=4)
    assert [point.observed.n for point in points] == [10, 10, 10, 10]
    assert [point.prob for point in points] == sorted(point.prob for point in points)
    assert [point.observed.value for point in points] == [0.0, 0.0, 1.0, 1.0]


def test_calibration_points_lie_on_the_diagonal_for_true_probabilities() -> None:
    draw = np.random.default_rng(3)
    prob = draw.random(20_000)
    for point in calibration_points((draw.random(20_000) < prob).astype(int), prob):
        assert abs(point.prob - point.observed.value) < 0.05
