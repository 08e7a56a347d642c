"""What a net must beat before it is believed: logistic regression and gradient boosting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from medkit.data.learnable import require_learnable
from medkit.data.linear import LogisticBaseline, fit_logistic

__all__ = ["BoostingBaseline", "LogisticBaseline", "fit_boosting", "fit_logistic"]


@dataclass(frozen=True)
class BoostingBaseline:
    """Fitted gradient-boosted trees.

    Attributes:
        model: scikit-learn's classifier; keep what it says, not its pickle.
    """

    model: Any

    def prob(self, x: ArrayLike) -> NDArray[np.float64]:
        """Return P(y = 1) of each row of ``x``, ``(B, F)`` to ``(B,)``; NaN means missing."""
        prob: NDArray[np.float64] = self.model.predict_proba(np.asarray(x, np.float32))[:, 1]
        return prob


def fit_boosting(
    x: ArrayLike,
    y: ArrayLike,
    *,
    trees: int = 150,
    learning_rate: float = 0.05,
    leaves: int = 6,
    rows_per_leaf: int = 10,
    l2: float = 5.0,
) -> BoostingBaseline:
    """Fit gradient boosting on training rows, with settings for some thousand rows and few events.

    Small trees and many of them, a fixed number: stopping early on a tenth of 150 events stops by
    chance. Nothing is drawn, so the fit repeats. (Friedman 2001; histograms: Ke 2017.)

    Args:
        x: Training rows, ``(N, F)``; NaN means missing and is learnt from, so that
            ``dm.values("train")`` will do as well as ``dm.rows("train").x``.
        y: Their labels, ``(N,)``.
        trees: Boosting rounds.
        learning_rate: Share of each tree's step that is taken.
        leaves: Of a tree: 6 hold interactions of up to 5 columns.
        rows_per_leaf: At least so many training rows in each.
        l2: Penalty on the leaves' values.

    Raises:
        ValueError: When there is nothing to learn from, or a label is neither 0 nor 1.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y)
    require_learnable(x, y, missing=True)
    model = HistGradientBoostingClassifier(
        max_iter=trees,
        learning_rate=learning_rate,
        max_leaf_nodes=leaves,
        min_samples_leaf=rows_per_leaf,
        l2_regularization=l2,
        early_stopping=False,
        random_state=0,  # without early stopping and column sampling nothing asks for it
    )
    return BoostingBaseline(model.fit(x, y))
