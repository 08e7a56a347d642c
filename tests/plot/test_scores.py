from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes

from medkit import plot
from medkit.metrics.discrimination import auroc
from medkit.record.results import Metric

PROB = np.linspace(0.02, 0.98, 60)
Y = (np.arange(60) * 7 % 10 < PROB * 10).astype(int)


def legend(ax: Axes) -> str:
    found = ax.get_legend()
    assert found is not None
    return "\n".join(text.get_text() for text in found.get_texts())


def test_roc_says_auroc_with_its_interval_and_the_number_of_rows(ax: Axes) -> None:
    plot.roc(ax, Y, {"net": PROB})
    want = auroc(Y, PROB)
    assert f"net: AUROC {want.value:.3f} [{want.low:.3f}, {want.high:.3f}]" in legend(ax)
    assert f"60 rows, {Y.sum()} with label 1" in ax.get_title()


def test_calibration_shows_all_rows_once_and_the_prevalence(ax: Axes) -> None:
    plot.calibration(ax, Y, {"net": PROB}, bins=6)
    points = next(c for c in ax.containers if c.get_label().startswith("net: Brier 0."))
    assert len(points[0].get_xdata()) == 6
    assert np.mean(points[0].get_xdata()) == pytest.approx(PROB.mean())
    assert f"prevalence {Y.mean():.3f}" in ax.get_title()


def test_missingness_has_a_bar_per_site_and_column_and_the_share_of_cells(ax: Axes) -> None:
    shares = {"A": {"age": 0.0, "bnp": 0.5}, "B": {"age": 0.25, "bnp": 1.0}}
    plot.missingness(ax, shares, n=120)
    assert len(ax.patches) == 4
    assert sorted(bar.get_width() for bar in ax.patches) == [0.0, 0.25, 0.5, 1.0]
    assert "site A: 25% of all cells" in legend(ax)
    assert ax.get_title() == "120 rows"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["age", "bnp"]


def test_attributions_show_the_largest_columns_and_the_verdict_over_them(ax: Axes) -> None:
    shares = {"net": [[0.1, 0.9, 0.4], [0.3, 1.1, 0.4]], "logistic regression": [0.2, 0.5, 0.1]}
    plot.attributions(ax, shares, ["age", "bnp", "urea"], top=2, verdict="do not use: a reason")
    assert ax.get_title() == "do not use: a reason"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["urea", "bnp"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.4, 1.0, 0.1, 0.5])
    assert legend(ax) == "net: mean of 2 runs, 95 % t interval\nlogistic regression"
    assert ax.get_xlabel() == "mean absolute share [logit]"


def test_drawing_leaves_matplotlibs_settings_as_they_were(ax: Axes) -> None:
    before = dict(mpl.rcParams)
    plot.roc(ax, Y, {"net": PROB})
    assert dict(mpl.rcParams) == before


def test_a_forest_shows_each_interval_in_its_row_and_leaves_out_what_has_no_value(ax: Axes) -> None:
    inside = Metric(0.9, 0.8, 0.95, 0.95, 60)
    metrics = {"ways/as_zeros/inside/auroc": inside, "ways/means/inside/auroc": inside}
    metrics |= {"ways/means/outside/auroc": Metric(float("nan"))}
    metrics |= {"best/inside/auroc": Metric(0.91), "best/outside/auroc": Metric(0.87)}
    rows, parts = ["ways/as_zeros", "ways/means"], ["inside", "outside"]
    plot.forest(ax, metrics, "auroc", rows=rows, series=parts, best="best")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["as zeros", "means"]
    first, second, points, best, none, other = ax.get_lines()
    assert list(first.get_xdata()) == list(second.get_xdata()) == [0.8, 0.95]
    assert first.get_ydata()[0] < second.get_ydata()[0]
    assert ax.yaxis_inverted()
    assert ax.get_xlabel() == "AUROC"
    assert points.get_label() == "inside: 60 rows"
    assert (len(points.get_xdata()), len(none.get_xdata())) == (2, 0)
    assert (set(best.get_xdata()), set(other.get_xdata())) == ({0.91}, {0.87})
