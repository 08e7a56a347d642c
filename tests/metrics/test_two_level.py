from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from medkit.metrics import power
from medkit.metrics.decisions import flags_at, flips_between_recipes, flips_between_seeds
from medkit.metrics.ranking import Ranking
from medkit.metrics.two_level import Placed, TwoLevel, bootstrap_difference, over_seeds

Floats = NDArray[np.float64]


@pytest.fixture
def trained() -> tuple[Floats, Floats, Floats]:
    """150 rows, 5 trainings of one recipe and 7 of a better one."""
    draw = np.random.default_rng(0)
    y = (draw.random(150) < 0.3).astype(float)
    shared = y + draw.normal(size=150)
    a = np.round(shared + draw.normal(size=(5, 150)), 1)
    return y, a, shared + 0.3 * y + draw.normal(size=(7, 150))


def _wins(y: Floats, score: Floats) -> Floats:
    return np.sign(score[y == 1][:, None] - score[y == 0][None, :]) / 2 + 0.5


@pytest.mark.parametrize("paired", [True, False])
def test_without_patients_it_is_scipys_t_test_of_the_seeds(paired: bool) -> None:
    draw = np.random.default_rng(1)
    a, b = draw.normal(0.86, 0.004, 6), draw.normal(0.85, 0.012, 6)
    value, variance, freedom = over_seeds(a, b, paired=paired)
    got = TwoLevel(value, variance, 0.0, freedom)
    want = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    limits = want.confidence_interval()
    assert got.p == pytest.approx(want.pvalue, rel=1e-9)
    assert got.limits() == pytest.approx((limits.low, limits.high), abs=1e-12)


def test_unpaired_recipes_have_welchs_variance_and_that_of_the_mean_placements(
    trained: tuple[Floats, Floats, Floats],
) -> None:
    y, a, b = trained
    got = Placed.of(y, a).minus(Placed.of(y, b), paired=False)
    of_a = [_wins(y, one).mean() for one in a]
    of_b = [_wins(y, one).mean() for one in b]
    wins = np.mean([_wins(y, s) for s in a], axis=0) - np.mean([_wins(y, s) for s in b], axis=0)
    m, n = wins.shape
    patients = wins.mean(1).var(ddof=1) / m + wins.mean(0).var(ddof=1) / n
    parts = np.var(of_a, ddof=1) / 5, np.var(of_b, ddof=1) / 7
    welch = sum(parts) ** 2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 6)
    assert got.value == pytest.approx(np.mean(of_a) - np.mean(of_b), abs=1e-12)
    assert got.over_seeds == pytest.approx(sum(parts), abs=1e-15)
    assert got.over_patients == pytest.approx(patients, abs=1e-15)
    df = (sum(parts) + patients) ** 2 / (sum(parts) ** 2 / welch)
    assert got.freedom == pytest.approx(df, rel=1e-9)


def test_rows_written_twice_are_no_further_patients(
    trained: tuple[Floats, Floats, Floats],
) -> None:
    y, a, b = trained
    patient = np.tile(np.arange(150), 2)
    once = Placed.of(y, a).minus(Placed.of(y, b), paired=False)
    doubled = [np.tile(scores, (1, 2)) for scores in (a, b)]
    twice = [Placed.of(np.tile(y, 2), scores, patient) for scores in doubled]
    assert twice[0].minus(twice[1], paired=False) == TwoLevel(
        *(pytest.approx(x, rel=1e-9) for x in (once.value, once.over_seeds)),
        pytest.approx(once.over_patients, rel=1e-9),
        pytest.approx(once.seed_freedom, rel=1e-9),
    )


def test_a_recipe_that_draws_nothing_adds_no_variance_of_seeds(
    trained: tuple[Floats, Floats, Floats],
) -> None:
    y, a, b = trained
    got = Placed.of(y, a).minus(Placed.of(y, b[:1]), paired=False)
    each = [_wins(y, one).mean() for one in a]
    assert got.over_seeds == pytest.approx(np.var(each, ddof=1) / 5, rel=1e-9)
    assert got.seed_freedom == 4


