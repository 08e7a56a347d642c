from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.axes import Axes

from medkit import plot
from medkit.metrics.stability import convergence_band
from medkit.record.results import Metric


def legend(ax: Axes) -> str:
    found = ax.get_legend()
    assert found is not None
    return "\n".join(text.get_text() for text in found.get_texts())


def test_learning_curves_show_each_run_and_their_mean(ax: Axes) -> None:
    runs = np.array([[3.0, 2.0, 1.0], [5.0, np.nan, 3.0]])
    plot.learning_curves(ax, {"val": runs, "train": [4.0, 3.0, 2.0]})
    assert "val: mean of 2 runs" in legend(ax)
    one, other, mean, train = ax.get_lines()
    assert one.get_ydata().tolist() == [3, 2, 1]
    assert other.get_ydata().tolist() == [5, 3]
    assert mean.get_ydata().tolist() == [4, 2, 2]
    assert train.get_label() == "train"


def test_learning_curves_name_both_axes_with_a_unit(ax: Axes) -> None:
    plot.learning_curves(ax, {"val": [2.0, 1.0]}, x=[100, 200], xlabel="optimizer step")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("optimizer step", "loss [nats per encounter]")
    assert ax.get_lines()[0].get_xdata().tolist() == [100, 200]


def test_a_band_is_196_sd_about_the_mean(ax: Axes) -> None:
    plot.learning_curves(ax, {"val": [[1.0, 2.0], [3.0, 2.0], [2.0, np.nan]]}, band=True)
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((2 - 1.96, 2 + 1.96))
    assert legend(ax) == "val: mean of 3 runs ± 1.96 sd"
    assert len(ax.get_lines()) == 1


def test_a_fan_shows_each_seed_the_band_and_where_it_is_taken(ax: Axes) -> None:
    curves = np.array([[9.0, 5.0, 1.0, 1.0], [9.0, 5.0, 3.0, 3.0]])
    plot.seed_fan(ax, [10, 20, 30, 40], curves, name="same rows", last=0.5)
    assert ax.get_title() == "same rows\n" + (
        f"±{plot.style.interval(convergence_band(curves, last=0.5), '.1f')} % in the grey part, "
        "2 runs"
    )
    grey = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (grey.x0, grey.x1) == pytest.approx((30, 40))
    lines = [line.get_ydata().tolist() for line in ax.get_lines()]
    assert lines == [*curves.tolist(), [9, 5, 2, 2]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "optimizer step",
        "validation loss [nats per encounter]",
    )


def test_a_fan_marks_where_a_run_diverged_and_says_it(ax: Axes) -> None:
    curves = [[3.0, 2.0, 1.0], [3.0, 2.5, 1.2], [3.0, 2.0, math.nan]]
    plot.seed_fan(ax, [1, 2, 3], curves, name="same rows")
    assert ax.get_title().startswith("same rows\n1 of 3 runs diverged\nthe other 2: ")
    cross = next(line for line in ax.get_lines() if line.get_marker() == "X")
    assert (cross.get_xdata().tolist(), cross.get_ydata().tolist()) == ([2], [2])
    assert "1 run diverged" in legend(ax)


def test_a_fan_of_another_metric_takes_its_own_number(ax: Axes) -> None:
    spread = Metric(3.5, 2.5, 5.0, 0.95, 8, "%")
    plot.seed_fan(ax, [1, 2], [[0.6, 0.9], [0.7, 0.9]], name="AUROC", spread=spread, last=0.5)
    assert "±3.5 [2.5, 5.0] %" in ax.get_title()
