from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from medkit.metrics.discrimination import auroc, auroc_difference, auroc_difference_over_seeds

Floats = NDArray[np.float64]


@pytest.fixture
def paired() -> tuple[Floats, Floats, Floats]:
    """200 rows, two scores that share half of what they know."""
    draw = np.random.default_rng(0)
    y = (draw.random(200) < 0.3).astype(float)
    shared = y + draw.normal(size=200)
    return y, shared + draw.normal(size=200), np.round(shared + 2 * draw.normal(size=200), 1)


def _wins(y: Floats, score: Floats) -> Floats:
    return np.sign(score[y == 1][:, None] - score[y == 0][None, :]) / 2 + 0.5


def test_the_difference_and_its_variance_equal_the_definition_pair_by_pair(
    paired: tuple[Floats, Floats, Floats],
) -> None:
    y, a, b = paired
    wins = _wins(y, a) - _wins(y, b)
    m, n = wins.shape
    sd = np.sqrt(wins.mean(1).var(ddof=1) / m + wins.mean(0).var(ddof=1) / n)
    got = auroc_difference(y, a, b)
    assert got.value == pytest.approx(auroc(y, a).value - auroc(y, b).value, abs=1e-12)
    want = (got.value - 1.959964 * sd, got.value + 1.959964 * sd)
    assert (got.low, got.high) == pytest.approx(want, abs=1e-7)
    assert f"p = {2 * stats.norm.sf(abs(got.value) / sd):.3g}" in got.method


def test_the_difference_over_patients_is_close_to_the_bootstraps() -> None:
    draw = np.random.default_rng(1)
    patient = draw.integers(120, size=480)
    y = (draw.random(480) < 0.4).astype(float)
    own = draw.normal(size=120)[patient]
    a, b = y + own + draw.normal(size=480), y - own + draw.normal(size=480)
    got = auroc_difference(y, a, b, groups=patient)
    members = [np.flatnonzero(patient == one) for one in range(120)]
    gaps = []
    for _ in range(1000):
        rows = np.concatenate([members[one] for one in draw.integers(120, size=120)])
        gaps.append(_wins(y[rows], a[rows]).mean() - _wins(y[rows], b[rows]).mean())
    low, high = np.quantile(gaps, [0.025, 0.975])
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.015)


def test_a_score_does_not_differ_from_its_own_logits() -> None:
    prob = np.array([0.1, 0.4, 0.35, 0.8])
    got = auroc_difference([0, 0, 1, 1], prob, np.log(prob / (1 - prob)))
    assert (got.value, got.low, got.high) == (0.0, 0.0, 0.0)
    assert "no pair ranked otherwise" in got.method


def test_seeds_add_their_variance_to_that_of_patients(
    paired: tuple[Floats, Floats, Floats],
) -> None:
    y, a, b = paired
    draw = np.random.default_rng(2)
    a_seeds = [a + draw.normal(size=200) for _ in range(5)]
    got = auroc_difference_over_seeds(y, a_seeds, [b] * 5)
    each = [auroc(y, one).value - auroc(y, b).value for one in a_seeds]
    wins = np.mean([_wins(y, one) for one in a_seeds], axis=0) - _wins(y, b)
    m, n = wins.shape
    patients = wins.mean(1).var(ddof=1) / m + wins.mean(0).var(ddof=1) / n
    seeds = np.var(each, ddof=1) / 5
    df = (seeds + patients) ** 2 / (seeds**2 / 4)
    half = stats.t.ppf(0.975, df) * np.sqrt(seeds + patients)
    assert got.value == pytest.approx(np.mean(each), abs=1e-12)
    assert (got.low, got.high) == pytest.approx((got.value - half, got.value + half), abs=1e-9)


def test_equal_trainings_have_the_interval_of_one(paired: tuple[Floats, Floats, Floats]) -> None:
    y, a, b = paired
    one, five = auroc_difference(y, a, b), auroc_difference_over_seeds(y, [a] * 5, [b] * 5)
    assert (five.low, five.high) == pytest.approx((one.low, one.high), abs=1e-6)


@pytest.mark.parametrize(("many", "few"), [(3, 2), (1, 1)])
def test_seeds_that_are_not_paired_are_refused(many: int, few: int) -> None:
    score = [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(ValueError, match=rf"at least 2 each; got {many} and {few}.*use auroc_diff"):
        auroc_difference_over_seeds([0, 1, 0, 1], [score] * many, [score] * few)
