"""Ink: each function draws on the Axes it is given, with units, n and intervals, and returns it.

Colours are Okabe and Ito's, which the colour-blind can tell apart; series differ in marker or
line as well, so that a print in grey still reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from medkit.metrics.calibration import brier, calibration_points
from medkit.metrics.discrimination import auroc, prevalence, roc_curve
from medkit.metrics.spread import mean_over_seeds
from medkit.record.results import Metric

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "0.55"
_AXES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier score",
    "calibration_intercept": "calibration intercept [log odds]",
}


def learning_curves(
    ax: Axes,
    curves: Mapping[str, ArrayLike],
    *,
    x: Sequence[float] | None = None,
    xlabel: str = "epoch",
    ylabel: str = "loss [nats per encounter]",
) -> Axes:
    """Draw one line per name; several runs of one name are thin lines with their mean.

    Args:
        ax: Where to draw.
        curves: Name -> ``(E,)``, or ``(runs, E)``; NaN where a run was not measured.
        x: Where the E values belong; None: 0, 1, 2, ...
        xlabel: Name of the x axis, with its unit.
        ylabel: Name of the y axis, with its unit.
    """
    styles = zip(cycle(COLORS), cycle(_LINES), curves.items(), strict=False)
    for color, line, (name, values) in styles:
        runs = np.atleast_2d(np.asarray(values, np.float64))
        at = np.arange(runs.shape[1]) if x is None else np.asarray(x, np.float64)
        label = name if len(runs) == 1 else f"{name}: mean of {len(runs)} runs"
        if len(runs) > 1:
            for run in runs:
                there = np.isfinite(run)
                ax.plot(at[there], run[there], color=color, linewidth=0.6, alpha=0.4)
        there = np.isfinite(runs).any(axis=0)
        ax.plot(at[there], np.nanmean(runs[:, there], axis=0), line, color=color, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if x is None:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finish(ax, legend=True)


def roc(ax: Axes, y: ArrayLike, scores: Mapping[str, ArrayLike]) -> Axes:
    """Draw a ROC curve per model, with AUROC, DeLong's interval and the numbers of rows."""
    labels = np.asarray(y)
    styles = zip(cycle(COLORS), cycle(_LINES), scores.items(), strict=False)
    for color, line, (name, score) in styles:
        false, true = roc_curve(labels, score)
        label = f"{name}: AUROC {_interval(auroc(labels, score))}"
        ax.plot(false, true, line, color=color, label=label)
    ax.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":", label="no skill")
    ax.set(
        xlabel="1 - specificity",
        ylabel="sensitivity",
        title=f"{len(labels)} rows, {int(labels.sum())} with label 1; 95 % intervals (DeLong)",
        aspect="equal",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
    )
    return _finish(ax, legend=True)


def calibration(ax: Axes, y: ArrayLike, probs: Mapping[str, ArrayLike], *, bins: int = 10) -> Axes:
    """Draw observed against predicted share per bin of equally many rows, with Wilson's bars."""
    labels = np.asarray(y)
    highest = 0.0
    ax.axline((0, 0), slope=1, color=_GREY, linewidth=0.8, linestyle=":", label="calibrated")
    styles = zip(cycle(COLORS), cycle(_MARKERS), probs.items(), strict=False)
    for color, marker, (name, prob) in styles:
        points = calibration_points(labels, prob, bins=bins)
        at = [point.prob for point in points]
        seen = [point.observed for point in points]
        low = [m.value - (m.low if m.low is not None else m.value) for m in seen]
        high = [(m.high if m.high is not None else m.value) - m.value for m in seen]
        label = f"{name}: Brier {_interval(brier(labels, prob))}"
        ax.errorbar(
            at,
            [m.value for m in seen],
            yerr=[low, high],
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1,
            elinewidth=0.8,
            capsize=2,
            label=label,
        )
        highest = max(highest, *at, *(m.value + up for m, up in zip(seen, high, strict=True)))
    share = prevalence(labels).value
    ax.set(
        xlabel="predicted probability",
        ylabel="observed share of label 1",
        title=f"{len(labels)} rows in {bins} bins, prevalence {share:.3f}; 95 % intervals (Wilson)",
        xlim=(-0.01, min(1.01, 1.05 * highest)),
        ylim=(-0.01, min(1.01, 1.05 * highest)),
    )
    # what is calibrated runs along the diagonal: this corner is free
    return _finish(ax, legend=True, loc="lower right")


def missingness(
    ax: Axes, shares: Mapping[str, Mapping[str, float]], *, n: int | None = None
) -> Axes:
    """Draw the share of missing values per column, a bar per site.

    Args:
        ax: Where to draw; about 0.25 inch of height per column reads well.
        shares: Site -> column -> share missing, as ``dm.missingness()`` gives them.
        n: Rows in all, for the title.
    """
    columns = list(next(iter(shares.values())))
    columns.sort(key=lambda name: sum(of_site[name] for of_site in shares.values()))
    height = 0.8 / len(shares)
    for number, (color, (site, of_site)) in enumerate(
        zip(cycle(COLORS), shares.items(), strict=False)
    ):
        at = np.arange(len(columns)) + (len(shares) / 2 - 0.5 - number) * height
        mean = float(np.mean([of_site[name] for name in columns]))
        label = f"site {site}: {mean:.0%} of all cells" if site else f"{mean:.0%} of all cells"
        ax.barh(at, [of_site[name] for name in columns], height, color=color, label=label)
    ax.set_yticks(np.arange(len(columns)), columns)
    ax.set(xlabel="missing or coded as missing [% of rows]", xlim=(0, 1), ylim=(-0.6, None))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    if n is not None:
        ax.set_title(f"{n} rows")
    return _finish(ax, legend=True)


