from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from medkit import plot
from medkit.metrics.detection import FROC, froc_of_labels


def made(seed: int, each: int = 40, scans: int = 20) -> FROC:
    rng = np.random.default_rng(seed)
    exam = np.repeat(np.arange(scans), each)
    y = np.arange(len(exam)) % 10 == 3
    return froc_of_labels(exam, y, rng.normal(0, 1, len(exam)) + 1.5 * y, draws=50)


def legend(ax: Axes) -> str:
    found = ax.get_legend()
    assert found is not None
    return "\n".join(text.get_text() for text in found.get_texts())


def test_froc_says_cpm_with_its_interval_nodules_and_scans(ax: Axes) -> None:
    said = made(0)
    plot.froc(ax, {"net": said})
    cpm = said.cpm
    assert legend(ax) == f"net: CPM {cpm.value:.3f} [{cpm.low:.3f}, {cpm.high:.3f}]"
    assert ax.get_title() == "80 nodules in 20 scans\n95 % intervals (bootstrap over scans)"
    assert ax.get_xlabel() == "false positives per scan (log scale)"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        "1/8",
        "1/4",
        "1/2",
        "1",
        "2",
        "4",
        "8",
    ]
    assert ax.get_xscale() == "log"
    assert len(ax.collections) == 1  # the band


def test_the_line_goes_through_the_seven_points(ax: Axes) -> None:
    said = made(1)
    plot.froc(ax, {"net": said})
    line = ax.lines[0].get_xydata()
    for rate, point in said.points.items():
        near = np.abs(np.asarray(line) - [rate, point.value]).max(axis=1)
        assert near.min() < 1e-12


def test_other_numbers_of_nodules_are_said_in_the_legend(ax: Axes) -> None:
    plot.froc(ax, {"net": made(0), "few": made(1, scans=7)})
    assert "80 nodules in 20 scans" in legend(ax)
    assert "28 nodules in 7 scans" in legend(ax)
    assert ax.get_title() == "95 % intervals (bootstrap over scans)"


def test_free_points_are_hollow(ax: Axes) -> None:
    plot.froc(ax, {"net": made(0, each=5)})  # 4.5 false positives a scan
    assert legend(ax).endswith("free: no more candidates")
    points = [line for line in ax.lines if len(line.get_xdata()) == 1]
    hollow = [float(p.get_xdata()[0]) for p in points if p.get_markerfacecolor() == "white"]
    assert hollow == [8.0]


def test_one_scan_is_drawn_without_band(ax: Axes) -> None:
    plot.froc(ax, {"net": made(0, scans=1)})
    assert not ax.collections
    assert ax.get_title() == "4 nodules in 1 scan"
