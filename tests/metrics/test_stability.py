from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from medkit.metrics.spread import sd_over_seeds
from medkit.metrics.stability import (
    agreement,
    bitwise,
    convergence_band,
    crash_rate,
    jitter,
    late_spread,
    paired_correlation,
    spread_ratio,
)
from medkit.metrics.stability_steps import steps_to_target
from medkit.record.results import Metric

EARLY = [[9.0, 9.0], [5.0, 5.0]]


def limits(metric: Metric) -> tuple[float, float]:
    assert metric.low is not None
    assert metric.high is not None
    return metric.low, metric.high


def test_runs_that_end_apart_have_a_band_of_their_sd() -> None:
    curves = np.hstack([EARLY, [[1.0, 1.0], [3.0, 3.0]]])
    got = convergence_band(curves, last=0.5)  # means 1 and 3: sd sqrt 2 about 2
    assert got.value == pytest.approx(196 * math.sqrt(2) / 2)
    assert (got.n, got.unit) == (2, "%")


def test_a_curve_that_moves_has_a_band_too() -> None:
    curves = np.hstack([EARLY, [[1.0, 3.0], [1.0, 3.0]]])
    assert convergence_band(curves, last=0.5).value == pytest.approx(196 * 1 / 2)


def test_what_is_between_runs_and_inside_them_adds_up_as_variances() -> None:
    curves = [[1.0, 3.0], [3.0, 5.0]]  # means 2 and 4, variance 1 inside each
    assert convergence_band(curves, last=1).value == pytest.approx(196 * math.sqrt(2 + 1) / 3)


def test_flat_curves_have_the_chi_square_interval_of_their_ends() -> None:
    ends = np.array([0.30, 0.32, 0.29, 0.35, 0.31])
    got, sd = convergence_band(np.repeat(ends[:, None], 8, axis=1)), sd_over_seeds(ends)
    assert got.value == pytest.approx(196 * sd.value / ends.mean())
    assert limits(got) == pytest.approx([196 * part / ends.mean() for part in limits(sd)])


def test_only_the_last_quarter_counts_unless_another_part_is_asked_for() -> None:
    late = [[1.0, 2.0], [2.0, 3.0]]
    curves = np.hstack([np.full((2, 6), 50.0), late])
    assert convergence_band(curves).value == convergence_band(late, last=1).value
    assert convergence_band(curves, last=0.5).value > convergence_band(curves).value


def test_a_run_that_diverged_makes_the_band_infinite_and_the_others_are_told() -> None:
    curves = [[0.3, 0.3], [0.4, 0.4], [0.3, math.nan]]
    got = convergence_band(curves, last=1)
    assert (got.value, got.low, got.n) == (math.inf, None, 3)
    rest = convergence_band(curves[:2], last=1)
    assert got.method == f"1 of 3 runs diverged; the other 2: {rest}"


def test_a_run_that_recovered_before_the_part_taken_has_not_diverged() -> None:
    curves = [[math.inf, 0.3, 0.3], [0.5, 0.4, 0.4]]
    assert math.isfinite(convergence_band(curves, last=0.6).value)


def test_where_all_runs_diverged_there_is_no_band_of_others() -> None:
    got = convergence_band(np.full((3, 4), math.nan))
    assert (got.value, got.method) == (math.inf, "3 of 3 runs diverged")


@pytest.mark.parametrize("spread", [convergence_band, late_spread])
def test_one_run_has_no_spread(spread: object) -> None:
    got = spread([[0.8, 0.7, 0.7, 0.7]])  # type: ignore[operator]
    assert math.isnan(got.value)
    assert got.low is None


def test_late_spread_is_taken_off_chance_at_each_evaluation() -> None:
    curves = [[0.5, 0.5, 0.6, 0.7], [0.5, 0.5, 0.8, 0.9]]
    got = late_spread(curves)  # sd sqrt(.02), learnt .2 and .3
    sd = math.sqrt(0.02)
    assert got.value == pytest.approx(196 * (sd / 0.2 + sd / 0.3) / 2)
    assert f"mean sd {sd:.4g}" in got.method


def test_runs_that_have_learnt_nothing_are_not_called_alike() -> None:
    got = late_spread([[0.5, 0.5], [0.5, 0.5]])
    assert (got.value, got.method) == (math.inf, "not above chance (0.5) at 1 of 1 evaluations")


def test_late_spread_counts_a_diverged_run() -> None:
    got = late_spread([[0.8, 0.8], [0.9, 0.9], [0.9, math.nan]], last=1)
    assert math.isinf(got.value)
    assert "1 of 3 runs diverged; the other 2: 39.6" in got.method


def test_jitter_is_of_jumps_and_not_of_a_steady_fall() -> None:
    assert jitter([4.0, 3.0, 2.0, 1.0], last=1).value == pytest.approx(0)
    # jumps 1, -1, 1: sd sqrt(4 / 3); mean 1.5
    got = jitter([1.0, 2.0, 1.0, 2.0], last=1).value
    assert got == pytest.approx(196 * math.sqrt(4 / 3) / math.sqrt(2) / 1.5)


