"""From values to colours: a window, and what is laid over a slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import ArrayLike, NDArray

from medkit.dicom.volume import Volume
from medkit.plot import COLORS
from medkit.widgets.planes import Nodule, Plane

WINDOWS: Mapping[str, tuple[float, float]] = {
    "lung": (-600, 1500),
    "soft tissue": (40, 400),
    "bone": (400, 1800),
    "brain": (40, 80),
}  # centre and width [HU]
# bright at both ends, unlike matplotlib's own: it lies over dark lungs
_SIGNED = LinearSegmentedColormap.from_list("signed", [COLORS[0], "0.4", COLORS[4]])

Window = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Overlay:
    """Numbers that are laid over a volume in colour, the more opaque the larger they are.

    Attributes:
        array: As the volume's; any real dtype. Where it is no number nothing is drawn.
        limit: Size from which on the colour does not change.
        signed: Whether there are values below 0, which are blue, those above orange.
    """

    array: NDArray[Any]
    limit: float
    signed: bool

    @property
    def colors(self) -> Any:
        """Map of [0, 1], or of [-1, 1] laid on it; none asks for red to be told from green."""
        return _SIGNED if self.signed else matplotlib.colormaps["viridis"]

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value with a colour of its own."""
        return (-self.limit if self.signed else 0.0), self.limit


@dataclass(frozen=True)
class Look:
    """How slices look: window (centre, width), overlay, its greatest opacity, and nodules."""

    window: Window
    unit: str = "HU"
    overlay: Overlay | None = None
    opacity: float = 0.5
    nodules: tuple[Nodule, ...] = ()


def grey(values: NDArray[Any], window: Window) -> NDArray[np.float32]:
    """Map values to [0, 1] through a window, DICOM PS3.3 C.11.2.1.3.2 (linear exact); NaN is 0."""
    centre, width = window
    scaled = (np.asarray(values, np.float32) - np.float32(centre - width / 2)) / np.float32(width)
    return np.nan_to_num(np.clip(scaled, 0, 1))


def colored(plane: Plane, index: int, look: Look) -> NDArray[np.uint8]:
    """Return a slice as it is shown, ``(rows, columns, 3)``."""
    shades = 255 * grey(plane.cut(plane.volume.array, index), look.window)
    shown = np.repeat((shades + 0.5).astype(np.uint8)[..., None], 3, axis=-1)
    overlay = look.overlay
    if overlay is None or not look.opacity:
        return shown
    laid = plane.cut(overlay.array, index).astype(np.float32) / np.float32(overlay.limit)
    laid = np.clip(np.nan_to_num(laid), -1 if overlay.signed else 0, 1)
    seen = look.opacity * np.abs(laid) > 1 / 510  # half a shade
    laid = laid[seen]
    place = (laid + 1) / 2 if overlay.signed else laid
    table = overlay.colors(np.arange(256), bytes=True)[:, :3].astype(np.float32)
    share = look.opacity * np.abs(laid)[:, None]
    ink = table[(255 * place + 0.5).astype(np.intp)]
    shown[seen] = ((1 - share) * shades[seen][:, None] + share * ink + 0.5).astype(np.uint8)
    return shown


def window_text(window: Window, unit: str) -> str:
    """Return "centre -600, width 1500 HU"."""
    return f"centre {window[0]:g}, width {window[1]:g}{f' {unit}' if unit else ''}"


def checked_volume(volume: Any) -> Volume:
    """Return a volume that can be cut."""
    array = getattr(volume, "array", None)
    if not isinstance(volume, Volume) or array is None or array.ndim != 3 or not array.size:
        found = f"{type(volume).__name__} of shape {getattr(array, 'shape', None)}"
        raise ValueError(
            f"volume must be a medkit.dicom Volume with three axes, got {found}. Read one with "
            "read_volume, or make one: Volume(array, affine, 'HU')."
        )
    return volume


def usual_window(volume: Volume) -> Window:
    """Return lung for HU, else what holds 98 % of the values, of every third along each axis."""
    if volume.unit == "HU":
        return WINDOWS["lung"]
    some = volume.array[::3, ::3, ::3]
    some = some[np.isfinite(some)]
    if not some.size:
        return 0.0, 1.0
    low, high = np.percentile(some, (1, 99)).tolist()
    return (low + high) / 2, (high - low) or 1.0


def checked_window(window: str | Window) -> Window:
    """Return centre and width of a window, given by these or by name."""
    if isinstance(window, str) and window in WINDOWS:
        return WINDOWS[window]
    try:
        centre, width = (float(value) for value in window)
        usable = np.isfinite(centre) and 0 < width < np.inf
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise ValueError(
            f"window must be one of {list(WINDOWS)}, or centre and width above 0, got {window!r}. "
            "For lung in HU pass 'lung' or (-600, 1500)."
        )
    return centre, width


def window_name(window: Window) -> str:
    """Return "lung" for its centre and width; "" for one without a name."""
    return next((name for name, known in WINDOWS.items() if known == window), "")


def checked_overlay(overlay: ArrayLike, limit: float | None, volume: Volume) -> Overlay:
    """Return an overlay that lies on the volume voxel by voxel."""
    array = np.asarray(overlay)
    if array.shape != volume.array.shape or array.dtype.kind not in "buif":
        raise ValueError(
            f"overlay must be real numbers of the volume's shape {volume.array.shape}, got "
            f"{array.dtype} {array.shape}. Resample it to the volume's voxels, and drop axes for "
            "batch and channel."
        )
    finite = np.isfinite(array)
    low, high = (
        float(pick(array, where=finite, initial=0)) if array.dtype.kind != "b" else float(edge)
        for edge, pick in enumerate((np.min, np.max))
    )
    if limit is None:
        limit = max(-low, high) or 1.0
    if not 0 < limit < np.inf:
        raise ValueError(
            f"overlay_limit must be a finite number above 0, got {limit}. Leave it out for the "
            f"largest size in the overlay, {max(-low, high):g}."
        )
    return Overlay(array, float(limit), low < 0)


def checked_opacity(opacity: float) -> float:
    """Return an opacity in [0, 1]."""
    if not 0 <= opacity <= 1:
        raise ValueError(
            f"opacity must lie in [0, 1], got {opacity}. 0 shows the volume alone, 0.5 both."
        )
    return float(opacity)
