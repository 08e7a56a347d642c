"""What a volume carries beside its numbers: their unit, remarks, and where they are from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.errors import DicomError
from medkit.dicom.grid import Grid
from medkit.dicom.header import Header

__all__ = ["provenance", "remarks", "unit_of"]

_BELOW_AIR_HU = -1100.0  # no tissue, and no noise of a scanner that clips at -1024


def unit_of(header: Header) -> str:
    """Return the unit of a file's numbers: HU for CT that says nothing else (PS3.3 C.8.2.1.1.2)."""
    said = header.text("RescaleType")
    return said or ("HU" if header.text("Modality") == "CT" else "")


def remarks(grid: Grid, slices: NDArray[np.float32]) -> list[str]:
    """Return what a reader should know of the headers, and of the corners of the slices."""
    headers = [frame.header for frame in grid.frames]
    notes = []
    ct, unit = headers[0].text("Modality") == "CT", unit_of(headers[0])

    def all_say(name: str) -> set[bytes]:
        return {header.values.get(name, b"").strip(b" \0") for header in headers}

    if unit == "HU" and not all(frame.rescaled for frame in grid.frames):
        notes.append("no RescaleSlope and RescaleIntercept: stored values are taken as HU")
    if len({(frame.slope, frame.intercept) for frame in grid.frames}) > 1:
        notes.append("slope and intercept differ from slice to slice: each its own")
    for name in ("PixelRepresentation", "BitsStored"):
        if len({header.values.get(name) for header in headers}) > 1:
            notes.append(f"{name} differs from slice to slice: each decoded by its own")
    if ct and unit != "HU":
        notes.append(f"RescaleType is {unit}: a CT whose numbers are no HU")
    corners = slices[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    if unit == "HU" and (corners < _BELOW_AIR_HU).any():
        notes.append(
            f"corners lie below {_BELOW_AIR_HU:g} HU: padding that the header does not declare, "
            "left as it is"
        )
    if b"MONOCHROME1" in all_say("PhotometricInterpretation"):
        notes.append("MONOCHROME1 is how to show it: stored values are not inverted")
    if any(said.isdigit() and int(said) > len(headers) for said in all_say("ImagesInAcquisition")):
        notes.append("ImagesInAcquisition says more slices than there are: an end may be missing")
    numbers = [int(said) for said in all_say("InstanceNumber") if said.lstrip(b"-").isdigit()]
    if len(numbers) == len(headers) and max(numbers) - min(numbers) >= len(numbers):
        notes.append("instance numbers have gaps: slices may be missing at an end")
    return notes


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