def forest(
    ax: Axes,
    metrics: Mapping[str, Metric],
    name: str,
    *,
    rows: Sequence[str],
    series: Sequence[str],
    best: str = "",
) -> Axes:
    """Draw one number per way and part with its interval: ``metrics["<row>/<series>/<name>"]``.

    Args:
        ax: Where to draw.
        metrics: As ``metrics.summary.by_group`` returns them.
        name: Of the number, such as "auroc".
        rows: Ways or models, the first on top; what stands before a last slash is not shown.
        series: Parts, each in its own colour and marker. What is not there, or NaN, is left out.
        best: A row to compare with, drawn as a line in the colour of the series.
    """
    styles = zip(series, cycle(COLORS), cycle(_MARKERS), cycle(_LINES[1:]), strict=False)
    for number, (part, color, marker, line) in enumerate(styles):
        named = {row: metrics.get(f"{row}/{part}/{name}") for row in (*rows, best)}
        found = {row: m for row, m in named.items() if m is not None and np.isfinite(m.value)}
        count = max((m.n or 0 for m in found.values()), default=0)
        at = {row: place + 0.3 * (number - (len(series) - 1) / 2) for place, row in enumerate(rows)}
        shown = [row for row in rows if row in found]
        for row in shown:
            low, high = found[row].low, found[row].high
            if low is not None and high is not None:
                ax.plot([low, high], [at[row]] * 2, color=color, linewidth=1.2)
        values, places = [found[row].value for row in shown], [at[row] for row in shown]
        ax.plot(values, places, marker, color=color, markersize=4, label=f"{part}: {count} rows")
        if best in found:
            ax.axvline(found[best].value, color=color, linewidth=0.9, linestyle=line)
    names = [row.rsplit("/", 1)[-1].replace("_", " ") for row in rows]
    ax.set_yticks(range(len(rows)), names)
    ax.set(xlabel=_AXES.get(name, name.replace("_", " ")), ylim=(len(rows) - 0.5, -0.5))
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return _finish(ax, legend=False)


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
            _interval(mean),
            (mean.value, row + 0.28),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
    ax.set_yticks(range(len(names)), [f"{name}\n{_seeds(len(runs[name]))}" for name in names])
    ax.set(
        xlabel=xlabel,
        ylim=(-0.5, len(names) - 0.2),
        title="points: seeds; diamond: mean, 95 % t interval over seeds",
    )
    return _finish(ax, legend=False)


def attributions(
    ax: Axes,
    shares: Mapping[str, ArrayLike],
    columns: Sequence[str],
    *,
    verdict: str,
    top: int = 10,
    unit: str = "logit",
) -> Axes:
    """Draw a bar per column: its mean absolute share, with a t interval over seeds or folds.

    Args:
        ax: Where to draw.
        shares: Name of a method or model -> ``(P,)``, or ``(runs, P)``: mean absolute shares. Runs
            that share training rows, as folds do, differ by less than independent ones would.
        columns: Names of the P columns.
        verdict: What the randomisation test said; it is the title, so that "do not use" can't be
            left out.
        top: So many columns, those with the largest bar in the first of ``shares``.
        unit: Of the shares.
    """
    runs_of = {name: np.atleast_2d(np.asarray(runs, np.float64)) for name, runs in shares.items()}
    order = np.argsort(-next(iter(runs_of.values())).mean(axis=0), kind="stable")[:top][::-1]
    height = 0.8 / len(runs_of)
    for number, (color, (name, runs)) in enumerate(
        zip(cycle(COLORS), runs_of.items(), strict=False)
    ):
        at = np.arange(len(order)) + (len(runs_of) / 2 - 0.5 - number) * height
        means = [mean_over_seeds(runs[:, column].tolist()) for column in order]
        half = [0.0 if m.high is None else m.high - m.value for m in means]
        label = name if len(runs) == 1 else f"{name}: mean of {len(runs)} runs, 95 % t interval"
        ax.barh(
            at,
            [m.value for m in means],
            height,
            xerr=half if len(runs) > 1 else None,
            color=color,
            label=label,
            error_kw={"elinewidth": 0.8, "capsize": 2},
        )
    ax.set_yticks(np.arange(len(order)), [columns[column] for column in order])
    ax.set(xlabel=f"mean absolute share [{unit}]", title=fill(verdict, 70))
    ax.set_xlim(left=0)
    return _finish(ax, legend=True, loc="lower right")


def _interval(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def _finish(ax: Axes, *, legend: bool, loc: Literal["best", "lower right"] = "best") -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.title.set_fontsize("medium")
    if legend:
        ax.legend(frameon=False, fontsize="small", loc=loc)
    return ax


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
