"""What it costs to read a CT series, against the bytes it has and against other readers.

200 slices of 512 x 512 in files as scanners write them (110 elements, private ones and sequences
among them), shuffled, in the page cache. CPU seconds, arms in turn in one process, one intra-op
thread; figures are medians over alternating pairs with the median's 95 % interval. *Limit* is a
read of each slice's bytes at a place known beforehand, and their conversion to float32. All arms
return the same bits. Compressed: wall seconds, the decoding process warm, against the same decoder
in this process.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import numpy as np
import pydicom
from numpy.typing import NDArray
from report import Report
from trainer_overhead import in_turn, median_interval

from medkit.dicom import read_series
from medkit.dicom.header import read_header
from medkit.synth import phantom_series as phantom

INTERCEPT, SIZE = -1024.0, 512


def scanner_series(folder: Path, slices: int, size: int, encode: Any = None, uid: str = "") -> None:
    """Write a series with as many elements as a scanner's, its files in no order."""
    from pydicom.dataset import Dataset
    from pydicom.encaps import encapsulate
    from pydicom.sequence import Sequence

    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    names = noise.permutation(slices)
    for number in range(slices):
        (one,) = phantom.phantom_series(
            slices=1, origin_lps_mm=(-40.0, -30.0, 1.25 * number), first_instance=number + 1
        )
        reference, code = Dataset(), Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "T-D3000", "SRT", "Chest"
        reference.ReferencedSOPClassUID = one.SOPClassUID
        reference.ReferencedSOPInstanceUID = f"1.2.3.{number}"
        one.ReferencedImageSequence = Sequence([reference])
        one.AnatomicRegionSequence = Sequence([code])
        block = one.private_block(0x0019, "MAKER OF SCANNERS", create=True)
        for element in range(27):
            block.add_new(element, "LO", f"value {element} of {number}")
        for element in range(40):  # public text elements that no reader of volumes asks for
            tag = (0x0018, 0x9300 + element)
            one.add_new(tag, "LO", f"setting {element}")
        one.Rows = one.Columns = size
        stored = noise.integers(-200, 2000, (size, size)).astype("<i2")
        stored[size // 3 :] = np.sort(stored[size // 3 :], axis=1)  # as compressible as a body
        one.PixelData, one["PixelData"].VR = stored.tobytes(), "OW"
        if encode is not None:
            one.BitsStored, one.HighBit, one.PixelRepresentation = 12, 11, 0
            one.PixelData = encapsulate([encode((stored + 200).astype(np.uint16))])
            one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
            one.file_meta.TransferSyntaxUID = uid
        one.save_as(folder / f"{names[number]:04d}.dcm", enforce_file_format=True)


def bytes_and_conversion(places: list[tuple[str, int]], size: int) -> NDArray[np.float32]:
    """Read each slice at a known place; convert it while it is in the cache."""
    out = np.empty((len(places), size, size), np.float32)
    buffer = np.empty((size, size), np.int16)
    into = [memoryview(buffer).cast("B")]
    for number, (path, place) in enumerate(places):
        fd = os.open(path, os.O_RDONLY)
        os.preadv(fd, into, place)
        os.close(fd)
        np.add(buffer, np.float32(INTERCEPT), out=out[number])
    return out


def best_pydicom(folder: Path) -> NDArray[np.float32]:
    """The fastest form found: chosen tags, raw bytes, one array."""
    tags = ["ImagePositionPatient", "Rows", "Columns", "RescaleIntercept", "PixelData"]
    read = [pydicom.dcmread(path, specific_tags=tags) for path in folder.iterdir()]
    read.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    out = np.empty((len(read), read[0].Rows, read[0].Columns), np.float32)
    for number, one in enumerate(read):
        raw = np.frombuffer(one.get_item("PixelData").value, np.int16).reshape(out.shape[1:])
        np.add(raw, np.float32(one.RescaleIntercept), out=out[number])
    return out


def by_simpleitk(folder: Path) -> Any:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return SimpleITK.GetArrayViewFromImage(SimpleITK.Cast(reader.Execute(), SimpleITK.sitkFloat32))


def by_monai(folder: Path) -> Any:
    from monai.transforms import LoadImage

    return LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=False)(folder)


def cpu(work: Callable[[], object]) -> Callable[[], float]:
    """Time a piece of work in CPU seconds of this process."""

    def timed() -> float:
        began = time.process_time()
        made = work()
        used = time.process_time() - began
        del made
        return used

    return timed


def wall(work: Callable[[], object]) -> Callable[[], float]:
    """Time a piece of work by the clock: it is done in two processes."""

    def timed() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return timed


