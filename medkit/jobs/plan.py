"""What a ``medkit run`` will do, decided before anything is written or started."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkit.jobs.notebook import Notebook, UsageError, read_notebook
from medkit.jobs.parameters import Parameter, check_values, read_parameters, read_values_file
from medkit.record.files import safe_name
from medkit.record.folder import RunFolder, find_runs, new_run_path
from medkit.record.identity import compare

UNFINISHED = ("killed", "interrupted", "timeout", "failed")
MAX_TIMEOUT_S = 1e8  # three years
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"  # the schedulers' name for it; other makers' obey it too
_DEVICE = re.compile(r"auto|cpu|gpu(:\d+(,\d+)*)?")


@dataclass(frozen=True)
class Request:
    """A ``medkit run`` as it was asked for.

    Attributes:
        notebook: Path of the notebook.
        given: ``-p`` pairs, as text.
        values_file: ``-f``; ``-p`` wins over it.
        out: ``--out``, the run folder.
        resume: Go on with an unfinished run.
        retries: How often to go on by itself after a death of the kernel.
        timeout_s: Time limit of the whole job [s].
        device: ``auto``, ``cpu``, ``gpu`` or ``gpu:1``.
        allow_inexact: Resume although parameters or notebook differ; the run says so.
        command: The command line, for ``run.json``.
        cwd: The caller's working directory.
    """

    notebook: str
    given: tuple[tuple[str, str], ...] = ()
    values_file: str | None = None
    out: str | None = None
    resume: bool = False
    retries: int = 0
    timeout_s: float | None = None
    device: str = ""
    allow_inexact: bool = False
    command: tuple[str, ...] = ()
    cwd: Path = field(default_factory=Path.cwd)


@dataclass(frozen=True)
class Plan:
    """A checked request.

    Attributes:
        notebook: The notebook.
        injected: The parameters that are put into it.
        parameters: All of them, defaults included, as ``run.json`` records them.
        run_dir: The run folder, absolute.
        resuming: Whether the folder holds a run to go on with.
        finished: Whether that run is done already.
        differences: Where a resumed run differs from what it was started as.
        environment: Variables that the device asks for.
    """

    notebook: Notebook
    injected: dict[str, Any]
    parameters: dict[str, Any]
    run_dir: Path
    resuming: bool
    finished: bool
    differences: tuple[str, ...]
    environment: dict[str, str]

    @property
    def seed(self) -> int:
        """The run's seed; 0 where the notebook has none."""
        seed = self.parameters.get("seed")
        return seed if isinstance(seed, int) else 0


def make_plan(request: Request) -> Plan:
    """Check a request.

    Raises:
        UsageError: When it can't be run as it was given.
    """
    notebook = read_notebook(request.notebook)
    known = read_parameters(notebook)
    given = read_values_file(request.values_file) if request.values_file else []
    values = check_values(notebook, known, [*given, *request.given], base=request.cwd)
    out = _run_folder_asked_for(request, values)
    _check_numbers(request)
    environment = device_environment(request.device, os.environ)
    parameters = effective(known, values)

    if out is None and request.resume:
        out = newest_unfinished(request, notebook, parameters)
    if out is None:
        seed = parameters.get("seed", 0)
        stem = _stem(notebook)
        out = new_run_path(request.cwd / "runs", stem, seed if isinstance(seed, int) else 0)

    recorded = _recorded(request, out)
    differences: tuple[str, ...] = ()
    if recorded is not None:
        # a parameter that is not given again is what the run was started with
        defaults = effective(known, {})
        kept = [
            (name, value)
            for name, value in recorded.get("parameters", {}).items()
            if name in defaults and value != defaults[name]
        ]
        values = check_values(notebook, known, kept) | values
        parameters = effective(known, values)
        differences = _differences(request, notebook, recorded, parameters)
    if "run_dir" in known:
        values = values | {"run_dir": str(out)}
    return Plan(
        notebook=notebook,
        injected=values,
        parameters=parameters,
        run_dir=out,
        resuming=recorded is not None,
        finished=recorded is not None and recorded.get("status") == "done",
        differences=differences,
        environment=environment,
    )