def test_its_limits_hold_the_truth_on_new_patients_where_a_test_over_seeds_does_not() -> None:
    draw = np.random.default_rng(2)

    def study(n: int, seeds: int) -> tuple[Placed, Placed]:
        y = (draw.random(n) < 0.25).astype(float)
        shared = 1.5 * y + draw.normal(size=n)
        a = shared + 0.3 * draw.normal(size=(seeds, n))
        b = shared + 0.8 * draw.normal(size=n) + 0.3 * draw.normal(size=(seeds, n))
        return Placed.of(y, a), Placed.of(y, b)

    # of normal scores: AUROC is Phi(gap / sd of a difference)
    truth = stats.norm.cdf(1.5 / np.sqrt(2 * 1.09)) - stats.norm.cdf(1.5 / np.sqrt(2 * 1.73))
    two_level, seeds_only = 0, 0
    for _ in range(200):
        a, b = study(300, 5)
        found = a.minus(b, paired=True)
        low, high = found.limits()
        two_level += not low <= truth <= high
        low, high = TwoLevel(found.value, found.over_seeds, 0.0, found.seed_freedom).limits()
        seeds_only += not low <= truth <= high
    assert two_level <= 17  # of 200 at 5 %: 97.5 % of cases
    assert seeds_only >= 60


def test_pairs_of_different_numbers_and_lone_trainings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"as many of both; got 3 and 2 to pair\. Train more"):
        over_seeds([0.8, 0.7, 0.9], [0.8, 0.7], paired=True)
    with pytest.raises(ValueError, match="got 1 and 1"):
        over_seeds([0.8], [0.7], paired=False)


def test_the_two_level_bootstrap_is_that_of_rows_and_seeds_one_by_one(
    trained: tuple[Floats, Floats, Floats],
) -> None:
    y, a, b = trained
    scorers = [[Ranking(y, one).auroc for one in side] for side in (a, b)]
    _, low, high = bootstrap_difference(*scorers, 150, paired=False, strata=y, draws=2000)
    draw = np.random.default_rng(3)
    gaps = []
    for _ in range(600):
        rows = np.concatenate([draw.choice(np.flatnonzero(y == c), (y == c).sum()) for c in (0, 1)])
        of_a, of_b = ([_wins(y[rows], one[rows]).mean() for one in side] for side in (a, b))
        gaps.append(np.mean(draw.choice(of_a, 5)) - np.mean(draw.choice(of_b, 7)))
    assert high - low == pytest.approx(2 * 1.96 * np.std(gaps), rel=0.1)
    assert (low + high) / 2 == pytest.approx(np.mean(gaps), abs=0.01)


def test_paired_seeds_are_drawn_together(trained: tuple[Floats, Floats, Floats]) -> None:
    y, a, _ = trained
    side = [Ranking(y, one).auroc for one in a]
    assert bootstrap_difference(side, side, 150, paired=True, draws=50)[1:] == (0.0, 0.0)
    low, high = bootstrap_difference(side, side, 150, paired=False, draws=50)[1:]
    assert low < 0 < high


def test_the_bootstrap_depends_on_its_seed_alone(trained: tuple[Floats, Floats, Floats]) -> None:
    y, a, b = trained
    scorers = [[Ranking(y, one).auroc for one in side] for side in (a, b)]

    def limits(seed: int, global_seed: int) -> tuple[float, ...]:
        np.random.seed(global_seed)  # noqa: NPY002 - it must have no say
        return bootstrap_difference(*scorers, 150, paired=False, draws=20, seed=seed)

    assert limits(3, 1) == limits(3, 2)
    assert limits(4, 1) != limits(3, 1)


def test_power_is_the_share_of_simulated_studies_that_find_the_gain() -> None:
    draw = np.random.default_rng(4)
    gaps = draw.normal(0.01, 0.012, size=(20_000, 6))
    p = stats.ttest_1samp(gaps, 0, axis=1).pvalue
    found = np.mean((p < 0.05) & (gaps.mean(1) > 0))
    assert TwoLevel(0.0, 0.012**2 / 6, 0.0, 5).power(0.01) == pytest.approx(found, abs=0.01)


