"""Logistic regression on what the net sees: fitted with the medians and scales, kept with them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from medkit.data.learnable import require_learnable
from medkit.data.newton import fit_blocks

CHOSEN = "chosen"
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
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
    x: ArrayLike,
    y: ArrayLike,
    *,
    c: float | str = CHOSEN,
    rows: NDArray[np.int64] | None = None,
) -> LogisticBaseline:
    """Fit L2-regularised logistic regression on training rows.

    Args:
        x: Training rows as the net sees them, ``(N, F)``: ``dm.rows("train").x``.
        y: Their labels, ``(N,)``.
        c: Inverse strength of the penalty; "chosen": the one of ``STRENGTHS`` with the least
            :func:`left_out_loss`. One number for all tables is no competent rival: 0.1 is too
            weak for 400 columns and 2,000 rows, by 0.008 AUROC. Of more than 16 million values
            it is 0.1: with so many rows it hardly matters.
        rows: Numbers of the training rows, where ``x`` and ``y`` hold others too; None: all.

    Raises:
        ValueError: When there is nothing to learn from, the fit did not converge, or ``c`` is
            neither above 0 nor that word.
    """
    x, y = np.asarray(x), np.asarray(y)
    if c != CHOSEN if isinstance(c, str) else not c > 0:
        raise ValueError(
            f"c must be a number above 0 or {CHOSEN!r}, got {c!r}. It is the inverse strength of "
            "the penalty, such as 0.1."
        )
    require_learnable(x, y, rows=rows)
    at = np.arange(len(y)) if rows is None else rows
    if len(at) * x.shape[1] > _MANY:
        w, intercept = fit_blocks(x, y, c=0.1 if isinstance(c, str) else c, rows=rows)
        return LogisticBaseline(tuple(float(part) for part in w), intercept)
    train, label = x[at].astype(np.float64), y[at]
    if isinstance(c, str):
        # with more columns than rows, the same rows turned into as few columns: the penalty and
        # the predictions stay as they are, and the Hessian is no larger than N x N
        turned = train if len(at) >= x.shape[1] else np.asarray(np.linalg.qr(train.T, mode="r")).T
        losses = [left_out_loss(turned, label, c=strength) for strength in STRENGTHS]
        c = STRENGTHS[int(np.argmin(losses))]
    coef, intercept = _fit(train, label, c)
    return LogisticBaseline(tuple(float(w) for w in coef), intercept)


def left_out_loss(x: NDArray[np.float64], y: NDArray[np.int64], *, c: float) -> float:
    """Return the mean cross entropy of rows left out one by one, without fitting again for each.

    One Newton step from the fit on all rows (approximate leave-one-out: Rad and Maleki 2020).
    Rows of one patient are left out singly, so a table with many per patient gets a penalty that
    is a little too weak.
    """
    coef, intercept = _fit(x, y, c)
    logit = x @ coef + intercept
    prob = 0.5 * (1 + np.tanh(0.5 * logit))
    weight = prob * (1 - prob)
    design = np.column_stack([x, np.ones(len(y))])
    hessian = (design.T * weight) @ design
    hessian[np.arange(len(coef)), np.arange(len(coef))] += 1 / c  # the intercept bears none
    half = solve_triangular(np.linalg.cholesky(hessian), design.T, lower=True)
    lever = np.sum(half * half, axis=0)
    left_out = logit + (prob - y) * lever / (1 - weight * lever)
    return float(np.mean(np.logaddexp(0, left_out) - y * left_out))


def _fit(
    x: NDArray[np.float64], y: NDArray[np.int64], c: float
) -> tuple[NDArray[np.float64], float]:
    model = LogisticRegression(C=c, max_iter=5000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y)
    if any(issubclass(w.category, ConvergenceWarning) for w in caught):
        raise ValueError(
            f"the baseline must converge, and after {model.max_iter} iterations it had not. "
            "Scale the columns to about unit variance, or lower c."
        )
    coef: Any = model.coef_[0]
    return coef, float(model.intercept_[0])
