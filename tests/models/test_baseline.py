from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medkit import keyed
from medkit.data.linear import STRENGTHS, left_out_loss
from medkit.models.baseline import LogisticBaseline, fit_boosting, fit_logistic


def test_it_scores_as_scikit_learns_model_does() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 4)).astype(np.float32)
    y = draw.random(200) < expit(x[:, 0])
    model = LogisticRegression(C=0.1).fit(x.astype(float), y)
    want = model.predict_proba(x)[:, 1]
    np.testing.assert_allclose(fit_logistic(x, y, c=0.1).prob(x), want, atol=1e-4)


def _rows(columns: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    draw = keyed.generator(0, "test", columns)
    x = draw.normal(size=(120, columns))
    return x, (draw.random(120) < expit(x[:, 0] + 0.5 * x[:, 1])).astype(np.int64)


@pytest.mark.parametrize("c", [0.01, 0.1, 1.0])
def test_the_left_out_loss_is_near_that_of_fits_without_each_row(c: float) -> None:
    x, y = _rows(10)
    each = [np.arange(120) != row for row in range(120)]
    prob = [
        LogisticRegression(C=c).fit(x[keep], y[keep]).predict_proba(x[~keep])[0, y[row]]
        for row, keep in enumerate(each)
    ]
    assert left_out_loss(x, y, c=c) == pytest.approx(-np.mean(np.log(prob)), rel=0.005)


@pytest.mark.parametrize("columns", [10, 300])
def test_the_penalty_with_the_least_left_out_loss_is_chosen(columns: int) -> None:
    x, y = _rows(columns)
    best = min(STRENGTHS, key=lambda c: left_out_loss(x, y, c=c))
    np.testing.assert_allclose(fit_logistic(x, y).coef, fit_logistic(x, y, c=best).coef, rtol=1e-9)


def test_more_columns_of_noise_get_a_stronger_penalty() -> None:
    few, many = (np.linalg.norm(fit_logistic(*_rows(columns)).coef[:2]) for columns in (10, 300))
    assert many < few / 2


def test_another_word_for_the_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match=r"number above 0 or 'chosen', got 'auto'.*such as 0\.1"):
        fit_logistic(*_rows(10), c="auto")


def test_extreme_logits_give_probabilities_and_no_overflow() -> None:
    prob = LogisticBaseline((1.0,), 0.0).prob([[-1e6], [0.0], [1e6]])
    assert prob.tolist() == [0.0, 0.5, 1.0]


def test_a_fit_that_does_not_converge_is_refused() -> None:
    x = np.random.default_rng(0).normal(size=(200, 40)) * np.logspace(-8, 8, 40)
    with pytest.raises(ValueError, match=r"must converge.*Scale the columns"):
        fit_logistic(x, x[:, 0] > 0, c=1e9)


def test_boosting_repeats_and_learns_what_a_linear_model_cannot() -> None:
    x = keyed.generator(0, "test").normal(size=(600, 3))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    x[::7, 2] = np.nan
    boosting = fit_boosting(x, y)
    np.testing.assert_array_equal(fit_boosting(x, y).prob(x), boosting.prob(x))
    assert roc_auc_score(y, boosting.prob(x)) > 0.95
    assert roc_auc_score(y, fit_logistic(np.nan_to_num(x), y).prob(np.nan_to_num(x))) < 0.65
