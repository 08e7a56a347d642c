"""Which way a volume's slices are shown, and where a place of the patient lies in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medkit.dicom.volume import Volume

Floats = NDArray[np.float64]

# name -> world axis that is stepped through, of columns, of rows; columns and rows run against it
_SEEN = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
PLANES = tuple(_SEEN)
_TOWARDS, _AWAY = "RAS", "LPI"
_LETTER = 0.26  # share of a direction that is worth a letter: 15 degrees
_TILT_DEG = 0.5  # less is the rounding of headers


@dataclass(frozen=True)
class Nodule:
    """A finding to look at.

    Attributes:
        world_mm: Centre, RAS [mm].
        diameter_mm: Of the sphere that is drawn as a circle [mm].
        label: Said beside it.
    """

    world_mm: tuple[float, float, float]
    diameter_mm: float
    label: str = ""


@dataclass(frozen=True)
class Plane:
    """The slices along one axis of an array, as a radiologist sees them.

    The patient's right is on the left, anterior up in axial slices; in sagittal ones anterior is
    on the left. Slices are the array's own, nothing is resampled: where the axes are oblique, so
    are they. Places in a picture are mm right of and below the centre of its top left voxel.

    Attributes:
        name: "axial", "coronal" or "sagittal".
        volume: What is cut.
        axes: Axis of the array that is stepped through, that of rows, that of columns.
        flips: Whether rows and columns run against the array's.
    """

    name: str
    volume: Volume
    axes: tuple[int, int, int]
    flips: tuple[bool, bool]

    @property
    def count(self) -> int:
        """How many slices."""
        return int(self.volume.array.shape[self.axes[0]])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        shape = self.volume.array.shape
        return shape[self.axes[1]], shape[self.axes[2]]

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Distance of rows, and of columns [mm]."""
        spacing = self.volume.spacing_mm
        return spacing[self.axes[1]], spacing[self.axes[2]]

    @property
    def up(self) -> int:
        """What to add to the index for a step to the head, the front or the right."""
        world = _SEEN[self.name][0]
        return 1 if self.volume.affine[world, self.axes[0]] > 0 else -1

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """What lies beyond the left, right, upper and lower edge."""
        down, right = (
            self.volume.affine[:3, axis] * (-1 if flip else 1)
            for axis, flip in zip(self.axes[1:], self.flips, strict=True)
        )
        return _letters(-right), _letters(right), _letters(-down), _letters(down)

    def cut(self, array: NDArray[Any], index: int) -> NDArray[Any]:
        """Return a slice, rows downwards; a view."""
        stepped, rows, columns = self.axes
        flat = array.transpose(stepped, rows, columns)[index]
        return flat[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]

    def in_picture(self, voxel: ArrayLike) -> Floats:
        """Return (right, down) [mm] of voxel indices, ``(..., 2)``."""
        place = np.asarray(voxel, np.float64)
        row, column = (
            size - 1 - place[..., axis] if flip else place[..., axis]
            for axis, flip, size in zip(self.axes[1:], self.flips, self.shape, strict=True)
        )
        return np.stack([column * self.spacing_mm[1], row * self.spacing_mm[0]], axis=-1)

    def voxel_at(self, right_mm: float, down_mm: float, index: int) -> tuple[int, int, int] | None:
        """Return the voxel at a place of a slice's picture; None outside."""
        found = [0, 0, 0]
        found[self.axes[0]] = index
        for axis, place, step, flip, size in zip(
            self.axes[1:], (down_mm, right_mm), self.spacing_mm, self.flips, self.shape, strict=True
        ):
            number = int(np.floor(place / step + 0.5))
            if not 0 <= number < size:
                return None
            found[axis] = size - 1 - number if flip else number
        return found[0], found[1], found[2]

    def slice_at(self, world_mm: ArrayLike) -> int:
        """Return the slice nearest to a place, RAS [mm]; the first or last of those outside."""
        place = self.volume.index_of(world_mm)[self.axes[0]]
        return int(np.clip(np.floor(place + 0.5), 0, self.count - 1))

    def place_mm(self, index: int) -> float:
        """Return the world coordinate of a slice's centre along its own axis, RAS [mm]."""
        centre = (np.array(self.volume.array.shape) - 1) / 2
        centre[self.axes[0]] = index
        return float(self.volume.world_of(centre)[_SEEN[self.name][0]])

    def outline(self, nodule: Nodule, index: int) -> Floats | None:
        """Return the edge of a nodule in a slice, (right, down) [mm]; None where it is not in it.

        A slice is as thick as the step to the next, and the largest cut in it is drawn. In a
        sheared picture the edge is an ellipse, as the nodule's is.
        """
        stepped, rows, columns = (self.volume.affine[:3, axis] for axis in self.axes)
        normal = np.cross(rows, columns)
        normal /= np.linalg.norm(normal)
        corner = np.zeros(3)
        corner[self.axes[0]] = index
        centre = np.asarray(nodule.world_mm, np.float64)
        off = float((centre - self.volume.world_of(corner)) @ normal)
        beyond = max(0.0, abs(off) - abs(float(stepped @ normal)) / 2)
        radius = nodule.diameter_mm / 2
        if beyond >= radius:
            return None
        across = columns / np.linalg.norm(columns)
        angle = np.linspace(0, 2 * np.pi, 49)[:, None]
        ring = np.cos(angle) * across + np.sin(angle) * np.cross(normal, across)
        edge = centre - off * normal + np.sqrt(radius**2 - beyond**2) * ring
        return self.in_picture(self.volume.index_of(edge))


