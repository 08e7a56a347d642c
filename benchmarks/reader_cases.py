"""Unusual series, four readers, judged voxel by voxel: right, refused, or wrong in silence?

Every case of ``medkit.synth.broken_series`` is written and read by the kit, by MONAI's
PydicomReader, by SimpleITK's ImageSeriesReader and by dcm2niix. In the linear phantom HU is a
function of place, so whatever a reader does to order or axes, each of its voxels is judged at the
place that the reader's own affine gives it:

* ``right``: within 2 HU, all slices there (split over several files or times where that is meant);
* ``refused``: an exception, an exit code, or nothing written;
* ``taken``: right by chance, where headers contradict each other (another patient's slice, say);
* ``WRONG``: some voxel is off by more than 2 HU, or slices are lost.

``taken`` and ``WRONG`` are *in silence* unless the reader said something, on stderr too; then
``(w)`` stands behind them. Padding that is left in is not counted as wrong. The kit must be right
or refuse with the problem that the case states; the cases are its own, so this says that it does as
it promises, and for the others where they differ, not how often that happens.

Then mutants (broken bytes): read or refused, no crash and no hang. Then real series where
MEDKIT_REAL_DATA names a folder of them.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import numpy as np
import pydicom
from _series_readers import READERS, Outcome, installed
from numpy.typing import NDArray
from report import Report

from medkit.dicom import DicomError, Volume, read_image, read_series, read_volume
from medkit.synth.broken_series import CASES, Case
from medkit.synth.mutants import bundled_images, mutants
from medkit.synth.phantom_series import SLICES, STEP_MM, hu_at, worst_voxel

OFF_HU = 2.0
PADDED_BELOW_HU = -2500.0  # no place of the phantom has so little
# Refusals that are not the only right answer: a reader may split, or fill the gap and say so.
OTHER_ANSWERS = {"ok", "several_series", "stacks", "missing_slice", "uneven_spacing"}
IN_TIME = "all at one position"
SECONDS = 60.0


def slices_of(case: Case) -> int:
    """Return how many slices a right answer has."""
    frames = {}
    for one in case.make():
        if "PixelData" in one and "LOCALIZER" not in one.ImageType:
            frames[str(one.SOPInstanceUID)] = int(one.get("NumberOfFrames") or 1)
    return sum(frames.values())


def shifts_hu(case: Case) -> list[float]:
    """Return what a stack may have on top of the phantom's HU: several lie at the same places."""
    if case.name == IN_TIME:
        return [5.0 * STEP_MM * number for number in range(SLICES)]
    return [0.0, 100.0] if case.expect == "stacks" else [0.0]


def off_by(
    array: NDArray[np.float64], affine: NDArray[np.float64], shifts: Sequence[float] = (0.0,)
) -> float:
    """Return by how much the worst voxel differs from the truth of its place [HU].

    Args:
        array: Of three axes; others are wrong.
        affine: Index -> RAS [mm].
        shifts: See ``shifts_hu``.
    """
    if array.ndim != 3:
        return float("inf")
    index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), axis=-1)
    lps = (index @ affine[:3, :3].T + affine[:3, 3]) * [-1, -1, 1]
    off = (array - hu_at(lps))[array > PADDED_BELOW_HU]
    if not off.size:
        return float("inf")
    return min(float(np.abs(off - more).max()) for more in shifts)


def judged(case: Case, outcome: Outcome) -> str:
    """Return the word for what another reader did."""
    if outcome.refused:
        return "refused"
    said = " (w)" if outcome.said else ""
    worst = [off_by(array, affine, shifts_hu(case)) for array, affine in outcome.volumes]
    slices = sum(array.shape[2] for array, _ in outcome.volumes)
    if max(worst) > OFF_HU or slices < slices_of(case):
        return "WRONG" + said
    if case.expect in OTHER_ANSWERS or case.name == IN_TIME:
        return "right"
    return "taken" + said


def by_kit(case: Case, folder: Path) -> str:
    """Return the word for what the kit did."""
    try:
        volume = read_series(folder, **case.options)
    except DicomError as error:
        return "refused" if error.problem == case.expect else f"REFUSED as {error.problem}"
    outside = volume.array == -1000  # padding, or beyond the edge of what was sheared back
    wrong = worst_voxel(volume, but=outside) > OFF_HU or outside.mean() > 0.5
    wrong |= volume.array.shape[2] < (0 if "one asked for" in case.name else slices_of(case))
    return "right" if case.expect == "ok" and not wrong else "WRONG"


def on_disk_alone(case: Case) -> bool:
    """Whether no other case has the same files, read with other options."""
    return not (case.options and case.name.rpartition(",")[0] in CASES)


class Apart:
    """Reads in a process of its own: a reader that crashes or hangs ends that one."""

    def __init__(self, name: str) -> None:
        self.read = READERS[name]
        self.pool = self._start()

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _limit)

    def __call__(self, folder: Path) -> Outcome:
        try:
            return self.pool.submit(self.read, str(folder)).result(timeout=SECONDS)
        except Exception as error:  # the process died, or hung
            for process in list((self.pool._processes or {}).values()):
                process.kill()
            self.pool = self._start()
            return Outcome([], refused=f"{type(error).__name__}: {error}", said="")

    def stop(self) -> None:
        """End the process."""
        self.pool.shutdown()


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
    logging.disable(logging.NOTSET)


