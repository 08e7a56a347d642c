"""One picture of a conversation, from PNG or JPEG, DICOM or NIfTI, as grey or as colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.reading import read_image, read_nifti

__all__ = ["LUNG_HU", "read_picture", "read_rgb"]

LUNG_HU = (-1000.0, 400.0)  # black and white of a CT slice
_TWELVE_BITS = 4095
_PICTURES = (".png", ".jpg", ".jpeg")


def read_picture(
    path: str | Path, *, window_hu: tuple[float, float] = LUNG_HU
) -> NDArray[np.float32]:
    """Read a picture, ``(H, W)``, 0 black and 1 white.

    Args:
        path: PNG and JPEG are taken as they are, grey, by the range of their bits; DICOM and NIfTI
            by the window.
        window_hu: What becomes 0 and 1, for values in HU; others by their own range.

    Raises:
        DicomError: For a DICOM or NIfTI file that cannot be read as one slice.
        ValueError: For a picture that cannot be read, and one of 16 bits none of whose values is
            above 4095, unless all are 0: these are values of a scanner's 12 bits, which would be
            nearly black. Only this is looked for; 13 to 15 bits are too dark, and are not found.
    """
    path = Path(path)
    if path.suffix.lower() in _PICTURES:
        return _picture(path)
    nifti = path.name.lower().endswith((".nii", ".nii.gz"))
    volume = read_nifti(path) if nifti else read_image(path)
    if volume.array.shape[2] != 1:
        raise ValueError(
            f"{path} must be one slice, and has {volume.array.shape[2]}. Write the slices of a "
            "study as files of their own, in their order."
        )
    values = np.asarray(volume.array[:, :, 0], np.float32)
    low, high = window_hu
    if volume.unit != "HU" and not nifti:
        low, high = float(values.min()), float(values.max())
        high = max(high, low + 1)
    return np.clip((values - low) / (high - low), 0, 1)


def read_rgb(path: str | Path, *, window_hu: tuple[float, float] = LUNG_HU) -> NDArray[np.uint8]:
    """Read a picture as image processors want it, ``(H, W, 3)`` from 0 to 255.

    PNG and JPEG of 8 bits keep their colours; all else is that of :func:`read_picture`, thrice.
    """
    path = Path(path)
    if path.suffix.lower() in _PICTURES:
        image = _opened(path)
        if not _wide(image):
            return np.asarray(image.convert("RGB"), np.uint8)
    grey = np.round(255 * read_picture(path, window_hu=window_hu)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _picture(path: Path) -> NDArray[np.float32]:
    image = _opened(path)
    wide = _wide(image)
    grey = np.asarray(image if wide else image.convert("L"), np.float32)
    if wide and 0 < grey.max() <= _TWELVE_BITS:
        raise ValueError(
            f"{path} must use the range of its 16 bits, 0 to 65535; its highest value is "
            f"{grey.max():.0f}, as of 12 bits, and it would be nearly black. Scale it to 8 bits, "
            "or pass the DICOM file, which is read by a window."
        )
    return grey / np.float32(65535 if wide else 255)


def _wide(image: Any) -> bool:
    return bool(image.mode.startswith("I"))  # 16 bits


def _opened(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path} must be a picture, and cannot be read ({error}). Write it again, or leave "
            "its conversation out."
        ) from error
    return image
