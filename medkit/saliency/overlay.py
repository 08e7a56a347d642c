"""Maps drawn over the CT they are of: HU window, scale in mm, colour bar with its unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medkit.saliency.volume_maps import VolumeMaps

LUNG_HU = (-1350.0, 150.0)
DIVERGING, SEQUENTIAL = "PuOr_r", "cividis"  # both can be told apart by the colour-blind
_BARS_MM = (1, 2, 5, 10, 20, 50, 100, 200)


def overlay(
    ax: Axes,
    volume_hu: ArrayLike | Tensor,
    values: ArrayLike | Tensor,
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    index: int | None = None,
    window_hu: tuple[float, float] = LUNG_HU,
    signed: bool = True,
    limit: float | None = None,
) -> ScalarMappable:
    """Draw one slice of a volume and its map on the given Axes.

    A map is the more opaque the further it is from 0, so that what it says nothing of stays CT.

    Args:
        ax: Where to draw.
        volume_hu: ``(H, W, D)`` [HU].
        values: Map of it, ``(H, W, D)``.
        spacing_mm: Of its voxels; pixels are drawn as wide and high as they are.
        index: Slice along the last axis; None: the one with the largest absolute value.
        window_hu: Black and white [HU].
        signed: Orange for, purple against; otherwise one scale from 0.
        limit: Value at full colour; None: the volume's largest absolute value.

    Returns:
        What a colour bar is made of: ``figure.colorbar(found, ax=ax, label=maps.unit)``.

    Raises:
        ValueError: For a map of another shape, or a slice that is not there.
    """
    hu, shown = np.asarray(volume_hu, np.float64), np.asarray(values, np.float64)
    if hu.ndim != 3 or hu.shape != shown.shape or not -hu.shape[2] <= (index or 0) < hu.shape[2]:
        raise ValueError(
            f"a volume (H, W, D) is drawn with its own map, at one of its slices; got {hu.shape}, "
            f"{shown.shape} and slice {index}. Pass volume_hu[0, 0] and maps.values[0]."
        )
    at = int(np.abs(shown).max(axis=(0, 1)).argmax()) if index is None else index
    most = float(np.abs(shown).max()) if limit is None else float(limit)
    most = most if most > 0 else 1.0
    height, width = hu.shape[0] * spacing_mm[0], hu.shape[1] * spacing_mm[1]
    extent = (0.0, width, height, 0.0)
    ax.imshow(hu[:, :, at], cmap="gray", vmin=window_hu[0], vmax=window_hu[1], extent=extent)
    colours = ScalarMappable(
        Normalize(-most if signed else 0.0, most), DIVERGING if signed else SEQUENTIAL
    )
    painted = np.asarray(colours.to_rgba(shown[:, :, at]))
    painted[..., 3] = 0.75 * np.clip(np.abs(shown[:, :, at]) / most, 0, 1) ** 0.5
    ax.imshow(painted, extent=extent, interpolation="nearest")
    _scale_bar(ax, width, height)
    ax.set(xticks=[], yticks=[])
    return colours


def montage(
    figure: Figure,
    volume_hu: ArrayLike | Tensor,
    maps: VolumeMaps,
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    titles: Sequence[str] = (),
    columns: int = 6,
    window_hu: tuple[float, float] = LUNG_HU,
) -> list[Axes]:
    """Draw a batch of volumes with their maps on the given Figure, all on one colour scale.

    Of each volume the slice with the largest absolute value is drawn.
    The figure's title is the method and its verdict, so that a map that failed its checks is not
    shown without that.

    Args:
        figure: Empty; about 1.6 by 1.8 inches a volume read well.
        volume_hu: ``(B, 1, H, W, D)`` [HU].
        maps: Of these volumes.
        spacing_mm: Of their voxels.
        titles: One a volume, or none.
        columns: Volumes in a row.
        window_hu: Black and white [HU].

    Raises:
        ValueError: For maps of other volumes, or titles for some of them only.
    """
    hu = np.asarray(volume_hu)
    count = len(maps.values)
    if hu.shape != (count, 1, *maps.values.shape[1:]) or len(titles) not in (0, count):
        raise ValueError(
            f"volumes (B, 1, H, W, D), their maps and titles must be as many; got {hu.shape}, "
            f"{tuple(maps.values.shape)} and {len(titles)} titles. Explain these volumes."
        )
    columns = max(1, min(columns, count))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(-(-count // columns), columns, squeeze=False).ravel().tolist()
    limit = float(maps.values.abs().max())
    for place, ax in enumerate(grid[:count]):
        colours = overlay(
            ax, hu[place, 0], maps.values[place], spacing_mm=spacing_mm,
            window_hu=window_hu, signed=maps.signed, limit=limit,
        )  # fmt: skip
        if titles:
            ax.set_title(titles[place], fontsize="small")
    for ax in grid[count:]:
        ax.set_axis_off()
    label = fill(f"{maps.method} [{maps.unit}]", max(16, int(8 * figure.get_figheight())))
    figure.colorbar(colours, ax=grid, shrink=0.8).set_label(label, fontsize="small")
    figure.suptitle(_title(maps, window_hu, figure.get_figwidth()), fontsize="small")
    return grid[:count]


def side_by_side(
    figure: Figure,
    volume_hu: ArrayLike | Tensor,
    maps: Mapping[str, VolumeMaps],
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    index: int | None = None,
    window_hu: tuple[float, float] = LUNG_HU,
) -> NDArray[np.object_]:
    """Draw several maps of the same volumes on the given Figure: a row a volume, a column a map.

    Units differ, so each map has the scale of its own volume: compare places, not sizes. Beside
    a name stands how its verdict begins.

    Args:
        figure: Empty; about 1.8 by 1.9 inches a map read well.
        volume_hu: ``(B, 1, H, W, D)`` [HU].
        maps: Name -> maps of these volumes.
        spacing_mm: Of their voxels.
        index: Slice along the last axis; None: of each map the one with its largest value.
        window_hu: Black and white [HU].

    Returns:
        Axes, ``(B, len(maps))``.

    Raises:
        ValueError: For no maps, or maps of other volumes.
    """
    hu = np.asarray(volume_hu)
    found = {name: tuple(one.values.shape) for name, one in maps.items()}
    if not found or any((shape[0], 1, *shape[1:]) != hu.shape for shape in found.values()):
        raise ValueError(
            f"each column needs maps of the volumes (B, 1, H, W, D), {hu.shape}; got {found}. "
            "Explain these volumes, or take() the maps of some."
        )
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(hu), len(maps), squeeze=False)
    for column, (name, one) in enumerate(maps.items()):
        for ax, volume, values in zip(grid[:, column], hu[:, 0], one.values, strict=True):
            overlay(
                ax, volume, values, spacing_mm=spacing_mm, index=index, window_hu=window_hu,
                signed=one.signed,
            )  # fmt: skip
        grid[0, column].set_title(f"{name}\n{one.verdict.split(':')[0]}", fontsize="small")
    return np.asarray(grid)


def save_montage(
    path: Path | str,
    volume_hu: ArrayLike | Tensor,
    maps: VolumeMaps,
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    titles: Sequence[str] = (),
) -> Path:
    """Write a montage as an image; the end of the name says which kind (.png, .svg, .pdf)."""
    count = len(maps.values)
    rows, width = -(-count // 6), max(4.5, 1.5 + 1.5 * min(count, 6))
    lines = _title(maps, LUNG_HU, width).count("\n") + 1
    figure = Figure(figsize=(width, 0.8 + 0.15 * max(lines, 3) + 1.8 * rows))
    montage(figure, volume_hu, maps, spacing_mm=spacing_mm, titles=titles)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _title(maps: VolumeMaps, window_hu: tuple[float, float], width: float) -> str:
    said = f"{maps}; CT from {window_hu[0]:g} to {window_hu[1]:g} HU"
    return fill(said, max(40, int(14 * width)))


def _scale_bar(ax: Axes, width_mm: float, height_mm: float) -> None:
    """Draw a bar of a round number of millimetres, about a quarter of the slice."""
    length = max((mm for mm in _BARS_MM if mm <= width_mm / 3), default=1)
    left, low = 0.05 * width_mm, 0.95 * height_mm
    edge = [withStroke(linewidth=3, foreground="black")]  # white on white tissue can't be read
    ax.plot([left, left + length], [low, low], color="white", linewidth=2, path_effects=edge)
    ax.text(
        left, 0.92 * height_mm, f"{length} mm", color="white", fontsize="x-small",
        path_effects=edge,
    )  # fmt: skip
