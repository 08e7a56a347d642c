"""The ways in which a series may be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from medkit.synth import broken_headers as headers
from medkit.synth import phantom_series as phantom
from medkit.synth.broken_headers import Datasets


def syntax(uid: str, encode: Callable[[Any], bytes] | None = None) -> Callable[[], Datasets]:
    """Write in another transfer syntax; compressed by ``encode`` where one is given."""

    def change(datasets: Datasets) -> None:
        from pydicom.encaps import encapsulate

        for dataset in datasets:
            dataset.file_meta.TransferSyntaxUID = uid
            if encode is not None:
                stored = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, -1)
                dataset.PixelData = encapsulate([encode(stored)])
                dataset["PixelData"].is_undefined_length = True
                dataset["PixelData"].VR = "OB"

    return headers.changed(change)


def unsigned(encode: Callable[..., bytes], uid: str) -> Callable[[], Datasets]:
    """Compress 12 unsigned bits, as scanners do."""

    def make() -> Datasets:
        datasets = headers.stored_as(bits=12, high=11, signed=False, intercept=-2048)()
        from pydicom.encaps import encapsulate

        for dataset in datasets:
            stored = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, -1)
            dataset.file_meta.TransferSyntaxUID = uid
            dataset.PixelData = encapsulate([encode(stored)])
            dataset["PixelData"].is_undefined_length = True
            dataset["PixelData"].VR = "OB"
        return datasets

    return make


def jpegls(stored: Any) -> bytes:
    """Encode as JPEG-LS."""
    import imagecodecs

    return bytes(imagecodecs.jpegls_encode(stored))


def jpeg2000(stored: Any) -> bytes:
    """Encode as JPEG 2000, reversible."""
    import imagecodecs

    return bytes(imagecodecs.jpeg2k_encode(stored, level=0, codecformat="j2k", reversible=True))


def jpeg_lossless(stored: Any) -> bytes:
    """Encode as lossless JPEG."""
    import imagecodecs

    return bytes(imagecodecs.ljpeg_encode(stored, bitspersample=12))


def rle() -> Datasets:
    """Encode as run lengths."""
    datasets = phantom.phantom_series()
    for dataset in datasets:
        dataset.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom")
    return datasets


def big_endian() -> Datasets:
    """Write big-endian."""
    datasets = syntax("1.2.840.10008.1.2.2")()
    for dataset in datasets:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    return datasets


def open_sequences(uid: str) -> Callable[[], Datasets]:
    """Sequences of undefined length, one in another, before the pixels."""

    def change(datasets: Datasets) -> None:
        from pydicom.dataset import Dataset
        from pydicom.sequence import Sequence

        for dataset in datasets:
            dataset.file_meta.TransferSyntaxUID = uid
            inner, outer = Dataset(), Dataset()
            inner.CodeValue, inner.Rows = "113100", 7  # not the image's rows
            outer.PurposeOfReferenceCodeSequence = Sequence([inner])
            outer.ReferencedSOPInstanceUID = "1.2.3"
            dataset.ReferencedImageSequence = Sequence([outer])
            for holder, name in (
                (outer, "PurposeOfReferenceCodeSequence"),
                (dataset, "ReferencedImageSequence"),
            ):
                holder[name].is_undefined_length = True
                for item in holder[name].value:
                    item.is_undefined_length_sequence_item = True

    return headers.changed(change)


def long_header(datasets: Datasets) -> None:
    """Add a private element of 200,000 bytes."""
    for dataset in datasets:
        block = dataset.private_block(0x0009, "MEDKIT PHANTOM", create=True)
        block.add_new(0x01, "OB", bytes(200_000))


def private_geometry(datasets: Datasets) -> None:
    """Move positions into private elements."""
    for dataset in datasets:
        block = dataset.private_block(0x0021, "MEDKIT PHANTOM", create=True)
        block.add_new(0x01, "DS", list(dataset.ImagePositionPatient))
        del dataset.ImagePositionPatient
