"""Whichever process a SIGKILL hits, the others end and the folder's lock is free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medkit.record.folder import RunFolder
from medkit.record.lock import is_locked

FAMILY = """
import multiprocessing, os, subprocess, time
forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,))
forked.start()
spawned = subprocess.Popen(["sleep", "300"])
with open(run_dir + "/pids.part", "w") as handle:
    handle.write(f"{os.getpid()} {forked.pid} {spawned.pid}")
os.rename(run_dir + "/pids.part", run_dir + "/pids")
time.sleep(300)
"""


def started(tmp_path: Path) -> tuple[subprocess.Popen, list[int]]:
    """Start a job whose kernel has two children; return the launcher and the three."""
    launcher = subprocess.Popen(
        [sys.executable, "-m", "medkit.cli", "run", "job.ipynb", "--out", "run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.DEVNULL,
    )
    pids = tmp_path / "run" / "pids"
    until(pids.exists, 60)
    return launcher, [int(pid) for pid in pids.read_text().split()]


def until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"  # nobody may be there to collect it


def test_a_killed_launcher_takes_all_with_it(make, tmp_path: Path) -> None:
    make(FAMILY)
    launcher, family = started(tmp_path)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    until(lambda: not any(map(alive, family)), 10)
    until(lambda: not is_locked(tmp_path / "run"), 10)
    assert RunFolder(tmp_path / "run").status == "killed"


@pytest.mark.parametrize("group", [False, True], ids=["kernel", "kernel and launcher"])
def test_a_killed_kernel_takes_its_children_with_it(make, tmp_path: Path, group: bool) -> None:
    make(FAMILY)
    launcher, family = started(tmp_path)
    if group:  # at once, as a cgroup's out-of-memory killer does
        os.kill(launcher.pid, signal.SIGSTOP)
    os.kill(family[0], signal.SIGKILL)
    if group:
        until(lambda: not alive(family[1]), 10)  # forked: it dies with its parent
        os.kill(family[2], signal.SIGKILL)
        launcher.send_signal(signal.SIGKILL)
    code = launcher.wait(30)
    until(lambda: not any(map(alive, family)), 10)
    assert code == (-9 if group else 1)
    assert RunFolder(tmp_path / "run").status == "killed"