def main() -> int:
    logging.disable(logging.WARNING)
    report = Report(__doc__)
    slices, size = 200, SIZE
    pairs = 7 if report.quick else 15

    def ratio(name: str, a: Any, b: Any, *, pairs: int = pairs, **bar: Any) -> None:
        value, limits = median_interval(in_turn(pairs, a, b))
        report.figure(name, value, limits, unit="x", **bar)

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp) / "ct"
        scanner_series(folder, slices, size)
        headers = sorted(
            map(read_header, folder.iterdir()),
            key=lambda h: h.numbers("ImagePositionPatient", 3)[2],  # type: ignore[index]
        )
        places = [(header.path, header.pixels or 0) for header in headers]
        elements = len(list(pydicom.dcmread(headers[0].path)))
        report.note(f"{slices} x {size} x {size}, {elements} elements a file")
        truth = bytes_and_conversion(places, size)
        for name, got in (("kit", read_series(folder).slices), ("pydicom", best_pydicom(folder))):
            if not np.array_equal(truth, got):
                raise SystemExit(f"{name} returns other voxels")
        kit = cpu(lambda: read_series(folder))
        ratio(
            "plain/kit_over_bytes_and_conversion", kit,
            cpu(lambda: bytes_and_conversion(places, size)), at_most=1.25, peers="prototype 1.05x",
        )  # fmt: skip
        ratio("plain/best_pydicom_over_kit", cpu(lambda: best_pydicom(folder)), kit, at_least=3.0)
        few = 3
        if importlib.util.find_spec("SimpleITK"):
            ratio("plain/simpleitk_over_kit", cpu(lambda: by_simpleitk(folder)), kit, pairs=few,
                  at_least=5.0)  # fmt: skip
        else:
            report.note("SimpleITK is not installed: not compared (pip install SimpleITK)")
        ratio("plain/monai_pydicom_reader_over_kit", cpu(lambda: by_monai(folder)), kit, pairs=few,
              at_least=30.0)  # fmt: skip
        compressed(report, Path(temp), pairs=5, slices=60 if report.quick else 200)
    return report.finish()


def compressed(report: Report, temp: Path, *, pairs: int, slices: int) -> None:
    """Compare with the decoder itself, given the frames' bytes."""
    import imagecodecs
    from pydicom.encaps import get_frame

    def jpeg2000(stored: Any) -> bytes:
        return bytes(imagecodecs.jpeg2k_encode(stored, level=0, codecformat="j2k", reversible=True))

    def run_lengths(stored: Any) -> bytes:
        from pydicom.pixels.encoders.native import _encode_frame  # noqa: F401 - the writer's own

        one = phantom.phantom_series(slices=1)[0]
        one.Rows, one.Columns = stored.shape
        one.PixelData = stored.tobytes()
        one.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom")
        return bytes(get_frame(one.PixelData, 0, number_of_frames=1))

    kinds: list[tuple[str, str, Callable[[Any], bytes], Callable[[bytes], Any]]] = [
        ("jpeg_ls", "1.2.840.10008.1.2.4.80", lambda x: bytes(imagecodecs.jpegls_encode(x)),
         imagecodecs.jpegls_decode),
        ("jpeg_lossless", "1.2.840.10008.1.2.4.70",
         lambda x: bytes(imagecodecs.ljpeg_encode(x, bitspersample=12)), imagecodecs.ljpeg_decode),
        ("jpeg_2000", "1.2.840.10008.1.2.4.90", jpeg2000, imagecodecs.jpeg2k_decode),
        ("run_lengths", "1.2.840.10008.1.2.5", run_lengths,
         lambda data: np.frombuffer(imagecodecs.dicomrle_decode(data, "<u2"), "<u2")),
    ]  # fmt: skip
    for name, uid, encode, decode in kinds:
        folder = temp / name
        scanner_series(folder, slices, SIZE, encode, uid)
        read = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        frames = [get_frame(one.PixelData, 0, number_of_frames=1) for one in read]

        def decoded(frames: list[bytes] = frames, decode: Any = decode) -> None:
            out = np.empty((len(frames), SIZE, SIZE), np.float32)
            for number, frame in enumerate(frames):
                np.add(decode(frame).reshape(SIZE, SIZE), np.float32(INTERCEPT), out=out[number])

        value, limits = median_interval(
            in_turn(pairs, wall(lambda folder=folder: read_series(folder)), wall(decoded))  # type: ignore[misc]
        )
        report.figure(f"compressed/{name}_over_decoder", value, limits, unit="x", at_most=1.5)


if __name__ == "__main__":
    sys.exit(main())
