"""What is in a folder tree: patients, studies, series, and the files that cannot be read.

Headers are read once, and again only where a file's size or time has changed. Each file's SHA-256
is taken at intake, into a manifest that a run keeps; loading does not hash again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from medkit.dicom.errors import DicomError
from medkit.dicom.header import read_header
from medkit.dicom.series import read_series, read_stacks
from medkit.dicom.volume import Volume
from medkit.record.files import read_json, write_json

__all__ = ["FileEntry", "Index", "Series", "scan"]

_KEPT = (
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Manufacturer"),
    *("SeriesDescription", "ConvolutionKernel", "SliceThickness", "KVP", "Rows", "Columns"),
)
_VERSION = 2
_BLOCK = 1 << 20


@dataclass(slots=True)
class FileEntry:
    """One file: its size and time, and what its header says or why it has none.

    Attributes:
        size: Bytes.
        mtime_ns: When it was changed.
        said: Elements as text, by name; empty for what is no DICOM.
        problem: Why it is not in a series; "" where it is.
        sha256: Of its bytes; "" until it was taken.
    """

    size: int
    mtime_ns: int
    said: dict[str, str]
    problem: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Series:
    """The files that share a SeriesInstanceUID.

    Attributes:
        uid: SeriesInstanceUID.
        patient: PatientID.
        study: StudyInstanceUID.
        modality: Such as "CT".
        description: SeriesDescription.
        said: What its first file says, by name.
        paths: Its files.
        beside: Files of the same folders that are in no series, as ``Index.problems`` has them.
    """

    uid: str
    patient: str
    study: str
    modality: str
    description: str
    said: dict[str, str]
    paths: tuple[str, ...]
    beside: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Series({self.uid}, {self.modality or '?'}, {len(self.paths)} file(s))"

    def read(self, **options: Any) -> Volume:
        """Read the volume; see :func:`~medkit.dicom.series.read_series`."""
        return read_series(self.paths, beside=self.beside, **options)

    def read_stacks(self, **options: Any) -> dict[str, Volume]:
        """Read the volumes at the same places; see :func:`~medkit.dicom.series.read_stacks`."""
        return read_stacks(self.paths, beside=self.beside, **options)


@dataclass
class Index:
    """The files of a folder tree, by path relative to it.

    Attributes:
        folder: The tree.
        files: What was found.
        read: How many headers the last scan read anew.
    """

    folder: str
    files: dict[str, FileEntry] = field(default_factory=dict)
    read: int = 0

    @property
    def series(self) -> list[Series]:
        """All series, by patient, study and UID."""
        by_uid: dict[str, list[str]] = {}
        for path, entry in self.files.items():
            if not entry.problem:
                by_uid.setdefault(entry.said.get("SeriesInstanceUID", ""), []).append(path)
        lost: dict[str, list[str]] = {}
        for path in self.problems:
            lost.setdefault(os.path.dirname(path), []).append(path)
        found = [self._series(uid, sorted(paths), lost) for uid, paths in by_uid.items()]
        return sorted(found, key=lambda one: (one.patient, one.study, one.uid))

    @property
    def problems(self) -> dict[str, str]:
        """Files that are in no series, and why."""
        return {path: entry.problem for path, entry in self.files.items() if entry.problem}

    def one(self, uid: str) -> Series:
        """Return the series whose UID ends so.

        Raises:
            KeyError: Where none does, or several.
        """
        fitting = [series for series in self.series if series.uid.endswith(uid)]
        if len(fitting) != 1:
            raise KeyError(
                f"a series must have a UID that ends in {uid!r}; of {len(self.series)} series in "
                f"{self.folder} {len(fitting)} have. Look at index.series."
            )
        return fitting[0]

    def manifest(self, *, progress: bool = True) -> dict[str, str]:
        """Return path -> SHA-256 of each file in a series; hashed once, in two threads."""
        missing = [p for p, e in self.files.items() if not e.problem and not e.sha256]
        whole = [os.path.join(self.folder, path) for path in missing]
        with ThreadPoolExecutor(2) as pool:
            hashes = pool.map(_sha256, whole)
            shown = tqdm(
                hashes, "hashing", len(whole), unit="file", disable=not progress or not whole
            )
            for path, digest in zip(missing, shown, strict=True):
                self.files[path].sha256 = digest
        return {p: e.sha256 for p, e in sorted(self.files.items()) if not e.problem}

    def digest(self, *, progress: bool = True) -> str:
        """Return one SHA-256 for the whole manifest, for ``run.data``."""
        manifest = self.manifest(progress=progress)
        lines = "".join(f"{digest}  {path}\n" for path, digest in manifest.items())
        return hashlib.sha256(lines.encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index, so that another process need not read the headers again."""
        said: list[dict[str, str]] = []  # the files of a series say the same: it is kept once
        place: dict[tuple[tuple[str, str], ...], int] = {}
        files = {}
        for name, e in self.files.items():
            number = place.setdefault(tuple(e.said.items()), len(said))
            if number == len(said):
                said.append(e.said)
            files[name] = [e.size, e.mtime_ns, number, e.problem, e.sha256]
        write_json(Path(path), {"version": _VERSION, "said": said, "files": files})

    def __str__(self) -> str:
        series = self.series
        patients = len({one.patient for one in series})
        kinds = ", ".join(
            f"{n} {kind or '?'}" for kind, n in Counter(s.modality for s in series).items()
        )
        text = f"{self.folder}: {patients} patient(s), {len(series)} series ({kinds})"
        lost = len(self.problems)
        return text + (f"; {lost} file(s) in none, see problems" if lost else "")

    def _series(self, uid: str, paths: Sequence[str], lost: dict[str, list[str]]) -> Series:
        said = self.files[paths[0]].said
        folders = sorted({os.path.dirname(path) for path in paths})
        beside = [
            path
            for folder in folders
            for path in sorted(lost.get(folder, ()))
            if self.files[path].said.get("SeriesInstanceUID", uid) in ("", uid)
        ]
        return Series(
            uid=uid,
            patient=said.get("PatientID", ""),
            study=said.get("StudyInstanceUID", ""),
            modality=said.get("Modality", ""),
            description=said.get("SeriesDescription", ""),
            said=said,
            paths=tuple(os.path.join(self.folder, path) for path in paths),
            beside=tuple(os.path.join(self.folder, path) for path in beside),
        )


