from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medkit.record import checkpoints as points
from medkit.record.checkpoints import (
    FINISHED,
    CheckpointWriteError,
    checkpoint_name,
    checkpoints,
    clean,
    commit,
    digest_path,
    is_sound,
    make_room,
    newest_sound,
    prune,
    set_aside,
)


def save(folder: Path, name: str, content: bytes = b"weights") -> Path:
    path = folder / name
    commit(path, lambda temp: temp.write_bytes(content) and None)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Three sound checkpoints, oldest first; written in another order."""
    places = [(0, 90), (0, 100), (1, 5)]
    written = [
        save(tmp_path, checkpoint_name(*places[n]), f"state {n}".encode()) for n in (2, 0, 1)
    ]
    return [written[1], written[2], written[0]]


def test_checkpoints_are_ordered_by_place_and_not_by_time_of_writing(
    tmp_path: Path, three: list[Path]
) -> None:
    assert checkpoints(tmp_path) == three


def test_a_finished_stage_counts_as_the_newest(tmp_path: Path, three: list[Path]) -> None:
    finished = save(tmp_path, FINISHED)
    assert checkpoints(tmp_path) == [*three, finished]


def test_somebody_elses_checkpoints_are_none_of_ours(tmp_path: Path) -> None:
    save(tmp_path, "best.ckpt")
    assert checkpoints(tmp_path) == []


def test_the_newest_sound_one_is_chosen(tmp_path: Path, three: list[Path]) -> None:
    assert newest_sound(tmp_path) == three[-1]


def test_there_is_none_in_an_empty_folder(tmp_path: Path) -> None:
    assert newest_sound(tmp_path) is None


def flip(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


@pytest.mark.parametrize("damage", [flip, lambda b: b[:-1], lambda b: b"", lambda b: b + b"\0"])
def test_a_damaged_one_is_passed_over_and_named(
    tmp_path: Path,
    three: list[Path],
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    three[2].write_bytes(damage(three[2].read_bytes()))
    named: list[Path] = []
    assert newest_sound(tmp_path, named.append) == three[1]
    assert named == [three[2]]
    assert f"{three[2]} is damaged" in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"0" * 64])
def test_a_digest_that_is_lost_or_damaged_speaks_against_the_checkpoint(
    tmp_path: Path, three: list[Path], content: bytes | None
) -> None:
    digest_path(three[2]).unlink()
    if content is not None:
        digest_path(three[2]).write_bytes(content)
    assert newest_sound(tmp_path) == three[1]


def test_with_all_damaged_there_is_none(tmp_path: Path, three: list[Path]) -> None:
    for path in three:
        path.write_bytes(b"")
    named: list[Path] = []
    assert newest_sound(tmp_path, named.append) is None
    assert named == three[::-1]


def test_the_digest_stands_before_the_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = os.replace

    def watched(source: Any, target: Any) -> None:
        seen.append((Path(target).suffix, names(tmp_path)))
        original(source, target)

    monkeypatch.setattr(os, "replace", watched)
    path = save(tmp_path, FINISHED)
    assert [suffix for suffix, _ in seen] == [".sha256", ".ckpt"]
    assert digest_path(path).name in seen[1][1]
    assert is_sound(path)


def test_the_data_are_synced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        kind = "digest" if ".sha256." in path.name else "data"
        calls.append("sync folder" if path == tmp_path else f"sync {kind}")
        fsync(fd)

    def renamed(source: Any, target: Any) -> None:
        calls.append(f"rename to {Path(target).suffix}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path, FINISHED)
    renames = ["rename to .sha256", "rename to .ckpt"]
    assert calls == ["sync data", "sync digest", *renames, "sync folder"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("zip")])
def test_a_full_disk_keeps_the_older_ones_and_says_what_to_do(
    tmp_path: Path, three: list[Path], error: Exception
) -> None:
    before = names(tmp_path)

    def write(temp: Path) -> None:
        temp.write_bytes(b"half of")
        raise error

    with pytest.raises(CheckpointWriteError, match=r"finished\.ckpt could not be.*make room"):
        commit(tmp_path / FINISHED, write)
    assert names(tmp_path) == before
    assert newest_sound(tmp_path) == three[-1]


def test_any_other_error_stays_itself_and_leaves_no_half_file(tmp_path: Path) -> None:
    def write(temp: Path) -> None:
        temp.write_bytes(b"half of")
        raise KeyError("state")

    with pytest.raises(KeyError):
        commit(tmp_path / FINISHED, write)
    assert names(tmp_path) == []


def test_the_last_two_are_kept_with_their_digests(tmp_path: Path, three: list[Path]) -> None:
    prune(tmp_path, 2)
    kept = [three[1].name, three[2].name]
    assert names(tmp_path) == sorted([*kept, *(f"{name}.sha256" for name in kept)])


def test_a_finished_stage_makes_all_others_needless(tmp_path: Path, three: list[Path]) -> None:
    set_aside(three[2])
    save(tmp_path, FINISHED)
    prune(tmp_path, 2)
    assert names(tmp_path) == [FINISHED, f"{FINISHED}.sha256"]


def test_one_set_aside_is_kept_for_its_reader_but_counts_no_more(
    tmp_path: Path, three: list[Path]
) -> None:
    aside = set_aside(three[2])
    assert aside.read_bytes() == b"state 2"
    assert checkpoints(tmp_path) == three[:2]


def test_what_a_kill_left_behind_is_removed_and_nothing_else(
    tmp_path: Path, three: list[Path]
) -> None:
    before = names(tmp_path)
    half = tmp_path / f".{FINISHED}.4711.tmp"
    half.write_bytes(b"half of")
    orphan = tmp_path / f"{FINISHED}.sha256"
    orphan.write_text("0" * 64)
    assert clean(tmp_path) == [half.name, orphan.name]
    assert names(tmp_path) == before


@pytest.mark.parametrize("moment", ["digest", "rename"])
def test_an_error_at_any_step_of_the_commit_leaves_a_folder_to_resume_from(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    if moment == "digest":
        monkeypatch.setattr(points, "write_synced", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CheckpointWriteError):
        save(tmp_path, FINISHED)
    monkeypatch.undo()
    clean(tmp_path)
    assert newest_sound(tmp_path) == three[-1]
    assert not (tmp_path / FINISHED).exists()


def test_a_folder_that_cannot_be_synced_is_told_as_any_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medkit.record.checkpoints.sync_folder", no_room)
    path = tmp_path / checkpoint_name(0, 1)
    with pytest.raises(CheckpointWriteError, match="No space left"):
        commit(path, lambda temp: temp.write_bytes(b"weights"))
    assert is_sound(path)  # it may only not outlive a power cut
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.sha256"]


def free(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=free_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)


def test_older_ones_make_room_only_where_there_is_none(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 10**9)
    assert not make_room(tmp_path)
    assert len(checkpoints(tmp_path)) == 3
    free(monkeypatch, 0)
    newest = checkpoints(tmp_path)[-1]
    assert make_room(tmp_path)
    assert checkpoints(tmp_path) == [newest]
    assert not make_room(tmp_path)


def test_they_stay_where_the_newest_is_damaged(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints(tmp_path)[-1].write_bytes(b"torn")
    free(monkeypatch, 0)
    assert not make_room(tmp_path)
    assert len(checkpoints(tmp_path)) == 3
