from __future__ import annotations

import numpy as np
import pytest

from medkit.metrics.benefit import net_benefit


def test_net_benefit_of_a_table_by_hand() -> None:
    # 10 rows, at 0.2: 3 true and 4 false positives, odds 1/4; all: 4 true and 6 false
    y = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    prob = [0.9, 0.8, 0.2, 0.1, 0.7, 0.6, 0.5, 0.4, 0.1, 0.0]
    (got,) = net_benefit(y, prob, [0.2])
    assert got.model.value == pytest.approx(3 / 10 - 4 / 10 / 4)
    assert got.treat_all.value == pytest.approx(4 / 10 - 6 / 10 / 4)
    assert got.gain.value == pytest.approx(0.2 - 0.25)


def test_above_the_prevalence_the_default_is_to_treat_nobody() -> None:
    (got,) = net_benefit([1, 0, 0, 0], [0.9, 0.2, 0.1, 0.1], [0.5])
    assert got.treat_all.value < 0
    assert got.gain == net_benefit([1, 0, 0, 0], [0.9, 0.2, 0.1, 0.1], [0.5])[0].gain
    assert got.gain.value == got.model.value == 0.25


def test_the_interval_of_the_gain_is_close_to_the_bootstraps() -> None:
    draw = np.random.default_rng(0)
    prob = draw.beta(1, 4, 600)
    y = (draw.random(600) < prob).astype(float)
    (got,) = net_benefit(y, prob, [0.15])
    gain = (y - (1 - y) * 0.15 / 0.85) * ((prob >= 0.15) - 1.0)
    low, high = np.quantile(gain[draw.integers(600, size=(4000, 600))].mean(1), [0.025, 0.975])
    assert (got.gain.low, got.gain.high) == pytest.approx((low, high), abs=0.002)


def test_intervals_over_patients_ignore_copies_of_rows() -> None:
    draw = np.random.default_rng(1)
    prob = draw.random(80)
    y = (draw.random(80) < prob).astype(float)
    (once,) = net_benefit(y, prob, [0.3])
    (copied,) = net_benefit(
        np.repeat(y, 4), np.repeat(prob, 4), [0.3], groups=np.repeat(np.arange(80), 4)
    )
    assert (copied.model.low, copied.model.high) == pytest.approx((once.model.low, once.model.high))


@pytest.mark.parametrize("threshold", [0.0, 1.0, 20.0])
def test_a_threshold_that_is_no_probability_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"must be between 0 and 1, got.*worth the same"):
        net_benefit([0, 1], [0.1, 0.9], [threshold])
