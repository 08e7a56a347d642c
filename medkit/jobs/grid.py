"""What a ``medkit sweep`` will run: a grid times seeds, each run in a folder named so."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkit.jobs.notebook import Notebook, UsageError, read_notebook
from medkit.jobs.parameters import Parameter, check_values, read_parameters, read_values_file
from medkit.jobs.plan import plain
from medkit.record.files import read_json, sha256_text
from medkit.record.identity import compare
from medkit.record.lock import LOCK_NAME

SWEEP_NAME = "sweep.json"
_TORN = f".{SWEEP_NAME}.*.tmp"


@dataclass(frozen=True)
class SweepRequest:
    """A ``medkit sweep`` as it was asked for.

    Attributes:
        notebook: Path of the notebook.
        given: ``-p`` pairs, as text, the same for every run.
        values_file: ``-f``.
        grid: ``-g`` pairs: a parameter and its values, separated by commas (lists by semicolons).
        seeds: Runs per grid point; they use ``seed``, ``seed + 1``, ...
        jobs: Runs at a time; 0 picks one per device, or one per core.
        devices: Numbers of the accelerators to share out, or empty.
        out: Folder of the sweep.
        best_by: Metric to choose by; empty for the first ``val/`` one.
        retries: As ``medkit run``'s.
        timeout_s: As ``medkit run``'s, for each run [s].
        command: The command line, for ``sweep.json``.
        cwd: The caller's working directory.
    """

    notebook: str
    given: tuple[tuple[str, str], ...] = ()
    values_file: str | None = None
    grid: tuple[tuple[str, str], ...] = ()
    seeds: int = 5
    jobs: int = 0
    devices: str = ""
    out: str | None = None
    best_by: str = ""
    retries: int = 0
    timeout_s: float | None = None
    command: tuple[str, ...] = ()
    cwd: Path = field(default_factory=Path.cwd)


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        point: The grid values, typed; empty without a grid.
        texts: The same as text, for the command line.
        name: The point's folder name.
        seed: The run's seed, or None for a notebook without one.
        path: Its run folder.
    """

    point: dict[str, Any]
    texts: dict[str, str]
    name: str
    seed: int | None
    path: Path

    @property
    def label(self) -> str:
        """The run in a few words."""
        return self.name if self.seed is None else f"{self.name} s{self.seed}"


def plan_sweep(request: SweepRequest, out: Path) -> tuple[Notebook, list[SweepRun], dict[str, Any]]:
    """Check a sweep; return notebook, runs in order, and what every run is given.

    Raises:
        UsageError: When one of its runs could not be started as given.
    """
    notebook = read_notebook(request.notebook)
    known = read_parameters(notebook)
    from_file = read_values_file(request.values_file) if request.values_file else []
    common = check_values(notebook, known, [*from_file, *request.given], base=request.cwd)
    if "run_dir" in common:
        raise UsageError("a sweep gives each run its own run_dir; name the sweep's with --out.")
    if not re.fullmatch(r"(\d+(,\d+)*)?", request.devices):
        raise UsageError(f"--devices must be numbers such as 0,1, got {request.devices!r}.")
    for name, least in (("seeds", 1), ("jobs", 0), ("retries", 0)):
        if getattr(request, name) < least:
            raise UsageError(f"--{name} must be at least {least}, got {getattr(request, name)}.")
    axes = [_axis(request, notebook, known, name, text, common) for name, text in request.grid]
    names = [name for name, _ in request.grid]
    if len(set(names)) < len(names):
        raise UsageError(f"-g must give each parameter once, got {', '.join(names)}.")
    seeds = _seeds(request, notebook, known, common)
    runs = []
    for values in itertools.product(*axes):
        texts = dict(zip(names, (text for text, _ in values), strict=True))
        point = dict(zip(names, (plain(value) for _, value in values), strict=True))
        name = _point_name(texts)
        for seed in seeds:
            path = out / name / ("run" if seed is None else f"s{seed}")
            runs.append(SweepRun(point, texts, name, seed, path))
    return notebook, runs, {name: plain(value) for name, value in common.items()}


