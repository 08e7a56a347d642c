"""The ink of the series viewer: one slice on one Axes, and many on a page."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from medkit.plot import COLORS
from medkit.widgets.curves import Picture
from medkit.widgets.looks import Look, Window, colored, window_text
from medkit.widgets.planes import Floats, Nodule, Plane

_CIRCLE, _CROSS = COLORS[5], COLORS[4]
_LEAST = 0.35  # of the size, so that letters have room around a thin volume
_DPI = 100
_TILE, _GAP, _LINE, _BAR = 1.9, 0.03, 0.24, 0.85  # of a montage [inch]


class Panel:
    """One slice on an Axes, which it fills: picture, letters, scale, circles, where it lies."""

    def __init__(self, ax: Axes, plane: Plane, *, field_mm: tuple[float, float] | None = None,
                 small: bool = False) -> None:  # fmt: skip
        self.ax, self.plane, self._marks = ax, plane, list[Any]()
        self._size = 7.0 if small else 9.0
        width, height = extent_mm(plane)
        across, down = field_mm or (width, height)
        rows, columns = plane.spacing_mm
        left, top = -columns / 2, -rows / 2
        self.left_mm = left + (width - across) / 2
        self.top_mm = top + (height - down) / 2
        ax.set(xticks=[], yticks=[], facecolor="black")
        ax.spines[:].set_visible(False)
        self._image = ax.imshow(
            np.zeros((*plane.shape, 3), np.uint8), extent=(left, left + width, top + height, top)
        )
        ax.set_xlim(self.left_mm, self.left_mm + across)
        ax.set_ylim(self.top_mm + down, self.top_mm)
        if not small:
            self._letter_edges()
        self._where = self._text(0.02, 0.98, "", ha="left", va="top")
        self._draw_scale(across)

    def show(self, index: int, look: Look, *, place_mm: Floats | None = None) -> None:
        """Draw a slice, and a cross at a place if it is in it, RAS [mm]."""
        self._image.set_data(colored(self.plane, index, look))
        axis = "xyz"[("sagittal", "coronal", "axial").index(self.plane.name)]
        mm = self.plane.place_mm(index)
        self._where.set_text(f"{self.plane.name} {index}\n{axis} {mm:.1f} mm")
        for mark in self._marks:
            mark.remove()
        self._marks.clear()
        for nodule in look.nodules:
            edge = self.plane.outline(nodule, index)
            if edge is not None:
                self._circle(edge, nodule.label)
        if place_mm is not None and self.plane.slice_at(place_mm) == index:
            x, y = self.plane.in_picture(self.plane.volume.index_of(place_mm))
            self._marks += self.ax.plot(x, y, "+", color=_CROSS, markersize=12, markeredgewidth=1)

    def _circle(self, edge: Floats, label: str) -> None:
        (line,) = self.ax.plot(edge[:, 0], edge[:, 1], color=_CIRCLE, linewidth=1.2)
        line.set_path_effects([patheffects.withStroke(linewidth=2.4, foreground="black")])
        self._marks.append(line)
        if not label:
            return
        left, right = self.ax.get_xlim()
        at_left = edge[:, 0].max() < left + 0.7 * (right - left)
        x = edge[:, 0].max() if at_left else edge[:, 0].min()
        self._marks.append(
            self.ax.annotate(
                label, (x, edge[:, 1].mean()), (4 if at_left else -4, 0),
                textcoords="offset points", ha="left" if at_left else "right", va="center",
                color=_CIRCLE, fontsize=self._size, path_effects=_outlined(), annotation_clip=True,
            )
        )  # fmt: skip

    def _letter_edges(self) -> None:
        left, right, top, bottom = self.plane.letters
        self._text(0.015, 0.5, left, ha="left", va="center", weight="bold")
        self._text(0.985, 0.5, right, ha="right", va="center", weight="bold")
        self._text(0.5, 0.985, top, ha="center", va="top", weight="bold")
        self._text(0.5, 0.015, bottom, ha="center", va="bottom", weight="bold")

    def _draw_scale(self, across_mm: float) -> None:
        length = _round_length(across_mm / 4)
        start, y = 0.03, 0.03
        (line,) = self.ax.plot(
            [start, start + length / across_mm], [y, y], color="white", linewidth=2,
            transform=self.ax.transAxes, solid_capstyle="butt",
        )  # fmt: skip
        line.set_path_effects([patheffects.withStroke(linewidth=3.5, foreground="black")])
        self.scale_mm = length
        self._text(start, y + 0.015, f"{length:g} mm", ha="left", va="bottom")

    def _text(self, x: float, y: float, text: str, **options: Any) -> Any:
        return self.ax.text(
            x, y, text, transform=self.ax.transAxes, color="white", fontsize=self._size,
            path_effects=_outlined(), **options,
        )  # fmt: skip


class Canvas:
    """A plane's picture in the viewer, drawn by Agg without pyplot."""

    def __init__(self, plane: Plane, *, mm_per_px: float, size_px: int) -> None:
        least = _LEAST * size_px
        self.width, self.height = (round(max(side / mm_per_px, least)) for side in extent_mm(plane))
        self.mm_per_px = mm_per_px
        figure = Figure((self.width / _DPI, self.height / _DPI), dpi=_DPI, facecolor="black")
        self._agg = FigureCanvasAgg(figure)
        field_mm = self.width * mm_per_px, self.height * mm_per_px
        self.panel = Panel(figure.add_axes((0, 0, 1, 1)), plane, field_mm=field_mm)

    def png(self, index: int, look: Look, *, place_mm: Floats | None = None) -> bytes:
        """Draw a slice."""
        self.panel.show(index, look, place_mm=place_mm)
        buffer = io.BytesIO()
        # one plane a few dozen times a second: level 6 takes three times as long and is no smaller
        self._agg.print_png(buffer, pil_kwargs={"compress_level": 1})
        return buffer.getvalue()

    def voxel_at(self, x_px: float, y_px: float, index: int) -> tuple[int, int, int] | None:
        """Return the voxel under a pixel of the picture, from its upper left; None outside."""
        right = self.panel.left_mm + (x_px + 0.5) * self.mm_per_px
        down = self.panel.top_mm + (y_px + 0.5) * self.mm_per_px
        return self.panel.plane.voxel_at(right, down, index)


