"""Other readers of DICOM series: what they return, each volume with its own affine, and say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["READERS", "Outcome", "Placed", "installed"]

SECONDS = 50.0
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Placed(NamedTuple):
    """Numbers and where they lie: index along the three axes -> RAS [mm]."""

    array: NDArray[np.float64]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What a reader did with a folder.

    Attributes:
        volumes: What it returned; time points one by one.
        refused: Why it returned nothing; "" where it did.
        said: What it warned of, on stderr too.
    """

    volumes: list[Placed]
    refused: str
    said: str


def installed(name: str) -> bool:
    """Whether a reader, or another package, can be imported."""
    return importlib.util.find_spec(_PACKAGES.get(name, name)) is not None


@cache
def _load_image() -> Any:
    from monai.transforms import LoadImage

    return LoadImage(reader="PydicomReader", image_only=True)


def _monai(folder: str) -> list[Placed]:
    image: Any = _load_image()(folder)
    array, affine = np.asarray(image, np.float64), np.asarray(image.affine, np.float64)
    return [Placed(array[..., None] if array.ndim == 2 else array, affine)]


def _simpleitk(folder: str) -> list[Placed]:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    found = []
    for uid in reader.GetGDCMSeriesIDs(folder):
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder, uid))
        image = reader.Execute()
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        array = SimpleITK.GetArrayFromImage(image).astype(np.float64).T
        found.append(Placed(array, _LPS_TO_RAS @ affine))
    return found


def _in_process(read: Callable[[str], list[Placed]], folder: str) -> Outcome:
    with _heard() as said:
        try:
            volumes, refused = read(folder), ""
        except Exception as error:
            volumes, refused = [], f"{type(error).__name__}: {error}"
    return Outcome(volumes, refused or ("" if volumes else "nothing found"), "\n".join(said))


def by_monai(folder: str) -> Outcome:
    """MONAI's LoadImage with its PydicomReader."""
    with _heard():  # of decoders for GPUs, which is no warning about a series
        _load_image()
    return _in_process(_monai, folder)


def by_simpleitk(folder: str) -> Outcome:
    """SimpleITK's ImageSeriesReader, each series that GDCM finds in the folder."""
    return _in_process(_simpleitk, folder)


def by_dcm2niix(folder: str) -> Outcome:
    """dcm2niix; of a volume that it also writes resampled, the resampled one."""
    import dcm2niix
    import nibabel

    with tempfile.TemporaryDirectory() as out:
        command = [dcm2niix.bin, "-f", "%s_%j", "-z", "n", "-b", "n", "-o", out, folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        said = [line for line in lines if "warning" in line.lower() or "error" in line.lower()]
        paths = sorted(Path(out).glob("*.nii"))
        better = [p for p in paths if p.stem.endswith(("_Eq", "_Eq_1", "_Tilt", "_Tilt_1"))]
        volumes = []
        for path in better or paths:
            image: Any = nibabel.load(path)
            array = np.asarray(image.dataobj, np.float64)
            if "_Tilt" in path.stem:  # from beyond the edge it brings in the least value there is
                array[array == array.min()] = np.nan
            array = array.reshape(*array.shape, *[1] * (4 - array.ndim))
            volumes += [Placed(array[..., t], image.affine) for t in range(array.shape[3])]
    if done.returncode and volumes:
        said.append(f"exit code {done.returncode}")
    refused = "" if volumes else f"exit code {done.returncode}, nothing written"
    return Outcome(volumes, refused, "\n".join(said))


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect Python's warnings, and what libraries write to stderr."""
    said: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as heard, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        os.dup2(heard.fileno(), 2)
        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            heard.seek(0)
            said += heard.read().decode(errors="replace").split("\n")[:-1]
            dull = (DeprecationWarning, FutureWarning)
            said += [str(one.message) for one in warned if not issubclass(one.category, dull)]


READERS: dict[str, Callable[[str], Outcome]] = {
    "MONAI": by_monai,
    "SimpleITK": by_simpleitk,
    "dcm2niix": by_dcm2niix,
}
_PACKAGES = {"MONAI": "monai"}
