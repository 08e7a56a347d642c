from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn import metrics as sklearn_metrics

from medkit.metrics.thresholds import at, choose

Floats = NDArray[np.float64]


@pytest.fixture
def calibrated() -> tuple[Floats, Floats]:
    """500 rows whose labels are drawn from their probabilities."""
    draw = np.random.default_rng(0)
    prob = draw.beta(0.7, 3, 500)
    return (draw.random(500) < prob).astype(float), prob


def test_expected_f1_is_the_largest_one_of_all_cuts(calibrated: tuple[Floats, Floats]) -> None:
    y, prob = calibrated
    expected = [
        2 * prob[prob >= cut].sum() / ((prob >= cut).sum() + prob.sum()) for cut in prob.tolist()
    ]
    assert choose(y, prob) == pytest.approx(max(expected) / 2, abs=1e-12)


def test_flagging_at_half_the_expected_f1_reaches_it(calibrated: tuple[Floats, Floats]) -> None:
    _, prob = calibrated
    cut = choose(None, prob)
    flagged = prob >= cut
    assert 2 * prob[flagged].sum() / (flagged.sum() + prob.sum()) == pytest.approx(2 * cut)


def test_by_labels_no_other_threshold_has_a_larger_f1(calibrated: tuple[Floats, Floats]) -> None:
    y, prob = calibrated
    best = max(sklearn_metrics.f1_score(y, prob >= cut) for cut in prob)
    cut = choose(y, prob, rule="labels")
    assert sklearn_metrics.f1_score(y, prob >= cut) == pytest.approx(best, abs=1e-12)
    assert cut not in prob


def test_label_free_thresholds_vary_less_than_tuned_ones() -> None:
    found: dict[str, list[float]] = {"expected_f1": [], "labels": []}
    for seed in range(60):
        draw = np.random.default_rng(seed)
        prob = draw.beta(0.7, 4, 280)
        y = (draw.random(280) < prob).astype(float)
        for rule, cuts in found.items():
            cuts.append(choose(y, prob, rule=rule))
    assert np.std(found["expected_f1"]) < np.std(found["labels"]) / 2


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sensitivity", sklearn_metrics.recall_score),
        ("specificity", lambda y, flag: sklearn_metrics.recall_score(1 - y, ~flag)),
        ("ppv", sklearn_metrics.precision_score),
        ("f1", sklearn_metrics.f1_score),
        ("flagged", lambda y, flag: flag.mean()),
    ],
)
def test_each_number_equals_scikit_learns(
    calibrated: tuple[Floats, Floats], name: str, reference: Callable[..., float]
) -> None:
    y, prob = calibrated
    assert at(y, prob, 0.3)[name].value == pytest.approx(reference(y, prob >= 0.3), abs=1e-12)


def test_shares_have_wilsons_interval(calibrated: tuple[Floats, Floats]) -> None:
    y, prob = calibrated
    hits, ones = int(((prob >= 0.3) & (y == 1)).sum()), int(y.sum())
    want = binomtest(hits, ones).proportion_ci(method="wilson")
    got = at(y, prob, 0.3)["sensitivity"]
    assert (got.low, got.high, got.n) == (pytest.approx(want.low), pytest.approx(want.high), ones)


def test_f1_interval_is_close_to_the_bootstraps(calibrated: tuple[Floats, Floats]) -> None:
    y, prob = calibrated
    draw = np.random.default_rng(1)
    flag = prob >= 0.3
    rows = draw.integers(500, size=(4000, 500))
    both, either = (flag * y)[rows].sum(1), (flag + y)[rows].sum(1)
    low, high = np.quantile(2 * both / either, [0.025, 0.975])
    got = at(y, prob, 0.3)["f1"]
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.015)


def test_intervals_over_patients_are_close_to_the_bootstraps() -> None:
    draw = np.random.default_rng(2)
    patient = draw.integers(150, size=600)
    prob = np.clip(draw.beta(1, 2, 150)[patient] + draw.normal(0, 0.02, 600), 0, 1)
    y = (draw.random(150)[patient] < prob).astype(float)
    got = at(y, prob, 0.3, groups=patient)["ppv"]
    flag, count = prob >= 0.3, draw.multinomial(150, np.full(150, 1 / 150), 4000)
    shares = (count @ np.bincount(patient, flag * y)) / (count @ np.bincount(patient, flag * 1.0))
    low, high = np.quantile(shares, [0.025, 0.975])
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.015)


def test_copies_of_rows_tell_nothing_at_a_share_of_1() -> None:
    once = at([1, 1, 1, 0], [0.9, 0.8, 0.7, 0.1], 0.5)["sensitivity"]
    copied = at(
        np.repeat([1, 1, 1, 0], 9),
        np.repeat([0.9, 0.8, 0.7, 0.1], 9),
        0.5,
        groups=np.repeat(["a", "b", "c", "d"], 9),
    )["sensitivity"]
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_where_nothing_is_flagged_ppv_has_no_value_and_says_so() -> None:
    got = at([0, 1], [0.1, 0.2], 0.5)
    assert np.isnan(got["ppv"].value)
    assert "no such row" in got["ppv"].method
    assert (got["flagged"].value, got["f1"].value, got["sensitivity"].value) == (0, 0, 0)


def test_uncalibrated_probabilities_are_warned_of(
    calibrated: tuple[Floats, Floats], caplog: pytest.LogCaptureFixture
) -> None:
    y, prob = calibrated
    with caplog.at_level(logging.WARNING):
        choose(y, prob)
        assert not caplog.records
        choose(y, np.sqrt(prob))
    assert "needs calibrated probabilities" in caplog.text
    assert "Put the prior of balanced draws back" in caplog.text


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of \['expected_f1', 'labels'\], got 'youden'"):
        choose([0, 1], [0.1, 0.2], rule="youden")


def test_tuning_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rule 'labels' needs y, got None.*'expected_f1'"):
        choose(None, [0.1, 0.2], rule="labels")


def test_probabilities_that_are_all_0_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a probability above 0; all are 0.*fitted model"):
        choose(None, [0.0, 0.0])


def test_a_threshold_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold must be finite, got nan.*choose"):
        at([0, 1], [0.1, 0.2], float("nan"))
