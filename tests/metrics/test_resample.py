from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from medkit.metrics.resample import blocks, bootstrap, crossed, interval

Floats = NDArray[np.float64]
VALUES = np.random.default_rng(0).exponential(size=80)


def mean(weights: Floats) -> Floats:
    return np.asarray(weights @ VALUES / weights.sum(1))


def drawn(n: int, **how: object) -> Floats:
    return np.concatenate(list(islice(blocks(n, **how), 2)))  # type: ignore[arg-type]


def test_each_site_keeps_its_number_of_rows() -> None:
    site = np.array(["a"] * 10 + ["b"] * 3)
    weights = drawn(13, strata=site)
    assert (weights[:, :10].sum(1) == 10).all()
    assert (weights[:, 10:].sum(1) == 3).all()
    assert weights.std() > 0


def test_rows_of_a_patient_are_drawn_together() -> None:
    patient = np.array(["x", "y", "x", "z", "y", "x"])
    weights = drawn(6, groups=patient)
    for one in "xyz":
        assert (np.ptp(weights[:, patient == one], axis=1) == 0).all()
    first = [int(np.argmax(patient == one)) for one in "xyz"]
    assert (weights[:, first].sum(1) == 3).all()


def test_each_site_keeps_its_number_of_patients() -> None:
    patient = np.array([0, 0, 0, 1, 2, 3, 3])
    site = np.array(["a", "a", "a", "a", "b", "b", "b"])
    weights = drawn(7, groups=patient, strata=site)
    assert (weights[:, 0] + weights[:, 3] == 2).all()
    assert (weights[:, 4] + weights[:, 5] == 2).all()


def test_a_shorter_bootstrap_is_the_beginning_of_a_longer_one() -> None:
    longer = bootstrap(mean, 80, seed=3, draws=600)
    np.testing.assert_array_equal(bootstrap(mean, 80, seed=3, draws=50), longer[:50])
    assert not np.array_equal(bootstrap(mean, 80, seed=4, draws=50), longer[:50])


@pytest.mark.parametrize("kind", ["percentile", "bca"])
def test_limits_are_close_to_scipys(kind: str) -> None:
    value, low, high = interval(mean, 80, draws=20_000, kind=kind)
    want = stats.bootstrap(
        [VALUES], np.mean, n_resamples=20_000, method=kind, rng=np.random.default_rng(1)
    ).confidence_interval
    assert value == pytest.approx(VALUES.mean())
    assert (low, high) == pytest.approx((want.low, want.high), abs=0.012)


def test_logit_limits_rest_on_the_spread_of_the_resamples() -> None:
    def share(weights: Floats) -> Floats:
        return np.asarray(weights[:, :20].sum(1) / 80)

    value, low, high = interval(share, 80, draws=20_000, kind="logit")
    log_odds = np.log([low / (1 - low), high / (1 - high)])
    assert value == 0.25
    assert log_odds.mean() == pytest.approx(np.log(1 / 3))
    hits = np.arange(1, 80)  # the resamples' hits are binomial
    share_of = stats.binom.pmf(hits, 80, 0.25)
    spread = np.sqrt(np.cov(np.log(hits / (80 - hits)), aweights=share_of, ddof=0))
    assert np.ptp(log_odds) == pytest.approx(2 * 1.96 * spread, rel=0.03)


def test_a_resample_without_a_value_is_drawn_again() -> None:
    def mean_of_first(weights: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray(weights[:, 0] / weights[:, 0])

    assert (bootstrap(mean_of_first, 5, draws=100) == 1).all()


def test_a_statistic_that_almost_never_has_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"value on most resamples; it had one on 0 of.*larger"):
        bootstrap(lambda weights: np.full(len(weights), np.nan), 5, draws=20)


def test_crossed_strata_are_the_combinations() -> None:
    got = crossed(["a", "a", "b", "b"], None, [0, 1, 1, 1])
    assert got is not None
    assert got.tolist() == [0, 1, 2, 2]
    assert crossed(None, None) is None


def test_one_draw_is_refused() -> None:
    with pytest.raises(ValueError, match=r"draws must be at least 2, got 1\. 1,000 is usual"):
        bootstrap(mean, 80, draws=1)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of \['percentile', 'bca', 'logit'\], got 'basic'"):
        interval(mean, 80, kind="basic")