def test_power_with_known_variance_is_the_normals() -> None:
    want = stats.norm.sf(1.959964 - 0.02 / 0.01)
    assert TwoLevel(0.0, 0.0, 1e-4, 4).power(0.02) == pytest.approx(want, abs=1e-6)


def test_seeds_and_patients_needed_are_the_fewest_with_that_power() -> None:
    found = TwoLevel(0.0, 4e-5, 5e-6, 4)
    seeds = power.seeds_needed(found, 0.01, 5)
    assert seeds is not None
    assert (
        found.with_seeds(5, seeds).power(0.01) >= 0.8 > found.with_seeds(5, seeds - 1).power(0.01)
    )
    wide = TwoLevel(0.0, 4e-6, 5e-5, 4)
    patients = power.patients_needed(wide, 0.01, 600)
    assert patients is not None
    assert patients > 600
    assert wide.with_patients(patients / 600).power(0.01) == pytest.approx(0.8, abs=0.002)


@pytest.mark.parametrize("paired", [True, False])
def test_what_is_expected_of_more_seeds_or_patients_is_what_they_show(paired: bool) -> None:
    draw = np.random.default_rng(6)

    def variances(n: int, seeds: int) -> Floats:
        y = (draw.random(n) < 0.3).astype(float)
        shared = y + draw.normal(size=n)
        slopes = 1 + 0.6 * draw.normal(size=(2, seeds, 1))  # some trainings are better
        a, b = slopes * shared + 2 * draw.normal(size=(2, seeds, n))
        first, second = Placed.of(y, a), Placed.of(y, b)
        found = first.minus(second, paired=paired)
        found = TwoLevel(
            *(found.value, found.over_seeds, found.over_patients, found.seed_freedom),
            first.both_ways(second, paired=paired),
        )
        times = found.with_seeds(seeds, 5), found.with_patients(1000 / n)
        return np.array([(one.over_seeds, one.over_patients) for one in (found, *times)])

    small, few, large = (
        np.mean([variances(*size) for _ in range(80)], axis=0)
        for size in ((100, 20), (100, 5), (1000, 20))
    )
    np.testing.assert_allclose(small[1], few[0], rtol=0.2)
    np.testing.assert_allclose(small[2], large[0], rtol=0.2)


def test_no_number_of_seeds_makes_up_for_too_few_patients() -> None:
    assert power.seeds_needed(TwoLevel(0.0, 1e-5, 1e-4, 4), 0.01, 5) is None
    assert power.patients_needed(TwoLevel(0.0, 1e-4, 1e-5, 4), 0.01, 600) is None


def test_the_smallest_gain_is_found_in_80_percent() -> None:
    found = TwoLevel(0.0, 2e-5, 3e-5, 9)
    assert found.power(power.smallest_gain(found)) == pytest.approx(0.8, abs=1e-6)


def test_flips_are_counted_pair_by_pair() -> None:
    flags = np.random.default_rng(5).random((2, 4, 50)) < 0.3
    a, b = flags
    within = [np.mean(a[i] != a[j]) for i in range(4) for j in range(i)]
    between = [np.mean(one != other) for one in a for other in b]
    assert flips_between_seeds(a) == pytest.approx(np.mean(within), abs=1e-12)
    assert flips_between_recipes(a, b) == pytest.approx(np.mean(between), abs=1e-12)
    assert np.isnan(flips_between_seeds(a[:1]))


def test_flags_are_at_a_threshold_or_at_a_common_rate() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.4], [5.0, 9.0, 7.0, 6.0]])
    assert flags_at(scores, rate=0.5).tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]
    assert flags_at(scores[:1], threshold=0.2).tolist() == [[0, 1, 1, 1]]
    with pytest.raises(ValueError, match=r"between 0 and 1, got 20.*pass a threshold"):
        flags_at(scores, rate=20)