def check_earlier(
    out: Path, notebook: Notebook, common: dict[str, Any], runs: list[SweepRun]
) -> dict[str, Any]:
    """Return what an earlier start of this sweep wrote, or an empty dict.

    More seeds may be added to a sweep. What its runs have in common may not change, or the table
    would compare unlike with unlike; nor may its grid, or rows would vanish from the table.

    Raises:
        UsageError: When the folder holds another sweep, or something else.
    """
    if not (out / SWEEP_NAME).is_file():
        _check_new(out)
        return {}
    try:
        earlier = read_json(out / SWEEP_NAME)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not isinstance(earlier, dict):
        raise UsageError(
            f"{out / SWEEP_NAME} must hold what a sweep wrote, it holds {str(earlier)[:60]!r}. "
            "Choose another folder with --out."
        )
    differences = compare(earlier.get("parameters", {}), common)
    differences += _grid_differences(earlier.get("runs", []), runs)
    if earlier.get("notebook_sha256") != notebook.digest:
        before = earlier.get("notebook")
        differences.append(
            "the notebook's code cells have changed"
            if before == str(notebook.path)
            else f"the notebook was {before}, is {notebook.path}"
        )
    if differences:
        raise UsageError(
            f"{out} holds another sweep ({'; '.join(differences)}); choose another --out."
        )
    return earlier


def _grid_differences(before: list[dict[str, Any]], runs: list[SweepRun]) -> list[str]:
    """Say in words where a sweep's runs would no longer be among those of its table."""
    if not before:
        return []
    was, is_now = _axes([run["point"] for run in before]), _axes([run.point for run in runs])
    differences = compare(was, is_now)
    old_names = {Path(run["path"]).parent.as_posix() for run in before}
    names = {run.name for run in runs}
    if not differences and old_names != names:  # 0.1 and .1 are two folders
        old_name, name = min(old_names - names), min(names - old_names)
        differences.append(f"-g was written {old_name}, is {name}")
    seeds = [run.seed for run in runs]
    gone = {run["seed"] for run in before} - set(seeds)
    if gone:
        listed = ", ".join(map(str, sorted(gone, key=str)))
        differences.append(
            f"seeds {listed} were part of it, the seeds are now {seeds[0]} to {seeds[-1]}"
        )
    return differences


def _axes(points: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return each grid parameter's values, whatever their order was."""
    values: dict[str, dict[str, Any]] = {}
    for point in points:
        for name, value in point.items():
            values.setdefault(f"-g {name}", {})[repr(value)] = value
    return {name: [kept[key] for key in sorted(kept)] for name, kept in values.items()}


def _check_new(out: Path) -> None:
    """Refuse a folder with content, hidden files too, before anything is written into it."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} must be a folder, it is a file. Choose a folder with --out.")
    inside = list(out.iterdir()) if out.is_dir() else []
    # a sweep that is killed in its first moment leaves these
    content = {p.name for p in inside if not p.match(_TORN)} - {LOCK_NAME}
    if content:
        raise UsageError(
            f"{out} must be new, empty or a sweep's folder, it holds "
            f"{', '.join(sorted(content)[:5])}. Choose another folder with --out."
        )


def _axis(
    request: SweepRequest,
    notebook: Notebook,
    known: dict[str, Parameter],
    name: str,
    text: str,
    common: dict[str, Any],
) -> list[tuple[str, Any]]:
    if name in {"seed", "run_dir"}:
        raise UsageError(f"-g {name}: a sweep sets it by itself; say --seeds N or --out DIR.")
    if name in common:
        raise UsageError(f"parameter {name!r} is given with -p and with -g; give it once.")
    is_list = name in known and known[name].annotation.startswith(("list", "tuple"))
    pieces = [piece.strip() for piece in text.split(";" if is_list else ",")]
    axis = []
    for piece in pieces:
        value = check_values(notebook, known, [(name, piece)], base=request.cwd)[name]
        axis.append((piece, value))
    if len({repr(value) for _, value in axis}) < len(axis):
        raise UsageError(f"-g {name} {text}: a value is given twice.")
    return axis


def _seeds(
    request: SweepRequest,
    notebook: Notebook,
    known: dict[str, Parameter],
    common: dict[str, Any],
) -> list[int | None]:
    if "seed" not in known:
        if request.seeds > 1 and not request.grid:
            raise UsageError(f"{notebook.shown} has no parameter 'seed' to sweep over.")
        return [None]
    first = common.pop("seed", known["seed"].default)
    if not isinstance(first, int):
        raise UsageError(
            f"{notebook.shown}: parameter 'seed' must be int, its default is {first!r}."
        )
    return [first + i for i in range(request.seeds)]


def _point_name(texts: dict[str, str]) -> str:
    """Name a point's folder by its values, or by their digest where these can't be a name."""
    if not texts:
        return "all"
    name = ",".join(f"{key}={text}" for key, text in texts.items())
    plain_name = re.fullmatch(r"[\w.,=+-]{1,80}", name)
    return name if plain_name else f"{'-'.join(texts)[:40]}-{sha256_text(name)[:8]}"
