"""What a run is: code, environment and machine, as plain values that can be compared."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from medkit.record.files import sha256_file

PACKAGES = (
    "medkit",
    "torch",
    "pytorch-lightning",
    "torchmetrics",
    "monai",
    "captum",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "papermill",
)


@lru_cache(maxsize=1)
def environment() -> dict[str, str]:
    """Return the versions that can change a result, without importing any of the packages."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return the SHA-256 over the kit's own sources, file names included."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def git_commit(folder: Path | str = ".") -> str:
    """Return the commit of ``folder``, with ``+changes`` where it is not clean; empty if none.

    A container image has no repository; its build puts the commit into ``MEDKIT_GIT_COMMIT``.
    """
    command = ["git", "-C", str(folder)]
    built_from = os.environ.get("MEDKIT_GIT_COMMIT", "")
    try:
        head = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True)
        if head.returncode:
            return built_from
        dirty = subprocess.run(
            [*command, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:  # git is not installed: the code digest still stands
        return built_from
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """Return the processor's name and the widest vector unit numerical libraries pick by."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
                break
    width = next((w for w in ("avx512f", "avx2", "avx") if w in flags), "")
    return f"{name} {width}".strip()


def hardware_class_base() -> dict[str, str]:
    """Return the part of the hardware class that is known without torch."""
    return {
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "omp_threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def compare(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say in words where two identities differ, one line a field; empty when they agree."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            lines += compare(was, now, f"{prefix}{key}.")
        elif was != now:
            lines.append(difference(f"{prefix}{key}", was, now))
    return lines


_CONTENT_OF = {
    "code_sha256": "medkit's own code",
    "notebook_sha256": "the code of the notebook or script",
    "module_sha256": "the file of the LightningModule's code",
    "samples_sha256": "the first samples of the training data",
}


def difference(name: str, was: Any, now: Any) -> str:
    """Say in words that a value changed; digests tell a reader nothing and are named instead."""
    if name in _CONTENT_OF:
        return f"{_CONTENT_OF[name]} ({name}) has changed"
    return f"{name} was {was!r}, is {now!r}"
