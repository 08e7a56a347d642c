"""Nothing goes on alone: a kernel ends, with all it has started, when its launcher is dead.

This file is run by path as the kernel starts (so the notebook need not import medkit, nor its
environment hold it); it uses the standard library alone.

Why a thread and not ``PR_SET_PDEATHSIG`` on the kernel: that signal would kill the kernel before
it could kill its children. The children that it forks itself (loader workers) do get it, so that
they die with the kernel whoever kills it. It is sent when the *thread* that forked them ends,
hence only for forks of the main thread, and only for the kernel's own children.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def descendants(pid: int) -> list[int]:
    """Return the processes that ``pid`` has started, and those they have; parents first."""
    parent_of: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
            # the command, in parentheses, may hold spaces and parentheses itself
            parent_of[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    found, fresh = [], {pid}
    while fresh:
        fresh = {child for child, parent in parent_of.items() if parent in fresh}
        found += sorted(fresh)
    return found


def kill_tree(pid: int) -> None:
    """Kill ``pid``, its process group if it leads one, and every process it has started."""
    for child in descendants(pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        leads_group = os.getpgid(pid) == pid
        if leads_group:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)


def inherit_orphans(yes: bool) -> None:
    """Become the parent of one's children's orphans, so that they can be found and killed."""
    libc = _libc()
    if libc is not None:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def wait_for_death(pid: int, *, every_s: float = 0.5) -> None:
    """Return when process ``pid``, which started the caller, is dead."""
    if hasattr(os, "pidfd_open"):
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        except OSError:  # an old kernel, or a sandbox that forbids it: poll below
            pass
        else:
            select.select([fd], [], [])
            os.close(fd)
            return
    pause, parent = threading.Event(), os.getppid()
    while os.getppid() == parent:
        pause.wait(every_s)


def on_death_of(pid: int, action: Callable[[], None]) -> threading.Thread:
    """Start a daemon thread that calls ``action`` when the parent ``pid`` is dead."""

    def wait() -> None:
        wait_for_death(pid)
        action()

    thread = threading.Thread(target=wait, name=f"medkit-watch-{pid}", daemon=True)
    thread.start()
    return thread


def watch_launcher(pid: int | None = None) -> threading.Thread | None:
    """End this process and its children when the launcher is dead.

    Args:
        pid: The launcher; by default what ``MEDKIT_LAUNCHER_PID`` says. Without either nothing is
            watched.
    """
    pid = pid or int(os.environ.get("MEDKIT_LAUNCHER_PID", "0"))
    if not pid:
        return None
    sockets = os.environ.pop("MEDKIT_SOCKETS", "")

    def end() -> None:
        if sockets:
            shutil.rmtree(sockets, ignore_errors=True)
        kill_tree(os.getpid())

    _tie_forked_children()
    return on_death_of(pid, end)


def _tie_forked_children() -> None:
    libc, kernel_pid = _libc(), os.getpid()
    if libc is None:
        return
    forking = {"tie": False}

    def before() -> None:
        here = threading.current_thread() is threading.main_thread()
        forking["tie"] = here and os.getpid() == kernel_pid

    def in_child() -> None:
        if forking["tie"]:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != kernel_pid:  # it died in between
                os.kill(os.getpid(), signal.SIGKILL)

    os.register_at_fork(before=before, after_in_child=in_child)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
