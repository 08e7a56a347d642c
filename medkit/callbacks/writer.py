"""One thread that writes resume points beside the training, and what a full disk does to it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medkit.record.checkpoints import CheckpointWriteError, commit, make_room, prune

_log = logging.getLogger(__name__)
PATIENCE = 5  # points in a row that cannot be written before training stops


class Writer:
    """Writes one point at a time; an error there is raised in the training thread.

    Args:
        keep: Points kept.
        tell: Called with an action and a detail when a point could not be written.
    """

    def __init__(self, keep: int, tell: Callable[[str, str], None]) -> None:
        self._keep = keep
        self._tell = tell
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failed = 0  # in a row

    def idle(self) -> bool:
        """Whether nothing is being written."""
        return self._thread is None or not self._thread.is_alive()

    def submit(self, path: Path, checkpoint: dict[str, Any], late: OSError | None) -> None:
        """Begin to write, after what is being written.

        Args:
            path: Of the point.
            checkpoint: What is in it.
            late: Why the logs it counts on are not on the disk: then it is not written either.
        """
        self.join()
        work = (path, checkpoint, late)
        self._thread = threading.Thread(target=self._run, args=work, name="medkit-resume-point")
        self._thread.start()

    def join(self) -> bool:
        """Wait for the file, and raise what went wrong with it; return whether there was one."""
        wrote = self._thread is not None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return wrote

    def landed(self, *, last: bool) -> None:
        """Wait for the file; raise when it cannot be written and training must not go on."""
        try:
            if self.join():
                self._failed = 0
        except CheckpointWriteError as error:
            self._failed += 1
            stop = last or self._failed >= PATIENCE
            action = "training stopped" if stop else "training went on without it"
            self._tell(action, f"{self._failed} in a row; {type(error.__cause__).__name__}")
            _log.warning("%s", error)
            if stop:
                raise

    def let_land(self) -> None:
        """Wait for the file: the fit ends for another reason, which counts."""
        try:
            self.join()
        except CheckpointWriteError as error:
            _log.error("%s", error)

    def _run(self, path: Path, checkpoint: dict[str, Any], late: OSError | None) -> None:
        try:
            self._write(path, checkpoint, late)
        except BaseException as error:  # join() hands it to the training thread
            self._error = error

    def _write(self, path: Path, checkpoint: dict[str, Any], late: OSError | None) -> None:
        def write(temp: Path) -> None:
            if late is not None:  # a point without its logs would be resumed from to other logs
                raise late
            torch.save(checkpoint, temp)

        try:
            commit(path, write)
        except CheckpointWriteError:
            if not make_room(path.parent):
                raise
            commit(path, write)
        prune(path.parent, self._keep)