def test_jitter_of_many_runs_is_their_mean_with_a_t_interval() -> None:
    runs = np.array([[1.0, 2, 1, 2], [1, 3, 1, 3], [2, 3, 2, 3]])
    each = [jitter(run, last=1).value for run in runs]
    got = jitter(runs, last=1)
    want = stats.t.interval(0.95, 2, loc=np.mean(each), scale=stats.sem(each))
    assert (got.value, *limits(got)) == pytest.approx((np.mean(each), *want))


def test_jitter_says_diverged_and_not_above_chance() -> None:
    assert jitter([1.0, math.nan, 1.0], last=1).method == "1 of 1 runs diverged"
    got = jitter([0.4, 0.5, 0.4], last=1, chance=0.5)
    assert (got.value, got.method) == (math.inf, "not above 0.5: 1 of 1 runs")


def test_jitter_needs_three_evaluations() -> None:
    with pytest.raises(ValueError, match=r"at least 3 evaluations; found 2 in the last 0.25.*"):
        jitter(np.ones((2, 8)))


def test_the_ratio_of_two_spreads_has_the_f_interval() -> None:
    a, b = Metric(6.0, n=10), Metric(2.0, n=20)
    got = spread_ratio(a, b)
    want = [3 / math.sqrt(stats.f.ppf(p, 9, 19)) for p in (0.975, 0.025)]
    assert (got.value, *limits(got)) == pytest.approx((3, *want))


def test_the_ratio_of_paired_spreads_is_the_interval_of_pitman_and_morgan() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=15)
    y = 0.5 * x + 0.2 * draw.normal(size=15)
    got = spread_ratio(sd_over_seeds(x), sd_over_seeds(y), r=float(np.corrcoef(x, y)[0, 1]))
    for limit in limits(got):  # there, x and y / limit have the same variance at p = 0.05
        r = np.corrcoef(x + limit * y, x - limit * y)[0, 1]
        assert stats.t.sf(abs(r) * math.sqrt(13 / (1 - r**2)), 13) == pytest.approx(0.025)
    unpaired = spread_ratio(sd_over_seeds(x), sd_over_seeds(y))
    assert limits(unpaired)[0] < limits(got)[0] < got.value < limits(got)[1] < limits(unpaired)[1]


def test_what_acts_alike_on_all_seeds_has_a_ratio_without_doubt() -> None:
    curves = np.random.default_rng(1).normal(1, 0.1, size=(6, 8))
    assert paired_correlation(curves, curves, last=0.5) == pytest.approx(1)
    assert paired_correlation(curves, 2 - curves, last=0.5) == pytest.approx(-1)
    assert paired_correlation(curves, np.ones((6, 8)), last=0.5) == 0
    band = convergence_band(curves)
    assert limits(spread_ratio(band, band, r=1.0)) == pytest.approx((1, 1))


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_the_interval_of_a_paired_ratio_covers_the_true_one(shared: float) -> None:
    draw, inside = np.random.default_rng(4), 0
    for _ in range(1000):
        both = draw.normal(size=(8, 1))
        runs = [
            1 + size * (shared * both + math.sqrt(1 - shared**2) * draw.normal(size=(8, 1)))
            for size in (0.02, 0.01)
        ]
        a, b = (np.repeat(one, 4, axis=1) for one in runs)
        r = paired_correlation(a, b, last=1)
        low, high = limits(spread_ratio(convergence_band(a), convergence_band(b), r=r))
        inside += low < 2 < high
    assert 0.93 < inside / 1000 < 0.97


def test_a_diverged_run_makes_its_side_of_a_ratio_infinitely_wide() -> None:
    fine, dead = Metric(2.0, n=10), Metric(math.inf, n=10)
    assert spread_ratio(dead, fine).value == math.inf
    assert spread_ratio(fine, dead).value == 0
    assert math.isnan(spread_ratio(dead, dead).value)
    assert spread_ratio(dead, fine).low is None


def test_agreement_is_over_disjoint_pairs() -> None:
    got = agreement([0.88, 0.87, 0.80, 0.90, 0.88], eps=0.01, patients=600)
    assert (got.value, got.n) == (0.5, 2)  # 0.88 - 0.87 is just above 0.01 in binary
    assert "0.01 on 600 patients" in got.method
    low, high = stats.binomtest(1, 2).proportion_ci(method="wilson")
    assert limits(got) == pytest.approx((low, high))


def test_a_dead_run_agrees_with_none() -> None:
    assert agreement([math.nan, math.nan, 0.8, math.inf], patients=9).value == 0


def test_one_training_agrees_with_nobody() -> None:
    got = agreement([0.9], patients=9)
    assert math.isnan(got.value)
    assert "fewer than two runs" in got.method


def test_bitwise_counts_trainings_whose_repeats_are_all_equal() -> None:
    got = bitwise([["a", "a"], ["b", "b", "b"], ["c", "c", "d"]])
    assert (got.value, got.n) == (pytest.approx(2 / 3), 3)


@pytest.mark.parametrize("digests", [[], [["a"]], ["ab", "ab"]])
def test_bitwise_asks_for_repeats(digests: list[list[str]]) -> None:
    with pytest.raises(ValueError, match=r"at least two repeats.*found \d trainings.*again"):
        bitwise(digests)


