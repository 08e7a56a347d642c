"""A run begins, or goes on: its folder and lock, the settings it is compared by, its end."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medkit import keyed as keys
from medkit.callbacks.signals import stop_at_once
from medkit.record import identity as identities
from medkit.record.attempts import PROGRESS_NAME, add_cost, begun, close_killed, read_progress
from medkit.record.files import is_full_disk
from medkit.record.folder import RunFolder
from medkit.record.lock import RunLock
from medkit.run import Run
from medkit.surroundings import (
    hardware_class,
    place_of,
    quiet_notebook,
    script_digest,
    script_name,
)

_log = logging.getLogger(__name__)
_active: Run | None = None
_process = 0  # whose run that is: a forked child must not end it
_WAIT_FOR_LOCK_S = 15.0  # a loader worker notices its dead parent within about 5 s


def start_run(
    run_dir: str | Path = "",
    *,
    seed: int,
    split_seed: int = 0,
    quick: bool = False,
    threads: int | None = None,
    allow_inexact: bool = False,
) -> Run:
    """Begin a run, or go on with the unfinished one in ``run_dir``.

    Sets the thread count, torch's deterministic mode and every global generator; takes the
    folder's lock; writes down what the run is. Started again in the same process it closes the
    run before it.

    Args:
        run_dir: The run folder; empty makes ``runs/<notebook>/<UTC>-s<seed>``.
        seed: Decides initial weights, order, augmentation and dropout.
        split_seed: Decides who is in which split; keep it while ``seed`` varies.
        quick: Whether this is the short path of a notebook.
        threads: Intra-op threads; results depend on it. None keeps torch's number.
        allow_inexact: Resume although settings differ, and mark the run ``exact: false``.

    Raises:
        RunBusyError: When another process writes into the folder.
        FileExistsError: When the folder holds a finished run or something else.
        SettingsChangedError: When an unfinished run was started under other settings.
    """
    global _active, _process
    _finish_active()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)  # a Trainer makes it strict
    # filling fresh memory costs 6-18 % and only changes programs that read what they never wrote
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    path, launched = place_of(run_dir, seed)
    folder = RunFolder(path)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    os.environ["MEDKIT_RUN_DIR"] = str(path)  # processes that Lightning starts join this run
    lock = None
    if not launched and rank == 0:
        _check_free(folder)  # before the lock: nothing is left in a folder that is refused
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = RunLock(path)
        lock.acquire(wait_s=_WAIT_FOR_LOCK_S if folder.exists() else 0.0)
    run = Run(folder, lock, seed=int(seed), split_seed=int(split_seed), quick=bool(quick))
    run.launched = launched
    run.allow_inexact = allow_inexact or os.environ.get("MEDKIT_ALLOW_INEXACT") == "1"
    if rank == 0:
        try:
            _enter(run)
        except BaseException:  # Ctrl-C too must not leave the folder locked; it is raised again
            run.abandon()
            raise
    keys.set_run_seed(run.seed, run.split_seed)
    quiet_notebook()
    stop_at_once(run.note_signal)
    _active, _process = run, os.getpid()
    _log.info("run folder: %s", run.dir)
    return run


def _enter(run: Run) -> None:
    """Make the folder's run.json, or check that it is this run's."""
    folder = run.folder
    fresh = {
        "seed": run.seed,
        "split_seed": run.split_seed,
        "quick": run.quick,
        "git": identities.git_commit(Path.cwd()),
        "environment": identities.environment(),
        "exact": True,
        "inexact_reasons": [],
        "hardware_class": hardware_class(),
    }
    if not run.launched:
        _check_free(folder)  # again: its holder may have finished it while the lock was waited for
    if not folder.exists():
        words = [str(word) for word in sys.argv]
        first = [begun()]
        RunFolder.create(run.dir, **fresh, notebook=script_name(), command=words, attempts=first)
    content = folder.read()
    me = _identity(run, content)
    known = content.get("identity")
    if known is None:
        folder.update(identity=me, **{k: v for k, v in fresh.items() if k not in content})
        return
    run.resumed = True
    run.compare(known, me)
    with folder.editing() as content:
        logs = folder.path / "logs"
        said = read_progress(logs / PROGRESS_NAME)
        if {"stage", "step"} <= said.keys():
            content["last_seen"] = {key: said[key] for key in ("stage", "step")}
        if not run.launched:
            attempts = content.setdefault("attempts", [])
            for killed in close_killed(attempts, logs):
                cost = add_cost(content, wall_s=killed["wall_s"], cpu_s=killed["cpu_s"])
                cost["at_least"] = True
            attempts.append(begun())
            content["status"] = "running"
        content["interrupted_by"] = None
        content["end"] = None


def _check_free(folder: RunFolder) -> None:
    """Refuse a folder that holds a finished run or something else."""
    if not folder.exists():
        folder.check_new()
    elif folder.read().get("status") == "done":
        digest = folder.read().get("weights_sha256", "none")
        raise FileExistsError(
            f"{folder.path} must be a new folder or hold an unfinished run, and it holds a "
            f"finished run (weights_sha256 {digest}). Choose another folder for a new one."
        )


def _identity(run: Run, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must not change between two attempts of one run."""
    environment = identities.environment()
    names = ("python", "torch", "pytorch-lightning", "numpy")
    return {
        "seed": run.seed,
        "split_seed": run.split_seed,
        "quick": run.quick,
        "parameters": content.get("parameters") or {},
        "code_sha256": identities.code_digest(),
        "notebook_sha256": content.get("notebook_sha256") or script_digest(),
        "environment": {name: environment[name] for name in names},
        "hardware_class": hardware_class(),
    }


def _finish_active(status: str | None = None) -> None:
    global _active
    if _active is not None and os.getpid() == _process:
        _active.finish(status)
    _active = None


def _at_exit() -> None:
    # a notebook's failed cell is not the end of its run; a script's error is
    failed = getattr(sys, "last_type", None) is not None and "ipykernel" not in sys.modules
    try:
        _finish_active("failed" if failed else None)
    except OSError as error:  # its lock dies with the process: it reads killed, and can go on
        if not is_full_disk(error):
            raise
        _log.error("the disk is full, the run's end could not be noted: %s", error)


atexit.register(_at_exit)
