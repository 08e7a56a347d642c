"""A tree of DICOM files without the patients: PS3.15 annex E, keyed pseudonyms, equal pixels.

It is a best effort, as all are. A name in a kept number or in the pixels of a CT is not seen, and a
head can be recognised from its surface: look at what comes out before it leaves the house.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import medkit
from medkit.dicom.deidentify_pixels import strip_pixels, why_risky
from medkit.dicom.deidentify_profile import CODES, TABLE, Profile
from medkit.dicom.deidentify_tables import read_tables, write_table
from medkit.dicom.errors import DicomError
from medkit.dicom.header import parsing, read_dataset
from medkit.dicom.selection import files_below
from medkit.record.files import write_bytes, write_json
from medkit.record.pseudonym import key_path, pseudonym_key

__all__ = ["Deidentified", "deidentify", "deidentify_command"]

SUMMARY_NAME = "deidentified.json"
_SHOWN = 50  # files that the command lists


@dataclass
class Deidentified:
    """What became of a tree. Paths are the source's and may name patients; the output has none.

    Attributes:
        folder: The output.
        written: Its files, and where each is from.
        refused: Files that a person must look at first, and why.
        failed: Files that could not be treated, and why.
        copies: Files that are another one again, bit for bit.
        left_out: Files that hold no DICOM object.
        tables: Tables that were written, and what of them.
    """

    folder: Path
    written: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the counts, without any name."""
        parts = [path.split("/") for path in self.written]
        levels = ("patients", "studies", "series")
        return {
            **{name: len({p[n] for p in parts}) for n, name in enumerate(levels)},
            "written": len(self.written),
            "refused": dict(Counter(self.refused.values())),
            "failed": dict(Counter(self.failed.values())),
            "copies": len(self.copies),
            "not_dicom": len(self.left_out),
            "tables": len(self.tables),
        }


def deidentify(
    source_folder: str | os.PathLike[str],
    out_folder: str | os.PathLike[str],
    *,
    key: bytes | None = None,
    reviewed: bool = False,
    progress: bool = True,
    tables: Sequence[str | os.PathLike[str]] = (),
    keep: Sequence[str] = (),
) -> Deidentified:
    """Write a tree of DICOM files anew, by patient, study and series, named by pseudonyms.

    UIDs, names and ids become keyed pseudonyms, the same over files and runs. All dates of a
    patient are moved back by one number of days; times of day, sex, size, weight and age (90 for
    all above 89) stay. Private elements, overlays and free text go, whether the annex names them or
    not. Pixels stay bit for bit. A study whose patient has no id is a patient of its own.

    Args:
        source_folder: The tree; links to folders are not followed.
        out_folder: New or empty, and outside of the source.
        key: The secret; None: the kit's own, see :mod:`medkit.record.pseudonym`.
        reviewed: Whether a person has seen that no pixel shows a name. Without it whatever is not
            computed by a scanner (ultrasound, radiographs, screens, documents, ...) is refused.
        progress: Whether a bar is shown.
        tables: CSV files of labels. Columns of ids (SeriesInstanceUID, PatientID, ...) get the
            same pseudonyms, LUNA16's columns of numbers stay, others go; and so do rows of series
            that are not written.
        keep: Columns of the tables that stay as they are: a person has looked.

    Raises:
        ValueError: For an output inside the source, or one that holds the key; for a source
            without any DICOM file; for a table that is none.
        FileExistsError: For an output that is not empty.
        NotADirectoryError: For a source that is no folder.
        ModuleNotFoundError: Without ``medkit[deidentify]``.
    """
    source, out = Path(source_folder).resolve(), Path(out_folder).resolve()
    _require_places(source, out)
    labels = read_tables(tables)
    if key is None:
        require_outside(key_path(), out)
        key = pseudonym_key()
    profile = Profile(key)
    was_there = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    done = Deidentified(out)
    paths = files_below(source)
    for path in tqdm(paths, "de-identifying", unit="file", disable=not progress):
        name = os.path.relpath(path, source)
        try:
            _one(path, name, profile, reviewed, done)
        except DicomError as error:
            if error.problem == "not_dicom":
                done.left_out.append(name)
            else:
                done.failed[name] = error.problem
        except MemoryError:
            done.failed[name] = "needs more memory than there is"
        except OSError as error:
            done.failed[name] = f"cannot be read or written ({os.strerror(error.errno or 0)})"
    if len(done.left_out) == len(paths):
        if not was_there:
            out.rmdir()
        raise ValueError(
            f"{source} must hold DICOM files, and none of its {len(paths)} file(s) is one. Name "
            "the folder of the images."
        )
    known = {part.removesuffix(".dcm") for path in done.written for part in path.split("/")}
    for name, table in labels.items():
        try:
            done.tables[name] = write_table(table, out / name, profile, known, keep)
        except ValueError as error:
            done.failed[name] = str(error)
    kept = {"medkit": medkit.__version__, "profile": f"PS3.15 annex E, {TABLE}", "codes": CODES}
    by = {"key": profile.patient("medkit deidentify"), "reviewed": reviewed}
    write_json(out / SUMMARY_NAME, kept | by | done.summary())
    return done


