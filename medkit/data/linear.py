"""Logistic regression on what the net sees: fitted with the medians and scales, kept with them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression


@dataclass(frozen=True)
class LogisticBaseline:
    """A fitted logistic regression, as plain numbers.

    Attributes:
        coef: One per feature.
        intercept: The rest.
    """

    coef: tuple[float, ...]
    intercept: float

    def logits(self, x: ArrayLike) -> NDArray[np.float64]:
        """Return the log odds of each row of ``x``, ``(B, F)`` to ``(B,)``."""
        return np.asarray(x, np.float64) @ np.array(self.coef) + self.intercept

    def prob(self, x: ArrayLike) -> NDArray[np.float64]:
        """Return P(y = 1) of each row of ``x``, ``(B, F)`` to ``(B,)``."""
        # the logistic function, without overflow
        return 0.5 * (1 + np.tanh(0.5 * self.logits(x)))

    def state(self) -> dict[str, Any]:
        """Return plain lists and numbers, for a checkpoint that loads with weights_only=True."""
        return {"coef": list(self.coef), "intercept": self.intercept}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> LogisticBaseline:
        """Rebuild from :meth:`state`."""
        return cls(tuple(state["coef"]), float(state["intercept"]))


def fit_logistic(x: ArrayLike, y: ArrayLike, *, c: float = 0.1) -> LogisticBaseline:
    """Fit L2-regularised logistic regression on training rows.

    Args:
        x: Training rows as the net sees them, ``(N, F)``: ``dm.rows("train").x``.
        y: Their labels, ``(N,)``.
        c: Inverse strength of the penalty; 0.1 was the best on the kit's own hospitals.

    Raises:
        ValueError: When the fit did not converge.
    """
    model = LogisticRegression(C=c, max_iter=5000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(np.asarray(x, np.float64), np.asarray(y))
    if any(issubclass(w.category, ConvergenceWarning) for w in caught):
        raise ValueError(
            f"the baseline must converge, and after {model.max_iter} iterations it had not. "
            "Scale the columns to about unit variance, or lower c."
        )
    coef: Any = model.coef_[0]
    return LogisticBaseline(tuple(float(w) for w in coef), float(model.intercept_[0]))
