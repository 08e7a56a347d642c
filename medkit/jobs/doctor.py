"""``medkit doctor``: is this machine fit for runs that come out the same twice?"""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion

from medkit.record.lock import RunBusyError, RunLock

OK, WARN, BROKEN = "ok", "warn", "BROKEN"
_PROBE = """
import json, torch
names = []
if torch.accelerator.is_available():
    kind = torch.accelerator.current_accelerator().type
    named = getattr(torch.get_device_module(kind), "get_device_name", lambda number: kind)
    names = [named(number) for number in range(torch.accelerator.device_count())]
print(json.dumps({"names": names, "threads": torch.get_num_threads()}))
"""
_MIN_SHM_GB = 1.0
_MIN_DISK_GB = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: str
    what: str
    said: str


def doctor_command() -> int:
    """Look at everything, say what was found; return 1 when something is broken."""
    broken = False
    for look in (_python, _packages, _namesakes, _torch, _disk, _shared_memory, *_LATER):
        for finding in look():
            broken |= finding.state == BROKEN
            sys.stdout.write(f"{finding.state:<7} {finding.what:<16} {finding.said}\n")
            sys.stdout.flush()
    return int(broken)


def _python() -> Iterable[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    state = OK if sys.version_info >= (3, 11) else BROKEN
    yield Finding(state, "python", f"{version} at {sys.executable}")
    if sys.platform != "linux":
        yield Finding(
            WARN,
            "system",
            f"{sys.platform}: supported is Linux; orphans of a killed kernel may stay",
        )


def requirements() -> list[Requirement]:
    """Return the pins of medkit: of the installed package, or of the checkout's pyproject.toml."""
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    lines: list[str] = []
    if pyproject.is_file():
        lines = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    else:
        try:
            lines = metadata.requires("medkit") or []
        except metadata.PackageNotFoundError:
            return []
    found = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append(requirement)
    return found


def _packages() -> Iterable[Finding]:
    wrong, right = [], 0
    pins = requirements()
    for pin in pins:
        try:
            version = metadata.version(pin.name)
            fits = pin.specifier.contains(version, prereleases=True)
        except metadata.PackageNotFoundError:
            version, fits = "not installed", False
        except InvalidVersion:
            version, fits = "of unknown version", False
        right += fits
        if not fits:
            wrong.append(Finding(BROKEN, pin.name, f"must be {pin.specifier}, is {version}"))
    if not pins:
        yield Finding(WARN, "packages", "medkit's own requirements can't be read here")
    elif right:
        yield Finding(OK, "packages", f"{right} of {len(pins)} as required")
    yield from wrong


def _namesakes() -> Iterable[Finding]:
    owners = set(metadata.packages_distributions().get("medkit", [])) - {"medkit"}
    if owners:
        yield Finding(
            BROKEN,
            "name medkit",
            f"{', '.join(sorted(owners))} also imports as medkit, and one hides the other: "
            "use an environment of its own for it",
        )


def _torch() -> Iterable[Finding]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding(BROKEN, "torch", "did not answer within 120 s: is the device's driver hung?")
        return
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding(BROKEN, "torch", f"can't be imported: {last}")
        return
    said = json.loads(done.stdout)
    devices = ", ".join(said["names"]) or "no accelerator: training runs on the CPU"
    yield Finding(OK, "torch", f"{metadata.version('torch')}; {said['threads']} threads; {devices}")


def _disk() -> Iterable[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    state = OK if free >= _MIN_DISK_GB else WARN
    yield Finding(state, "disk", f"{free:.1f} GB free under {Path.cwd()}")


def _shared_memory() -> Iterable[Finding]:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        yield Finding(WARN, "/dev/shm", "is missing: use num_workers=0")
        return
    size = shutil.disk_usage(shm)
    state = OK if size.free / 1e9 >= _MIN_SHM_GB else WARN
    hint = "" if state == OK else "; loader workers die of bus errors: --shm-size=8g or --ipc=host"
    yield Finding(
        state, "/dev/shm", f"{size.free / 1e9:.2f} of {size.total / 1e9:.2f} GB free{hint}"
    )


def _lock() -> Iterable[Finding]:
    base = Path.cwd() / "runs"
    parent = base if base.is_dir() else Path.cwd()
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".doctor-") as folder:
            first, second = RunLock(folder), RunLock(folder)
            first.acquire()
            try:
                second.acquire()
            except RunBusyError:
                yield Finding(OK, "lock", f"one writer a folder holds under {parent}")
            else:
                yield Finding(
                    BROKEN,
                    "lock",
                    f"the file system under {parent} has no locks (flock): two jobs could write "
                    "into one run folder; keep run folders elsewhere",
                )
            finally:
                first.release()
    except OSError as error:
        yield Finding(BROKEN, "lock", f"no run folder can be made under {parent}: {error}")


def _kernel() -> Iterable[Finding]:
    from medkit.jobs.kernel import sockets_folder

    folder = sockets_folder()
    if folder is None:
        yield Finding(WARN, "kernel", "no private sockets: kernels talk over TCP on localhost")
        return
    yield Finding(OK, "kernel", f"private sockets under {folder.parent}")
    shutil.rmtree(folder, ignore_errors=True)


def _environment() -> Iterable[Finding]:
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0") not in {"", "0"}:
        yield Finding(
            BROKEN, "weights only", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD lets a checkpoint run code"
        )
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if workspace not in {None, ":4096:8", ":16:8"}:
        yield Finding(
            WARN, "determinism", f"CUBLAS_WORKSPACE_CONFIG={workspace} is not deterministic"
        )
    else:
        yield Finding(OK, "determinism", "jobs run with a fixed hash seed and workspace")


def _threads() -> Iterable[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = os.environ.get("OMP_NUM_THREADS")
    if wanted is None:
        said = f"{cores} cores; results depend on the thread count: set OMP_NUM_THREADS to fix it"
        yield Finding(OK, "threads", said)
    elif wanted.isdigit() and int(wanted) <= int(cores or 1):
        yield Finding(OK, "threads", f"{cores} cores, OMP_NUM_THREADS={wanted}")
    else:
        yield Finding(WARN, "threads", f"{cores} cores, but OMP_NUM_THREADS={wanted}")


_LATER: tuple[Callable[[], Iterable[Finding]], ...] = (_lock, _kernel, _environment, _threads)
