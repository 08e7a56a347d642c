from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from medkit.metrics.survival import (
    brier_at,
    c_index_difference,
    calibration_at,
    harrell_c,
    kaplan_meier,
    uno_c,
)
from medkit.record.results import Metric

Floats = NDArray[np.float64]
Cohort = tuple[Floats, Floats, Floats]

# Weeks in remission under 6-mercaptopurine (Freireich 1963), as in Kalbfleisch and Prentice
WEEKS = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
RELAPSE = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]


@pytest.fixture
def cohort() -> Cohort:
    """150 patients followed for whole months, so that times tie; risks tie as well."""
    draw = np.random.default_rng(0)
    risk = np.round(draw.normal(size=150), 1)
    event_time = draw.exponential(20 * np.exp(-risk))
    end = draw.exponential(25, size=150)
    time = np.ceil(np.minimum(event_time, end))
    return time, (event_time <= end).astype(float), risk


def censoring_before(time: Floats, event: Floats, at: float) -> float:
    """P(censored at ``at`` or later), by the definition: events come before censorings."""
    left = 1.0
    for u in sorted(set(time[event == 0])):
        if u < at:
            at_risk = np.sum(time > u) + np.sum((time == u) & (event == 0))
            left *= 1 - np.sum((time == u) & (event == 0)) / at_risk
    return left


def concordance(cohort: Cohort, weight: Callable[[float], float]) -> float:
    right = total = 0.0
    time, event, risk = cohort
    for i in range(len(time)):
        for j in range(len(time)):
            longer = time[j] > time[i] or (time[j] == time[i] and event[j] == 0)
            if i != j and event[i] == 1 and longer:
                total += weight(time[i])
                right += weight(time[i]) * ((risk[i] > risk[j]) + (risk[i] == risk[j]) / 2)
    return right / total


def test_kaplan_meier_and_greenwood_equal_the_published_table() -> None:
    curve = kaplan_meier(WEEKS, RELAPSE)
    at = [6, 7, 10, 13, 16, 22, 23]
    rows = np.searchsorted(curve.time, at)
    want = [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448]
    np.testing.assert_allclose(curve.survival[rows], want, atol=5e-4)
    want = [0.0764, 0.0869, 0.0963, 0.1068, 0.1141, 0.1282, 0.1346]
    np.testing.assert_allclose(curve.sd[rows], want, atol=5e-5)
    assert curve.at_risk[rows].tolist() == [21, 17, 15, 12, 11, 7, 6]


def test_limits_are_greenwoods_on_the_log_log_scale() -> None:
    got = kaplan_meier(WEEKS, RELAPSE).at(10.5)
    s, sd = got.value, 0.09635
    half = 1.959964 * sd / abs(s * np.log(s))
    want = (s ** np.exp(half), s ** np.exp(-half))
    assert (got.low, got.high) == pytest.approx(want, abs=2e-4)


def test_without_censoring_the_curve_is_the_share_left() -> None:
    time = np.array([1.0, 2, 2, 3, 5])
    curve = kaplan_meier(time, np.ones(5))
    assert [curve.at(t).value for t in (0.5, 1, 2, 4)] == pytest.approx([1, 0.8, 0.4, 0.2])
    assert curve.at(9).value == 0


def test_before_the_first_event_the_interval_is_not_empty() -> None:
    got = kaplan_meier(WEEKS, RELAPSE).at(3)
    assert (got.value, got.high) == (1.0, 1.0)
    assert 0.7 < got.low < 1  # type: ignore[operator]


def test_beyond_the_follow_up_there_is_no_value() -> None:
    got = kaplan_meier(WEEKS, RELAPSE).at(36)
    assert np.isnan(got.value)
    assert "beyond last follow-up" in got.method


def test_harrells_c_equals_the_definition_pair_by_pair(cohort: Cohort) -> None:
    assert harrell_c(*cohort).value == pytest.approx(concordance(cohort, lambda _: 1.0), abs=1e-12)


@pytest.mark.parametrize("tau", [None, 15.0])
def test_unos_c_equals_the_definition_pair_by_pair(cohort: Cohort, tau: float | None) -> None:
    time, event, _ = cohort

    known = {at: censoring_before(time, event, at) ** -2 for at in set(time.tolist())}

    def weight(at: float) -> float:
        return 0.0 if tau is not None and at >= tau else known[at]

    assert uno_c(*cohort, tau=tau).value == pytest.approx(concordance(cohort, weight), abs=1e-12)


def test_without_censoring_unos_c_is_harrells(cohort: Cohort) -> None:
    time, _, risk = cohort
    every = np.ones(len(time))
    assert uno_c(time, every, risk).value == pytest.approx(harrell_c(time, every, risk).value)