def planes_of(volume: Volume) -> dict[str, Plane]:
    """Return the three planes, each of the array's axis that is nearest to the patient's."""
    cosines = volume.affine[:3, :3] / np.asarray(volume.spacing_mm)
    nearest = max(
        permutations(range(3)), key=lambda axes: sum(abs(cosines[w, a]) for w, a in enumerate(axes))
    )
    planes = {}
    for name, (stepped, right, down) in _SEEN.items():
        rows, columns = nearest[down], nearest[right]
        flips = bool(cosines[down, rows] > 0), bool(cosines[right, columns] > 0)
        planes[name] = Plane(name, volume, (nearest[stepped], rows, columns), flips)
    return planes


def remarks(volume: Volume) -> list[str]:
    """Say in words where planes of the array are not planes of the patient."""
    cosines = volume.affine[:3, :3] / np.asarray(volume.spacing_mm)
    tilt = np.rad2deg(np.arccos(np.clip(np.abs(cosines).max(axis=0), 0, 1))).max()
    off_square = np.abs(cosines.T @ cosines - np.eye(3)).max()
    shear = np.rad2deg(np.arcsin(np.clip(off_square, 0, 1)))
    said = []
    if tilt > _TILT_DEG:
        said.append(f"oblique: planes are the array's, up to {tilt:.1f}° off the patient's")
    if shear > _TILT_DEG:
        said.append(
            f"sheared by {shear:.1f}°: shown as a rectangle, the scale holds along edges only"
        )
    return said


def checked_nodules(
    nodules: Iterable[Nodule | Sequence[Any]] | None, volume: Volume
) -> tuple[Nodule, ...]:
    """Return nodules whose centres are in the volume.

    Raises:
        ValueError: For one that is not a nodule, has no size, or lies outside.
    """
    return tuple(_checked(number, given, volume) for number, given in enumerate(nodules or ()))


def _checked(number: int, given: Nodule | Sequence[Any], volume: Volume) -> Nodule:
    try:
        found = given if isinstance(given, Nodule) else Nodule(*given)
        centre = np.asarray(found.world_mm, np.float64)
        usable = centre.shape == (3,) and bool(np.isfinite(centre).all())
        usable = usable and 0 < float(found.diameter_mm) < float("inf")
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise ValueError(
            f"nodule {number} must be a centre of three finite RAS coordinates [mm] and a diameter "
            f"above 0 mm, got {given!r}. Pass Nodule((x, y, z), diameter_mm, label)."
        )
    if not _inside(centre, volume):
        other = " With x and y negated it would lie inside: are they LPS?"
        hint = other if _inside(centre * [-1, -1, 1], volume) else ""
        low, high = _extent(volume)
        raise ValueError(
            f"nodule {number} {found.label!r} must lie in the volume, RAS {_mm(low)} to {_mm(high)}"
            f" mm, got {_mm(centre)}.{hint} Give RAS coordinates of this series, or leave it out."
        )
    x, y, z = centre.tolist()
    return Nodule((x, y, z), float(found.diameter_mm), str(found.label))


def _inside(world_mm: Floats, volume: Volume) -> bool:
    index = volume.index_of(world_mm)
    return bool(((index >= -0.5) & (index <= np.array(volume.array.shape) - 0.5)).all())


def _extent(volume: Volume) -> tuple[Floats, Floats]:
    last = np.array(volume.array.shape) - 1
    corners = volume.world_of(np.stack(np.meshgrid(*((0, n) for n in last)), axis=-1))
    return corners.reshape(-1, 3).min(axis=0), corners.reshape(-1, 3).max(axis=0)


def _mm(world_mm: Floats) -> str:
    return "(" + ", ".join(f"{value:.1f}" for value in world_mm) + ")"


def _letters(direction: Floats) -> str:
    shares = direction / np.linalg.norm(direction)
    order = np.argsort(-np.abs(shares))
    return "".join(
        (_TOWARDS if shares[axis] > 0 else _AWAY)[axis]
        for axis in order
        if abs(shares[axis]) > _LETTER
    )
