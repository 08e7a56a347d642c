from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from medkit import keyed
from medkit.saliency.similarity import MEASURES, agreement, measures, stability

DRAW = keyed.generator(0, "attributions")
TRUTH = DRAW.normal(size=(60, 8)) * np.arange(1, 9)
NEAR = [TRUTH + DRAW.normal(size=TRUTH.shape) for _ in range(6)]


def test_measures_are_as_worked_by_hand() -> None:
    one = [[3.0, -2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]]
    other = [[3.0, -2.0, 1.0, 0.0], [-1.0, 0.5, 2.0, 0.1]]
    found = measures(one, other, top=2)
    # second row: ranks 4 3 2 1 and 1 3 4 2, correlation 1 - 6 (9 + 0 + 4 + 1) / 60
    assert found["row_rank"] == pytest.approx((1 - 0.4) / 2)
    assert found["row_top"] == pytest.approx((1 + 1 / 2) / 2)  # {0, 1} and {0, 2} share one
    assert found["row_sign"] == pytest.approx((1 + 1 / 2) / 2)  # + + of the other's - +
    sizes = [3, 2, 1, 0], [2, 1.25, 1.5, 0.05]
    assert found["importance_rank"] == pytest.approx(0.8)
    assert found["importance_correlation"] == pytest.approx(pearsonr(*sizes).statistic)


def test_row_rank_is_scipy_s_spearman() -> None:
    tied = np.round(NEAR[0])
    want = [spearmanr(a, b).statistic for a, b in zip(tied, TRUTH, strict=True)]
    assert measures(tied, TRUTH)["row_rank"] == pytest.approx(np.mean(want))


def test_the_truth_agrees_with_itself() -> None:
    for metric in agreement(TRUTH, TRUTH, draws=50).values():
        assert (metric.value, metric.low, metric.high) == pytest.approx((1, 1, 1))


def test_shares_that_say_nothing_agree_with_nothing() -> None:
    found = measures(np.zeros_like(TRUTH), TRUTH)
    assert (found["row_rank"], found["row_sign"], found["importance_rank"]) == (0, 0, 0)


def test_intervals_hold_the_value() -> None:
    found = agreement(NEAR[0], TRUTH)
    for name in MEASURES:
        assert found[name].low <= found[name].value <= found[name].high
    assert _width(found["row_rank"]) > 0.01


def test_rows_of_one_patient_count_together() -> None:
    values, truth = np.repeat(NEAR[0], 4, axis=0), np.repeat(TRUTH, 4, axis=0)
    by_patient = agreement(values, truth, groups=np.repeat(np.arange(60), 4))["row_rank"]
    assert _width(by_patient) > 1.5 * _width(agreement(values, truth)["row_rank"])


def _width(metric) -> float:
    return metric.high - metric.low


def test_the_seed_alone_decides_the_interval() -> None:
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    one = agreement(NEAR[0], TRUTH, seed=3)
    np.random.seed(2)  # noqa: NPY002
    assert agreement(NEAR[0], TRUTH, seed=3) == one
    assert agreement(NEAR[0], TRUTH, seed=4) != one


def test_stability_is_the_mean_over_pairs() -> None:
    found = stability(NEAR[:3])
    pairs = [measures(NEAR[i], NEAR[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    for name in MEASURES:
        assert found[name].value == pytest.approx(np.mean([pair[name] for pair in pairs]))
    assert found["row_rank"].n == 3


def test_the_jackknife_of_a_mean_over_pairs_is_as_worked_by_hand() -> None:
    # a row of two columns, ten times: ranked alike (1) or the other way round (-1)
    up, down = [[0.0, 1.0]] * 10, [[1.0, 0.0]] * 10
    turned = [[0.0, 1.0]] * 9 + [[1.0, 0.0]]
    found = stability([up, up, turned], top=1)["row_rank"]
    assert found.value == pytest.approx((1 + 0.8 + 0.8) / 3)
    # without one of the three: 0.8, 0.8, 1; sd 2/3 * (2 * 0.0667^2 + 0.1333^2), t of 2 is 4.303
    half = 4.3027 * np.sqrt(2 / 3 * (2 / 15**2 + 4 / 15**2))
    assert found.low == pytest.approx(found.value - half, abs=1e-3)
    assert found.high == 1  # not above what there is
    assert stability([up, down], top=1)["row_rank"].value == -1


def test_two_runs_have_no_interval() -> None:
    assert stability(NEAR[:2])["importance_rank"].low is None


def test_the_interval_over_runs_covers_what_many_runs_show() -> None:
    truth = stability([_run(draw) for draw in range(40)])["row_rank"].value
    hits = 0
    for study in range(60):
        found = stability([_run(1000 + 5 * study + run) for run in range(5)])["row_rank"]
        hits += found.low <= truth <= found.high
    assert hits >= 51  # 57 are meant


def _run(number: int) -> np.ndarray:
    """A run has its own bias in each column, as a net trained with another seed has."""
    draw = keyed.generator(number, "run")
    return TRUTH[:20] + 3 * draw.normal(size=8) * np.ones((20, 1)) + draw.normal(size=(20, 8))


@pytest.mark.parametrize("runs", [[TRUTH], [TRUTH, TRUTH[:, :3]], [TRUTH[0], TRUTH[0]]])
def test_runs_that_cannot_be_compared_are_refused(runs: list) -> None:
    with pytest.raises(ValueError, match=r"same rows and columns are compared, .* got shapes .*"):
        stability(runs)


def test_shares_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be finite; found 480 cells .*nothing to explain"):
        agreement(TRUTH * np.nan, TRUTH)


@pytest.mark.parametrize("top", [0, 9])
def test_a_top_that_there_is_not_is_refused(top: int) -> None:
    with pytest.raises(ValueError, match=rf"between 1 and the number of columns, got {top} for 8"):
        stability(NEAR, top=top)
