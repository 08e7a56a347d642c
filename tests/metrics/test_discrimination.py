from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn import metrics as sklearn_metrics

from medkit.metrics.discrimination import (
    auprc,
    auroc,
    bootstrap_counts,
    delong,
    prevalence,
    roc_curve,
    wilson,
)
from medkit.metrics.ranking import Ranking
from medkit.record.results import Metric

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


@pytest.fixture
def tied() -> Pair:
    """120 rows, 33 with label 1, scores with many ties; no generator needed."""
    i = np.arange(120)
    y = ((i * 37) % 11 < 3).astype(float)
    return y, np.round(np.sin(i * 1.7) * 0.5 + y * 0.6 + ((i * 53) % 17) / 30, 1)


def test_auroc_of_four_rows_by_hand() -> None:
    # pairs (1, 0): 0.8 > 0.3, 0.8 > 0.5, 0.4 > 0.3, 0.4 < 0.5
    assert auroc([1, 1, 0, 0], [0.8, 0.4, 0.3, 0.5]).value == 0.75


def test_a_tie_counts_one_half() -> None:
    assert auroc([1, 0], [0.5, 0.5]).value == 0.5


def test_auroc_equals_scikit_learns(tied: Pair) -> None:
    assert auroc(*tied).value == pytest.approx(sklearn_metrics.roc_auc_score(*tied), abs=1e-12)


def test_plain_interval_equals_confidenceintervals_delong(tied: Pair) -> None:
    # confidenceinterval 1.0.4: roc_auc_score(y, score)
    got = auroc(*tied, interval="plain")
    assert (got.low, got.high) == pytest.approx((0.5690530554132799, 0.7674149259252211), abs=1e-7)


def test_delongs_variance_equals_the_definition_pair_by_pair(tied: Pair) -> None:
    y, score = tied
    wins = np.sign(score[y == 1][:, None] - score[y == 0][None, :]) / 2 + 0.5
    m, n = wins.shape
    want = wins.mean(1).var(ddof=1) / m + wins.mean(0).var(ddof=1) / n
    assert delong(y, score) == pytest.approx((wins.mean(), want), rel=1e-12)


def test_logit_interval_stays_within_0_and_1_where_the_plain_one_is_cut() -> None:
    y = np.array([0] * 20 + [1] * 4)
    score = np.r_[np.arange(20), [18.5, 30, 31, 32]]
    logit, plain = auroc(y, score), auroc(y, score, interval="plain")
    assert plain.high == 1.0
    assert logit.high is not None
    assert logit.high < 1.0


def test_perfect_separation_has_no_interval() -> None:
    got = auroc([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])
    assert (got.value, got.low, got.high) == (1.0, None, None)
    assert "no interval" in got.method


def test_auroc_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # two normals a distance of 1.5 apart: AUROC = Phi(1.5 / sqrt 2) = 0.8556
    draw = np.random.default_rng(0)
    y = np.r_[np.ones(40), np.zeros(160)]
    inside = 0
    for _ in range(400):
        got = auroc(y, draw.normal(size=200) + 1.5 * y)
        inside += got.low < 0.85557 < got.high  # type: ignore[operator]
    assert 0.91 < inside / 400 < 0.985


def test_roc_curve_equals_scikit_learns(tied: Pair) -> None:
    false, true, _ = sklearn_metrics.roc_curve(*tied, drop_intermediate=False)
    got_false, got_true = roc_curve(*tied)
    np.testing.assert_allclose(got_false, false, atol=1e-12)
    np.testing.assert_allclose(got_true, true, atol=1e-12)


def test_auprc_equals_scikit_learns_average_precision(tied: Pair) -> None:
    want = sklearn_metrics.average_precision_score(*tied)
    assert auprc(*tied, draws=10).value == pytest.approx(want, abs=1e-12)


def test_each_resample_of_auprc_equals_scikit_learns_on_the_drawn_rows(tied: Pair) -> None:
    y, score = tied
    weights = np.stack(list(bootstrap_counts(y, seed=1, draws=5)))
    got = Ranking(y, score).average_precision(weights)
    for value, counts in zip(got, weights, strict=True):
        rows = np.repeat(np.arange(len(y)), counts)
        want = sklearn_metrics.average_precision_score(y[rows], score[rows])
        assert value == pytest.approx(want, abs=1e-12)


def test_each_resample_of_auroc_equals_scikit_learns_on_the_drawn_rows(tied: Pair) -> None:
    y, score = tied
    weights = np.stack(list(bootstrap_counts(y, seed=1, draws=5)))
    got = Ranking(y, score).auroc(weights)
    for value, counts in zip(got, weights, strict=True):
        rows = np.repeat(np.arange(len(y)), counts)
        want = sklearn_metrics.roc_auc_score(y[rows], score[rows])
        assert value == pytest.approx(want, abs=1e-12)


