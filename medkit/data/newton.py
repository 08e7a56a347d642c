"""Logistic regression on a table too long for copies: Newton's method, block by block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 8192  # rows, which stay in the cache
_STEPS = 100


def fit_blocks(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    c: float,
    rows: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float64], float]:
    """Return weights and intercept of L2-regularised logistic regression.

    The optimum of scikit-learn's ``LogisticRegression(C=c)``, which holds the training rows once
    more, as float64: for float32 rows twice the table. Here 8,192 rows at a time are float64. A
    pass costs ``N F^2`` multiplications, and about eight passes reach the optimum.

    Args:
        x: ``(N, F)``, in row order in memory.
        y: ``(N,)``, 0 or 1, both there.
        c: Inverse strength of the penalty; the intercept bears none.
        rows: Numbers of the rows to fit on; None: all.

    Raises:
        ValueError: When it does not converge.
    """
    count = len(y) if rows is None else len(rows)
    features = x.shape[1]
    block = np.ones((min(_BLOCK, count), features + 1))  # the last column is the intercept's
    penalty = np.r_[np.full(features, 1 / c), 0.0]
    w = np.zeros(features + 1)
    loss, gradient, hessian = _pass(x, y, rows, w, block)
    for _ in range(_STEPS):
        total = loss + 0.5 * float(penalty @ (w * w))
        slope = gradient + penalty * w
        step = np.linalg.solve(hessian + np.diag(penalty), slope)
        decrease = float(slope @ step)  # twice what the quadratic model still promises
        if decrease <= 1e-10 * max(total, 1.0):
            return w[:-1] - step[:-1], float(w[-1] - step[-1])
        share = 1.0
        while True:  # halve the step until the loss falls, as Newton's need not far from the end
            trial = w - share * step
            loss, gradient, hessian = _pass(x, y, rows, trial, block)
            reached = loss + 0.5 * float(penalty @ (trial * trial))
            if reached <= total - 1e-4 * share * decrease or share < 1e-8:
                break
            share /= 2
        w = trial
    raise ValueError(
        f"logistic regression must converge, and after {_STEPS} steps it had not. Scale the "
        "columns to about unit variance, or lower c."
    )


def _pass(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    rows: NDArray[np.int64] | None,
    w: NDArray[np.float64],
    block: NDArray[np.float64],
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum over all rows of loss, gradient and Hessian."""
    loss, gradient, hessian = 0.0, np.zeros_like(w), np.zeros((len(w), len(w)))
    count = len(y) if rows is None else len(rows)
    for start in range(0, count, _BLOCK):
        at = slice(start, start + _BLOCK) if rows is None else rows[start : start + _BLOCK]
        label = y[at]
        part = block[: len(label)]
        part[:, :-1] = x[at]
        logit = part @ w
        # log(1 + exp(-z)) of the signed logit, without overflow
        loss += float(np.logaddexp(0.0, np.where(label == 1, -logit, logit)).sum())
        prob = 0.5 * (1 + np.tanh(0.5 * logit))
        gradient += part.T @ (prob - label)
        hessian += part.T @ (part * (prob * (1 - prob))[:, None])
    return loss, gradient, hessian
