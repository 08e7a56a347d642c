"""A disk that is full for a while is outlived; one that stays full stops a run that can go on."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from benchmarks._kills import differing, outcome, until_done
from medkit.callbacks.writer import PATIENCE
from medkit.record.checkpoints import checkpoint_name, checkpoints, digest_path, is_sound
from medkit.record.folder import RunFolder
from medkit.record.ledger import Ledger
from tests.callbacks.small import BATCHES, EPOCHS, Train, training
from tests.callbacks.test_signals import At, ended, myself

_FSYNC = os.fsync


def full() -> None:
    """Let nothing get to the disk for good from now on."""

    def no_room(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    os.fsync = no_room


def room() -> None:
    os.fsync = _FSYNC


@pytest.fixture(autouse=True)
def _room_again() -> Iterator[None]:
    yield
    room()


def train(*what: tuple[int, Callable[[], object]]) -> Train:
    """Return a training in which things happen amid batches, with a point after each."""
    return training(callbacks=lambda: [At(batch, do) for batch, do in what] or [pl.Callback()])


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return Ledger(run_dir / "ledger.jsonl").read()


def no_halves(run_dir: Path) -> bool:
    return not list(run_dir.rglob("*.tmp"))


def landed(run_dir: Path, name: str) -> list[Path]:
    """Return the points of a run once the one of this name, its newest, is whole on the disk."""
    folder = run_dir / "checkpoints" / "fit"
    began = time.monotonic()
    while not is_sound(folder / name) or not no_halves(run_dir):
        assert time.monotonic() - began < 60, sorted(folder.iterdir())
        time.sleep(0.01)
    return checkpoints(folder)


def same_bits(run_dir: Path, *what: tuple[int, Callable[[], object]]) -> bool:
    """Train on to the end where it is not, and compare with a run that nothing happened to."""
    whole = run_dir.with_name("whole")
    harmless = [(batch, int) for batch, _ in what]  # the same callbacks, for a resume
    until_done(train(*harmless), whole, [])
    if RunFolder(run_dir).status != "done":
        until_done(train(*harmless), run_dir, [])
    return differing(outcome(whole), outcome(run_dir)) == []


def test_one_that_is_full_for_a_while_is_outlived(tmp_path: Path) -> None:
    what = ((5, full), (8, room))
    assert ended(lambda: train(*what)(tmp_path / "run", None), tmp_path / "log") == 0
    assert RunFolder(tmp_path / "run").status == "done"
    missed = lines(tmp_path / "run")
    assert {line["event"] for line in missed} == {"resume point not written"}
    assert [line["detail"] for line in missed] == [
        f"{number} in a row; OSError" for number in range(1, len(missed) + 1)
    ]
    assert 2 <= len(missed) < PATIENCE
    assert no_halves(tmp_path / "run")
    assert same_bits(tmp_path / "run", *what)


def test_one_that_stays_full_stops_a_run_that_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def full_later() -> None:
        landed(run_dir, checkpoint_name(0, 4))  # else it may be there and not be known to be
        full()

    assert ended(lambda: train((5, full_later))(run_dir, None), tmp_path / "log") == 1
    said = (tmp_path / "log").read_text()
    assert "a resume point must be written" in said
    assert "make room" in said
    found = checkpoints(run_dir / "checkpoints" / "fit")
    assert len(found) == 2
    assert all(map(is_sound, found))
    assert no_halves(run_dir)
    assert same_bits(run_dir, (5, full))


def test_so_does_one_that_is_full_at_the_end(tmp_path: Path) -> None:
    run_dir, last = tmp_path / "run", EPOCHS * BATCHES
    assert ended(lambda: train((last, full))(run_dir, None), tmp_path / "log") == 1
    assert "a resume point must be written" in (tmp_path / "log").read_text()
    assert same_bits(run_dir, (last, full))


def test_a_signal_on_a_full_disk_ends_with_its_code_and_older_points_are_there(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"

    def both() -> None:
        landed(run_dir, checkpoint_name(1, 2))
        full()
        myself(signal.SIGTERM)()

    assert ended(lambda: train((9, both))(run_dir, None), tmp_path / "log") == 143
    assert len(checkpoints(run_dir / "checkpoints" / "fit")) == 2
    assert same_bits(run_dir, (9, both))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB that can really be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("file systems can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full_is_outlived_and_the_logs_are_whole(small_disk: Path) -> None:
    fill, run_dir = small_disk / "fill", small_disk / "run"

    def fill_up() -> None:
        *older, _ = landed(run_dir, checkpoint_name(0, 4))
        for path in older:  # a newer point would take the room of an older one
            path.unlink(missing_ok=True)
            digest_path(path).unlink(missing_ok=True)
        with fill.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
            while handle.write(bytes(4096)):
                pass

    what = ((5, fill_up), (8, fill.unlink))
    assert ended(lambda: train(*what)(run_dir, None), small_disk.with_suffix(".log")) == 0
    assert lines(run_dir)
    assert no_halves(run_dir)
    whole = small_disk.parent / "whole"
    until_done(train((5, int), (8, int)), whole, [])
    assert differing(outcome(whole), outcome(run_dir)) == []


def test_older_points_make_room_for_a_newer_one(small_disk: Path) -> None:
    def leave_little() -> None:
        size = landed(small_disk / "run", checkpoint_name(1, 2))[-1].stat().st_size
        left = os.statvfs(small_disk)
        free = left.f_bavail * left.f_frsize
        (small_disk / "fill").write_bytes(bytes(free - size // 2))

    train_on = training(callbacks=lambda: [At(9, leave_little)], every=4)
    code = ended(lambda: train_on(small_disk / "run", None), small_disk.with_suffix(".log"))
    assert code == 0, small_disk.with_suffix(".log").read_text()[-2000:]
    assert lines(small_disk / "run") == []
