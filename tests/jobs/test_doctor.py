"""What the doctor looks at, and when it says that something is broken."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from medkit.jobs import doctor


def states(findings: Iterable[doctor.Finding]) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


def test_a_fit_machine_passes(medkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "_torch", lambda: [doctor.Finding("ok", "torch", "asked elsewhere")]
    )
    said = medkit("doctor")
    assert "BROKEN" not in said.out
    assert said.code == 0


def test_torch_is_asked_in_a_process_of_its_own() -> None:
    (finding,) = doctor._torch()
    assert finding.state == "ok"
    assert metadata.version("torch") in finding.said


def test_a_version_outside_its_pin_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = [Requirement("numpy<1"), Requirement("not-a-package-of-ours"), Requirement("numpy>1")]
    monkeypatch.setattr(doctor, "requirements", lambda: pins)
    findings = list(doctor._packages())
    assert states(findings) == {
        "packages": "ok",
        "numpy": "BROKEN",
        "not-a-package-of-ours": "BROKEN",
    }
    assert "not installed" in findings[-1].said


def test_the_pins_are_those_of_the_project() -> None:
    names = {pin.name for pin in doctor.requirements()}
    assert {"torch", "pytorch-lightning", "papermill"} <= names


def test_another_package_of_the_same_import_name_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata, "packages_distributions", lambda: {"medkit": ["medkit", "medkit-lib"]}
    )
    (finding,) = doctor._namesakes()
    assert finding.state == "BROKEN"
    assert finding.said.startswith("medkit-lib also imports as medkit")


def test_a_broken_finding_gives_exit_code_1(medkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_torch", lambda: [doctor.Finding("BROKEN", "torch", "gone")])
    assert medkit("doctor").code == 1


def test_a_hung_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("python", 120)

    monkeypatch.setattr(subprocess, "run", hang)
    (finding,) = doctor._torch()
    assert (finding.state, "driver hung" in finding.said) == ("BROKEN", True)


def test_little_shared_memory_is_a_warning_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = type("Usage", (), {"free": 64e6, "total": 64e6})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    (finding,) = doctor._shared_memory()
    assert finding.state == "warn"
    assert "--shm-size" in finding.said


def test_a_file_system_without_locks_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fcntl.flock", lambda fd, how: None)
    (finding,) = doctor._lock()
    assert finding.state == "BROKEN"
    assert "has no locks" in finding.said
    assert list(tmp_path.iterdir()) == []
