"""``medkit runs`` and ``medkit logs``: what run folders there are, and what they say."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from medkit.jobs.notebook import UsageError
from medkit.jobs.tables import as_text, headline
from medkit.record.checkpoints import FINISHED, checkpoints, clean, digest_path
from medkit.record.folder import RUN_NAME, RunFolder, run_folders
from medkit.record.lock import is_locked
from medkit.record.results import METRICS_NAME, read_metrics

_FOLLOW_EVERY_S = 0.3


def runs_command(base: str, *, prune: bool, unfinished: bool, yes: bool) -> int:
    """List run folders, or remove resume points that nobody needs any more."""
    root = Path(base)
    if not root.is_dir():
        raise UsageError(f"there is no folder {base}; run folders are made by `medkit run`.")
    runs = run_folders(root)
    if prune:
        return _prune(runs, unfinished=unfinished, yes=yes)
    if unfinished or yes:
        raise UsageError("--unfinished and --yes go with --prune-checkpoints.")
    rows = sorted((_row(run, root) for run in runs), key=lambda row: (row[-1], row[0]))
    header = ("folder", "status", "exact", "seconds", "headline", "started (UTC)")
    sys.stdout.write(as_text(header, rows) if rows else f"no runs under {base}\n")
    return 0


def _row(run: RunFolder, root: Path) -> tuple[str, ...]:
    name = str(run.path.relative_to(root.absolute()))
    try:
        facts = run.read()
        status = run.status
    except ValueError:  # one damaged file must not hide the other runs
        return (name, "damaged", "", "", RUN_NAME, "")
    exact = {True: "yes", False: "no", None: ""}[facts.get("exact")]
    exact = "-" if exact == "yes" and status != "done" else exact
    wall = (facts.get("cost") or {}).get("wall_s")
    start = str(facts.get("start", ""))[:19].replace("T", " ")
    quick = " quick" if facts.get("quick") else ""
    return (name, status + quick, exact, f"{wall:.0f}" if wall else "", _headline(run), start)


def _headline(run: RunFolder) -> str:
    path = run.path / METRICS_NAME
    try:
        row = headline(read_metrics(path)) if path.is_file() else None
    except ValueError:
        return f"{METRICS_NAME} is damaged"
    return "" if row is None else f"{row.name} {row.value} {row.interval}".strip()


def _prune(runs: list[RunFolder], *, unfinished: bool, yes: bool) -> int:
    """Remove the resume points of finished stages, and with ``unfinished`` those of dead runs."""
    doomed: list[Path] = []
    for run in runs:
        if is_locked(run.path):
            continue
        for stage in sorted((run.path / "checkpoints").glob("*/")):
            points = checkpoints(stage)
            finished = any(path.name == FINISHED for path in points)
            if finished or unfinished:
                doomed += [path for path in points if path.name != FINISHED]
    size = sum(path.stat().st_size for path in doomed) / 1e6
    for path in doomed:
        sys.stdout.write(f"{path}\n")
    if doomed and not yes and not _agreed(len(doomed), size):
        sys.stderr.write("medkit: nothing was removed; add --yes to remove them.\n")
        return 2
    for path in doomed:
        path.unlink(missing_ok=True)
        digest_path(path).unlink(missing_ok=True)
    for run in runs:
        if not is_locked(run.path):
            for stage in (run.path / "checkpoints").glob("*/"):
                clean(stage)
    sys.stdout.write(f"{len(doomed)} resume points removed, {size:.1f} MB\n")
    return 0


def _agreed(count: int, size_mb: float) -> bool:
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"Remove these {count} resume points ({size_mb:.1f} MB)? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def logs_command(run_dir: str, *, follow: bool) -> int:
    """Print what a run has printed, and with ``follow`` what it is printing."""
    run = RunFolder(run_dir)
    if not run.exists():
        raise UsageError(f"{run_dir} is no run folder: it holds no {RUN_NAME}.")
    path = run.path / "logs" / "output.log"
    if not path.exists() and not follow:
        raise UsageError(
            f"{run_dir} has no log: what a script prints goes where the script was started. "
            "A log is kept by `medkit run`."
        )
    position = 0
    while True:
        live = follow and is_locked(run.path)  # asked before reading: nothing said last is missed
        position = _copy(path, position)
        if not live:
            break
        time.sleep(_FOLLOW_EVERY_S)
    if follow:
        sys.stderr.write(f"medkit: {_facts(run).get('status')}\n")
    return 0


def _copy(path: Path, position: int) -> int:
    if not path.is_file():
        return position
    with path.open("rb") as handle:
        handle.seek(position)
        sys.stdout.write(handle.read().decode(errors="replace"))
        sys.stdout.flush()
        return handle.tell()


def _facts(run: RunFolder) -> dict[str, Any]:
    return run.read() | {"status": run.status}
