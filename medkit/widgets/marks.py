"""What guards and schedules did, as marks along the steps of a training."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from medkit.plot.style import COLORS, GREY

_LETTER, _MARKER = 0.022, 0.03  # widths, of a panel


class Mark(NamedTuple):
    """One intervention.

    Attributes:
        step: Optimizer steps that were done.
        kind: Name of its :class:`Kind`.
        text: A few letters beside it, such as a strength.
        number: How many it stands for: rows, where rows were set aside.
    """

    step: int
    kind: str
    text: str
    number: int


@dataclass(frozen=True)
class Kind:
    """One kind of intervention, and how it is drawn.

    Attributes:
        name: For one; the legend.
        names: For several.
        words: What its line in the ledger says of what was done, as a pattern.
        color: Of its marks.
        marker: Of its marks.
    """

    name: str
    names: str
    words: str
    color: str
    marker: str


KINDS = (
    Kind("stop", "stops", r"training stopped", COLORS[6], "X"),
    Kind("rollback", "rollbacks", r"rolled back", COLORS[1], "v"),
    Kind("step skipped", "steps skipped", r"step skipped", COLORS[4], "|"),
    Kind("row set aside", "rows set aside", r"set aside", COLORS[3], "s"),
    Kind("batch split", "batches split", r"\bsplit\b", COLORS[5], "D"),
    Kind("change of strength", "changes of strength", r"(set|raised|lowered) to", COLORS[2], "^"),
    Kind("other intervention", "other interventions", r"", GREY, "o"),
)
_OF_NAME = {kind.name: kind for kind in KINDS}
_TEXTS = (r"learning rates x ([\d.e+-]+)", r"to ([\d.e+-]+)$")  # in the detail, or the action


def marks(lines: Iterable[Mapping[str, Any]], *, stage: str | None = None) -> list[Mark]:
    """Return the marks of a ledger's lines, or of a guard's ``events``.

    Args:
        lines: Those without a step, which are about data or files, are passed over.
        stage: Only lines of this stage.
    """
    found = []
    for line in lines:
        if line.get("step") is None or (stage is not None and line.get("stage") != stage):
            continue
        said = str(line["action"])
        kind = next(kind for kind in KINDS if re.search(kind.words, said))
        texts = zip(_TEXTS, (str(line.get("detail", "")), said), strict=True)
        matches = (re.search(pattern, text) for pattern, text in texts)
        text = next((match[1] for match in matches if match), "").rstrip(",")
        text = f"{float(text):.2g}" if text else ""
        if kind.name == "rollback" and text:
            text = f"lr × {text}"
        rows = len(line.get("rows") or ()) if kind.name == "row set aside" else 1
        found.append(Mark(int(line["step"]), kind.name, text, max(1, rows)))
    return sorted(found)


def counts(found: Sequence[Mark]) -> dict[str, int]:
    """Return how many there are of each kind, in the order of ``KINDS``."""
    of_kind = dict.fromkeys(_OF_NAME, 0)
    for mark in found:
        of_kind[mark.kind] += mark.number
    return {name: count for name, count in of_kind.items() if count}


def said(found: Sequence[Mark]) -> list[str]:
    """Return "3 steps skipped", "1 rollback", ..."""
    return [
        f"{count} {_OF_NAME[name].name if count == 1 else _OF_NAME[name].names}"
        for name, count in counts(found).items()
    ]


def draw_marks(panel: Axes, found: Sequence[Mark]) -> list[Artist]:
    """Draw marks below the curves of a panel, a row for each kind; return legend entries."""
    present = counts(found)
    if not present:
        return []
    low, high = panel.get_ylim()
    height = 0.07 * (high - low)  # of a row
    panel.set_yticks([tick for tick in panel.get_yticks() if low <= tick <= high])
    panel.set_ylim(low - height * (len(present) + 0.3), high)
    panel.axhline(low, color=GREY, linewidth=0.5)  # what lies below is no loss
    handles: list[Artist] = []
    for row, (name, label) in enumerate(zip(present, said(found), strict=True)):
        kind, here = _OF_NAME[name], [mark for mark in found if mark.kind == name]
        y = low - height * (row + 0.8)
        steps = [mark.step for mark in here]
        handles += panel.plot(
            steps,
            [y] * len(steps),
            kind.marker,
            color=kind.color,
            markersize=7 if kind.marker == "|" else 5,
            markeredgewidth=1.4,
            clip_on=False,
            label=label,
        )
        if kind.name in ("stop", "rollback"):  # a curve may bend there
            for step in steps:
                panel.axvline(step, color=kind.color, linewidth=0.6, alpha=0.5, zorder=0)
        first, last = panel.get_xlim()
        for mark, after in zip(here, [*steps[1:], math.inf], strict=True):
            width = (_LETTER * len(mark.text) + _MARKER) * (last - first)
            if not mark.text or after - mark.step < width:
                continue  # nothing to say, or no room for it
            panel.annotate(
                mark.text,
                (mark.step, y),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize="x-small",
                color=kind.color,
            )
    return handles
