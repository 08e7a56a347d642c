from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from medkit.data import newton
from medkit.data.newton import fit_blocks


def hospital(rows: int = 900, *, far: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    x = (draw.normal(size=(rows, 5)) * far).astype(np.float32)
    x[:, 4] = 0  # never measured
    logit = x @ np.array([1.0, -2.0, 0.5, 0, 0]) / far - 2
    return x, (draw.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)


@pytest.mark.parametrize("c", [0.01, 0.1, 100.0])
@pytest.mark.parametrize("far", [1.0, 50.0])
def test_the_optimum_is_scikit_learns(c: float, far: float) -> None:
    x, y = hospital(far=far)
    w, intercept = fit_blocks(x, y, c=c)
    theirs = LogisticRegression(C=c, tol=1e-10, max_iter=50_000).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(w * far, theirs.coef_[0] * far, atol=2e-4)
    assert intercept == pytest.approx(theirs.intercept_[0], abs=2e-4)


def test_separable_classes_have_an_optimum_too() -> None:
    x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    y = (x[:, 0] > 0).astype(np.int64)
    w, _ = fit_blocks(x, y, c=1e4)
    theirs = LogisticRegression(C=1e4, tol=1e-12, max_iter=50_000).fit(x.astype(np.float64), y)
    assert w[0] == pytest.approx(theirs.coef_[0, 0], rel=1e-3)


def test_rows_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = hospital()
    rows = np.arange(0, 900, 2)
    whole, _ = fit_blocks(x[rows], y[rows], c=0.1)
    monkeypatch.setattr(newton, "_BLOCK", 64)
    np.testing.assert_allclose(fit_blocks(x, y, c=0.1, rows=rows)[0], whole, rtol=1e-9)


def test_what_does_not_converge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton, "_STEPS", 1)
    with pytest.raises(ValueError, match=r"after 1 steps it had not\. Scale the columns"):
        fit_blocks(*hospital(), c=0.1)
