from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import bootstrap
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from medkit.metrics.calibration import (
    brier,
    calibration_points,
    ece,
    expected_over_observed,
    slope_and_intercept,
)

Floats = NDArray[np.float64]


@pytest.fixture
def overconfident() -> tuple[Floats, Floats]:
    """400 rows of a model whose log odds are twice as far from 0 as they should be."""
    draw = np.random.default_rng(7)
    odds = draw.normal(-1, 1, 400)
    return (draw.random(400) < expit(odds)).astype(float), expit(2 * odds + 0.3)


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


def test_equal_probabilities_share_a_point_of_the_plot() -> None:
    points = calibration_points([0, 1, 0, 1, 1, 1], [0.2, 0.2, 0.2, 0.2, 0.9, 0.9], bins=3)
    assert [(point.prob, point.observed.n) for point in points] == [
        (pytest.approx(0.2), 4),
        (pytest.approx(0.9), 2),
    ]


def test_brier_interval_over_patients_ignores_copies_of_rows() -> None:
    draw = np.random.default_rng(4)
    prob = draw.random(100)
    y = (draw.random(100) < prob).astype(float)
    once = brier(y, prob)
    copied = brier(np.repeat(y, 5), np.repeat(prob, 5), groups=np.repeat(np.arange(100), 5))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=1e-12)


def test_brier_interval_within_sites_leaves_out_what_differs_between_them() -> None:
    site = np.repeat(["a", "b"], 50)
    y = np.repeat([0, 1], 50)  # squared errors 0.01 and 0.49: all spread is between sites
    prob = np.repeat([0.1, 0.3], 50)
    got = brier(y, prob, strata=site)
    assert (got.low, got.high) == pytest.approx((0.25, 0.25), abs=1e-9)
    assert brier(y, prob).high > 0.28  # type: ignore[operator]


def test_one_patient_gives_no_interval() -> None:
    got = brier([0, 1], [0.2, 0.3], groups=["x", "x"])
    assert got.low is None
    assert "one patient" in got.method


def test_slope_equals_scikit_learns_coefficient(overconfident: tuple[Floats, Floats]) -> None:
    y, prob = overconfident
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit(prob)[:, None], y)
    assert slope_and_intercept(y, prob)[0].value == pytest.approx(fitted.coef_[0, 0], abs=1e-5)


def test_intercept_brings_the_mean_probability_to_the_prevalence(
    overconfident: tuple[Floats, Floats],
) -> None:
    y, prob = overconfident
    want = brentq(lambda shift: np.mean(expit(logit(prob) + shift)) - y.mean(), -5, 5, xtol=1e-12)
    assert slope_and_intercept(y, prob)[1].value == pytest.approx(want, abs=1e-8)


def test_limits_of_slope_and_intercept_equal_the_sandwich_by_its_definition(
    overconfident: tuple[Floats, Floats],
) -> None:
    y, prob = overconfident
    slope, intercept = slope_and_intercept(y, prob)
    odds, n = logit(prob), len(y)
    fitted = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000).fit(odds[:, None], y)
    both = np.column_stack([np.ones(n), odds])
    for metric, x, right in (
        (slope, both, expit(fitted.intercept_[0] + fitted.coef_[0, 0] * odds)),
        (intercept, np.ones((n, 1)), expit(odds + intercept.value)),
    ):
        bread = np.linalg.inv(x.T @ np.diag(right * (1 - right)) @ x)
        meat = x.T @ np.diag((y - right) ** 2) @ x * n / (n - 1)
        half = 1.959964 * np.sqrt((bread @ meat @ bread)[-1, -1])
        want = (metric.value - half, metric.value + half)
        assert (metric.low, metric.high) == pytest.approx(want, abs=1e-4)


def test_slope_over_patients_ignores_copies_of_rows(overconfident: tuple[Floats, Floats]) -> None:
    y, prob = (np.repeat(column, 3) for column in overconfident)
    once = slope_and_intercept(*overconfident)
    copied = slope_and_intercept(y, prob, groups=np.repeat(np.arange(400), 3))
    for one, three in zip(once, copied, strict=True):
        assert (three.low, three.high) == pytest.approx((one.low, one.high), abs=1e-9)


@pytest.mark.parametrize("prob", [[0.1, 0.2, 0.7, 0.8], [0.3, 0.3, 0.3, 0.3]])
def test_where_no_finite_slope_exists_it_says_so(prob: list[float]) -> None:
    slope, intercept = slope_and_intercept([0, 0, 1, 1], prob)
    assert np.isnan(slope.value)
    assert "no finite slope" in slope.method
    assert np.isfinite(intercept.value)


