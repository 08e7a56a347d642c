from __future__ import annotations

import numpy as np
import pytest
from statsmodels.duration.hazard_regression import PHReg

from medkit.data.cox import PartialLikelihood, choose_l2, event_folds, fit_cox
from medkit.data.hazard import BaselineHazard, breslow

# Remission of leukaemia [weeks], 21 with 6-MP, 21 with placebo (Freireich 1963); a tenth: censored
MP = [6, 6, 6, 6.1, 7, 9.1, 10, 10.1, 11.1, 13, 16, 17.1, 19.1, 20.1, 22, 23, 25.1, 32.1, 32.1]
MP += [34.1, 35.1]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def leukaemia() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    written = np.array(MP + PLACEBO, float)
    x = np.repeat([0.0, 1.0], 21)[:, None]
    return x, np.floor(written), (written == np.floor(written)).astype(float)


def made(
    count: int = 300, *, seed: int = 0, days: int = 40, features: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(count, features))
    death = draw.exponential(np.exp(-(x @ np.linspace(1, -0.5, features)))) * days / 2
    seen = draw.uniform(0, days, size=count)
    return x, np.ceil(np.minimum(death, seen)), (death <= seen).astype(float)


def test_a_published_trial_comes_out_as_published() -> None:
    # R's survival::coxph(Surv(time, cens) ~ treat, MASS::gehan), Efron's ties
    x, time, event = leukaemia()
    fitted = fit_cox(x, time, event)
    likelihood = PartialLikelihood(x, time, event)
    here, null = likelihood.at(fitted.coef), likelihood.at(np.zeros(1))
    assert fitted.coef[0] == pytest.approx(1.5721, abs=5e-4)
    assert here.hessian[0, 0] * 30 == pytest.approx(1 / 0.4124**2, rel=1e-3)
    assert 2 * 30 * (null.loss - here.loss) == pytest.approx(16.35, abs=0.01)


@pytest.mark.parametrize("days", [6, 40, 4000])
def test_coefficients_are_those_of_statsmodels(days: int) -> None:
    x, time, event = made(days=days)
    want = PHReg(time, x, status=event, ties="efron").fit()
    fitted = fit_cox(x, time, event)
    np.testing.assert_allclose(fitted.coef, want.params, rtol=1e-5, atol=1e-6)
    loss = PartialLikelihood(x, time, event).at(fitted.coef).loss
    assert -loss * event.sum() == pytest.approx(want.llf, rel=1e-8)


def test_derivatives_are_those_of_small_differences() -> None:
    x, time, event = made(60, days=8)
    likelihood, coef, h = PartialLikelihood(x, time, event), np.array([0.4, -0.3, 0.2, 0.1]), 1e-5
    at = likelihood.at(coef)
    ways = np.eye(4) * h
    up, down = ([likelihood.at(coef + sign * way) for way in ways] for sign in (1, -1))
    slopes = [(u.loss - d.loss) / (2 * h) for u, d in zip(up, down, strict=True)]
    bends = [(u.gradient - d.gradient) / (2 * h) for u, d in zip(up, down, strict=True)]
    np.testing.assert_allclose(at.gradient, slopes, atol=1e-8)
    np.testing.assert_allclose(at.hessian, bends, atol=1e-7)


def test_the_penalty_is_per_event_and_pulls_towards_zero() -> None:
    x, time, event = made()
    free, held = fit_cox(x, time, event), fit_cox(x, time, event, l2=0.5)
    slope = PartialLikelihood(x, time, event).at(held.coef).gradient
    np.testing.assert_allclose(slope + 0.5 * held.coef, 0, atol=1e-6)
    assert np.linalg.norm(held.coef) < 0.8 * np.linalg.norm(free.coef)


def test_the_order_of_the_patients_does_not_matter() -> None:
    x, time, event = made()
    at = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_allclose(
        fit_cox(x[at], time[at], event[at]).coef, fit_cox(x, time, event).coef
    )


def test_a_constant_column_says_nothing_and_breaks_nothing() -> None:
    x, time, event = made()
    with_constant = fit_cox(np.column_stack([x, np.ones(len(x))]), time, event)
    np.testing.assert_allclose(with_constant.coef[:-1], fit_cox(x, time, event).coef, atol=1e-6)
    assert with_constant.coef[-1] == pytest.approx(0, abs=1e-9)


def test_a_column_that_tells_everything_is_refused_without_a_penalty() -> None:
    _, time, event = made()
    x = -time[:, None]  # the shorter the follow-up, the higher
    with pytest.raises(ValueError, match=r"must have one best fit.*ran away.*Pass a larger l2"):
        fit_cox(x, time, np.ones_like(event))
    assert fit_cox(x, time, event, l2=0.1).coef[0] > 0


