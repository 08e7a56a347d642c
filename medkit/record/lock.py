"""One writer a run folder: a lock that dies with its last holder."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

LOCK_NAME = ".lock"


class RunBusyError(RuntimeError):
    """Another process is writing into this run folder."""


class RunLock:
    """Hold ``<run_dir>/.lock`` by ``flock``.

    The lock belongs to the open file, not to the process: a launcher that hands the descriptor to
    its kernel (and so to the loader workers forked from it) keeps the folder locked until the last
    of them is dead. Nothing is left to clean after a SIGKILL.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.path = Path(run_dir) / LOCK_NAME
        self._fd: int | None = None

    @classmethod
    def adopt(cls, run_dir: Path | str, fd: int) -> RunLock:
        """Take over a descriptor that was inherited from the launcher."""
        lock = cls(run_dir)
        os.fstat(fd)  # raises OSError when the descriptor is not open here
        lock._fd = fd
        return lock

    def acquire(self, *, wait_s: float = 0.0) -> None:
        """Take the lock, waiting up to ``wait_s`` seconds for the last holder to die.

        Raises:
            RunBusyError: When somebody else still holds it; the message names the holder.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    raise RunBusyError(
                        f"{self.path.parent} is in use by {_holder(self.path)}. One run folder has "
                        "one writer: wait for it, stop it, or choose another folder."
                    ) from None
                time.sleep(0.1)
        os.truncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": os.uname().nodename}).encode(), 0)
        self._fd = fd

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def fileno(self) -> int:
        """Return the descriptor to hand to a child (``pass_fds``)."""
        if self._fd is None:
            raise RunBusyError(f"{self.path} is not held here. Call acquire() first.")
        return self._fd

    def release(self) -> None:
        """Let go of the lock. Closing is enough: children that share it keep it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def is_locked(run_dir: Path | str) -> bool:
    """Whether any live process holds the lock of ``run_dir``."""
    path = Path(run_dir) / LOCK_NAME
    if not path.exists():
        return False
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text())
        return f"process {who['pid']} on {who['host']}"
    except (ValueError, KeyError, OSError):
        return "another process"