def scan(
    folder: str | os.PathLike[str],
    *,
    known: Index | str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Index:
    """Index the DICOM files of a folder and those below it; files that are none are listed.

    Args:
        folder: The tree; links to folders are not followed.
        known: An index of the same tree, or a file one was saved to (which need not be there yet
            and is written): headers are read only of files whose size or time has changed.
        progress: Whether a bar is shown.

    Raises:
        NotADirectoryError: For another thing than a folder.
    """
    folder = os.path.abspath(folder)
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{folder} must be a folder of DICOM files, and is none.")
    kept = None if known is None or isinstance(known, Index) else os.fspath(known)
    before = known if isinstance(known, Index) else _load(folder, kept)
    entries = before.files if before is not None else {}
    files: dict[str, FileEntry] = {}
    todo: list[tuple[str, str, int, int]] = []
    for path, relative, size, mtime_ns in _found(folder, ""):
        entry = entries.get(relative)
        if entry is not None and entry.size == size and entry.mtime_ns == mtime_ns:
            files[relative] = entry
        else:
            todo.append((path, relative, size, mtime_ns))
    shown = tqdm(todo, "reading headers", unit="file", disable=not progress or len(todo) < 200)
    for path, relative, size, mtime_ns in shown:
        files[relative] = _entry(path, size, mtime_ns)
    index = Index(folder, files, len(todo))
    if kept is not None and (todo or before is None or len(files) != len(entries)):
        index.save(kept)
    return index


def _found(folder: str, below: str) -> Iterator[tuple[str, str, int, int]]:
    """Yield path, path below the tree, size and time of each file."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
                continue
            try:
                stat = entry.stat()
            except OSError:  # a link to nothing
                continue
            if not entry.is_file():
                continue
            yield entry.path, below + entry.name, stat.st_size, stat.st_mtime_ns
    for name in sorted(folders):
        yield from _found(os.path.join(folder, name), f"{below}{name}/")


def _entry(path: str, size: int, mtime_ns: int) -> FileEntry:
    try:
        header = read_header(path)
    except DicomError as error:
        return FileEntry(size, mtime_ns, {}, error.problem)
    except OSError as error:
        return FileEntry(size, mtime_ns, {}, f"unreadable ({error.strerror})")
    said = {name: header.text(name) for name in _KEPT[:-2] if name in header.values}
    for name in ("Rows", "Columns"):
        raw = header.values.get(name, b"")
        if len(raw) == 2:
            said[name] = str(int.from_bytes(raw, "little"))
    if not said.get("SeriesInstanceUID"):
        return FileEntry(size, mtime_ns, said, "no_series")
    return FileEntry(size, mtime_ns, said, "" if header.has_pixels else "no_pixels")


def _load(folder: str, path: str | None) -> Index | None:
    if path is None or not os.path.exists(path):
        return None
    try:
        stored = read_json(path)
        if stored["version"] != _VERSION:
            return None
        said = stored["said"]
        files = {
            name: FileEntry(size, mtime_ns, said[number], problem, sha256)
            for name, (size, mtime_ns, number, problem, sha256) in stored["files"].items()
        }
        return Index(folder, files)
    except (KeyError, IndexError, TypeError, ValueError, json.JSONDecodeError):
        return None  # not ours, or of another version: read again


def _sha256(path: str) -> str:
    hashed = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as handle:
        while block := handle.read(_BLOCK):
            hashed.update(block)
    return hashed.hexdigest()