def extent_mm(plane: Plane) -> tuple[float, float]:
    """Return width and height of a plane's picture, whole voxels [mm]."""
    (rows, columns), (high, wide) = plane.shape, plane.spacing_mm
    return columns * wide, rows * high


def chosen_slices(plane: Plane, n: int, nodules: Sequence[Nodule]) -> list[int]:
    """Return the middles of n equal parts, nodules' slices in the places of their neighbours."""
    evenly = list(dict.fromkeys((2 * part + 1) * plane.count // (2 * n) for part in range(n)))
    wanted = list(dict.fromkeys(plane.slice_at(nodule.world_mm) for nodule in nodules))
    free = [index for index in evenly if index not in wanted]
    taken = [index for index in evenly if index in wanted]
    for want in wanted:
        if want not in taken and free:
            free.remove(min(free, key=lambda index: abs(index - want)))
            taken.append(want)
    return sorted(free + taken)


def draw_montage(
    plane: Plane,
    indices: Sequence[int],
    look: Look,
    windows: Sequence[tuple[str, Window]],
    *,
    columns: int,
    remarks: Sequence[str] = (),
) -> Picture:
    """Draw slices as tiles, a block of rows for each window, with a bar for the overlay."""
    width, height = extent_mm(plane)
    wide, high = (
        max(_TILE * side / max(width, height), _LEAST * _TILE) for side in (width, height)
    )
    mm_per_inch = max(width / wide, height / high)
    columns = min(columns, len(indices))
    rows = math.ceil(len(indices) / columns)
    left, right, top, bottom = plane.letters
    notes = [f"Edges: left {left}, right {right}, top {top}, bottom {bottom}.", *remarks]
    bar = _BAR if look.overlay is not None else 0.0
    figure_width = max(columns * (wide + _GAP) + bar, 4.0)
    block = rows * (high + _GAP) + _LINE
    foot = _LINE * len(notes)
    figure_height = len(windows) * block + foot
    figure = Picture(figsize=(figure_width, figure_height))

    def inches(x: float, y: float, w: float, h: float) -> Axes:
        """Add Axes by its place from the upper left."""
        bottom = figure_height - y - h
        return figure.add_axes(
            (x / figure_width, bottom / figure_height, w / figure_width, h / figure_height)
        )

    def line(y: float, text: str) -> None:
        at = 1 - (y + _LINE / 2) / figure_height
        figure.text(0.05 / figure_width, at, text, fontsize="small", va="center")

    for number, (name, window) in enumerate(windows):
        line(number * block, f"{name}: {window_text(window, look.unit)}".removeprefix(": "))
        seen = replace(look, window=window)
        for tile, index in enumerate(indices):
            x = tile % columns * (wide + _GAP)
            y = number * block + _LINE + tile // columns * (high + _GAP)
            field_mm = wide * mm_per_inch, high * mm_per_inch
            Panel(inches(x, y, wide, high), plane, field_mm=field_mm, small=True).show(index, seen)
    for number, note in enumerate(notes):
        line(len(windows) * block + number * _LINE, note)
    if look.overlay is not None:
        shades = ScalarMappable(cmap=look.overlay.colors)
        shades.set_clim(*look.overlay.range)
        x = columns * (wide + _GAP) + 0.05
        height_in = min(2.0, block - _LINE - _GAP)
        axes = inches(x, _LINE, 0.12, height_in)
        figure.colorbar(shades, cax=axes, label="overlay").ax.tick_params(labelsize="small")
    return figure


def _round_length(most_mm: float) -> float:
    power = 10.0 ** math.floor(math.log10(most_mm))
    return max(step * power for step in (1, 2, 5) if step * power <= most_mm)


def _outlined() -> list[Any]:
    return [patheffects.withStroke(linewidth=2, foreground="black")]
