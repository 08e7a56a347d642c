"""One function for volumes, whatever they are stored as; another for pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from medkit.dicom.errors import DicomError
from medkit.dicom.frames import frames_of
from medkit.dicom.header import read_header
from medkit.dicom.metaimage import read_metaimage
from medkit.dicom.notes import unit_of
from medkit.dicom.pixels import AIR_HU, read_slices
from medkit.dicom.selection import Source
from medkit.dicom.series import read_series
from medkit.dicom.volume import Volume

__all__ = ["read_image", "read_volume"]

_INVERTED = ("CR", "DX", "MG", "RG", "XA")  # of a MONOCHROME1 image, to show high as bright


def read_volume(source: Source, **options: Any) -> Volume:
    """Read a DICOM series, a NIfTI file or a MetaImage file as a volume.

    Args:
        source: ``.nii`` or ``.nii.gz``, ``.mhd`` or ``.mha``; anything else is a DICOM series, see
            :func:`read_series`.
        **options: Those of :func:`read_series`, for DICOM only.

    Raises:
        DicomError: For what would give wrong voxels.
        FileNotFoundError: For a source that is not there.
    """
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source).lower()
        reader = None
        if name.endswith((".nii", ".nii.gz")):
            reader = read_nifti
        elif name.endswith((".mhd", ".mha")):
            reader = read_metaimage
        if reader is not None:
            if options:
                raise ValueError(f"{sorted(options)} are for DICOM series, got {name}. Drop them.")
            if not os.path.exists(source):
                raise FileNotFoundError(f"{os.fspath(source)} must be a volume, and is not there.")
            return reader(Path(source))
    return read_series(source, **options)


def read_nifti(path: str | Path) -> Volume:
    """Read a NIfTI volume; values as its slope and intercept have them, axes as they are stored.

    Raises:
        DicomError: For a broken file, and for one with several volumes.
    """
    import nibabel

    try:
        image: Any = nibabel.load(path)
        array = np.asarray(image.dataobj, np.float32)
    except FileNotFoundError:
        raise
    except Exception as error:  # header, zlib and short data: each has an error of its own
        raise DicomError(
            "broken_nifti",
            f"{path} must be a NIfTI volume, and cannot be read ({type(error).__name__}: {error}). "
            "Export or download it again.",
            path,
        ) from error
    if array.ndim > 3 and set(array.shape[3:]) == {1}:
        array = array.reshape(array.shape[:3])
    if array.ndim != 3 or not array.size:
        raise DicomError(
            "broken_nifti",
            f"{path} must be one 3-D volume, found shape {array.shape}. Save one volume a file.",
            path,
        )
    unit, _ = image.header.get_xyzt_units()
    affine = np.diag([*[{"meter": 1e3, "micron": 1e-3}.get(unit, 1.0)] * 3, 1.0]) @ image.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        raise DicomError("bad_spacing", f"{path} must have an affine that can be inverted.", path)
    notes = []
    if not image.header["sform_code"] and not image.header["qform_code"]:
        notes.append("no affine is said (sform and qform codes are 0): axes are a guess")
    return Volume(array, affine, "", {"format": "NIfTI", "name": Path(path).name}, tuple(notes))


def read_image(path: str | os.PathLike[str]) -> Volume:
    """Read one 2-D DICOM image, wherever it lies, as a volume of one slice ``(H, W, 1)``.

    High is bright: MONOCHROME1 radiographs are inverted, and a note says so. CT never is.

    Raises:
        DicomError: For what cannot be read, for several frames, and for colour.
    """
    header = read_header(path)
    frames = frames_of(header)
    if len(frames) != 1:
        raise header.bad("frames", f"an image must be one frame, and this has {len(frames)}")
    frame = frames[0]
    if frame.position is not None and frame.orientation is not None and frame.spacing is not None:
        return read_series([path])
    slices = np.empty((1, frame.rows, frame.columns), np.float32)
    modality = header.text("Modality")
    unit = unit_of(header)
    read_slices([frame], slices, air=AIR_HU if unit == "HU" else 0.0)
    notes = [*header.notes, "it says nothing of where it lies: the affine is its spacing alone"]
    if "MONOCHROME1" in header.text("PhotometricInterpretation") and modality in _INVERTED:
        slices = slices.max() + slices.min() - slices
        notes.append("MONOCHROME1: inverted, so that high is bright")
    affine = np.diag([*(frame.spacing or (1.0, 1.0)), 1.0, 1.0])
    return Volume(
        slices.transpose(1, 2, 0), affine, unit,
        {"modality": modality, "series_uid": header.text("SeriesInstanceUID")}, tuple(notes),
    )  # fmt: skip
