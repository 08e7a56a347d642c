from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medkit import keyed
from medkit.data.cox import choose_l2, fit_cox

DRAW = keyed.generator(0, "test", "cox")
X, TIME, EVENT = DRAW.normal(size=(60, 2)), DRAW.exponential(10, 60), np.arange(60) % 3 == 0


@pytest.mark.parametrize("x", [X[:9], X[:, :0], X[:, 0], np.where(X > 1, np.nan, X)])
def test_columns_that_do_not_fit_the_times_are_refused(x: np.ndarray) -> None:
    with pytest.raises(
        ValueError, match=r"one column at least and a row per time; got shape .* 60"
    ):
        fit_cox(x, TIME, EVENT)


@pytest.mark.parametrize("settings", [{"repeats": 0}, {"l2s": ()}])
def test_a_penalty_is_not_chosen_from_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"one at least, by one round of folds at least; got l2s="):
        choose_l2(X, TIME, EVENT, **settings)


@pytest.mark.parametrize("x", [X[:, :1], X[0]])
def test_a_risk_needs_the_columns_that_were_fitted(x: np.ndarray) -> None:
    model = fit_cox(X, TIME, EVENT, l2=0.1)
    with pytest.raises(ValueError, match=r"must have the 2 columns .* got shape \(.*Pass dm\.rows"):
        model.risk(x)