def test_no_crash_in_twenty_runs_leaves_a_limit_of_fourteen_percent() -> None:
    got = crash_rate(0, 20)
    assert limits(got) == pytest.approx((0, 1 - 0.05 ** (1 / 20)))
    assert got.high == pytest.approx(0.139, abs=5e-4)


def test_crashes_have_wilsons_interval() -> None:
    want = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert limits(crash_rate(20, 20)) == pytest.approx(want)


@pytest.mark.parametrize(("crashed", "runs"), [(3, 2), (-1, 5), (0, 0)])
def test_more_crashes_than_runs_are_refused(crashed: int, runs: int) -> None:
    with pytest.raises(ValueError, match=r"between 0 and the number of runs.*got .* of .*Count"):
        crash_rate(crashed, runs)


def test_a_target_is_reached_between_two_evaluations() -> None:
    curves = [[0.5, 0.7, 0.9], [0.5, 0.6, 0.8], [0.5, 0.9, 0.7]]
    got = steps_to_target([0, 100, 200], curves, target=0.7, events=300)
    assert got.steps == pytest.approx([100, 150, 50])
    assert got.quartiles == pytest.approx((50, 100, 150))
    assert (got.censored, got.at_start) == (0, 0)
    assert got.band.value == pytest.approx(196 * 50 / 100)


def test_runs_that_never_get_there_are_censored_at_the_budget() -> None:
    curves = [[0.5, 0.8], [0.5, 0.6], [0.5, math.nan], [0.8, 0.9]]
    got = steps_to_target([0, 10], curves, target=0.65, events=200)
    assert got.steps == pytest.approx([5, 10, 10, 0])
    assert (got.censored, got.at_start) == (2, 1)
    assert got.restricted_mean.value == pytest.approx(25 / 4)
    assert got.quartiles[:2] == pytest.approx((0, 5))
    assert math.isnan(got.quartiles[2])
    assert math.isnan(got.band.value)
    assert "2 of 4 runs within 10, 1 at the first evaluation" in str(got)
    assert "quartiles 0 to never" in str(got)


def test_nobody_reaching_the_target_is_an_answer() -> None:
    got = steps_to_target([1, 2], [[0.5, 0.5], [0.5, 0.6]], target=0.9, events=200)
    assert got.censored == 2
    assert math.isnan(got.quartiles[0])


def test_few_events_give_a_reason_in_place_of_numbers() -> None:
    got = steps_to_target([0, 10], [[0.5, 0.8], [0.5, 0.9]], target=0.7, events=31)
    assert "31 events, and fewer than 200" in got.reason
    assert got.reason in str(got)
    assert math.isnan(got.restricted_mean.value)
    assert math.isnan(got.band.value)


def test_steps_must_rise_and_fit_the_curves() -> None:
    with pytest.raises(ValueError, match=r"one step per evaluation; got shapes \(1, 2\).*same st"):
        steps_to_target([0, 1, 2], [[0.5, 0.6]], target=0.5, events=300)
    with pytest.raises(ValueError, match=r"steps must rise.*got \[3\.0, 1\.0\].*Sort"):
        steps_to_target([3, 1], [[0.5, 0.6]], target=0.5, events=300)


@pytest.mark.parametrize(
    ("curves", "last", "message"),
    [
        ([0.5, 0.6], 0.25, r"must be \(runs, evaluations\).*got shape \(2,\).*Pad"),
        ([[0.5, 0.6]], 0.0, r"last must be in \(0, 1\], got 0.0.*quarter"),
        ([[-1.0, -2.0]], 0.5, r"mean, which must be positive; found -2.*Pass losses"),
    ],
)
def test_what_is_no_set_of_losses_is_refused(
    curves: list[float], last: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convergence_band(curves, last=last)


def ar(draw: np.random.Generator, trials: int, n: int, between: float) -> NDArray[np.float64]:
    """Log losses: a level per run, and noise of 0.05 inside it that is correlated (0.8)."""
    noise, now = [], draw.normal(size=(trials, n))
    for _ in range(20):
        now = 0.8 * now + 0.6 * draw.normal(size=(trials, n))
        noise.append(now)
    level = between * draw.normal(size=(trials, n, 1))
    return np.exp(-1 + level + 0.05 * np.stack(noise, axis=2))


@pytest.mark.parametrize("between", [0.0, 0.03, 0.2])
@pytest.mark.parametrize("n", [5, 10, 20, 40])
def test_the_interval_of_a_band_covers_the_true_one(n: int, between: float) -> None:
    draw = np.random.default_rng(3)
    many = ar(draw, 1, 40_000, between)[0]
    truth = 196 * many.std() / many.mean()
    found = [convergence_band(curves, last=1) for curves in ar(draw, 1000, n, between)]
    inside = np.mean([low < truth < high for low, high in map(limits, found)])
    assert inside > 0.93, f"{inside:.3f}"
    # its variance has no bias; its root has one, as any sd has
    assert np.mean([m.value**2 for m in found]) ** 0.5 == pytest.approx(truth, rel=0.05)