@pytest.mark.parametrize("metric", [harrell_c, uno_c])
def test_limits_of_c_are_close_to_the_bootstraps(
    cohort: Cohort, metric: Callable[..., Metric]
) -> None:
    draw, got = np.random.default_rng(1), metric(*cohort)
    values = []
    for _ in range(600):
        rows = draw.integers(150, size=150)
        values.append(metric(*(column[rows] for column in cohort)).value)
    low, high = np.quantile(values, [0.025, 0.975])
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.015)


@pytest.mark.parametrize("metric", [harrell_c, uno_c])
def test_the_interval_of_c_rests_on_its_derivative_by_each_patients_weight(
    cohort: Cohort, metric: Callable[..., Metric]
) -> None:
    rows = tuple(column[:30] for column in cohort)
    got, copies, slopes = metric(*rows), 40, []
    for one in range(30):
        more, less = np.full(30, copies), np.full(30, copies)
        more[one], less[one] = copies + 1, copies - 1
        up, down = (metric(*(np.repeat(c, n) for c in rows)).value for n in (more, less))
        slopes.append((up - down) / 2 * copies)
    sd = np.sqrt(np.sum(np.square(slopes)) * 30 / 29)
    low, high = (np.log(x / (1 - x)) for x in (got.low, got.high))  # type: ignore[operator]
    half = 1.959964 * sd / (got.value * (1 - got.value))
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)


@pytest.mark.parametrize("metric", [harrell_c, uno_c])
def test_c_over_patients_does_not_grow_surer_by_copies(
    cohort: Cohort, metric: Callable[..., Metric]
) -> None:
    once = metric(*cohort)
    copied = metric(*(np.repeat(c, 3) for c in cohort), groups=np.repeat(np.arange(150), 3))
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.03)  # type: ignore[operator]


def rival_of(risk: Floats) -> Floats:
    """A risk that knows most of what the other does."""
    return risk + np.random.default_rng(2).normal(scale=0.7, size=len(risk))


def test_the_difference_of_two_c_has_the_bootstraps_paired_interval(cohort: Cohort) -> None:
    time, event, risk = cohort
    columns = (time, event, risk, rival_of(risk))
    got = c_index_difference(*columns)
    want = harrell_c(time, event, risk).value - harrell_c(time, event, columns[3]).value
    assert got.value == pytest.approx(want, abs=1e-12)
    draw, values = np.random.default_rng(1), []
    for _ in range(600):
        rows = draw.integers(150, size=150)
        values.append(c_index_difference(*(column[rows] for column in columns)).value)
    sd = (got.high - got.low) / 2 / 1.959964  # type: ignore[operator]
    assert sd == pytest.approx(np.std(values), rel=0.1)
    alone = harrell_c(time, event, risk)
    assert got.high - got.low < alone.high - alone.low  # type: ignore[operator]


def test_the_difference_of_two_c_is_covered_as_often_as_it_says() -> None:
    draw, hits = np.random.default_rng(5), 0
    for _ in range(300):
        risk = draw.normal(size=120)
        event_time, end = draw.exponential(np.exp(-risk)), draw.exponential(1.5, 120)
        time, event = np.minimum(event_time, end), (event_time <= end).astype(float)
        a, b = (risk + draw.normal(size=120) for _ in range(2))  # equally good: 0 is the truth
        got = c_index_difference(time, event, a, b)
        hits += got.low <= 0 <= got.high  # type: ignore[operator]
    assert 0.92 <= hits / 300 <= 0.98


def test_the_difference_of_two_c_over_patients_does_not_grow_surer_by_copies(
    cohort: Cohort,
) -> None:
    columns = (*cohort, rival_of(cohort[2]))
    once = c_index_difference(*columns)
    patients = np.repeat(np.arange(150), 3)
    copied = c_index_difference(*(np.repeat(c, 3) for c in columns), groups=patients)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.03)  # type: ignore[operator]
    assert "over 150 patients" in copied.method


def test_two_risks_of_one_order_differ_by_nothing(cohort: Cohort) -> None:
    time, event, risk = cohort
    got = c_index_difference(time, event, risk, np.exp(risk))
    assert (got.value, got.low, got.high) == (0, 0, 0)
    assert "no pair ranked otherwise" in got.method


def test_perfect_order_has_no_interval() -> None:
    got = harrell_c([1, 2, 3], [1, 1, 1], [3, 2, 1])
    assert (got.value, got.low) == (1.0, None)
    assert "no interval" in got.method


