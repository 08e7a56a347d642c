"""Logistic regression on what the net sees: fitted with the medians and scales, kept with them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from medkit.data.newton import fit_blocks

_MANY = 1 << 24  # values; of more, scikit-learn's copy is the largest thing in memory


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


def fit_logistic(
    x: ArrayLike, y: ArrayLike, *, c: float = 0.1, rows: NDArray[np.int64] | None = None
) -> LogisticBaseline:
    """Fit L2-regularised logistic regression on training rows.

    Args:
        x: Training rows as the net sees them, ``(N, F)``: ``dm.rows("train").x``.
        y: Their labels, ``(N,)``.
        c: Inverse strength of the penalty; 0.1 was the best on the kit's own hospitals.
        rows: Numbers of the training rows, where ``x`` and ``y`` hold others too; None: all.

    Raises:
        ValueError: When the fit did not converge.
    """
    x, y = np.asarray(x), np.asarray(y)
    at = np.arange(len(y)) if rows is None else rows
    if len(at) * x.shape[1] > _MANY:
        w, intercept = fit_blocks(x, y, c=c, rows=rows)
        return LogisticBaseline(tuple(float(part) for part in w), intercept)
    model = LogisticRegression(C=c, max_iter=5000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x[at].astype(np.float64), y[at])
    if any(issubclass(w.category, ConvergenceWarning) for w in caught):
        raise ValueError(
            f"the baseline must converge, and after {model.max_iter} iterations it had not. "
            "Scale the columns to about unit variance, or lower c."
        )
    coef: Any = model.coef_[0]
    return LogisticBaseline(tuple(float(w) for w in coef), float(model.intercept_[0]))
