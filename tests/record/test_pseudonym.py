from __future__ import annotations

import hashlib
import hmac
import stat
from pathlib import Path

import pytest

from medkit.record.pseudonym import key_path, pseudonym


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "deep" / "pseudonym.key"
    monkeypatch.setenv("MEDKIT_KEY_FILE", str(path))
    return path


def test_it_is_the_head_of_an_hmac() -> None:
    expected = hmac.digest(b"k" * 32, b"patient 7", hashlib.sha256).hex()[:16]
    assert pseudonym("patient 7", key=b"k" * 32) == expected


def test_the_same_key_gives_the_same_and_another_key_another() -> None:
    one, other = b"a" * 32, b"b" * 32
    assert pseudonym(7, key=one) == pseudonym(7, key=one)
    assert pseudonym(7, key=one) != pseudonym(7, key=other)
    assert pseudonym(7, key=one) != pseudonym(8, key=one)


def test_a_key_is_made_at_first_use_for_its_owner_alone(key_file: Path) -> None:
    pseudonym("patient 7")
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert len(key_file.read_text()) == 64


def test_the_key_that_is_there_is_used(key_file: Path) -> None:
    key_file.parent.mkdir()
    key_file.write_text("s" * 40 + "\n")
    assert pseudonym("patient 7") == pseudonym("patient 7", key=b"s" * 40)
    assert key_file.read_text() == "s" * 40 + "\n"


def test_a_key_that_is_too_short_is_refused(key_file: Path) -> None:
    key_file.parent.mkdir()
    key_file.write_text("secret")
    with pytest.raises(ValueError, match=r"at least 32 characters, found 6\. Remove it"):
        pseudonym("patient 7")


def test_the_key_lies_in_the_home_folder_and_not_beside_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MEDKIT_KEY_FILE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MEDKIT_RUN_DIR", "/somewhere/runs/a")
    assert key_path() == tmp_path / ".config" / "medkit" / "pseudonym.key"
