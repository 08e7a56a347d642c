from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medkit.record.lock import RunBusyError, RunLock, is_locked

HOLD = """
import sys
from medkit.record.lock import RunLock
RunLock(sys.argv[1]).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_the_holder_named(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(RunBusyError, match=rf"in use by process {holder.pid} on .*choose another"):
        lock.acquire()
    assert not lock.held
    assert is_locked(tmp_path)


def test_the_lock_of_a_process_killed_by_sigkill_is_free(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert not is_locked(tmp_path)
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()


def test_one_waits_for_the_last_holder_to_die(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    killer = threading.Timer(0.3, holder.kill)
    killer.start()
    lock = RunLock(tmp_path)
    lock.acquire(wait_s=30.0)
    assert lock.held
    lock.release()
    killer.join()


def test_the_lock_lives_in_a_child_that_inherited_it(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=[lock.fileno()],
    )
    lock.release()
    try:
        assert is_locked(tmp_path)
        with pytest.raises(RunBusyError):
            RunLock(tmp_path).acquire()
    finally:
        child.kill()
        child.communicate()
    assert not is_locked(tmp_path)


def test_a_forked_worker_keeps_the_lock_when_its_parent_is_gone(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.setpgid(0, 0)
        lock = RunLock(tmp_path)
        lock.acquire()
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
        os.write(write_end, f"{worker}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write_end)
    os.waitpid(parent, 0)
    with os.fdopen(read_end) as said:
        worker = int(said.readline())
        try:
            assert is_locked(tmp_path)
        finally:
            os.kill(worker, signal.SIGKILL)
    heir = RunLock(tmp_path)
    heir.acquire(wait_s=30.0)
    heir.release()


def test_a_kernel_adopts_what_its_launcher_hands_over(tmp_path: Path) -> None:
    launcher = RunLock(tmp_path)
    launcher.acquire()
    kernel = RunLock.adopt(tmp_path, os.dup(launcher.fileno()))
    launcher.release()
    assert is_locked(tmp_path)
    kernel.release()
    assert not is_locked(tmp_path)


def test_a_descriptor_that_is_not_open_is_not_adopted(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        RunLock.adopt(tmp_path, fd)


def test_asking_whether_it_is_locked_neither_makes_nor_takes_a_lock(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_lock_that_is_not_held_has_no_descriptor(tmp_path: Path) -> None:
    with pytest.raises(RunBusyError, match="not held here"):
        RunLock(tmp_path).fileno()


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.path.write_text("{torn")
    with pytest.raises(RunBusyError, match="in use by another process"):
        RunLock(tmp_path).acquire()
    lock.release()