def compare(report: Report, temp: Path) -> None:
    """Read every case with every reader."""
    there = [name for name in READERS if installed(name)]
    for name in READERS:
        if name not in there:
            report.note(f"{name}: not installed")
    cases = [case for case in CASES.values() if not case.needs or installed(case.needs)]
    if len(cases) < len(CASES):
        report.note(f"{len(CASES) - len(cases)} case(s) need imagecodecs: not installed")
    apart = {name: Apart(name) for name in there}
    counts: dict[str, Counter[str]] = {name: Counter() for name in there}
    unread: Counter[str] = Counter()
    kit = 0
    report.note(_row("case", "kit", there))
    for number, case in enumerate(cases):
        folder = temp / f"{number:03d}"
        case.write(folder)
        done = by_kit(case, folder)
        kit += done == ("right" if case.expect == "ok" else "refused")
        found = []
        for name in there:
            if not on_disk_alone(case):
                found.append("as above")
                continue
            found.append(judged(case, apart[name](folder)))
            counts[name][found[-1]] += 1
            unread[name] += found[-1] == "refused" and case.expect == "ok"
        report.note(_row(case.name, done, found))
    for reader in apart.values():
        reader.stop()
    report.share("cases/kit_right_or_refused", kit, len(cases), at_least=1.0)
    for name, count in counts.items():
        for word, what in (("WRONG", "wrong"), ("taken", "taken")):
            report.share(f"cases/{name}_{what}_in_silence", count[word], count.total(),
                         peers=f"and {count[word + ' (w)']} with a warning")  # fmt: skip
        readable = sum(case.expect == "ok" and on_disk_alone(case) for case in cases)
        report.share(f"cases/{name}_refused_of_readable", unread[name], readable)


def _row(case: str, kit: str, others: list[str]) -> str:
    return "  ".join(
        [case.ljust(36), kit.ljust(12), *(other.ljust(14) for other in others)]
    ).rstrip()


def break_files(report: Report, temp: Path) -> None:
    """Read broken bytes; whatever is no image is the kit's own error."""
    count = 1_500 if report.quick else 10_000
    said: Counter[str] = Counter()
    slowest, path = 0.0, temp / "mutant.dcm"
    for data in mutants(bundled_images(), count, seed=2):
        path.write_bytes(data)
        began = time.perf_counter()
        try:
            read_image(path)
            said["read"] += 1
        except DicomError as error:
            said[error.problem] += 1
        except Exception as error:
            said["escaped"] += 1
            report.note(f"{type(error).__name__}: {error}")
        slowest = max(slowest, time.perf_counter() - began)
    report.note(", ".join(f"{problem} {n:,}" for problem, n in said.most_common()))
    sound = count - said["escaped"]
    report.share("mutants/read_or_refused", sound, count, at_least=1.0,
                 peers="python-gdcm aborts in 4 of 2,800")  # fmt: skip
    report.figure("mutants/slowest_s", slowest, at_most=30.0, unit="s")


TRUE = (
    *("anatomical/001", "anatomical/002_non_isotropic", "compressed/001"),
    *("compressed_jpegls/001", "compressed_rle/001"),
)
REFUSED = {
    "dicom2nifti/failing/sliceincrement/001": "missing_slice",
    "ct_series_24": "missing_slice",
}
BUNDLED = {  # with pydicom: real series of 16 x 16 pixels
    "98892001/CT5N": "",
    "77654033/CT2": "missing_slice",
    "98892001/CT2N": "planes",
    "98892003/MR2": "several_series",
    "98892003/MR700": "planes",
}


def real(report: Report) -> None:
    """Read series of real scanners."""
    bundled = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
    met = [problem_of(bundled / name) == problem for name, problem in BUNDLED.items()]
    report.share("real/bundled_read_or_refused_as_stated", sum(met), len(met), at_least=1.0)
    folder = Path(os.environ.get("MEDKIT_REAL_DATA", "not set"))
    if not (folder / "dicom2nifti").is_dir():
        report.note(f"real series: MEDKIT_REAL_DATA is {folder}, without dicom2nifti: left out")
        return
    generic = folder / "dicom2nifti" / "generic"
    same = [equal(read_series(generic / one), _truth(generic / one)) for one in TRUE]
    report.share("real/equal_to_ground_truth", sum(same), len(same), at_least=1.0)
    met = [problem_of(folder / name) == problem for name, problem in REFUSED.items()]
    report.share("real/refused_as_stated", sum(met), len(met), at_least=1.0)
    tilted = read_series(folder / "dicom2nifti" / "failing" / "gantrytilting" / "001")
    report.figure("real/gantry_tilt", tilted.provenance["tilt_degrees"], at_least=13.9,
                  at_most=14.1, unit="degrees")  # fmt: skip


def _truth(folder: Path) -> Volume:
    return read_volume(f"{folder}_ground_truth.nii.gz")


def problem_of(folder: Path) -> str:
    """Return why a series is refused; "" where it is read."""
    try:
        read_series(folder)
    except DicomError as error:
        return error.problem
    return ""


def equal(volume: Volume, truth: Volume) -> bool:
    """Compare voxels at the same places, whatever the order of axes."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij"), axis=-1)
    there = truth.index_of(volume.world_of(index))
    nearest = np.rint(there).astype(int)
    if np.abs(there - nearest).max() > 1e-4 or volume.array.size != truth.array.size:
        return False
    return np.array_equal(volume.array, truth.array[tuple(np.moveaxis(nearest, -1, 0))])


def main() -> int:
    report = Report(__doc__)
    with tempfile.TemporaryDirectory() as temp:
        compare(report, Path(temp))
        break_files(report, Path(temp))
    real(report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
