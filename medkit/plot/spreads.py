"""Figures of spread: seeds as points, a ladder of bands, what each practice buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from medkit.metrics.spread import mean_over_seeds
from medkit.plot.style import COLORS, GREY, MARKERS, counted, finish, interval
from medkit.record.results import Metric


def seed_spread(ax: Axes, runs: Mapping[str, Sequence[float]], *, xlabel: str = "AUROC") -> Axes:
    """Draw every run as a point, and the mean over seeds with its t interval beside them."""
    names = list(runs)
    for row, (name, color) in enumerate(zip(names, cycle(COLORS), strict=False)):
        values = np.asarray(runs[name], np.float64)
        # spread out by rank, not at random: the same figure each time
        offset = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else np.zeros(1)
        ax.plot(values, row - 0.08 + offset, "o", color=color, markersize=4, alpha=0.6)
        mean = mean_over_seeds(values.tolist())
        if mean.low is not None and mean.high is not None:
            ax.plot([mean.low, mean.high], [row + 0.28] * 2, color=color, linewidth=2)
        ax.plot(mean.value, row + 0.28, "D", color=color, markersize=6)
        ax.annotate(
            interval(mean),
            (mean.value, row + 0.28),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
    ax.set_yticks(
        range(len(names)), [f"{name}\n{counted(len(runs[name]), 'seed')}" for name in names]
    )
    ax.set(
        xlabel=xlabel,
        ylim=(-0.5, len(names) - 0.2),
        title="points: seeds; diamond: mean, 95 % t interval over seeds",
    )
    return finish(ax, legend=False)


def spread_ladder(
    ax: Axes,
    rungs: Mapping[str, Metric],
    *,
    xlabel: str = "terminal band of the validation loss [± %]",
    limit: float | None = None,
) -> Axes:
    """Draw a bar per rung, from the script as it was to the recipe, each with its interval.

    A rung should say what it is ("split fixed", "recipe", "5 seeds together"): most of a famous
    fall may be the split.

    Args:
        ax: Where to draw; about 0.5 inch of height per rung reads well.
        rungs: Name -> spread, the first on top; infinite where a run diverged.
        xlabel: Name of the axis, with its unit.
        limit: A bar to be under, drawn as a line.
    """
    ends = [max(m.value, m.high or 0.0) for m in rungs.values() if np.isfinite(m.value)]
    widest = max(ends, default=1.0)
    for row, metric in enumerate(rungs.values()):
        dead = not np.isfinite(metric.value)
        ax.barh(
            row,
            widest if dead else metric.value,
            0.55,
            color=COLORS[1] if dead else COLORS[0],
            alpha=0.35 if dead else 0.85,
            hatch="//" if dead else None,
        )
        if metric.low is not None and metric.high is not None:
            ax.plot([metric.low, metric.high], [row, row], color="black", linewidth=1.2)
        said = metric.method.split(";")[0] if dead else f"±{interval(metric, '.1f')}"
        if not dead and metric.n is not None:
            said += f", {counted(metric.n, 'run')}"
        _beside(ax, said, row)
    if limit is not None:
        ax.axvline(limit, color=GREY, linestyle="--", linewidth=1)
        ax.annotate(f" {limit:g}", (limit, -0.6), fontsize="small", color="0.3", va="center")
    ax.set_yticks(range(len(rungs)), list(rungs))
    ax.set(xlabel=xlabel, xlim=(0, 1.02 * widest), ylim=(len(rungs) - 0.3, -0.7))
    return finish(ax, legend=False)


def effects(
    ax: Axes,
    found: Mapping[str, Mapping[str, Metric]],
    *,
    xlabel: str,
    nothing: float = 0.0,
    rows: Sequence[str] | None = None,
) -> Axes:
    """Draw what each practice does, with its interval, about the line of no effect.

    An interval that crosses the line is drawn hollow. A ratio (``nothing=1``) is drawn on a
    logarithmic axis, where half and double are alike.

    Args:
        ax: Where to draw; about 0.4 inch of height per practice and series reads well.
        found: Series, such as "leave one out" -> practice -> effect.
        xlabel: Name of the axis: which way is better, and the unit.
        nothing: Where no effect is: 0 for a difference, 1 for a ratio.
        rows: The practices from the top down; None: as they come.
    """
    practices = list(rows or dict.fromkeys(name for series in found.values() for name in series))
    styles = zip(found.items(), cycle(COLORS), cycle(MARKERS), strict=False)
    for (series, of), color, marker in styles:
        seeds = sorted({m.n for m in of.values() if m.n is not None})
        many = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else counted(seeds[0], "seed")
        ax.plot([], [], marker, color=color, linestyle="none", label=f"{series}, {many}")
        for name, metric in of.items():
            here = [other for other in found if name in found[other]]
            row = practices.index(name) + 0.4 * (here.index(series) - (len(here) - 1) / 2)
            _effect(ax, metric, row, color=color, marker=marker, nothing=nothing)
            missing = not np.isfinite(metric.value)
            said = metric.method if missing else interval(metric, ".2f" if nothing == 1 else "+.3f")
            _beside(ax, said, row, color)
    ax.axvline(nothing, color=GREY, linewidth=1)
    if nothing == 1:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.set_yticks(range(len(practices)), practices)
    ax.set(xlabel=xlabel, ylim=(len(practices) - 0.4, -0.6))
    finish(ax, legend=False)
    # above the axes: inside, it would hide intervals
    ax.legend(
        frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=len(found)
    )
    return ax


def _effect(
    ax: Axes, metric: Metric, row: float, *, color: str, marker: str, nothing: float
) -> None:
    if not np.isfinite(metric.value):
        return
    sure = False
    if metric.low is not None and metric.high is not None:
        ax.plot([metric.low, metric.high], [row, row], color=color, linewidth=1.2)
        sure = not metric.low <= nothing <= metric.high
    fill = color if sure else "white"
    ax.plot(metric.value, row, marker, color=color, markerfacecolor=fill, markersize=6)


def _beside(ax: Axes, text: str, row: float, color: str = "black") -> None:
    """Write a row's numbers to the right of the axes, where they hide nothing."""
    where = ax.get_yaxis_transform()
    ax.text(1.02, row, text, transform=where, va="center", fontsize="small", color=color)
