from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medkit.record import identity
from medkit.record.identity import compare, environment, git_commit, hardware_class_base


def test_equal_identities_have_no_differences() -> None:
    assert compare({"seed": 1, "data": {"a": "x"}}, {"data": {"a": "x"}, "seed": 1}) == []


def test_a_difference_names_its_field_and_both_values() -> None:
    old = {"seed": 1, "environment": {"torch": "2.13.0", "numpy": "2.0"}, "gone": 1}
    new = {"seed": 2, "environment": {"torch": "2.14.0", "numpy": "2.0"}, "new": True}
    assert compare(old, new) == [
        "environment.torch was '2.13.0', is '2.14.0'",
        "gone was 1, is None",
        "new was None, is True",
        "seed was 1, is 2",
    ]


def test_versions_are_read_without_importing_the_packages() -> None:
    code = (
        "import sys\nfrom medkit.record.identity import environment\n"
        "print(environment()['torch'])\n"
        "assert 'torch' not in sys.modules and 'pytorch_lightning' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == environment()["torch"]


def test_a_package_that_is_not_there_is_said_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "PACKAGES", ("no-such-package",))
    assert environment.__wrapped__()["no-such-package"] == "absent"


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "First")
    return tmp_path


def test_a_commit_says_when_the_tree_is_not_what_it_was(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert git_commit(repository) == head
    (repository / "notes.txt").write_text("untracked files are not the code")
    assert git_commit(repository) == head
    (repository / "a.py").write_text("a = 2\n")
    assert git_commit(repository) == f"{head}+changes"


def test_outside_a_repository_the_image_says_what_it_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit(tmp_path) == ""
    monkeypatch.setenv("MEDKIT_GIT_COMMIT", "abc")
    assert git_commit(tmp_path) == "abc"


def test_the_hardware_class_has_the_processor_and_the_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = hardware_class_base()
    assert found["omp_threads"] == "3"
    assert found["cpu"]
    assert found["machine"]
