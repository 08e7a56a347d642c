"""What it costs to know what is in an archive: 5,000 headers, and the same tree a second time.

25 series of 200 files as scanners write them (110 elements, private ones and sequences among them),
names in no order, in the page cache; then 1,000 files no two of which are laid out alike, which is
what the kit's shortcut cannot use. CPU seconds, arms in turn in one process; figures are medians
over alternating pairs with the median's 95 % interval. *scandir + stat* is a walk that asks each
file for its size and time, and keeps them by path: what any re-scan must do. The hash pass (SHA-256
of all bytes, once, at intake) is timed apart.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pydicom
from report import Report
from series_reading import cpu, scanner_series
from trainer_overhead import in_turn, median_interval

from medkit.dicom.index import Index, scan

SERIES, SLICES, SIZE = 25, 200, 64


def archive(folder: Path) -> None:
    """Write series after series, each with its own patient, study and UIDs."""
    scanner_series(folder / "made", SLICES, SIZE)
    made = {path.name: path.read_bytes() for path in (folder / "made").iterdir()}
    for number in range(10, 10 + SERIES):  # two digits: into the padding of the one that was there
        series = folder / f"PHANTOM-{number}" / "study" / "ct"
        series.mkdir(parents=True)
        for name, data in made.items():
            own = data
            for kind in (b"PHANTOM-%s", b".10.1519.3.%s", b".10.1519.4.%s"):
                for pad in b" ", b"\0":
                    own = own.replace(kind % (b"1" + pad), kind % b"%d" % number)
            (series / name).write_bytes(own)
    for path in (folder / "made").iterdir():
        path.unlink()
    (folder / "made").rmdir()


def vary(paths: list[str]) -> None:
    """Give each file private elements of lengths of its own."""
    marker = b"\x20\x00\x0d\x00UI"  # of StudyInstanceUID, which comes next
    for number, path in enumerate(paths):
        data = Path(path).read_bytes()
        own = b""
        for element, length in enumerate((number % 29, number // 29 % 29)):
            value = b"x" * (2 * length + 2)
            tag = b"\x19\x00" + bytes([0xF0 + element, 0x10])
            own += tag + b"LO" + len(value).to_bytes(2, "little") + value
        at = data.index(marker)
        Path(path).write_bytes(data[:at] + own + data[at:])


def scandir_and_stat(folder: str) -> dict[str, tuple[int, int]]:
    """Return size and time of each file of a tree."""
    found: dict[str, tuple[int, int]] = {}
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    stat = entry.stat()
                    found[entry.path] = stat.st_size, stat.st_mtime_ns
    return found


def by_pydicom(paths: list[str]) -> list[pydicom.Dataset]:
    """Read each header and keep it."""
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]


def main() -> int:
    report = Report(__doc__)
    pairs, many = (3, 15) if report.quick else (7, 31)
    with tempfile.TemporaryDirectory() as temp:
        tree = Path(temp) / "archive"
        archive(tree)
        paths = sorted(scandir_and_stat(str(tree)))
        index = scan(tree, progress=False)
        require_whole(index, len(paths))
        elements = len(list(pydicom.dcmread(paths[0])))
        report.note(f"{len(paths):,} files, {elements} elements each; {index}")

        def ratio(name: str, pairs: int, a: Any, b: Any, **bar: Any) -> None:
            value, limits = median_interval(in_turn(pairs, a, b))
            report.figure(name, value, limits, unit="x", **bar)

        kit = cpu(lambda: scan(tree, progress=False))
        report.figure("headers/kit_us_a_file", 1e6 * min(kit() for _ in range(3)) / len(paths),
                      unit="us")  # fmt: skip
        ratio("headers/pydicom_over_kit", pairs, cpu(lambda: by_pydicom(paths)), kit,
              at_least=10.0, on_limit=True, peers="dcmread(stop_before_pixels=True)")  # fmt: skip

        walk = cpu(lambda: scandir_and_stat(str(tree)))
        again = cpu(lambda: scan(tree, known=index, progress=False))
        ratio("rescan/kit_over_scandir_and_stat", many, again, walk, at_most=2.0, on_limit=True)
        if scan(tree, known=index, progress=False).read:
            raise SystemExit("an unchanged tree was read again")
        saved = Path(temp) / "index.json"
        index.save(saved)
        report.note(f"saved: {saved.stat().st_size / 1e6:.1f} MB")
        ratio("rescan/from_a_saved_file_over_scandir", many,
              cpu(lambda: scan(tree, known=saved, progress=False)), walk,
              at_most=2.0, on_limit=True)  # fmt: skip

        vary(paths[: 5 * SLICES])  # five series
        varied, few = paths[: 5 * SLICES], [tree / f"PHANTOM-{number}" for number in range(10, 15)]
        ratio("headers/varied_pydicom_over_kit", pairs, cpu(lambda: by_pydicom(varied)),
              cpu(lambda: [scan(one, progress=False) for one in few]),
              at_least=5.0, on_limit=True)  # fmt: skip

        index = scan(tree, progress=False)
        require_whole(index, len(paths))
        began, used = time.perf_counter(), time.process_time()
        index.manifest(progress=False)
        used, wall = time.process_time() - used, time.perf_counter() - began
        size = sum(entry.size for entry in index.files.values()) / 1e6
        report.figure("hash/cpu_us_a_file", 1e6 * used / len(paths), unit="us",
                      peers=f"{size:.0f} MB once, {wall:.2f} s by the clock")  # fmt: skip
        report.figure("hash/mb_per_cpu_s", size / used, unit="MB/s")
    return report.finish()


def require_whole(index: Index, files: int) -> None:
    """Stop where the index is not what was written."""
    found = [(len(series.paths), series.patient) for series in index.series]
    if found != [(SLICES, f"PHANTOM-{n}") for n in range(10, 10 + SERIES)]:
        raise SystemExit(f"the index is wrong: {found}")
    if len(index.files) != files or index.problems:
        raise SystemExit(f"{len(index.files)} files, {index.problems}")


if __name__ == "__main__":
    sys.exit(main())