def test_the_parts_of_average_precision_are_its_derivatives_by_weight(tied: Pair) -> None:
    value, parts = Ranking(*tied).average_precision_parts()
    assert value == pytest.approx(sklearn_metrics.average_precision_score(*tied), abs=1e-12)
    heavier = np.ones((120, 120)) + 1e-6 * np.eye(120)
    want = (Ranking(*tied).average_precision(heavier) - value) / 1e-6
    np.testing.assert_allclose(parts, want, atol=1e-6)
    assert abs(parts.sum()) < 1e-12


def test_linearised_auprc_interval_is_close_to_the_bootstraps(tied: Pair) -> None:
    y, score = np.tile(tied[0], 10), np.tile(tied[1], 10) + np.arange(1200) % 7 / 50
    linear, drawn = auprc(y, score), auprc(y, score, interval="bootstrap", draws=2000)
    assert (linear.low, linear.high) == pytest.approx((drawn.low, drawn.high), abs=0.006)


def test_auprc_interval_depends_on_the_seed_and_not_on_the_global_generator(tied: Pair) -> None:
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
    first = auprc(*tied, seed=0, draws=200, interval="bootstrap")
    np.random.seed(2)  # noqa: NPY002
    assert auprc(*tied, seed=0, draws=200, interval="bootstrap") == first
    assert auprc(*tied, seed=1, draws=200, interval="bootstrap") != first


@pytest.mark.parametrize("interval", ["logit", "bootstrap"])
@pytest.mark.parametrize("metric", [auroc, auprc])
def test_copies_of_rows_tell_nothing_once_patients_are_given(
    tied: Pair, metric: Callable[..., Metric], interval: str
) -> None:
    y, score = np.repeat(tied[0], 4), np.repeat(tied[1], 4)
    once = metric(*tied, interval=interval)
    naive = metric(y, score, interval=interval)
    grouped = metric(y, score, interval=interval, groups=np.repeat(np.arange(120), 4))
    width = [m.high - m.low for m in (once, naive, grouped)]  # type: ignore[operator]
    assert width[2] == pytest.approx(width[0], rel=0.15)
    assert width[1] < 0.65 * width[0]


def test_with_one_row_each_obuchowskis_variance_is_delongs(tied: Pair) -> None:
    assert auroc(*tied, groups=np.arange(120)).low == pytest.approx(auroc(*tied).low, abs=1e-12)


def test_obuchowskis_variance_is_close_to_the_bootstrap_over_patients() -> None:
    draw = np.random.default_rng(0)
    patient = draw.integers(150, size=600)
    y = (draw.random(600) < 0.3).astype(float)  # both classes within a patient
    score = y + draw.normal(size=150)[patient] + draw.normal(size=600)
    exact = auroc(y, score, groups=patient)
    drawn = auroc(y, score, groups=patient, interval="bootstrap", draws=2000)
    assert (exact.low, exact.high) == pytest.approx((drawn.low, drawn.high), abs=0.005)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "b"], r"one id for each of the 3 rows; got shape \(2,\).*Cut it"),
        (["a", None, "b"], r"groups must name every row; 1 of 3 are missing, the first at row 1"),
        ([1.0, 2.0, float("nan")], r"1 of 3 are missing, the first at row 2.*id of its own"),
    ],
)
def test_a_row_without_its_patient_is_refused(groups: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auroc([0, 1, 1], [0.1, 0.2, 0.3], groups=groups)


def test_a_level_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"level must be between 0 and 1, got 95.*0\.95 means"):
        auroc([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], level=95)


@pytest.mark.parametrize("n", [3, 7, 55, 1000])
def test_wilsons_interval_holds_the_share_at_its_ends(n: int) -> None:
    for hits in (0, n):
        low, high = wilson(hits, n)
        assert low <= hits / n <= high


def test_wilson_equals_scipys() -> None:
    want = binomtest(3, 40).proportion_ci(method="wilson")
    assert wilson(3, 40) == pytest.approx((want.low, want.high), abs=1e-12)


def test_prevalence_is_the_share_of_ones_with_its_interval() -> None:
    got = prevalence([1, 0, 0, 0])
    assert got.value == 0.25
    assert (got.low, got.high) == wilson(1, 4)


@pytest.mark.parametrize("metric", [auroc, auprc])
def test_one_class_is_refused(metric: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"needs both classes; found 0 with label 1 among 3"):
        metric([0, 0, 0], [0.1, 0.2, 0.3])


def test_a_label_other_than_0_and_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"y must be 0 or 1 everywhere; found 2 in 1 of 3"):
        auroc([0, 1, 2], [0.1, 0.2, 0.3])


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"score must be finite everywhere; found nan in 1 of 2"):
        auroc([0, 1], [0.1, float("nan")])


def test_vectors_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same length.*\(2,\) and \(2, 2\).*column of class 1"):
        auroc([0, 1], [[0.1, 0.9], [0.2, 0.8]])


def test_an_unknown_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of \['logit', 'plain', 'bootstrap'\], got 'exact'"):
        auroc([0, 1], [0.1, 0.2], interval="exact")
