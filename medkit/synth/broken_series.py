"""Series that a scanner, an archive or a copy has broken, each with what must come of it.

Made from the linear phantom, so that whatever is read can be judged voxel by voxel. Half of the
kinds come from reports against converters, the other half from what scanners export.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkit.synth import broken_files as files
from medkit.synth import broken_headers as headers
from medkit.synth import broken_syntaxes as syntaxes
from medkit.synth import phantom_series as phantom
from medkit.synth.broken_headers import OBLIQUE, SAGITTAL, Datasets

__all__ = ["CASES", "OBLIQUE", "Case"]


@dataclass(frozen=True)
class Case:
    """One way in which a series is unusual.

    Attributes:
        name: Of the case.
        expect: "ok" where a right volume must be returned, else the ``problem`` of the refusal.
        note: What the volume's notes must say, in part.
        options: Passed to ``read_series``.
        needs: A package without which it cannot be made.
    """

    name: str
    expect: str
    make: Callable[[], Datasets]
    note: str = ""
    after: Callable[[list[Path]], None] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = ""

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the series into a folder of its own."""
        paths = phantom.write_series(folder, self.make())
        if self.after is not None:
            self.after(paths)
        return paths


_J = "imagecodecs"
_VOLUME = "ok"
_CASES = [
    # a good series, however it comes
    Case("good", _VOLUME, headers.good()),
    Case("shuffled files", _VOLUME, headers.changed(headers.out_of_order)),
    Case("reversed instance numbers", _VOLUME, headers.order(lambda n: 12 - n)),
    Case("sagittal", _VOLUME, headers.good(orientation=SAGITTAL)),
    Case("oblique", _VOLUME, headers.good(orientation=OBLIQUE)),
    Case("negative step", _VOLUME, headers.good(step_lps_mm=(0, 0, -2.5))),
    Case("thickness lies", _VOLUME, headers.each(SliceThickness="7")),
    Case("spacing between slices lies", _VOLUME, headers.each(SpacingBetweenSlices="-9")),
    Case("slope of each slice its own", _VOLUME, headers.slopes, note="each its own"),
    Case("no rescale", _VOLUME, headers.raw_hu, note="taken as HU"),
    Case("rescale of one slice missing", "no_rescale",
         headers.without("RescaleSlope", "RescaleIntercept", at=5)),
    Case("slope without intercept", "no_rescale", headers.without("RescaleIntercept")),
    Case("slope of zero", "bad_number", headers.one(RescaleSlope="0")),
    Case("one slice in another unit", "other_unit", headers.one(RescaleType="MGML")),
    Case("a table instead of a rescale", "modality_lut", headers.changed(headers.table)),
    Case("run lengths", _VOLUME, syntaxes.rle),
    Case("junk beside", _VOLUME, headers.good(), after=files.beside, note="no DICOM left out"),
    # slices that are not there, or too often
    Case("missing middle slice", "missing_slice", headers.changed(lambda d: d[:5] + d[6:])),
    Case(
        "missing middle slice, resampled", _VOLUME, headers.changed(lambda d: d[:5] + d[6:]),
        note="resampled", options={"resample": True},
    ),
    Case(
        "five slices missing, resampled", "missing_slice", headers.changed(lambda d: d[:3] + d[8:]),
        options={"resample": True},
    ),
    Case(
        "missing end slice", _VOLUME, headers.changed(lambda d: headers.said(d,
         ImagesInAcquisition="12")[:-1]),
        note="an end may be missing",
    ),
    Case("same file twice", _VOLUME, headers.good(), after=files.twice, note="copy"),
    Case("same UID, other content", "same_uid", headers.more(headers.same_uid)),
    Case("same position, other content", "same_position", headers.more(headers.other_content)),
    Case("uneven spacing", "uneven_spacing", headers.placed(lambda n: (0, 0, n + 0.3 * (n > 6)))),
    Case(
        "uneven spacing, resampled", _VOLUME, headers.placed(lambda n: (0, 0, n + 0.3 * (n > 6))),
        note="resampled", options={"resample": True},
    ),
    Case("one slice beside the line", "shifted", headers.placed(lambda n: (3.0 * (n == 5), 0, n))),
    Case("two slices", _VOLUME, headers.good(slices=2)),
    Case("single slice", _VOLUME, headers.good(slices=1), note="one slice"),
    # numbers that nobody should order by
    Case("instance numbers scrambled", _VOLUME, headers.order(lambda n: n * 5 % 12 + 1)),
    Case("instance numbers missing", _VOLUME, headers.without("InstanceNumber")),
    Case("instance numbers all equal", _VOLUME, headers.order(lambda n: 1)),
    # several things in one folder
    Case("two series", "several_series", headers.more(headers.other_series)),
    Case("two series, one asked for", _VOLUME, headers.more(headers.other_series),
         options={"series": ".4.1"}),
    Case("localizer in the series", _VOLUME, headers.more(headers.localizer), note="localizer"),
    Case("two time points", "stacks", headers.times),
    Case(
        "two time points, one asked for", _VOLUME, headers.times,
        options={"stack": "TemporalPositionIdentifier=1"},
    ),
    Case("two acquisitions", "stacks", headers.more(headers.second(AcquisitionNumber="2"))),
    Case("two echoes", "stacks", headers.more(headers.second(EchoTime="4.6"))),
    Case("all at one position", "same_position", headers.one_place),
    Case("slice of another patient", "other_patient", headers.one(PatientID="SOMEBODY-ELSE")),
    Case("slice of another study", "other_study", headers.one(StudyInstanceUID="1.2.3.4")),
    Case("slice of another modality", "other_modality", headers.one(Modality="MR")),
    Case(
        "other frame of reference", "other_frame_of_reference",
         headers.one(FrameOfReferenceUID="1.2.9")
    ),
    # geometry
    Case("gantry tilt", _VOLUME, headers.good(step_lps_mm=(0, -0.8, 2.5)), note="gantry tilt"),
    Case(
        "gantry tilt, sheared back", _VOLUME, headers.good(step_lps_mm=(0, -0.8, 2.5)),
        note="sheared back", options={"deshear": True},
    ),
    Case("one slice flipped", "other_orientation", headers.flipped),
    Case(
        "orientation drifts", "other_orientation",
        headers.one(ImageOrientationPatient=["1", "0", "0", "0", "0.99985", "0.01745"]),
    ),
    Case(
        "axes at no right angle", "bad_orientation",
        headers.each(ImageOrientationPatient=["1", "0", "0", "0.5", "0.866", "0"]),
    ),
    Case("no position and orientation", "no_geometry",
         headers.without("ImagePositionPatient", "ImageOrientationPatient")),
    Case("geometry in private elements only", "no_geometry",
         headers.changed(syntaxes.private_geometry)),
    Case("position empty", "no_geometry", headers.one(ImagePositionPatient=None)),
    Case("pixel spacing zero", "bad_spacing", headers.one(PixelSpacing=["0", "0"])),
    Case("pixel spacing of one slice another", "other_spacing", headers.one(PixelSpacing=["0.9",
         "0.7"])),
    Case("comma decimals", "bad_number", headers.good(),
         after=lambda paths: files.text_of(paths[5], b"\\-30.0000\\", b"\\-30,0000\\")),
    Case("position not finite", "bad_number", headers.good(),
         after=lambda paths: files.text_of(paths[5], b"\\-30.0000\\", b"\\nan     \\")),
    Case("feet first", _VOLUME, headers.each(PatientPosition="FFS")),
    # pixels
    Case("MONOCHROME1", _VOLUME, headers.each(PhotometricInterpretation="MONOCHROME1"),
         note="not inverted"),
    Case("padding", _VOLUME, headers.padded(), note="padded pixels"),
    Case("padding by a range", _VOLUME, headers.padded(limit=-1990), note="padded pixels"),
    Case("one slice of other size", "other_size", headers.changed(headers.small)),
    Case("truncated slice", "truncated", headers.good(), after=files.cut),
    Case("signed and unsigned slices", _VOLUME, headers.mixed_signs, note="PixelRepresentation"),
    Case("12 unsigned bits", _VOLUME,
         headers.stored_as(bits=12, high=11, signed=False, intercept=-2048)),
    Case("12 signed bits", _VOLUME, headers.stored_as(bits=12, high=11, signed=True, intercept=0)),
    Case("overlay in the upper bits", _VOLUME,
         headers.stored_as(bits=12, high=11, signed=False, intercept=-2048, dirt=0x8000)),
    Case("12 bits at the upper end", _VOLUME,
         headers.stored_as(bits=12, high=15, signed=True, intercept=0, dirt=0x5)),
    Case("signed or not is not said", "bits", headers.without("PixelRepresentation", at=5)),
    Case("more bits than there are", "bits", headers.each(BitsStored=20, HighBit=19)),
    Case("no pixels", "no_images", headers.without("PixelData")),
    Case("no pixels in one", _VOLUME, headers.changed(lambda d: headers.emptied(d, 11)),
         note="without pixels"),
    Case("colour", "colour",
         headers.each(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)),
    Case("palette", "colour", headers.each(PhotometricInterpretation="PALETTE COLOR")),
    Case("65,535 rows and columns", "too_large", headers.good(), after=files.bomb),
    # how the file is written
    Case("no preamble and no meta", _VOLUME, headers.good(), after=files.bare, note="no preamble"),
    Case("implicit VR", _VOLUME, syntaxes.syntax("1.2.840.10008.1.2")),
    Case("big endian", _VOLUME, syntaxes.big_endian),
    Case("deflated", _VOLUME, syntaxes.syntax("1.2.840.10008.1.2.1.99")),
    Case("sequences of undefined length", _VOLUME, syntaxes.open_sequences("1.2.840.10008.1.2.1")),
    Case("the same in implicit VR", _VOLUME, syntaxes.open_sequences("1.2.840.10008.1.2")),
    Case("200 KB of private elements", _VOLUME, headers.changed(syntaxes.long_header)),
    Case("an unknown VR", _VOLUME, headers.good(), after=files.no_vr),
    Case("bytes behind the pixels", _VOLUME, headers.good(), after=files.behind),
    Case("links", _VOLUME, headers.good(), after=files.links, note="copy"),
    Case("enhanced multi-frame", _VOLUME, headers.enhanced()),
    Case("enhanced, frames shuffled", _VOLUME, headers.enhanced(shuffled=True)),
    Case("enhanced without positions", "no_geometry", headers.enhanced(place=False)),
    Case("JPEG-LS", _VOLUME, syntaxes.unsigned(syntaxes.jpegls, "1.2.840.10008.1.2.4.80"),
         needs=_J),
    Case("JPEG 2000", _VOLUME, syntaxes.unsigned(syntaxes.jpeg2000, "1.2.840.10008.1.2.4.90"),
         needs=_J),
    Case("JPEG lossless", _VOLUME, syntaxes.unsigned(syntaxes.jpeg_lossless,
         "1.2.840.10008.1.2.4.70"), needs=_J),
    Case("a compressed slice cut off", "undecodable",
         syntaxes.unsigned(syntaxes.jpegls, "1.2.840.10008.1.2.4.80"),
         after=files.broken_fragment, needs=_J),
    Case("an unknown transfer syntax", "no_decoder",
         syntaxes.syntax("1.2.840.10008.1.2.4.100", lambda stored: stored.tobytes())),
]  # fmt: skip


CASES = {case.name: case for case in _CASES}