def test_brier_at_a_horizon_equals_the_definition(cohort: Cohort) -> None:
    time, event, risk = cohort
    prob, want = 1 / (1 + np.exp(-risk)), 0.0
    for t, happened, p in zip(time, event, prob, strict=True):
        if t <= 12 and happened:
            want += (1 - p) ** 2 / censoring_before(time, event, t)
        elif t >= 12:
            want += p**2 / censoring_before(time, event, 12)
    assert brier_at(time, event, prob, 12).value == pytest.approx(want / 150, abs=1e-12)


def test_true_risks_are_calibrated_at_a_horizon_whatever_the_censoring() -> None:
    draw = np.random.default_rng(3)
    rate = np.exp(draw.normal(-3, 0.8, 4000))
    event_time, end = draw.exponential(1 / rate), draw.exponential(15, 4000)
    time, event = np.minimum(event_time, end), (event_time <= end).astype(float)
    prob = 1 - np.exp(-rate * 10)
    got = calibration_at(time, event, prob, 10)
    assert got.slope.low < 1 < got.slope.high  # type: ignore[operator]
    assert got.intercept.low < 0 < got.intercept.high  # type: ignore[operator]
    assert got.observed.low < got.predicted < got.observed.high  # type: ignore[operator]
    for point in got.points:
        assert abs(point.prob - point.observed.value) < 0.05
    odds = np.log(prob / (1 - prob))
    steep = calibration_at(time, event, 1 / (1 + np.exp(-2 * odds)), 10)
    assert steep.slope.value == pytest.approx(got.slope.value / 2, abs=1e-4)  # some are cut


def test_without_censoring_calibration_at_a_horizon_is_that_of_a_binary_outcome(
    cohort: Cohort,
) -> None:
    from medkit.metrics.calibration import slope_and_intercept

    time, _, risk = cohort
    prob = 1 / (1 + np.exp(-risk))
    got = calibration_at(time, np.ones(150), prob, 12)
    slope, intercept = slope_and_intercept((time <= 12).astype(float), prob)
    for mine, other in ((got.slope, slope), (got.intercept, intercept)):
        assert (mine.value, mine.low) == pytest.approx((other.value, other.low), abs=1e-8)


def test_a_patient_censored_at_the_horizon_is_known_to_be_free_by_then() -> None:
    time, event = [1.0, 2, 5, 5, 5], [1, 1, 0, 0, 0]
    assert brier_at(time, event, [1.0, 1, 0, 0, 0], 5).value == 0
    assert brier_at(time, event, [1.0, 1, 1, 0, 0], 5).value == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("time", "event", "message"),
    [
        ([1, np.nan], [1, 1], r"time must be finite.*found nan in 1 of 2 rows, 1 of them with an"),
        ([1, -2], [1, 0], r"not negative; found -2 in 1 of 2 rows, 0 of them"),
        ([1, 2], [1, 2], r"event must be 1 \(happened\) or 0 \(censored\); found 2 in 1 of 2"),
        ([1, 2], [0, 0], r"at least one event; found none among 2 rows.*Follow up"),
        ([1, 2, 3], [0, 1], r"same length, at least 1; got shapes"),
    ],
)
def test_times_that_cannot_be_are_refused(
    time: list[float], event: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        harrell_c(time, event, [0.1, 0.2])


def test_a_risk_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a prediction must be finite; found 1 of 2.*failed run"):
        uno_c([1, 2], [1, 1], [0.1, np.inf])


def test_no_pair_that_can_be_ordered_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a pair that can be ordered; found none among 2"):
        harrell_c([2, 2], [1, 1], [0.1, 0.2])


def test_a_tau_before_the_first_event_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tau must be after the first event, which is at 2; got"):
        uno_c([2, 3], [1, 1], [0.1, 0.2], tau=1)


@pytest.mark.parametrize("horizon", [0.5, 9.0])
def test_a_horizon_outside_the_follow_up_is_refused(horizon: float) -> None:
    with pytest.raises(ValueError, match=r"after the first event \(1\) and within.*\(up to 3\)"):
        calibration_at([1, 2, 3], [1, 1, 0], [0.1, 0.2, 0.3], horizon)


def test_survival_instead_of_risk_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a risk by a horizon needs probabilities between 0 and"):
        brier_at([1, 2, 3], [1, 1, 0], [0.1, 0.2, 1.3], 2)


def test_too_many_rows_for_pairs_are_refused() -> None:
    time = np.arange(100_001.0)
    with pytest.raises(ValueError, match=r"at most 100,000 rows; got 100,001.*random part"):
        harrell_c(time, np.ones(100_001), time)
