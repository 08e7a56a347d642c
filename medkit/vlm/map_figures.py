"""Maps of fields drawn over the pictures they are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from textwrap import fill

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medkit.data.conversations import Conversation
from medkit.data.pictures import read_picture
from medkit.saliency.overlay import overlay
from medkit.saliency.volume_maps import VolumeMaps
from medkit.vlm.places import Asked

__all__ = ["draw_fields", "enlarged"]


def enlarged(maps: VolumeMaps, sides: tuple[int, int]) -> VolumeMaps:
    """Return maps ``(B, H, W, K)`` whose cells cover the pixels they are of.

    Args:
        maps: On a grid of their own, ``(B, h, w, K)``.
        sides: H and W of the pictures.
    """
    per_picture = maps.values.permute(0, 3, 1, 2)
    values = F.interpolate(per_picture, size=sides, mode="nearest-exact").permute(0, 2, 3, 1)
    return replace(maps, values=values)


def draw_fields(
    figure: Figure,
    conversation: Conversation,
    asked: Asked,
    maps: Mapping[str, VolumeMaps],
    *,
    row: int = 0,
    pixel_mm: float = 1.0,
) -> NDArray[np.object_]:
    """Draw what speaks for each field of one answer: a row a field, a column a slice.

    Where there is but one slice, fields stand side by side.

    Orange speaks for the value, purple against it; where there is no sign, yellow is most. Each
    row has one scale, and in its title the verdict of :meth:`~medkit.vlm.pointing.Pointing.on`.

    Args:
        figure: Empty; about 2 inches a slice and 2.4 a field read well.
        conversation: Whose pictures.
        asked: With its answer.
        maps: Field -> maps of conversations.
        row: Which of them this one is.
        pixel_mm: Side of a pixel [mm], for the scale bar.

    Returns:
        Axes, ``(fields, slices)``.

    Raises:
        ValueError: For no maps, maps of fields that were not said, or of other pictures.
    """
    pictures = np.stack([read_picture(file) for file in conversation.images], axis=-1)
    count = pictures.shape[2]
    unsaid = sorted(set(maps) - set(asked.said))
    shapes = {name: tuple(one.values.shape) for name, one in maps.items()}
    if not maps or unsaid or any(s[3] != count or not 0 <= row < s[0] for s in shapes.values()):
        raise ValueError(
            f"a figure needs maps of fields that were said, {list(asked.said)}, and of this "
            f"conversation's {count} pictures; got {shapes} and row {row}. Ask about it first."
        )
    figure.set_layout_engine("constrained")
    grid = []
    shape = (1, len(maps)) if count == 1 else (len(maps), 1)
    parts = figure.subfigures(*shape, squeeze=False).ravel().tolist()
    for part, (name, one) in zip(parts, maps.items(), strict=True):
        values = enlarged(one.take([row]), pictures.shape[:2]).values[0].numpy()
        limit = float(np.abs(values).max())
        grid.append(part.subplots(1, count, squeeze=False)[0])
        for number, ax in enumerate(grid[-1]):
            colours = overlay(
                ax, pictures, values, spacing_mm=(pixel_mm, pixel_mm, 1.0), index=number,
                window_hu=(0.0, 1.0), signed=one.signed, limit=limit,
            )  # fmt: skip
            ax.set_xlabel(f"slice {number + 1} of {count}", fontsize="x-small")
        said = f"{name}: {asked.said[name]}", f"{one.method}; {one.verdict}"
        width = int(14 * figure.get_figwidth() / shape[1])
        part.suptitle("\n".join(fill(line, width) for line in said), fontsize="small")
        part.colorbar(colours, ax=list(grid[-1])).set_label(one.unit, fontsize="small")
    return np.asarray(grid)
