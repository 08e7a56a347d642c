"""What all figures share: colours, lines, markers, and how a number is written."""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes

from medkit.record.results import Metric

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "0.55"


def interval(metric: Metric, form: str = ".3f") -> str:
    """Return "0.871 [0.850, 0.890]", without limits where there are none."""
    if metric.low is None or metric.high is None:
        return f"{metric.value:{form}}"
    return f"{metric.value:{form}} [{metric.low:{form}}, {metric.high:{form}}]"


def finish(ax: Axes, *, legend: bool, loc: Literal["best", "lower right"] = "best") -> Axes:
    """Take off the frame and set the legend; each figure ends here."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.title.set_fontsize("medium")
    if legend:
        ax.legend(frameon=False, fontsize="small", loc=loc)
    return ax


def counted(count: int | None, one: str) -> str:
    """Return "1 seed", "20 seeds"."""
    return f"{count} {one}" if count == 1 else f"{count} {one}s"
