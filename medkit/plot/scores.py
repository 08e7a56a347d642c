"""Figures of scores: ROC, calibration, forest of models and parts, missing cells, attributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from medkit.metrics.calibration import brier, calibration_points
from medkit.metrics.discrimination import auroc, prevalence, roc_curve
from medkit.metrics.spread import mean_over_seeds
from medkit.plot.style import COLORS, GREY, LINES, MARKERS, finish, interval
from medkit.record.results import Metric

_AXES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier score",
    "calibration_intercept": "calibration intercept [log odds]",
}


def roc(ax: Axes, y: ArrayLike, scores: Mapping[str, ArrayLike]) -> Axes:
    """Draw a ROC curve per model, with AUROC, DeLong's interval and the numbers of rows."""
    labels = np.asarray(y)
    styles = zip(cycle(COLORS), cycle(LINES), scores.items(), strict=False)
    for color, line, (name, score) in styles:
        false, true = roc_curve(labels, score)
        label = f"{name}: AUROC {interval(auroc(labels, score))}"
        ax.plot(false, true, line, color=color, label=label)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="no skill")
    ax.set(
        xlabel="1 - specificity",
        ylabel="sensitivity",
        title=f"{len(labels)} rows, {int(labels.sum())} with label 1; 95 % intervals (DeLong)",
        aspect="equal",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
    )
    return finish(ax, legend=True)


def calibration(ax: Axes, y: ArrayLike, probs: Mapping[str, ArrayLike], *, bins: int = 10) -> Axes:
    """Draw observed against predicted share per bin of equally many rows, with Wilson's bars."""
    labels = np.asarray(y)
    highest = 0.0
    ax.axline((0, 0), slope=1, color=GREY, linewidth=0.8, linestyle=":", label="calibrated")
    styles = zip(cycle(COLORS), cycle(MARKERS), probs.items(), strict=False)
    for color, marker, (name, prob) in styles:
        points = calibration_points(labels, prob, bins=bins)
        at = [point.prob for point in points]
        seen = [point.observed for point in points]
        low = [m.value - (m.low if m.low is not None else m.value) for m in seen]
        high = [(m.high if m.high is not None else m.value) - m.value for m in seen]
        label = f"{name}: Brier {interval(brier(labels, prob))}"
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
    return finish(ax, legend=True, loc="lower right")


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
    return finish(ax, legend=True)


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
    styles = zip(series, cycle(COLORS), cycle(MARKERS), cycle(LINES[1:]), strict=False)
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
    return finish(ax, legend=False)


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
    return finish(ax, legend=True, loc="lower right")
