"""What a training monitor remembers, and how it is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medkit.plot import COLORS
from medkit.widgets.marks import Mark, draw_marks

_DPI = 110
MAX_POINTS = 400  # of one line: more than a screen shows, little in a checkpoint
MAX_PANELS = 3  # beside the loss


class Picture(Figure):
    """A figure that a notebook shows although pyplot knows nothing of it."""

    def _repr_png_(self) -> bytes:
        return self.png()

    def png(self) -> bytes:
        """Return it as a PNG file."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=_DPI)
        return buffer.getvalue()


class Thinned:
    """A line of any length in at most ``MAX_POINTS`` points, each the mean of equally many values.

    What it holds depends on the values alone, not on when it was asked.
    """

    def __init__(self) -> None:
        self.stride = 1  # values a point is the mean of
        self.x: list[float] = []
        self.y: list[float] = []
        self._sum, self._count = 0.0, 0

    def add(self, x: float, y: float) -> None:
        """Add one value at ``x``."""
        self._sum, self._count = self._sum + y, self._count + 1
        if self._count < self.stride:
            return
        self.x.append(x)
        self.y.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self.x) >= MAX_POINTS:
            self.x = self.x[1::2]
            self.y = [(a + b) / 2 for a, b in zip(self.y[::2], self.y[1::2], strict=True)]
            self.stride *= 2

    def state(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        rest = [self._sum, self._count]
        return {"stride": self.stride, "x": list(self.x), "y": list(self.y), "rest": rest}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` returned."""
        self.stride, self.x, self.y = state["stride"], list(state["x"]), list(state["y"])
        self._sum, self._count = state["rest"]


class History:
    """Lines of one training, over its optimizer steps.

    Attributes:
        batches: Training loss, batch by batch.
        epochs: Mean of the batches' losses, epoch by epoch.
        logged: Name -> line, such as ``val/auroc``.
        members: Name -> a line for each member of a stack of nets that are trained together.
        marks: What guards and schedules did.
    """

    def __init__(self) -> None:
        self.batches = Thinned()
        self.epochs = Thinned()
        self.logged: dict[str, Thinned] = {}
        # not in the state: the module and the guards keep them
        self.members: dict[str, list[Thinned]] = {}
        self.marks: list[Mark] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add what was logged at an optimizer step; a second value for a step is passed over."""
        for name, value in values.items():
            line = self.logged.setdefault(name, Thinned())
            if not line.x or line.x[-1] < step:
                line.add(step, value)

    def state(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "batches": self.batches.state(),
            "epochs": self.epochs.state(),
            "logged": {name: line.state() for name, line in self.logged.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` returned."""
        self.batches.load(state["batches"])
        self.epochs.load(state["epochs"])
        self.logged = {}
        for name, line in state["logged"].items():
            self.logged.setdefault(name, Thinned()).load(line)


def draw(
    history: History,
    *,
    metrics: Sequence[str] | None = None,
    loss_label: str = "loss",
    title: str = "",
) -> Picture:
    """Draw loss and metrics over optimizer steps, a panel each.

    Args:
        history: What was seen.
        metrics: A panel for each; None takes the first few ``val/`` ones that are no loss.
        loss_label: Name and unit of the loss.
        title: Above all panels.
    """
    if metrics is None:
        metrics = panels_for(history.logged)
    widths = [1.6] + [1.0] * len(metrics)
    # not by pyplot, which would keep the figure and show it twice
    figure = Picture(figsize=(2.4 * sum(widths), 2.6), layout="constrained")
    panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    _draw_loss(panels[0], history, loss_label)
    for panel, name, color in zip(panels[1:], metrics, cycle(COLORS[2:]), strict=False):
        _draw_metric(panel, history, name, color)
    finish(figure, panels, history.marks, title)
    return figure


def panels_for(names: Iterable[str]) -> list[str]:
    """Return the first few ``val/`` metrics that are no loss, and of a stack its members' means."""
    found = [name for name in names if name.startswith("val/")]
    beside = {f"{name}_{what}" for name in found for what in ("sd", "ensemble")}
    return [name for name in found if name != "val/loss" and name not in beside][:MAX_PANELS]


def finish(figure: Figure, panels: Sequence[Axes], marks: Sequence[Mark], title: str) -> None:
    """Draw marks, name the axes and set the title."""
    for panel in panels:
        panel.set_xlabel("optimizer step")
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize("medium")
        panel.margins(x=0.02)
    handles = draw_marks(panels[0], marks)
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=len(handles),
            frameon=False,
            fontsize="small",
            handletextpad=0.2,
            columnspacing=1.2,
        )
    if title:
        figure.suptitle(title, fontsize="medium", x=0.01, ha="left")


