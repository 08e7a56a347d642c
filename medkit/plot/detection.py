"""Figures of detection: the FROC curve."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from medkit.metrics.checks import Floats
from medkit.metrics.detection import FROC, RATES
from medkit.metrics.detection import Curve as Measured
from medkit.plot.style import COLORS, GREY, LINES, MARKERS, counted, finish, interval

_TICKS = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


def froc(ax: Axes, curves: Mapping[str, FROC]) -> Axes:
    """Draw sensitivity against false positives a scan, with the band over scans and the CPM.

    Past the last false positive, where every candidate is taken and more would be free, the line
    is dotted and the points are hollow.
    """
    styles = zip(cycle(COLORS), cycle(LINES), cycle(MARKERS), curves.items(), strict=False)
    counts = [_counts(of) for of in curves.values()]
    same, free = len(set(counts)) == 1, False
    for count, (color, line, marker, (name, of)) in zip(counts, styles, strict=False):
        if of.band is not None:
            at, low, high = of.band
            ax.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
        label = f"{name}: CPM {interval(of.cpm)}" + ("" if same else f", {count}")
        most = float(of.curve.false_per_scan[-1])
        x, y = _drawn(of.curve)
        ax.plot(x[x <= most], y[x <= most], line, color=color)
        ax.plot(x[x >= most], y[x >= most], ":", color=color)
        for rate, point in of.points.items():
            fill = "white" if rate > most else color
            ax.plot(rate, point.value, marker, color=color, markerfacecolor=fill, markersize=5)
            free = free or rate > most
        ax.plot([], [], line, marker=marker, color=color, markersize=5, label=label)
    if free:
        none = "free: no more candidates"
        ax.plot([], [], ":", marker="o", color=GREY, markerfacecolor="white", label=none)
    levels = {of.cpm.level for of in curves.values() if of.cpm.level is not None}
    said = [counts[0]] if same and counts else []
    said += [f"{100 * max(levels):g} % intervals (bootstrap over scans)"] if levels else []
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(RATES))
    ax.xaxis.set_major_formatter(FixedFormatter(_TICKS))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(
        xlabel="false positives per scan (log scale)",
        ylabel="sensitivity [share of nodules]",
        title="\n".join(said),
        xlim=(RATES[0] / 1.1, RATES[-1] * 1.1),
        ylim=(-0.01, 1.02),
    )
    return finish(ax, legend=True)


def _counts(of: FROC) -> str:
    return f"{counted(of.nodules, 'nodule')} in {counted(of.scans, 'scan')}"


def _drawn(curve: Measured) -> tuple[Floats, Floats]:
    """Return the curve between the first and the last rate, its steps and its slopes in ties."""
    false, found = curve.false_per_scan, curve.sensitivity
    inside = (false > RATES[0]) & (false < RATES[-1])
    # between ties the curve is straight, but not on a logarithmic axis: more points
    at = np.append(2.0 ** np.linspace(-3, 3, 193), np.clip(false[-1], RATES[0], RATES[-1]))
    x = np.append(at, false[inside])
    y = np.append(np.interp(at, false, found), found[inside])
    order = np.lexsort((y, x))
    return x[order], y[order]
