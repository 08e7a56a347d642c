"""What a volume carries beside its numbers: their unit, remarks, and where they are from.

Nothing here refuses: what is remarked is legal, and is also how a damaged export looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.errors import DicomError
from medkit.dicom.frames import Frame
from medkit.dicom.grid import Grid
from medkit.dicom.header import Header
from medkit.dicom.selection import few

__all__ = ["provenance", "remarks", "unit_of", "value_remarks"]

_BELOW_AIR_HU = -1100.0  # no tissue, and no noise of a scanner that clips at -1024
_IMPOSSIBLE_HU = -1200.0  # the noise of a sharp kernel that is not clipped comes close
_NO_TISSUE_HU = -200.0  # below fat
_FEW = 1e-3  # of the pixels: specks of gas in a body that fills the field of view
_OFF_HU, _OFF_MADS = 100.0, 8.0  # what the mean of a slice doesn't differ by from its neighbours'
_SAMPLE = 4096  # pixels of a volume that are looked at: each is a miss of the cache


def unit_of(header: Header) -> str:
    """Return the unit of a file's numbers: HU for CT that says nothing else (PS3.3 C.8.2.1.1.2)."""
    said = header.text("RescaleType")
    return said or ("HU" if header.text("Modality") == "CT" else "")


def remarks(grid: Grid, numbers: Sequence[bytes]) -> list[str]:
    """Return what a reader should know of the headers.

    Args:
        grid: Where the slices lie.
        numbers: InstanceNumber of each file of the series, also of those that are no slice here.
    """
    headers = [frame.header for frame in grid.frames]
    notes = []
    ct, unit = headers[0].text("Modality") == "CT", unit_of(headers[0])

    def all_say(name: str) -> set[bytes]:
        return {_bare(header.values.get(name, b"")) for header in headers}

    if unit == "HU" and not all(frame.rescaled for frame in grid.frames):
        notes.append("no RescaleSlope and RescaleIntercept: stored values are taken as HU")
    if len(set(_scales(grid.frames))) > 1:
        notes.append("slope and intercept differ from slice to slice: each its own")
    for name in ("PixelRepresentation", "BitsStored"):
        if len({header.values.get(name) for header in headers}) > 1:
            notes.append(f"{name} differs from slice to slice: each decoded by its own")
    if ct and unit != "HU":
        notes.append(f"RescaleType is {unit}: a CT whose numbers are no HU")
    if b"MONOCHROME1" in all_say("PhotometricInterpretation"):
        notes.append("MONOCHROME1 is how to show it: stored values are not inverted")
    if any(said.isdigit() and int(said) > len(headers) for said in all_say("ImagesInAcquisition")):
        notes.append("ImagesInAcquisition says more slices than there are: an end may be missing")
    return notes + _numbering(grid, numbers)


