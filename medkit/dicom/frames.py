"""The frames of a file: where each lies in the patient, and what its numbers mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medkit.dicom.errors import DicomError
from medkit.dicom.header import Header, parsing, read_dataset

__all__ = ["Frame", "frames_of"]

# What tells apart frames at one position (time points, echoes, b values), first one that does.
STACKS = (
    *("TemporalPositionIdentifier", "DiffusionBValue", "EchoTime", "AcquisitionNumber"),
    *("TriggerTime", "AcquisitionTime"),
)
MAX_PIXELS = 1 << 26  # of a frame: 8,192 x 8,192; more is a mistake, or meant to fill the memory


@dataclass(slots=True)  # not frozen: that costs a slice two microseconds more
class Frame:
    """One image.

    Attributes:
        header: Of its file.
        number: Which frame of the file, from 0.
        rows: Of pixels.
        columns: Of pixels.
        position: Patient coordinates of the first pixel's centre, LPS [mm]; None: not said.
        orientation: Direction cosines along a row, then along a column; None: not said.
        spacing: Between rows, and between columns [mm]; None: not said.
        slope: What stored values are multiplied with.
        intercept: What is added to them then.
        rescaled: Whether the file says these.
        content: What tells it from other frames of its file, by name.
    """

    header: Header
    number: int
    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float
    intercept: float
    rescaled: bool
    content: tuple[tuple[str, str], ...] = ()

    @property
    def stack(self) -> dict[str, str]:
        """What may tell it from frames at the same place, by name."""
        said = {name: text for name in STACKS if (text := self.header.text(name))}
        return said | dict(self.content)

    def bad(self, problem: str, found: str, remedy: str = "") -> DicomError:
        """Return the error for this frame."""
        return self.header.bad(problem, found, remedy)


def frames_of(header: Header) -> list[Frame]:
    """Return the frames of a file.

    Raises:
        DicomError: For a header that contradicts itself, and for colour.
    """
    get = header.values.get
    key = tuple(map(get, _SHARED))
    known = _known.get(key)
    if known is None:
        frames = _frames_of(header)
        if len(frames) == 1 and get("ImagePositionPatient"):
            if len(_known) > _MOST_KNOWN:
                _known.clear()
            _known[key] = frames[0]
        return frames
    return [
        Frame(
            header, 0, known.rows, known.columns, header.numbers("ImagePositionPatient", 3),
            known.orientation, known.spacing, known.slope, known.intercept, known.rescaled,
        )
    ]  # fmt: skip


# What a frame is made of but its place: the slices of a series have it in common.
_SHARED = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"),
    *("ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
    "ModalityLUTSequence",
)
_known: dict[tuple[bytes | None, ...], Frame] = {}
_MOST_KNOWN = 256


def _frames_of(header: Header) -> list[Frame]:
    rows, columns = header.whole("Rows"), header.whole("Columns")
    if not rows or not columns:
        raise header.bad("no_pixels", "an image must have rows and columns, and there are none")
    if rows * columns > MAX_PIXELS:
        raise header.bad(
            "too_large",
            f"an image may have {MAX_PIXELS:,} pixels, this one says {rows} x {columns}",
        )
    if (header.whole("SamplesPerPixel") or 1) != 1 or _colour(header):
        raise header.bad(
            "colour",
            "pixels must be one number each, and are of colour "
            f"({header.text('PhotometricInterpretation')})",
            "Colour images are no measurements: convert them to PNG and read them as pictures.",
        )
    many = header.numbers("NumberOfFrames", 1)
    if many is not None and many[0] != 1:
        if not 1 <= many[0] <= 1 << 20:
            raise header.bad("bad_number", f"NumberOfFrames must be 1 or more, found {many[0]:g}")
        return list(_several(header, rows, columns, int(many[0])))
    if header.values.get("ImagePositionPatient") is None and _enhanced(header):
        return list(_several(header, rows, columns, 1))
    return [_one(header, rows, columns)]


def _one(header: Header, rows: int, columns: int) -> Frame:
    said = header.number("RescaleSlope"), header.number("RescaleIntercept")
    slope, intercept, rescaled = _rescale(header, *said)
    return Frame(
        header=header,
        number=0,
        rows=rows,
        columns=columns,
        position=header.numbers("ImagePositionPatient", 3),
        orientation=header.numbers("ImageOrientationPatient", 6),
        spacing=_spacing(header),
        slope=slope,
        intercept=intercept,
        rescaled=rescaled,
    )


def _rescale(
    header: Header, slope: float | None, intercept: float | None
) -> tuple[float, float, bool]:
    """Return slope, intercept and whether the file says them (PS3.3 C.11.1)."""
    if (slope is None) != (intercept is None):
        lost = "RescaleSlope" if slope is None else "RescaleIntercept"
        raise header.bad("no_rescale", f"slope and intercept must be there together, {lost} is not")
    if slope == 0:
        raise header.bad("bad_number", "RescaleSlope must not be 0: all pixels would be one number")
    if slope is None or intercept is None:
        if "ModalityLUTSequence" in header.values:
            raise header.bad(
                "modality_lut",
                "stored values must become HU by a slope and an intercept, and this has a table",
                "Tables (ModalityLUTSequence) are for pictures; export the series with a rescale.",
            )
        return 1.0, 0.0, False
    return slope, intercept, True


def _spacing(header: Header) -> tuple[float, ...] | None:
    found = header.numbers("PixelSpacing", 2)
    if found is not None and not min(found) > 0:
        raise header.bad("bad_spacing", f"PixelSpacing must be above 0 mm, found {found}")
    return found


def _colour(header: Header) -> bool:
    kind = header.text("PhotometricInterpretation").upper()
    return bool(kind) and not kind.startswith("MONOCHROME")


def _enhanced(header: Header) -> bool:
    return header.text("SOPClassUID") in {
        "1.2.840.10008.5.1.4.1.1.2.1",  # CT
        "1.2.840.10008.5.1.4.1.1.4.1",  # MR
        "1.2.840.10008.5.1.4.1.1.130",  # PET
    }


def _several(header: Header, rows: int, columns: int, count: int) -> Iterator[Frame]:
    """Yield the frames of a multi-frame file by its functional groups (PS3.3 C.7.6.16)."""
    with parsing(header.path):
        dataset = read_dataset(header.path, pixels=False)
        shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
        each = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
        if each and len(each) != count:
            raise header.bad(
                "frames", f"there must be a functional group per frame, {count}; found {len(each)}"
            )
        if not each:  # frames in a row with nothing said of each: time, or a loop of ultrasound
            if count > 1:
                raise header.bad(
                    "no_geometry", f"{count} frames must say where each lies, and do not",
                    "Only enhanced multi-frame images (with functional groups) make a volume.",
                )  # fmt: skip
            each = [{}]
        for number, own in enumerate(each):
            groups = [own, *shared]
            plane, place = (
                _group(groups, "PlaneOrientationSequence"),
                _group(groups, "PlanePositionSequence"),
            )
            measures = _group(groups, "PixelMeasuresSequence")
            scale = _group(groups, "PixelValueTransformationSequence")
            content = _group(groups, "FrameContentSequence")
            spacing = _decimals(measures.get("PixelSpacing"), 2, header)
            if spacing is not None and not min(spacing) > 0:
                raise header.bad("bad_spacing", f"PixelSpacing must be above 0 mm, found {spacing}")
            (slope,) = _decimals(scale.get("RescaleSlope"), 1, header) or (None,)
            (intercept,) = _decimals(scale.get("RescaleIntercept"), 1, header) or (None,)
            slope, intercept, rescaled = _rescale(header, slope, intercept)
            names = ("TemporalPositionIndex", "FrameAcquisitionNumber")
            yield Frame(
                header=header,
                number=number,
                rows=rows,
                columns=columns,
                position=_decimals(place.get("ImagePositionPatient"), 3, header),
                orientation=_decimals(plane.get("ImageOrientationPatient"), 6, header),
                spacing=spacing,
                slope=slope,
                intercept=intercept,
                rescaled=rescaled,
                content=tuple((n, str(content[n])) for n in names if content.get(n) is not None),
            )


def _group(groups: list[Any], name: str) -> dict[str, Any]:
    """Return a group's elements: the frame's own, else what all frames share."""
    for group in groups:
        items = group.get(name)
        if items:
            return {element.keyword: element.value for element in items[0]}
    return {}


def _decimals(value: Any, count: int, header: Header) -> tuple[float, ...] | None:
    if value is None:
        return None
    text = "\\".join(map(str, value)) if hasattr(value, "__iter__") else str(value)
    header.values["_"] = text.encode()
    try:
        return header.numbers("_", count)
    finally:
        del header.values["_"]
