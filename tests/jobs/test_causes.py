"""The likely cause that is printed, and the device that is chosen."""

from __future__ import annotations

import signal

import pytest

from medkit.jobs import causes
from medkit.jobs.notebook import UsageError
from medkit.jobs.plan import VISIBLE_DEVICES, device_environment


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error.", "--shm-size"),
        ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed.", "fewer workers"),
        ("OutOfMemoryError: device out of memory", "smaller batch"),
        ("MemoryError: ", "this machine's memory"),
        ("ModuleNotFoundError: No module named 'x'", "medkit doctor"),
        ("SystemExit: 0", "ended itself"),
        ("ValueError: labels must be 0 or 1", ""),
    ],
)
def test_a_known_message_has_a_way_out(message: str, word: str) -> None:
    assert word in causes.hint(message)
    assert bool(word) == bool(causes.hint(message))


@pytest.mark.parametrize(
    ("exit_status", "oom_kills", "word"),
    [
        (-signal.SIGKILL, 1, "ran out of memory"),
        (-signal.SIGKILL, 0, "killed with SIGKILL"),
        (-signal.SIGSEGV, 0, "segmentation fault"),
        (-signal.SIGBUS, 0, "--shm-size"),
        (-signal.SIGPIPE, 0, "SIGPIPE"),
        (3, 0, "status 3"),
    ],
)
def test_a_death_is_told_by_its_signal(exit_status: int, oom_kills: int, word: str) -> None:
    assert word in causes.death(exit_status, oom_kills)


def test_a_dead_loader_worker_is_no_fault_of_the_notebook() -> None:
    assert causes.worker_died("RuntimeError: DataLoader worker (pid(s) 4, 5) exited unexpectedly")
    assert not causes.worker_died("ValueError: worker")


def test_a_device_is_counted_among_those_the_scheduler_has_left() -> None:
    assert device_environment("gpu:1", {VISIBLE_DEVICES: "4,6"})[VISIBLE_DEVICES] == "6"
    assert device_environment("gpu:1", {})[VISIBLE_DEVICES] == "1"
    assert device_environment("gpu", {}) == {"MEDKIT_ACCELERATOR": "gpu"}
    assert device_environment("cpu", {})[VISIBLE_DEVICES] == ""
    assert device_environment("", {}) == {}
    with pytest.raises(UsageError, match="2 devices are visible here"):
        device_environment("gpu:2", {VISIBLE_DEVICES: "4,6"})
    with pytest.raises(UsageError, match="--device must be"):
        device_environment("tpu:x", {})
