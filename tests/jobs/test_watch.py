"""The watch over a launcher, and where kernels talk."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from medkit.jobs import kernel, watch

FORKS_FROM_A_THREAD = """
import os, runpy, sys, threading, time
watch = runpy.run_path(sys.argv[1])
watch["watch_launcher"](os.getppid())
pids = []
def fork():
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
    pids.append(pid)
thread = threading.Thread(target=fork)
thread.start(); thread.join()
time.sleep(0.3)
print(os.waitpid(pids[0], os.WNOHANG)[0])
os.kill(pids[0], 9)
"""


def test_a_child_forked_by_a_thread_outlives_the_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS_FROM_A_THREAD, watch.__file__],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["0"]  # still running


def test_nothing_is_watched_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDKIT_LAUNCHER_PID", raising=False)
    assert watch.watch_launcher() is None


def test_the_watch_needs_nothing_but_the_standard_library() -> None:
    code = f"import runpy, sys; runpy.run_path({watch.__file__!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    loaded = {name for name in loaded if not name.startswith("__editable__")}  # pip install -e
    assert loaded <= set(sys.stdlib_module_names) | {"__main__", "_distutils_hack", "sitecustomize"}


def test_descendants_are_found_through_generations() -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 30 & echo $!; wait"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    assert watch.descendants(child.pid) == [grandchild]
    watch.kill_tree(child.pid)
    child.wait()
    assert watch.descendants(child.pid) == []


def test_sockets_lie_in_a_private_folder_with_short_paths(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = kernel.sockets_folder()
    assert folder is not None
    assert len(os.fsencode(folder / "k-ipc-5")) <= kernel.MAX_SOCKET_PATH
    assert folder.stat().st_mode & 0o077 == 0
    folder.rmdir()


def test_a_file_system_without_sockets_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, path: object) -> None:
        raise OSError("this file system has no sockets")

    monkeypatch.setattr(kernel.socket, "socket", type("S", (socket.socket,), {"bind": refuse}))
    assert kernel.sockets_folder() is None


def test_a_kernel_talks_over_tcp_where_there_are_no_sockets(
    make, medkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "sockets_folder", lambda: None)
    make("from ipykernel.kernelapp import IPKernelApp\nprint(IPKernelApp.instance().transport)")
    done = medkit("run", "job.ipynb")
    assert done.code == 0
    assert "tcp" in done.printed