def _draw_loss(panel: Axes, history: History, loss_label: str) -> None:
    batches = history.batches
    each = "each batch" if batches.stride == 1 else f"means of {batches.stride} batches"
    panel.plot(batches.x, batches.y, color=COLORS[0], linewidth=0.7, alpha=0.35, label=each)
    _draw_members(panel, history, "val/loss", COLORS[1])
    lines = (
        ("mean of the epoch", history.epochs, COLORS[0], "-"),
        ("val/loss", history.logged.get("val/loss", Thinned()), COLORS[1], "o--"),
    )
    for name, line, color, style in lines:
        if line.x:
            label, size = f"{name} {line.y[-1]:#.3g}", _marker_size(line)
            style = style if len(line.x) > 1 else "o"  # one point is no line
            panel.plot(line.x, line.y, style, color=color, markersize=size, label=label)
    panel.set(ylabel=loss_label)
    _keep_spikes_from_hiding_the_rest(panel, batches.y)
    if panel.has_data():
        panel.legend(frameon=False, fontsize="small")


def _draw_metric(panel: Axes, history: History, name: str, color: str) -> None:
    line = history.logged.get(name, Thinned())
    values = [*line.y, *_draw_members(panel, history, name, color)]
    panel.plot(line.x, line.y, "o-", color=color, markersize=_marker_size(line))
    last = f" {line.y[-1]:#.3g}" if line.y else ""
    members = len(history.members.get(name, ()))
    panel.set_title(f"{name}{last}{f', mean of {members}' if members else ''}")
    _keep_noise_small(panel, values)


def _draw_members(panel: Axes, history: History, name: str, color: str) -> list[float]:
    """Draw each member thinly and the ensemble in black; return the values."""
    members, values = history.members.get(name, []), list[float]()
    for member in members:
        panel.plot(member.x, member.y, color=color, linewidth=0.6, alpha=0.45)
        values += member.y
    together = history.logged.get(f"{name}_ensemble")
    if members and together is not None:
        panel.plot(together.x, together.y, "--", color="black", linewidth=1.2, label="ensemble")
        values += together.y
        if name != "val/loss":  # whose panel has a legend
            panel.legend(frameon=False, fontsize="small")
    return values


def _marker_size(line: Thinned) -> float:
    return 3 if len(line.x) <= 40 else 0


def _keep_noise_small(panel: Axes, values: Sequence[float]) -> None:
    """Let a change of less than a twentieth look as small as it is."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return
    low, high = min(finite), max(finite)
    span = max(high - low, 0.05 * max(abs(low), abs(high)))
    if span > high - low:
        middle = (low + high) / 2
        panel.set_ylim(middle - 0.55 * span, middle + 0.55 * span)


def _keep_spikes_from_hiding_the_rest(panel: Axes, values: Sequence[float]) -> None:
    ordered = sorted(value for value in values if math.isfinite(value))
    if len(ordered) < 20:
        return
    usual, highest = ordered[int(0.98 * (len(ordered) - 1))], ordered[-1]
    if highest > 3 * usual > 0:
        panel.set_ylim(top=1.5 * usual)
        panel.set_title(f"up to {highest:.3g}, beyond the axis")
