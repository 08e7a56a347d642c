"""One thread that writes resume points beside the training."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Writer:
    """Writes one file at a time; an error there is raised in the training thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def idle(self) -> bool:
        """Whether nothing is being written."""
        return self._thread is None or not self._thread.is_alive()

    def submit(self, work: Callable[[], None]) -> None:
        """Begin to write, after what is being written."""
        self.join()
        self._thread = threading.Thread(target=self._run, args=(work,), name="medkit-resume-point")
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

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # join() hands it to the training thread
            self._error = error