def test_probabilities_of_0_and_1_are_cut_and_not_infinite() -> None:
    slope, intercept = slope_and_intercept([0, 1, 1, 0, 1], [0.0, 1.0, 0.0, 0.4, 0.6])
    assert np.isfinite([slope.value, intercept.value]).all()


@pytest.mark.parametrize("sure", [[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 0], [1e-9, 0.5, 1, 1]])
def test_the_intercept_of_a_model_that_is_all_but_sure_is_found(sure: list[float]) -> None:
    y, cut = np.array([1.0, 0, 1, 1]), logit(np.clip(sure, 1e-7, 1 - 1e-7))
    got = slope_and_intercept(y, sure)[1].value
    assert np.sum(expit(cut + got)) == pytest.approx(3, abs=1e-9)


def test_slope_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"calibration slope and intercept needs both classes"):
        slope_and_intercept([0, 0], [0.1, 0.2])


def test_ece_equals_the_definition_bin_by_bin(overconfident: tuple[Floats, Floats]) -> None:
    y, prob = overconfident
    order, want = np.argsort(prob), 0.0
    for start in range(0, 400, 40):
        rows = order[start : start + 40]
        want += 40 / 400 * abs(prob[rows].mean() - y[rows].mean())
    assert ece(y, prob).value == pytest.approx(want, abs=1e-12)


def test_ece_does_not_depend_on_the_order_of_rows_with_equal_probabilities() -> None:
    prob, y = np.repeat([0.2, 0.6], 10), np.tile([0, 1], 10)
    assert ece(y, prob, bins=4).value == pytest.approx(ece(np.sort(y), prob, bins=1).value + 0.1)
    shuffled = np.r_[np.random.default_rng(0).permutation(10), np.arange(10, 20)]
    assert ece(y[shuffled], prob[shuffled], bins=4) == ece(y, prob, bins=4)


def test_ece_interval_of_a_calibrated_model_holds_0_though_its_value_is_above() -> None:
    inside = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        prob = draw.beta(1, 5, 300)
        got = ece((draw.random(300) < prob).astype(float), prob)
        assert got.value > 0
        inside += got.low == 0
    assert inside / 200 > 0.9


def test_ece_says_what_a_calibrated_model_shows() -> None:
    draw = np.random.default_rng(5)
    prob = draw.beta(1, 5, 300)
    shown = [ece((draw.random(300) < prob).astype(float), prob, draws=2).value for _ in range(300)]
    method = ece((draw.random(300) < prob).astype(float), prob).method
    assert float(method.split("; ")[1].split(" if")[0]) == pytest.approx(np.mean(shown), rel=0.1)


def test_ece_interval_over_patients_ignores_copies_of_rows() -> None:
    draw = np.random.default_rng(6)
    prob = draw.random(200)
    y = (draw.random(200) < prob**2).astype(float)
    once = ece(y, prob)
    copied = ece(np.repeat(y, 5), np.repeat(prob, 5), groups=np.repeat(np.arange(200), 5))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=1e-9)


def test_no_bins_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bins must be at least 1, got 0\. 10 is usual"):
        ece([0, 1], [0.2, 0.7], bins=0)


def test_twice_as_many_expected_as_observed_is_two() -> None:
    assert expected_over_observed([1, 0, 0, 0], [0.8, 0.4, 0.4, 0.4]).value == pytest.approx(2)


def test_expected_over_observed_interval_is_close_to_a_bootstrap_over_patients() -> None:
    draw = np.random.default_rng(3)
    patient = np.repeat(np.arange(200), 5)
    odds = np.repeat(draw.normal(-3, 1, 200), 5) + draw.normal(0, 0.5, 1000)
    y, prob = (draw.random(1000) < expit(odds)).astype(float), expit(odds + 0.3)
    got = expected_over_observed(y, prob, groups=patient)
    of_patient = np.bincount(patient, prob), np.bincount(patient, y)
    ratio = bootstrap(
        of_patient, lambda p, o: p.sum() / o.sum(), vectorized=False, paired=True,
        method="percentile", n_resamples=2000, rng=draw,
    ).confidence_interval  # fmt: skip
    assert got.low == pytest.approx(ratio.low, rel=0.04)
    assert got.high == pytest.approx(ratio.high, rel=0.04)


def test_expected_over_observed_without_a_positive_is_no_number() -> None:
    got = expected_over_observed([0, 0], [0.1, 0.2])
    assert np.isnan(got.value)
    assert "no row with label 1" in got.method
