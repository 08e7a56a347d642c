"""``medkit doctor --phi``: is a patient named in any byte of a run folder?"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from medkit.record.identifiers import Identifier, blotted, counts, read_identifiers
from medkit.record.unpacking import decoded, unpacked

__all__ = ["Hit", "find_identifiers", "phi_command"]

_MOST_DEPTH = 6  # of things packed in one another


@dataclass(frozen=True)
class Hit:
    """Where an identifier was found, or what could not be looked into.

    Attributes:
        path: In the folder.
        place: "name", "bytes", or what it is packed in.
        count: How often; 0 for what could not be opened.
        identifier: Which; None for what could not be opened.
    """

    path: str
    place: str
    count: int = 0
    identifier: Identifier | None = None


def phi_command(run_dir: str | None, list_path: str | None) -> int:
    """Search a folder and say what was found where, never the identifiers; 1 if any was."""
    if not run_dir or not list_path:
        raise ValueError(
            "--phi RUN_DIR and --identifiers FILE must be given together; one of them is missing. "
            "Without the list there is nothing to look for."
        )
    folder, listed = Path(run_dir).resolve(), Path(list_path).resolve()
    if not folder.is_dir():
        raise NotADirectoryError(f"{run_dir} must be a folder, and is none.")
    if listed.is_relative_to(folder):
        raise ValueError(
            f"the list must lie outside of the folder it is held against, found {list_path} in it. "
            "Move it: whoever gets the folder would get the names too."
        )
    identifiers = read_identifiers(listed)
    files = len(_below(folder))
    hits = list(find_identifiers(folder, identifiers))
    for hit in hits:
        where = f"{blotted(hit.path, identifiers)}  {blotted(hit.place, identifiers)}"
        if hit.identifier is None:
            sys.stdout.write(f"UNOPENED {where}\n")
        else:
            sys.stdout.write(f"FOUND    {where}: {hit.count} x {hit.identifier}\n")
    named = {hit.identifier for hit in hits} - {None}
    sys.stdout.write(
        f"{len(named)} of {len(identifiers)} identifiers found in {files} files and folders, "
        f"{sum(hit.identifier is None for hit in hits)} part(s) could not be opened\n"
    )
    return int(bool(hits))


def find_identifiers(
    folder: str | os.PathLike[str],
    identifiers: Sequence[Identifier],
    *,
    progress: bool = True,
) -> Iterator[Hit]:
    """Yield where identifiers are: names of files and folders, every byte, and what is packed.

    Letters may be in any case and encoding, names in any order ("DOE^JANE", "Jane Doe"), dates in
    any usual form. Not seen: pixels, encrypted files, other words of the same person, checksums.

    Args:
        folder: Looked through with everything below it; links are not followed, but read.
        identifiers: From :func:`~medkit.record.identifiers.read_identifiers`.
        progress: Whether a bar is shown.
    """
    folder = Path(folder)
    paths = _below(folder)
    for path in tqdm(paths, "looking for names", unit="file", disable=not progress):
        shown = path.relative_to(folder.parent).as_posix()
        for one, _, count in counts(os.fsencode(path.name), identifiers):
            yield Hit(shown, "name", count, one)
        try:
            if path.is_symlink():
                data, place = os.fsencode(path.readlink()), "link"
            elif path.is_file():
                data, place = path.read_bytes(), ""
            else:
                continue
        except OSError as error:
            yield Hit(shown, f"unreadable ({os.strerror(error.errno or 0)})")
            continue
        yield from _within(shown, place, data, identifiers, _MOST_DEPTH)


def _within(
    path: str, place: str, data: bytes, identifiers: Sequence[Identifier], depth: int
) -> Iterator[Hit]:
    for one, wide, count in counts(data, identifiers):
        yield Hit(path, (place or "bytes") + ", UTF-16 or UTF-32" * wide, count, one)
    for name, part in unpacked(data):
        inner = f"{place} > {name}" if place else name
        if part is None or not depth:
            yield Hit(path, inner if part is None else f"{inner}: packed too deep")
        else:
            yield from _within(path, inner, part, identifiers, depth - 1)
    inner = f"{place} > base64" if place else "base64"
    whole, long = decoded(data)
    for one, wide, count in counts(whole, identifiers):
        yield Hit(path, inner + ", UTF-16 or UTF-32" * wide, count, one)
    for piece in long:
        for name, part in unpacked(piece):
            if part is not None and depth:  # what is no base64 seems broken, and is nothing
                yield from _within(path, f"{inner} > {name}", part, identifiers, depth - 1)


def _below(folder: Path) -> list[Path]:
    """Return the folder, and all files, folders and links below it."""
    found = [folder]
    for where, folders, names in os.walk(folder):
        folders.sort()
        found += [Path(where) / name for name in sorted([*folders, *names])]
    return found