def effective(known: Mapping[str, Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return every parameter's value, as JSON can hold it; computed defaults by their source."""
    merged = {name: p.default if p.literal else p.source for name, p in known.items()}
    return {n: plain(v) for n, v in (merged | dict(values)).items() if n != "run_dir"}


def plain(value: Any) -> Any:
    """Return a value that JSON can hold: tuples as lists, NaN and infinities as text."""
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def device_environment(device: str, outer: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that give a notebook the device asked for, and no other.

    ``gpu:1`` is the second of those that the scheduler has left visible, not of the machine.

    Raises:
        UsageError: For a device that is none.
    """
    if not device:
        return {}
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"--device must be auto, cpu, gpu or gpu:0, gpu:0,1, got {device!r}.")
    kind, _, numbers = device.partition(":")
    chosen = {"MEDKIT_ACCELERATOR": kind}
    if kind == "cpu":
        chosen[VISIBLE_DEVICES] = ""
    elif numbers:
        visible = [v for v in outer.get(VISIBLE_DEVICES, "").split(",") if v]
        indices = [int(number) for number in numbers.split(",")]
        if visible and max(indices) >= len(visible):
            raise UsageError(
                f"--device {device}: {len(visible)} devices are visible here "
                f"({VISIBLE_DEVICES}={','.join(visible)}), counted from 0."
            )
        wanted = [visible[i] if visible else str(i) for i in indices]
        chosen[VISIBLE_DEVICES] = ",".join(wanted)
    return chosen


def newest_unfinished(request: Request, notebook: Notebook, parameters: Mapping[str, Any]) -> Path:
    """Return the newest unfinished run of this notebook with these parameters.

    Raises:
        UsageError: When there is none; the message says how the others differ.
    """
    base = request.cwd / "runs" / _stem(notebook)
    others: list[str] = []
    for run in reversed(find_runs(base) if base.is_dir() else []):
        if run.status not in UNFINISHED:
            continue
        differences = compare(run.read().get("parameters", {}), parameters)
        if not differences:
            return run.path
        others.append(f"{run.path}: {'; '.join(differences)}")
    found = "\n  ".join(["", *others[:5]]) if others else " none at all."
    raise UsageError(
        f"--resume found no unfinished run of {notebook.shown} with these parameters under {base}. "
        f"Unfinished ones with other parameters:{found}\n"
        "Name its folder with --out (`medkit runs` lists those begun with --out too), or leave "
        "--resume out."
    )


def _stem(notebook: Notebook) -> str:
    try:
        return safe_name(notebook.path.stem)
    except ValueError as error:
        raise UsageError(f"the notebook's name can't name a folder: {error}") from error


def _run_folder_asked_for(request: Request, values: dict[str, Any]) -> Path | None:
    run_dir = values.pop("run_dir", "")
    if run_dir and request.out:
        raise UsageError("--out and -p run_dir say the same thing; give one of them.")
    out = request.out if request.out is not None else run_dir
    if request.out is not None and (not out or re.search(r"[\x00-\x1f]", out)):
        raise UsageError(f"--out must name a folder, got {out!r}.")
    return (request.cwd / Path(out).expanduser()).absolute() if out else None


def _check_numbers(request: Request) -> None:
    if request.retries < 0:
        raise UsageError(f"--retries must be 0 or more, got {request.retries}.")
    if request.timeout_s is not None and not 0 < request.timeout_s <= MAX_TIMEOUT_S:
        raise UsageError(
            f"--timeout must be seconds above 0 and at most {MAX_TIMEOUT_S:.0f}, "
            f"got {request.timeout_s}."
        )


def _recorded(request: Request, out: Path) -> dict[str, Any] | None:
    """Return run.json of the run to go on with, or None for a new run."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out must be a folder, {out} is a file.")
    content = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    content = [name for name in content if not name.startswith(".")]
    if not content:
        return None
    if not request.resume:
        raise UsageError(
            f"{out} must be new or empty for a new run, it holds {', '.join(content[:5])}. "
            "Choose another folder, or add --resume to go on with the run in it."
        )
    folder = RunFolder(out)
    if not folder.exists():
        raise UsageError(f"{out} holds no run.json, so there is no run to resume in it.")
    try:
        return folder.read()
    except ValueError as error:
        raise UsageError(str(error)) from error


def _differences(
    request: Request, notebook: Notebook, recorded: dict[str, Any], now: dict[str, Any]
) -> tuple[str, ...]:
    found = [f"parameter {line}" for line in compare(recorded.get("parameters", {}), now)]
    if recorded.get("notebook_sha256") != notebook.digest:
        found.append("the notebook's code cells have changed")
    if found and not request.allow_inexact:
        raise UsageError(
            "a resumed run must be the run that was started, or its end means nothing; here "
            + "; ".join(found)
            + ". Give the old values, start a new run, or add --allow-inexact: the run will then "
            "say that it is not exact, and why."
        )
    return tuple(found)
