"""Files that are whole or absent, and names that are safe."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

_BAD_NAME = re.compile(r"[\x00-\x1f\x7f/\\]")
MAX_NAME = 100
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_bytes(path: Path | str, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it.

    The temporary file lies in the same folder (a rename across file systems is a copy, which a
    kill can tear), is synced before the rename, and the folder is synced after it. What need not
    outlive a power cut can do without the syncing (``durable=False``).
    """
    path = Path(path)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if durable:
            write_synced(temp, data)
        else:
            temp.write_bytes(data)
        temp.replace(path)
    except OSError:
        temp.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Write bytes and wait until the disk has them."""
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def append_whole(path: Path | str, data: bytes, *, durable: bool = True) -> None:
    """Append bytes and wait until the disk has them; on an error the file is as it was."""
    with Path(path).open("ab", buffering=0) as handle:  # a buffer would be written on closing
        size = handle.seek(0, os.SEEK_END)
        try:
            written = handle.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"{written} of {len(data)} bytes could be written")
            if durable:
                os.fsync(handle.fileno())
        except OSError:
            handle.truncate(size)
            raise


def is_full_disk(error: OSError) -> bool:
    """Whether an error says that nothing more can be written."""
    return error.errno in _FULL


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any, *, durable: bool = True) -> None:
    """Write JSON with sorted keys, whole or not at all; the same value gives the same bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode(), durable=durable)


def read_json(path: Path | str) -> Any:
    """Read JSON; a damaged file is named in the error."""
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} must be JSON, but it can't be read ({error}). "
            "It was damaged or edited; restore it or remove the run folder."
        ) from error


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes, as hex."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Return the SHA-256 of UTF-8 text, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def safe_name(name: str) -> str:
    """Return ``name`` if it can be one component of a path, and nothing else.

    Raises:
        ValueError: For an empty name, ``.``, ``..``, a slash, a NUL or another control character,
            or more than 100 characters.
    """
    if not name or name in {".", ".."} or len(name) > MAX_NAME or _BAD_NAME.search(name):
        raise ValueError(
            f"a name must be 1 to {MAX_NAME} characters without slashes or control characters, "
            f"got {name[:120]!r}. Use letters, digits, '-', '_' and '.'."
        )
    return name
