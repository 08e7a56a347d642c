"""A run folder and its run.json."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medkit.record.files import read_json, safe_name, write_json
from medkit.record.ledger import LEDGER_NAME, Ledger
from medkit.record.lock import LOCK_NAME, is_locked

_log = logging.getLogger(__name__)

RUN_NAME = "run.json"
EDIT_LOCK_NAME = ".run.lock"
_TORN = f".{RUN_NAME}.*.tmp"  # a kill before run.json was whole leaves these
SCHEMA = 1
STATUSES = ("running", "done", "failed", "timeout", "interrupted", "killed")


def now() -> str:
    """Return the time as run.json writes it: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunFolder:
    """One run's folder; ``run.json`` in it is changed by whole-file replacement only."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()

    @classmethod
    def create(cls, path: Path | str, **fields: Any) -> RunFolder:
        """Make the folder and its first run.json.

        Raises:
            FileExistsError: When the folder has content.
        """
        folder = cls(path)
        folder.check_new()
        folder.path.mkdir(parents=True, exist_ok=True)
        for torn in folder.path.glob(_TORN):
            torn.unlink()
        folder.update(
            **({"schema": SCHEMA, "status": "running", "start": now(), "stages": {}} | fields)
        )
        return folder

    def check_new(self) -> None:
        """Refuse a folder with content; nothing is changed or left in it.

        Raises:
            FileExistsError: When it holds more than a run killed in its first moment leaves.
        """
        inside = list(self.path.iterdir()) if self.path.is_dir() else []
        content = {p.name for p in inside if not p.match(_TORN)} - {LOCK_NAME, EDIT_LOCK_NAME}
        if content:
            raise FileExistsError(
                f"{self.path} must be new or empty for a new run, it holds {sorted(content)[:5]}. "
                "Choose another folder, or resume the run that is in it (--resume)."
            )

    @property
    def run_json(self) -> Path:
        """Path of ``run.json``."""
        return self.path / RUN_NAME

    def exists(self) -> bool:
        """Whether this is a run folder."""
        return self.run_json.is_file()

    def read(self) -> dict[str, Any]:
        """Return ``run.json``, or an empty dict where there is none yet.

        Raises:
            ValueError: When it is damaged.
        """
        content = read_json(self.run_json) if self.exists() else {}
        if not isinstance(content, dict):
            raise ValueError(
                f"{self.run_json} must hold a JSON object, it holds {str(content)[:60]!r}. "
                "It was damaged or edited; restore it or remove the run folder."
            )
        return content

    def update(self, **fields: Any) -> dict[str, Any]:
        """Change fields of ``run.json``; launcher and kernel may both do so."""
        with self.editing() as content:
            content.update(fields)
        return content

    @contextmanager
    def editing(self) -> Iterator[dict[str, Any]]:
        """Read, change and replace ``run.json`` while no other process does."""
        fd = os.open(self.path / EDIT_LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            content = self.read()
            yield content
            write_json(self.run_json, content)
        finally:
            os.close(fd)

    @property
    def status(self) -> str:
        """The status as it is: a run that says ``running`` but whose lock is dead was killed."""
        status = str(self.read().get("status", ""))
        return "killed" if status == "running" and not is_locked(self.path) else status

    @property
    def ledger(self) -> Ledger:
        """The run's ledger."""
        return Ledger(self.path / LEDGER_NAME)

    def subfolder(self, name: str) -> Path:
        """Return ``<run>/<name>``, made if need be."""
        path = self.path / safe_name(name)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def stage_dir(self, name: str) -> Path:
        """Return ``checkpoints/<name>``, made if need be."""
        path = self.subfolder("checkpoints") / safe_name(name)
        path.mkdir(exist_ok=True)
        return path


def own_run() -> RunFolder | None:
    """Return the run that this process is in and writes for, or None: none, over, a helper's."""
    path = os.environ.get("MEDKIT_RUN_DIR", "")
    if not path or os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    folder = RunFolder(path)
    return folder if folder.exists() and folder.status == "running" else None


def new_run_path(base: Path | str, notebook_stem: str, seed: int) -> Path:
    """Return ``<base>/<notebook>/<UTC>-s<seed>``, with ``-2``, ``-3`` ... where that is taken."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    parent = Path(base) / safe_name(notebook_stem)
    path, number = parent / f"{stamp}-s{seed}", 1
    while path.exists():
        number += 1
        path = parent / f"{stamp}-s{seed}-{number}"
    return path


def run_folders(base: Path | str) -> list[RunFolder]:
    """Return the run folders under ``base``, damaged ones too, by path.

    What lies inside a run folder belongs to that run, even where it has the form of another.
    """
    found = []
    for folder, subfolders, files in os.walk(base):
        if RUN_NAME in files:
            subfolders.clear()  # os.walk goes down no further here
            found.append(RunFolder(folder))
    return sorted(found, key=lambda run: str(run.path))


def find_runs(base: Path | str) -> list[RunFolder]:
    """Return the run folders under ``base``, oldest first; damaged ones are named and left out."""
    found = []
    for run in run_folders(base):
        try:
            found.append((str(run.read().get("start", "")), run))
        except (OSError, ValueError) as error:  # the error names the file
            _log.warning("passed over: %s", error)
    return [run for _, run in sorted(found, key=lambda dated: dated[0])]