def test_breslows_hazard_by_hand() -> None:
    # at 1: 1 event of 4 at risk with hazards 2, 1, 1, 1; at 3: 2 events of the 2 left with 1, 1
    hazard = breslow([1, 2, 3, 3], [1, 0, 1, 1], np.log([2.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(hazard.time, [1, 3])
    np.testing.assert_allclose(hazard.cumulative, [1 / 5, 1 / 5 + 2 / 2])
    alive = hazard.survival(np.log([1.0, 2.0]), 2.5)
    np.testing.assert_allclose(alive, np.exp([-0.2, -0.4]))


def test_before_the_first_event_all_are_alive() -> None:
    hazard = BaselineHazard(np.array([5.0]), np.array([0.3]), 9.0)
    assert hazard.survival([0.0, 3.0], 4.9).tolist() == [1.0, 1.0]


def test_with_no_columns_that_matter_survival_is_that_of_nelson_and_aalen() -> None:
    _, time, event = made()
    hazard = breslow(time, event, np.zeros(len(time)))
    at_risk = [(time >= t).sum() for t in hazard.time]
    deaths = [((time == t) & (event == 1)).sum() for t in hazard.time]
    np.testing.assert_allclose(hazard.cumulative, np.cumsum(np.divide(deaths, at_risk)))


@pytest.mark.parametrize("horizon", [-1.0, 9.5, float("nan")])
def test_a_horizon_nobody_was_followed_to_is_refused(horizon: float) -> None:
    hazard = BaselineHazard(np.array([5.0]), np.array([0.3]), 9.0)
    with pytest.raises(ValueError, match=r"must lie within the follow-up, 0 to 9; got"):
        hazard.survival([0.0], horizon)


def test_the_penalty_grows_where_columns_are_noise() -> None:
    x, time, event = made(120, features=4)
    noise = np.random.default_rng(2).normal(size=(120, 30))
    few, _ = choose_l2(x, time, event)
    many, scores = choose_l2(noise, time, event)
    assert few < many == max(scores)


def test_the_choice_of_a_penalty_is_the_same_each_time() -> None:
    x, time, event = made(150)
    assert choose_l2(x, time, event, repeats=2) == choose_l2(x, time, event, repeats=2)


def test_folds_share_out_the_events_evenly() -> None:
    event = np.repeat([1.0, 0.0], [11, 90])
    fold = event_folds(event, folds=5, split_seed=0)
    with_event = np.bincount(fold[:11])
    assert with_event.min() >= 2
    assert np.ptp(np.bincount(fold)) <= 1
    assert not np.array_equal(fold, event_folds(event, folds=5, split_seed=1))


def test_more_folds_than_events_are_refused() -> None:
    with pytest.raises(ValueError, match=r"folds must be between 2 and the number of events, 3"):
        event_folds(np.array([1.0, 1.0, 1.0, 0.0]), folds=5, split_seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, e: (t, 0 * e), r"training part must hold at least two events.*with 0"),
        (lambda t, e: (t, e * (np.arange(len(e)) == e.argmax())), r"at least two events.*with 1"),
        (lambda t, e: (np.where(t == t.max(), np.nan, t), e), r"must have a time.*missing in"),
        (lambda t, e: (t - 5, e), r"time must be 0 or more.*found -4.*pass start="),
        (lambda t, e: (t, 2 * e), r"event must be 1.*or 0.*found 2"),
        (lambda t, e: (t[:-1], e), r"vectors of the same length.*\(299,\) and \(300,\)"),
    ],
    ids=["no events", "one event", "no time", "negative time", "other codes", "lengths"],
)
def test_bad_follow_up_is_refused(change, message: str) -> None:
    x, time, event = made()
    with pytest.raises(ValueError, match=message):
        fit_cox(x, *change(time, event))


def test_a_table_with_gaps_is_refused() -> None:
    x, time, event = made()
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"x must be a finite table.*Fill gaps first"):
        fit_cox(x, time, event)


def test_a_penalty_too_weak_for_a_best_fit_is_not_chosen() -> None:
    x, time, event = made(60, features=1)
    far = 1e4 * np.where(event > 0, 1.0, -1.0)[:, None] + x  # tells apart who had the event
    best, scores = choose_l2(far, time, event, l2s=(0.0, 1e6))
    assert scores[0.0] == -np.inf
    assert best == 1e6
