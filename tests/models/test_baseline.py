from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medkit import keyed
from medkit.models.baseline import LogisticBaseline, fit_boosting, fit_logistic


def test_it_scores_as_scikit_learns_model_does() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 4)).astype(np.float32)
    y = draw.random(200) < expit(x[:, 0])
    model = LogisticRegression(C=0.1).fit(x.astype(float), y)
    want = model.predict_proba(x)[:, 1]
    np.testing.assert_allclose(fit_logistic(x, y).prob(x), want, atol=1e-4)


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