def deidentify_command(
    source: str,
    out: str,
    *,
    key_file: str | None,
    reviewed: bool,
    tables: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> int:
    """De-identify a tree and say what was left out; return 1 where a file failed."""
    key, where = None, key_path() if key_file is None else Path(key_file)
    made = "" if where.exists() else ", made now: keep it"
    if key_file is not None:
        require_outside(where, Path(out).resolve())
        key = pseudonym_key(where)
    done = deidentify(source, out, key=key, reviewed=reviewed, tables=tables, keep=keep)
    counts = done.summary()
    sys.stdout.write(
        f"{counts['written']} file(s) of {counts['patients']} patient(s), {counts['studies']} "
        f"study or studies and {counts['series']} series are in {out}\n"
    )
    _list("refused", done.refused)
    _list("failed", done.failed)
    _list("exact copies", dict.fromkeys(done.copies, "left out"))
    _list("no DICOM object", dict.fromkeys(done.left_out, "left out"))
    _list("tables", done.tables)
    if done.refused:
        sys.stdout.write(
            "Look at the refused for names in pixels and text; then run it again with --reviewed.\n"
        )
    sys.stdout.write(f"the key of the pseudonyms is {where}{made}\n")
    return int(bool(done.failed))


def require_outside(key_file: Path, out: Path) -> None:
    """Refuse a key that would leave together with what it hides."""
    if key_file.resolve().is_relative_to(out):
        raise ValueError(
            f"the key must lie outside of the output, found {key_file} in {out}. Whoever has both "
            "can undo the pseudonyms: keep it elsewhere."
        )


def _list(what: str, files: dict[str, str]) -> None:
    if files:
        sys.stdout.write(f"{what}: {len(files)}\n")
    for name, why in list(files.items())[:_SHOWN]:
        sys.stdout.write(f"  {why}: {name}\n")
    if len(files) > _SHOWN:
        sys.stdout.write(f"  and {len(files) - _SHOWN} more\n")


def _require_places(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise NotADirectoryError(f"{source} must be a folder of DICOM files, and is none.")
    if out.is_relative_to(source):
        raise ValueError(
            f"the output must lie outside of the source, found {out} in {source}. The next run "
            "would take it for patients: name another folder."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} must be a new or empty folder, and is neither. Remove it or name another: "
            "old and new files must not mix."
        )


def _one(path: str, name: str, profile: Profile, reviewed: bool, done: Deidentified) -> None:
    """Treat one file: written, or noted where it isn't."""
    dataset = read_dataset(path, pixels=True)
    with parsing(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they would say values
        why = why_risky(dataset)
        if why and not reviewed:
            done.refused[name] = why
            return
        for level in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            if not dataset.get(level):
                raise DicomError("no_uid", f"{path} must have a {level}, and has none.", path)
        patient = profile.apply(dataset)
        meta = profile.meta(dataset)
        strip_pixels(dataset, meta.TransferSyntaxUID)
        dataset.file_meta, dataset.preamble = meta, bytes(128)
        written = io.BytesIO()
        dataset.save_as(written, enforce_file_format=True)
        series = f"{patient}/{dataset.StudyInstanceUID}/{dataset.SeriesInstanceUID}"
        new = f"{series}/{dataset.SOPInstanceUID}.dcm"
    target = done.folder / new
    if target.exists():
        if target.read_bytes() != written.getvalue():
            raise DicomError("same_uid", f"{path} has the UID of another file, and differs.", path)
        done.copies.append(name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, written.getvalue(), durable=False)
    done.written[new] = name
