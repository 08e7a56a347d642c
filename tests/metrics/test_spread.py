from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from medkit.metrics.spread import mean_over_seeds, sd_over_seeds

RUNS = [0.871, 0.866, 0.874, 0.869, 0.858]


def test_mean_interval_equals_scipys_t_interval() -> None:
    got = mean_over_seeds(RUNS)
    want = stats.t.interval(0.95, 4, loc=np.mean(RUNS), scale=stats.sem(RUNS))
    assert got.value == pytest.approx(np.mean(RUNS))
    assert (got.low, got.high) == pytest.approx(want, abs=1e-12)
    assert got.n == 5


def test_sd_interval_equals_the_chi_square_formula() -> None:
    got, s = sd_over_seeds(RUNS), np.std(RUNS, ddof=1)
    low, high = (s * math.sqrt(4 / stats.chi2.ppf(p, 4)) for p in (0.975, 0.025))
    assert (got.value, got.low, got.high) == pytest.approx((s, low, high), abs=1e-12)


def test_sd_interval_covers_the_truth_at_five_seeds() -> None:
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        got = sd_over_seeds(draw.normal(size=5))
        inside += got.low < 1 < got.high  # type: ignore[operator]
    assert 0.93 < inside / 1000 < 0.97


def test_one_run_has_a_mean_without_interval_and_no_spread() -> None:
    assert mean_over_seeds([0.9]).low is None
    assert math.isnan(sd_over_seeds([0.9]).value)


@pytest.mark.parametrize("values", [[], [0.9, float("nan")]])
def test_a_dead_run_is_not_averaged(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"at least one value, all finite; got \d.*died"):
        mean_over_seeds(values)
