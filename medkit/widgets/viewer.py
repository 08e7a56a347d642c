"""Look at a series: three planes, a window, what lies over it, and its nodules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from medkit.dicom.volume import Volume
from medkit.widgets.curves import Picture
from medkit.widgets.looks import (
    WINDOWS,
    Look,
    Window,
    checked_opacity,
    checked_overlay,
    checked_volume,
    checked_window,
    usual_window,
    window_name,
)
from medkit.widgets.place import surroundings
from medkit.widgets.planes import PLANES, Floats, Nodule, checked_nodules, planes_of, remarks
from medkit.widgets.slices import Canvas, chosen_slices, draw_montage, extent_mm

if TYPE_CHECKING:
    from medkit.widgets.controls import Controls

__all__ = ["WINDOWS", "Nodule", "SeriesViewer"]


class SeriesViewer:
    """Show a volume in axial, coronal and sagittal slices, in JupyterLab, voila and in a job.

    Radiological convention: the patient's right is on the left, in sagittal slices anterior is on
    the left; letters at the edges say so. Slices are the array's own, in the voxels' true
    proportions: of an oblique or sheared series they are not the patient's planes, and
    ``remarks`` say by how much.

    In a notebook it shows widgets: sliders (with the focus on one, arrow keys and page up and
    down step through it), the wheel over a picture, a click to go to a place in all planes, and
    the value under the pointer. A saved notebook holds one picture a plane and no volume. In a
    job, and without ipywidgets, it shows :meth:`montage`; every method works without widgets.

    Args:
        volume: As :func:`medkit.dicom.reading.read_volume` returns it; not copied.
        overlay: Such as a saliency map: an array of the volume's shape. Its opacity falls with its
            size, to nothing at 0 and where it is NaN.
        overlay_limit: Size from which on its colour does not change; None: the largest found.
        opacity: Of the overlay where it is largest, in [0, 1].
        nodules: To jump to and to circle: :class:`Nodule`, or (RAS centre [mm], diameter [mm],
            label).
        window: Name from ``WINDOWS``, or centre and width; None: lung for HU, else what holds 98 %
            of the values.
        size_px: Longest side of a picture; all planes have the same scale.

    Raises:
        ValueError: For what does not fit the volume.

    Example:
        >>> viewer = SeriesViewer(Volume(np.zeros((4, 5, 6), np.float32), np.eye(4), "HU"))
        >>> viewer.go_to([3, 2, 1])
        >>> viewer.index
        {'axial': 1, 'coronal': 2, 'sagittal': 3}
    """

    def __init__(
        self,
        volume: Volume,
        *,
        overlay: ArrayLike | None = None,
        overlay_limit: float | None = None,
        opacity: float = 0.5,
        nodules: Iterable[Nodule | Sequence[Any]] | None = None,
        window: str | Window | None = None,
        size_px: int = 384,
    ) -> None:
        self.volume = checked_volume(volume)
        self.planes = planes_of(volume)
        self.remarks = remarks(volume)
        self.nodules = checked_nodules(nodules, volume)
        window = usual_window(volume) if window is None else checked_window(window)
        laid = None if overlay is None else checked_overlay(overlay, overlay_limit, volume)
        self.look = Look(window, volume.unit, laid, checked_opacity(opacity), self.nodules)
        self._index = {name: plane.count // 2 for name, plane in self.planes.items()}
        self._place_mm: Floats | None = None
        self._nodule: int | None = None
        if size_px < 64:
            raise ValueError(f"size_px must be at least 64, got {size_px}. 384 suits a notebook.")
        longest = max(side for plane in self.planes.values() for side in extent_mm(plane))
        self._canvases = {
            name: Canvas(plane, mm_per_px=longest / size_px, size_px=size_px)
            for name, plane in self.planes.items()
        }
        self._controls: Controls | None = None

    @property
    def index(self) -> dict[str, int]:
        """Which slice each plane shows, an index of the array."""
        return dict(self._index)

    @property
    def nodule(self) -> int | None:
        """Number of the nodule that was jumped to, as long as all planes still show it."""
        return self._nodule

    @property
    def picture_px(self) -> dict[str, tuple[int, int]]:
        """Width and height of each plane's picture."""
        return {name: (one.width, one.height) for name, one in self._canvases.items()}

    @property
    def window(self) -> Window:
        """Centre and width; set it to these or to a name from ``WINDOWS``."""
        return self.look.window

    @window.setter
    def window(self, window: str | Window) -> None:
        self._change(replace(self.look, window=checked_window(window)))

    @property
    def opacity(self) -> float:
        """Of the overlay where it is largest, in [0, 1]."""
        return self.look.opacity

    @opacity.setter
    def opacity(self, opacity: float) -> None:
        self._change(replace(self.look, opacity=checked_opacity(opacity)))

    def show(self, plane: str, index: int) -> None:
        """Show a slice of a plane; the first or last where there is none."""
        index = min(max(int(index), 0), self._plane(plane).count - 1)
        if index != self._index[plane]:
            self._index[plane], self._nodule = index, None
            self._redraw([plane])

    def go_to(self, world_mm: ArrayLike) -> None:
        """Show a place in all planes and mark it, RAS [mm]."""
        place = np.asarray(world_mm, np.float64)
        if place.shape != (3,) or not np.isfinite(place).all():
            raise ValueError(
                f"world_mm must be three finite RAS coordinates [mm], got {world_mm!r}. For a "
                "voxel pass volume.world_of(index)."
            )
        self._place_mm, self._nodule = place, None
        self._go(place)

    def jump(self, number: int) -> None:
        """Show a nodule in all planes, by its number in ``nodules``."""
        if not 0 <= number < len(self.nodules):
            raise ValueError(
                f"number must be that of a nodule, found {len(self.nodules)} of them, got {number}."
                " They count from 0, as given to SeriesViewer(nodules=...)."
            )
        self._place_mm, self._nodule = None, number
        self._go(np.asarray(self.nodules[number].world_mm))

    def png(self, plane: str) -> bytes:
        """Draw a plane as it is shown."""
        canvas = self._canvases[self._plane(plane).name]
        return canvas.png(self._index[plane], self.look, place_mm=self._place_mm)

    def voxel_at(self, plane: str, x_px: float, y_px: float) -> tuple[int, int, int] | None:
        """Return the voxel under a pixel of a plane's picture; None outside of the volume."""
        canvas = self._canvases[self._plane(plane).name]
        return canvas.voxel_at(x_px, y_px, self._index[plane])

    def said_of(self, voxel: tuple[int, int, int]) -> str:
        """Return value and place of a voxel in words."""
        x, y, z = self.volume.world_of(voxel)
        said = f"{self.volume.array[voxel]:g} {self.volume.unit}".rstrip()
        if self.look.overlay is not None:
            said += f", overlay {self.look.overlay.array[voxel]:.3g}"
        return f"{said} at RAS ({x:.1f}, {y:.1f}, {z:.1f}) mm, voxel {voxel}"

    def montage(
        self,
        *,
        n: int = 12,
        plane: str = "axial",
        indices: Sequence[int] | None = None,
        windows: Sequence[str | Window] | None = None,
        columns: int = 4,
    ) -> Picture:
        """Draw slices side by side, a figure that needs no widgets.

        Args:
            n: How many, evenly spaced. Those nearest to nodules give way to the nodules' own, as
                far as there are enough.
            plane: "axial", "coronal" or "sagittal".
            indices: These slices instead.
            windows: A block of tiles for each; None: the present window.
            columns: Tiles in a row.
        """
        cut = self._plane(plane)
        if n < 1 or columns < 1:
            raise ValueError(
                f"n and columns must be at least 1, got {n} and {columns}. Leave them out for 12 "
                "slices in rows of 4."
            )
        if indices is None:
            indices = chosen_slices(cut, n, self.nodules)
        outside = [index for index in indices if not 0 <= index < cut.count]
        if outside or not len(indices):
            raise ValueError(
                f"indices must be {plane} slices from 0 to {cut.count - 1}, got {list(indices)}. "
                "Leave them out for evenly spaced ones."
            )
        chosen = [self.window] if windows is None else [checked_window(one) for one in windows]
        notes = list(self.remarks)
        drawn = [any(cut.outline(x, k) is not None for k in indices) for x in self.nodules]
        if not all(drawn):
            notes.append(f"{sum(drawn)} of {len(drawn)} nodules lie in these slices.")
        return draw_montage(
            cut, indices, self.look, [(window_name(one), one) for one in chosen],
            columns=columns, remarks=notes,
        )  # fmt: skip

    @property
    def widget(self) -> Any:
        """The widgets, for a layout of one's own; made when first asked for.

        Raises:
            ModuleNotFoundError: Where ipywidgets is not installed.
        """
        if self._controls is None:
            try:
                from medkit.widgets.controls import Controls
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"the viewer's widgets need {error.name}, and it is not installed. Install "
                    "medkit with its extra 'lab', or draw viewer.montage(), which needs neither.",
                    name=error.name,
                ) from error
            self._controls = Controls(self)
        return self._controls.box

    def close(self) -> None:
        """Take the widgets away; the viewer stays."""
        if self._controls is not None:
            self._controls.close()
            self._controls = None

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        if surroundings() == "live":
            display(self.widget)
        else:
            display(Image(data=self.montage().png(), format="png"))

    def _plane(self, name: str) -> Any:
        if name not in self.planes:
            raise ValueError(
                f"plane must be one of {list(PLANES)}, got {name!r}. Name one of them."
            )
        return self.planes[name]

    def _go(self, world_mm: Floats) -> None:
        for name, plane in self.planes.items():
            self._index[name] = plane.slice_at(world_mm)
        self._redraw(PLANES)

    def _change(self, look: Look) -> None:
        if look != self.look:
            self.look = look
            self._redraw(PLANES)

    def _redraw(self, planes: Iterable[str]) -> None:
        if self._controls is not None:
            self._controls.refresh(planes)
