"""The kernel process of a job: how it is started, talked to and watched."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import zmq
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync

MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux and 104 on macOS, the final NUL included
SHUTDOWN_WAIT_S = 30.0  # what runs at exit may have files to close; the default is 5
_MAIN = str(Path(__file__).with_name("kernel_main.py"))


class PatientKernelManager(AsyncKernelManager):
    """Hands out clients that never lose a message.

    By default a receiver that is 1,000 messages behind loses what comes next; why that matters, and
    the sending side, is in ``kernel_main``.
    """

    def client(self, **kwargs: Any) -> Any:
        """Return a client whose receiving queue has no limit."""
        client = super().client(**kwargs)
        client.context.rcvhwm = 0
        return client


class JobKernel:
    """An IPython kernel of this very interpreter, on sockets of its own.

    A kernelspec named ``python3`` in a user's home may point to any environment; the interpreter
    that runs the launcher is the one whose versions ``run.json`` records, so it runs the kernel.
    Messages go over Unix sockets in a private folder: no port to clash or to be listened to. Where
    they can't be had (a long or odd temporary folder), over TCP on localhost, signed with a key.
    """

    def __init__(self) -> None:
        self.sockets = sockets_folder()
        folder = self.sockets or Path(tempfile.mkdtemp(prefix="medkit-"))
        self._folder = folder
        self.manager = PatientKernelManager(
            kernel_name="python3",
            connection_file=str(folder / "k.json"),
            transport="ipc" if self.sockets else "tcp",
            shutdown_wait_time=SHUTDOWN_WAIT_S,
        )
        self.manager._kernel_spec = KernelSpec(
            argv=[sys.executable, _MAIN, "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
        )
        self.pid = 0
        self._process: Any = None

    def start(
        self,
        *,
        cwd: Path,
        environment: dict[str, str],
        log: IO[bytes],
        pass_fds: tuple[int, ...] = (),
    ) -> int:
        """Start the process; return its pid. It leads a session and process group of its own."""
        environment = environment | {
            "MEDKIT_LAUNCHER_PID": str(os.getpid()),
            "MEDKIT_SOCKETS": str(self._folder),
            # a job must not depend on start-up files in somebody's home
            "IPYTHONDIR": str(self._folder / "ipython"),
        }
        environment.pop("PYTHONSTARTUP", None)
        run_sync(self.manager.start_kernel)(
            cwd=str(cwd),
            env=environment,
            stdout=log,
            stderr=log,
            pass_fds=pass_fds,
            extra_arguments=["--HistoryManager.hist_file=:memory:"],
        )
        # the provisioner forgets the process once it has ended; its exit status is wanted then
        self._process = getattr(self.manager.provisioner, "process", None)
        self.pid = int(self._process.pid)
        return self.pid

    @property
    def exit_status(self) -> int | None:
        """The process's exit status: negative for a signal, None while it is alive."""
        return None if self._process is None else self._process.poll()

    def shut_down(self) -> None:
        """Ask a live kernel to end, kill what is left of its process group, clear the sockets.

        nbclient does not end a manager that was handed to it. A kernel that was killed leaves its
        children (loader workers, subprocesses) in its group.
        """
        try:
            if self.exit_status is None and self.manager.has_kernel:
                run_sync(self.manager.shutdown_kernel)()
            else:
                run_sync(self.manager.cleanup_resources)()
        finally:
            if self.pid:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            shutil.rmtree(self._folder, ignore_errors=True)


def sockets_folder() -> Path | None:
    """Make a private folder whose socket paths are short enough, or return None."""
    if os.name != "posix" or not zmq.has("ipc"):
        return None
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if (
            not base
            or len(os.fsencode(base)) + 30 > MAX_SOCKET_PATH
            or not os.access(base, os.W_OK)
        ):
            continue
        folder = Path(tempfile.mkdtemp(prefix="mk-", dir=base))  # mode 0700
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.bind(str(folder / "probe"))
            except OSError:  # a file system without sockets
                shutil.rmtree(folder, ignore_errors=True)
                continue
        (folder / "probe").unlink()
        return folder
    return None
