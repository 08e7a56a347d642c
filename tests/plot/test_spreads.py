from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from medkit import plot
from medkit.metrics.spread import mean_over_seeds
from medkit.record.results import Metric


def legend(ax: Axes) -> str:
    found = ax.get_legend()
    assert found is not None
    return "\n".join(text.get_text() for text in found.get_texts())


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_seed_spread_shows_every_seed_and_the_mean_with_its_interval(ax: Axes) -> None:
    runs = {"net": [0.86, 0.87, 0.85], "ensemble": [0.88]}
    plot.seed_spread(ax, runs)
    shown = [line.get_xdata() for line in ax.get_lines()]
    assert any(np.array_equal(values, runs["net"]) for values in shown)
    mean = mean_over_seeds(runs["net"])
    texts = [text.get_text() for text in ax.texts]
    assert texts == [f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]", "0.880"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [
        "net\n3 seeds",
        "ensemble\n1 seed",
    ]


def test_the_same_numbers_draw_the_same_points(ax: Axes) -> None:
    plot.seed_spread(ax, {"net": [0.86, 0.87, 0.85]})
    _, other = plt.subplots()
    np.random.seed(5)  # noqa: NPY002 - jitter must not come from the global generator
    plot.seed_spread(other, {"net": [0.86, 0.87, 0.85]})
    np.testing.assert_array_equal(ax.get_lines()[0].get_xydata(), other.get_lines()[0].get_xydata())
    plt.close(other.figure)


def test_a_ladder_has_a_bar_per_rung_with_its_interval_and_runs(ax: Axes) -> None:
    rungs = {"as run": Metric(37.0, 30.0, 41.0, n=20), "recipe": Metric(4.4, 3.0, 5.3, n=12)}
    plot.spread_ladder(ax, rungs, limit=8)
    assert [bar.get_width() for bar in ax.patches] == [37.0, 4.4]
    assert texts(ax)[:2] == ["±37.0 [30.0, 41.0], 20 runs", "±4.4 [3.0, 5.3], 12 runs"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["as run", "recipe"]
    assert "%" in ax.get_xlabel()
    assert any(list(line.get_xdata()) == [8, 8] for line in ax.get_lines())


def test_a_rung_with_a_dead_run_is_hatched_over_the_whole_width(ax: Axes) -> None:
    dead = Metric(math.inf, n=20, method="3 of 20 runs diverged; the other 17: 9 %")
    plot.spread_ladder(ax, {"garbage": dead, "recipe": Metric(4.0, 3.0, 8.0, n=20)})
    assert ax.patches[0].get_width() == 8.0
    assert ax.patches[0].get_hatch() == "//"
    assert texts(ax)[0] == "3 of 20 runs diverged"


def test_an_effect_is_filled_only_where_its_interval_leaves_out_nothing(ax: Axes) -> None:
    found = {"cosine": Metric(2.2, 1.4, 3.2, n=12), "EMA": Metric(1.02, 0.8, 1.34, n=12)}
    plot.effects(ax, {"left out": found}, xlabel="band without / with", nothing=1)
    points = {
        float(np.ravel(line.get_xdata())[0]): line.get_markerfacecolor()
        for line in ax.get_lines()
        if line.get_marker() == "o" and len(line.get_xdata())
    }
    assert points == {2.2: plot.COLORS[0], 1.02: "white"}
    assert ax.get_xscale() == "log"
    assert texts(ax) == ["2.20 [1.40, 3.20]", "1.02 [0.80, 1.34]"]
    assert legend(ax) == "left out, 12 seeds"


def test_series_of_effects_share_the_row_of_their_practice(ax: Axes) -> None:
    found = {
        "left out": {"a": Metric(0.1, 0.0, 0.2, n=5), "b": Metric(0.3, 0.2, 0.4, n=5)},
        "added": {"b": Metric(0.2, 0.1, 0.3, n=4), "c": Metric(math.nan, n=5, method="it died")},
    }
    plot.effects(ax, found, xlabel="AUROC without it minus with it")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b", "c"]
    assert texts(ax)[-1] == "it died"
    assert legend(ax) == "left out, 5 seeds\nadded, 4 to 5 seeds"
    assert ax.get_xscale() == "linear"


def test_effects_stand_in_the_order_asked_for_beside_those_of_their_practice(ax: Axes) -> None:
    found = {
        "left out": {"a": Metric(0.1, 0.0, 0.2, n=5)},
        "added": {"b": Metric(0.3, 0.2, 0.4, n=5), "a": Metric(0.2, 0.1, 0.3, n=5)},
    }
    plot.effects(ax, found, xlabel="gain", rows=["b", "a"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["b", "a"]
    at = {text.get_text()[:6]: round(text.get_position()[1], 2) for text in ax.texts}
    assert at == {"+0.300": 0, "+0.100": 0.8, "+0.200": 1.2}
