"""Checkpoint files with a digest beside them: which are there, which are sound, which go."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from medkit.record.files import sha256_file, sync_folder, write_synced

_log = logging.getLogger(__name__)
_NAME = re.compile(r"resume-e(\d+)-b(\d+)\.ckpt|finished\.ckpt")
FINISHED = "finished.ckpt"
PASSED_OVER = ".passed-over"


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; those before it are as they were."""


def checkpoint_name(epoch: int, batch: int) -> str:
    """Return the file name of the state before ``batch`` of ``epoch``; names sort by age."""
    return f"resume-e{epoch:06d}-b{batch:08d}.ckpt"


def digest_path(path: Path) -> Path:
    """Return where the SHA-256 of a checkpoint stands."""
    return path.with_name(path.name + ".sha256")


def commit(path: Path, write: Callable[[Path], None]) -> None:
    """Write a checkpoint so that it is whole, digested and on the disk, or not there at all.

    The order matters: data and digest synced, digest in place, and only then the data under its
    name. A checkpoint without a digest therefore never exists, and a kill at any moment leaves at
    worst an orphan that :func:`clean` removes. All of it happens in one folder (a rename across
    file systems is a copy), which is synced once, at the end: should a power cut come before and
    keep one rename of the two, the checkpoint is passed over as damaged.
    """
    digest = digest_path(path)
    temp, digest_temp = (p.with_name(f".{p.name}.{os.getpid()}.tmp") for p in (path, digest))
    try:
        write(temp)
        with temp.open("rb+") as handle:
            os.fsync(handle.fileno())
        write_synced(digest_temp, f"{sha256_file(temp)}\n".encode())
        digest_temp.replace(digest)
        temp.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        for half in (temp, digest_temp):  # on a full disk they would keep it full
            half.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):  # torch raises the latter
            reason = " ".join(str(error).split())[:300]
            raise CheckpointWriteError(
                f"a resume point must be written, but {path} could not be: {reason}. The points "
                "before it are intact: make room or make the folder writable, and run again."
            ) from error
        raise


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a stage, oldest first, a finished one last."""
    found = [path for path in folder.glob("*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (path.name == FINISHED, path.name))


def is_sound(path: Path) -> bool:
    """Whether a checkpoint's bytes are those that were written."""
    try:
        # as bytes: a flipped bit need not leave text
        return digest_path(path).read_bytes().strip() == sha256_file(path).encode()
    except OSError:
        return False


def newest_sound(folder: Path, on_damaged: Callable[[Path], None] | None = None) -> Path | None:
    """Return the newest checkpoint whose digest is right; name and pass over damaged ones."""
    for path in reversed(checkpoints(folder)):
        if is_sound(path):
            return path
        _log.warning("%s is damaged: its SHA-256 is not the one beside it. Passed over.", path)
        if on_damaged is not None:
            on_damaged(path)
    return None


def set_aside(path: Path) -> Path:
    """Rename a checkpoint that is not to be resumed from, so that it counts no more."""
    aside = path.with_name(path.name + PASSED_OVER)
    path.replace(aside)
    digest_path(path).unlink(missing_ok=True)
    return aside


def prune(folder: Path, keep: int) -> None:
    """Keep the last ``keep`` checkpoints; a finished one makes the others needless."""
    found = checkpoints(folder)
    if found and found[-1].name == FINISHED:
        keep = 1
        for path in folder.glob(f"*{PASSED_OVER}"):
            path.unlink(missing_ok=True)
    for path in found[:-keep]:
        path.unlink(missing_ok=True)
        digest_path(path).unlink(missing_ok=True)


def make_room(folder: Path) -> bool:
    """Remove older checkpoints where there is no room for one more; return whether any went.

    The newest stays, and is made sure of first: it is the one a run would go on from.
    """
    *older, newest = checkpoints(folder) or [folder]
    if not older or shutil.disk_usage(folder).free > newest.stat().st_size or not is_sound(newest):
        return False
    for path in older:
        path.unlink(missing_ok=True)
        digest_path(path).unlink(missing_ok=True)
    return True


def clean(folder: Path) -> list[str]:
    """Remove what kills left behind: temporary files and digests without a checkpoint."""
    orphans = [path for path in folder.glob(".*.tmp")]
    orphans += [p for p in folder.glob("*.ckpt.sha256") if not p.with_suffix("").exists()]
    for path in orphans:
        path.unlink(missing_ok=True)
    return sorted(path.name for path in orphans)