def value_remarks(grid: Grid, slices: NDArray[np.float32], padded: float | None) -> list[str]:
    """Return what a sample of the pixels says against the headers.

    Args:
        grid: Where the slices lie.
        slices: ``(D, H, W)`` of the grid's frames.
        padded: What padding has become; None: none is declared.
    """
    notes = []
    along = max(4, round((_SAMPLE / len(slices)) ** 0.5))  # of a row and of a column
    down, across = (max(size // along, 1) for size in slices.shape[1:])
    sample = slices[:, down // 2 :: down, across // 2 :: across].reshape(len(slices), -1)
    alike = np.flatnonzero((sample == sample[:, :1]).all(axis=1)).tolist()
    flat = [grid.frames[i] for i in alike if (slices[i] == slices[i, 0, 0]).all()]
    if flat:
        notes.append(f"{len(flat)} slice(s) of one value in all pixels: {_names(flat)}")
    if unit_of(grid.frames[0].header) != "HU":
        return notes
    odd = _off_neighbours(grid.frames, sample)
    if odd:
        notes.append(
            "both the rescale and the mean are far from those of the slices beside: "
            f"{_names(odd)}; was the rescale forgotten there?"
        )
    return notes + _of_hu(slices, sample, padded)


def _numbering(grid: Grid, numbers: Sequence[bytes]) -> list[str]:
    """Return which slices may be missing where positions do not show it."""
    count = len(grid.frames)
    if count < 2:
        return []
    notes = []
    header = grid.frames[0].header
    step = float(np.linalg.norm(grid.affine[:3, 2]) * np.cos(np.radians(grid.tilt_degrees)))
    name = "SpacingBetweenSlices" if _lenient(header, "SpacingBetweenSlices") else "SliceThickness"
    said = abs(_lenient(header, name) or 0.0)
    times = step / said if said else 0.0
    apart = round(times) >= 2 and abs(times - round(times)) < 0.02
    if apart:
        notes.append(
            f"slices lie {step:g} mm apart, {round(times)} times the {name} of {said:g} mm: "
            "between them slices may be missing"
        )
    slices = [frame.header.values.get("InstanceNumber", b"") for frame in grid.frames]
    own = _whole(slices)
    if len(own) < count:
        return notes  # numbers that nobody should count by
    every = own | _whole(set(numbers).difference(slices))
    first, last = min(own), max(own)
    # a scout that is the 99th of its series opens no gap
    within = sorted(number for number in every if first <= number <= last)
    lost, stride = last - first + 1 - len(within), int(np.gcd.reduce(np.diff(within)))
    first = min(every)
    if first > 1:
        what = "slice" if first == 2 else f"{first - 1} slices"
        notes.append(f"instance numbers begin at {first}: the first {what} may be missing")
    if stride > 1:
        notes.append(
            f"instance numbers go up by {stride}: between each two slices {stride - 1} may be "
            "missing"
        )
    elif not apart and lost > grid.depth - count:
        notes.append(f"instance numbers have gaps, of {lost}: slices may be missing at an end")
    return notes


def _of_hu(
    slices: NDArray[np.float32], sample: NDArray[np.float32], padded: float | None
) -> list[str]:
    """Return what speaks against values in HU."""
    notes = []
    corners = slices[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    below = sample < _IMPOSSIBLE_HU
    if (corners < _BELOW_AIR_HU).any():
        notes.append(
            f"corners lie below {_BELOW_AIR_HU:g} HU: padding that the header does not declare, "
            "left as it is"
        )
    elif np.count_nonzero(below) > 10 * _FEW * sample.size:
        notes.append(
            f"values go down to {sample.min():g} HU, and nothing is below air: padding that the "
            "header does not declare, or a wrong rescale; left as it is"
        )
    thin = (sample < _NO_TISSUE_HU) & ~below
    if padded is not None:
        thin &= sample != padded
    if np.count_nonzero(thin) < _FEW * sample.size:
        notes.append(
            f"no air: hardly a pixel lies between {_IMPOSSIBLE_HU:g} and {_NO_TISSUE_HU:g} HU; "
            f"they go from {sample.min():g} to {sample.max():g}. Was the rescale forgotten?"
        )
    return notes


def _off_neighbours(frames: Sequence[Frame], sample: NDArray[np.float32]) -> list[Frame]:
    """Return the frames whose rescale is not the usual one and whose mean isn't either."""
    scales = _scales(frames)
    if len(frames) < 3 or len(set(scales)) == 1:
        return []
    usual = Counter(scales).most_common(1)[0][0]
    means = sample.mean(axis=1, dtype=np.float64)
    beside = [
        np.median(np.concatenate([means[max(i - 2, 0) : i], means[i + 1 : i + 3]]))
        for i in range(len(means))
    ]
    off = np.abs(means - beside)
    limit = max(_OFF_HU, _OFF_MADS * float(np.median(off)))
    return [frames[i] for i in np.flatnonzero(off > limit).tolist() if scales[i] != usual]


def _scales(frames: Sequence[Frame]) -> list[tuple[float, float]]:
    return [(frame.slope, frame.intercept) for frame in frames]


def _names(frames: Sequence[Frame]) -> str:
    return few(
        frame.header.path + (f" frame {frame.number + 1}" if frame.number else "")
        for frame in frames
    )


def _whole(several: Iterable[bytes]) -> set[int]:
    return {int(raw) for raw in map(_bare, several) if raw.lstrip(b"-").isdigit()}


def _bare(raw: bytes) -> bytes:
    return raw.strip(b" \0")


def provenance(grid: Grid, padded: int) -> dict[str, Any]:
    """Return what is known of a volume's making."""
    header = grid.frames[0].header
    return {
        "series_uid": header.text("SeriesInstanceUID"),
        "modality": header.text("Modality"),
        "vendor": header.text("Manufacturer"),
        "model": header.text("ManufacturerModelName"),
        "kernel": header.text("ConvolutionKernel"),
        "kvp": _lenient(header, "KVP"),
        "thickness_mm": _lenient(header, "SliceThickness"),
        "patient_position": header.text("PatientPosition"),
        "transfer_syntax": header.syntax,
        "slices": len(grid.frames),
        "tilt_degrees": round(grid.tilt_degrees, 3),
        "padded_pixels": padded,
    }


def _lenient(header: Header, name: str) -> float | None:
    """Return a number that no voxel depends on; None where it is none."""
    try:
        return header.number(name)
    except DicomError:
        return None
