from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medkit.record.files import (
    append_whole,
    is_full_disk,
    read_json,
    safe_name,
    sha256_file,
    sha256_text,
    write_bytes,
    write_json,
    write_text,
)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The system calls that make a file durable, in the order in which they are made."""
    seen: list[str] = []

    def watch(name: str, what: Callable[[Any], str]) -> None:
        original = getattr(os, name)

        def watched(target: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(f"{name} {what(target)}")
            return original(target, *args, **kwargs)

        monkeypatch.setattr(os, name, watched)

    def opened(fd: int) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        return "folder" if path.is_dir() else path.suffix

    watch("fsync", opened)
    watch("replace", lambda path: Path(path).suffix)
    return seen


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a longer old text")
    write_text(path, "new")
    assert path.read_bytes() == b"new"


def test_the_bytes_are_on_the_disk_before_they_have_the_name(
    tmp_path: Path, calls: list[str]
) -> None:
    write_bytes(tmp_path / "a.txt", b"new")
    assert calls == ["fsync .tmp", "replace .tmp", "fsync folder"]


def test_what_need_not_outlive_a_power_cut_is_not_synced(tmp_path: Path, calls: list[str]) -> None:
    write_bytes(tmp_path / "a.txt", b"new", durable=False)
    assert calls == ["replace .tmp"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = Path("/dev/full")  # every write to it says that the disk is full
    target = tmp_path / "a.txt"
    target.write_text("old")
    temp = tmp_path / f".a.txt.{os.getpid()}.tmp"
    temp.symlink_to(path)
    with pytest.raises(OSError, match="No space left"):
        write_text(target, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_an_append_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    append_whole(path, b"one\n")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        append_whole(path, b"two\n")
    assert path.read_bytes() == b"one\n"
    append_whole(path, b"two\n", durable=False)
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_quota_is_a_full_disk_and_a_missing_file_is_not() -> None:
    assert is_full_disk(OSError(errno.EDQUOT, "quota"))
    assert not is_full_disk(OSError(errno.ENOENT, "missing"))


def test_the_temporary_file_lies_beside_the_file_whatever_tmpdir_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    folders = []
    original = os.replace

    def watched(source: Any, target: Any) -> None:
        folders.append(Path(source).parent)
        original(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_text(tmp_path / "a.txt", "new")
    assert folders == [tmp_path]


def test_json_has_the_same_bytes_whatever_the_order_of_its_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 0.1, "a": [1, None]})
    write_json(tmp_path / "b.json", {"a": [1, None], "b": 0.1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": [1, None], "b": 0.1}


def test_json_has_no_word_for_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"run\.json must be JSON.*damaged or edited"):
        read_json(path)


def test_digests_are_those_of_fips_180(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a") == expected
    assert sha256_text("abc") == expected


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../up", "a/b", "/etc", "a\\b", "a\0b", "a\nb", "a\tb", "a\x7fb"),
        "x" * 300,
    ],
)
def test_a_name_that_could_leave_its_folder_or_hide_a_line_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="without slashes or control characters, got"):
        safe_name(name)


@pytest.mark.parametrize("name", ["fit", "01_first", "a.b-c", "...", "größe", "x" * 100])
def test_an_ordinary_name_comes_back(name: str) -> None:
    assert safe_name(name) == name
