"""Figures of training: curves of one run or many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from medkit.metrics.checks import Floats
from medkit.metrics.stability import convergence_band
from medkit.plot.style import COLORS, GREY, LINES, counted, finish, interval
from medkit.record.results import Metric


def learning_curves(
    ax: Axes,
    curves: Mapping[str, ArrayLike],
    *,
    x: Sequence[float] | None = None,
    xlabel: str = "epoch",
    ylabel: str = "loss [nats per encounter]",
    band: bool = False,
) -> Axes:
    """Draw one line per name; several runs of one name are thin lines with their mean.

    Args:
        ax: Where to draw.
        curves: Name -> ``(E,)``, or ``(runs, E)``; NaN where a run was not measured.
        x: Where the E values belong; None: 0, 1, 2, ...
        xlabel: Name of the x axis, with its unit.
        ylabel: Name of the y axis, with its unit.
        band: Shade the mean plus and minus 1.96 sd over runs in place of the thin lines.
    """
    styles = zip(cycle(COLORS), cycle(LINES), curves.items(), strict=False)
    for color, line, (name, values) in styles:
        runs = np.atleast_2d(np.asarray(values, np.float64))
        at = np.asarray(range(runs.shape[1]) if x is None else x, np.float64)
        label = name if len(runs) == 1 else f"{name}: mean of {len(runs)} runs"
        if band and len(runs) > 1:
            label += " ± 1.96 sd"
            _shade(ax, at, runs, color)
        elif len(runs) > 1:
            for run in runs:
                there = np.isfinite(run)
                ax.plot(at[there], run[there], color=color, linewidth=0.6, alpha=0.4)
        there = np.isfinite(runs).any(axis=0)
        ax.plot(at[there], np.nanmean(runs[:, there], axis=0), line, color=color, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if x is None:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return finish(ax, legend=True)


def seed_fan(
    ax: Axes,
    steps: ArrayLike,
    curves: ArrayLike,
    *,
    name: str,
    spread: Metric | None = None,
    last: float = 0.25,
    xlabel: str = "optimizer step",
    ylabel: str = "validation loss [nats per encounter]",
) -> Axes:
    """Draw the curves of all seeds, their mean and 1.96 sd about it, and how far they end apart.

    Beside it belongs the fan of the free split, on the same scale (``sharey=True``): what is wider
    there is other patients, not other training. A run that diverged ends in a cross.

    Args:
        ax: Where to draw.
        steps: Where the evaluations were, ``(T,)``.
        curves: ``(runs, T)``; not finite where a run had diverged.
        name: What varied and on which rows, such as "seeds on the same rows"; it is the title.
        spread: Number for the title; None: the terminal band of the ``last`` share.
        last: Share of the curve that ``spread`` is taken from: it is shaded.
        xlabel: Name of the x axis, with its unit.
        ylabel: Name of the y axis, with its unit.
    """
    at, runs = np.asarray(steps, np.float64), np.asarray(curves, np.float64)
    number = convergence_band(runs, last=last) if spread is None else spread
    ended = 0
    for run in runs:
        there = np.isfinite(run)
        ax.plot(at[there], run[there], color=COLORS[0], linewidth=0.6, alpha=0.45)
        if not there.all() and there.any():
            ended += 1
            ax.plot(at[there][-1], run[there][-1], "X", color=COLORS[1], markersize=7, zorder=3)
    whole = np.isfinite(runs).all(axis=1)
    if whole.any():
        _shade(ax, at, runs[whole], COLORS[0], label="± 1.96 sd")
        ax.plot(at, runs[whole].mean(axis=0), color="black", linewidth=1.4, label="mean")
    if ended:
        ax.plot([], [], "X", color=COLORS[1], label=f"{counted(ended, 'run')} diverged")
    first = at[-max(1, round(last * len(at)))]
    ax.axvspan(first, at[-1], color=GREY, alpha=0.12, linewidth=0)
    ends = f"±{interval(number, '.1f')} {number.unit} in the grey part, {counted(len(runs), 'run')}"
    if not np.isfinite(number.value):
        ends = number.method.replace("; ", "\n")
    ax.set(xlabel=xlabel, ylabel=ylabel, title=f"{name}\n{ends}")
    return finish(ax, legend=True)


def _shade(ax: Axes, at: Floats, runs: Floats, color: str, label: str | None = None) -> None:
    """Shade 1.96 sd about the mean, where at least two runs were measured."""
    there = np.isfinite(runs).sum(axis=0) > 1
    mean, sd = np.nanmean(runs[:, there], axis=0), np.nanstd(runs[:, there], axis=0, ddof=1)
    low, high = mean - 1.96 * sd, mean + 1.96 * sd
    ax.fill_between(at[there], low, high, color=color, alpha=0.18, linewidth=0, label=label)
