"""One job from start to end: folder, lock, kernel, signals, retries, and what is said about it."""

from __future__ import annotations

import logging
import os
import resource
import signal
import time
import traceback
from contextlib import suppress
from typing import Any

from medkit.jobs import causes, watch
from medkit.jobs.control import GRACE_S, JobControl
from medkit.jobs.ending import Ending, judge
from medkit.jobs.notebook import UsageError
from medkit.jobs.plan import Plan, Request
from medkit.jobs.progress import ProgressLine
from medkit.record.attempts import PROGRESS_NAME, begun, close_killed
from medkit.record.files import read_json
from medkit.record.folder import RunFolder, now
from medkit.record.identity import code_digest, environment, git_commit
from medkit.record.lock import RunLock

log = logging.getLogger(__name__)

LOCK_WAIT_S = 15.0  # the loader workers of a kernel that has just been killed hold on for seconds


def launch(plan: Plan, request: Request) -> tuple[Ending, RunFolder]:
    """Carry a plan out.

    Raises:
        UsageError: When a new run's folder holds something; nothing is left in it.
        RunBusyError: When somebody else writes into the folder.
        OSError: When the folder can't be written.
    """
    if not plan.resuming:
        try:
            RunFolder(plan.run_dir).check_new()  # hidden files, which the plan passes over, too
        except FileExistsError as error:
            raise UsageError(str(error)) from error
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    lock = RunLock(plan.run_dir)
    lock.acquire(wait_s=1.0 if _holder_lives(lock) else LOCK_WAIT_S)
    grace_s = float(os.environ.get("MEDKIT_GRACE_S", GRACE_S))
    control = JobControl(timeout_s=request.timeout_s, grace_s=grace_s)
    watch.inherit_orphans(True)  # what a killed kernel leaves behind is then ours to kill
    try:
        with control.listening():
            _end_with_the_sweep()
            folder = _open_folder(plan, request)
            ending = _attempts(plan, request, folder, lock, control)
            _close_folder(folder, ending, control)
            _write_report(folder)
    finally:
        watch.inherit_orphans(False)
        lock.release()
    return ending, folder


def _holder_lives(lock: RunLock) -> bool:
    """Whether the launcher that took the lock is alive, and waiting for it hence in vain."""
    try:
        holder = read_json(lock.path)
        os.kill(holder["pid"], 0)
    except (OSError, ValueError, KeyError):
        return False
    return bool(holder["host"] == os.uname().nodename)


def _end_with_the_sweep() -> None:
    """Save and end, as on SIGTERM, when the sweep that started this job is dead."""
    sweep = int(os.environ.pop("MEDKIT_SWEEP_PID", "0"))
    if sweep:
        watch.on_death_of(sweep, lambda: os.kill(os.getpid(), signal.SIGTERM))


def _open_folder(plan: Plan, request: Request) -> RunFolder:
    folder = RunFolder(plan.run_dir) if plan.resuming else RunFolder.create(plan.run_dir)
    fields: dict[str, Any] = {
        "notebook": str(plan.notebook.path),
        "notebook_sha256": plan.notebook.digest,
        "parameters": plan.parameters,
        "seed": plan.seed,
        "split_seed": plan.parameters.get("split_seed"),
        "quick": bool(plan.parameters.get("quick", False)),
        "command": list(request.command),
        "git": git_commit(plan.notebook.path.parent),
        "code_sha256": code_digest(),
        "environment": environment(),
    }
    recorded = folder.read()
    if plan.resuming:  # what the kernel compares with must stay as it was
        for kept in ("git", "code_sha256", "environment", "command"):
            fields[kept] = recorded.get(kept, fields[kept])
    if plan.differences:
        reasons = [*recorded.get("inexact_reasons", []), *plan.differences]
        fields |= {"exact": False, "inexact_reasons": list(dict.fromkeys(reasons))}
    attempts = recorded.get("attempts", [])
    close_killed(attempts, folder.path / "logs")
    folder.update(**fields, attempts=attempts, end=None)
    return folder


def _attempts(
    plan: Plan, request: Request, folder: RunFolder, lock: RunLock, control: JobControl
) -> Ending:
    resuming, left = plan.resuming, request.retries
    while True:
        _begin_attempt(folder)
        start, usage = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        of_others = set(watch.descendants(os.getpid()))
        ending = _attempt(plan, request, folder, lock, control, resuming=resuming)
        _end_orphans(of_others)
        _end_attempt(folder, ending, time.monotonic() - start, usage)
        if not ending.retry or left == 0 or control.stopping:
            return ending
        left -= 1
        resuming = True
        log.warning(
            "%s (%s) The run goes on from its last checkpoint, or from its start where there is "
            "none yet; retries left: %d.",
            ending.error,
            ending.cause,
            left,
        )


def _begin_attempt(folder: RunFolder) -> None:
    attempts = [*folder.read().get("attempts", []), begun()]
    folder.update(status="running", attempts=attempts, interrupted_by=None)
    number, old = len(attempts) - 1, folder.path / "notebook.ipynb"
    if old.exists():  # the partial notebook of the attempt before
        old.replace(folder.subfolder("logs") / f"notebook.attempt{number}.ipynb")


def _attempt(
    plan: Plan,
    request: Request,
    folder: RunFolder,
    lock: RunLock,
    control: JobControl,
    *,
    resuming: bool,
) -> Ending:
    """Run the notebook once."""
    from medkit.jobs import execution  # papermill takes 1.7 s to import: only now

    logs = folder.subfolder("logs")
    job = execution.Job(
        notebook=plan.notebook.path,
        output=folder.path / "notebook.ipynb",
        parameters=plan.injected,
        environment=_environment(plan, request, folder, lock, resuming=resuming),
        pass_fds=(lock.fileno(),),
        logs=logs,
    )
    kills = causes.count_oom_kills()
    cells = [c for c in plan.notebook.cells if c.get("cell_type") == "code"]
    with ProgressLine(logs / PROGRESS_NAME, cells=len(cells)) as line:
        try:
            result = execution.execute(job, control, on_cell=line.at_cell)
        except Exception as error:  # ours, not the notebook's: say so, and close the books
            with (logs / "output.log").open("a") as handle:
                handle.write(traceback.format_exc())
            text = f"{type(error).__name__}: {error}"
            return Ending("failed", f"the launcher failed: {text}", causes.hint(text))
    kills = causes.count_oom_kills() - kills
    return judge(result, folder, control, kills)


def _environment(
    plan: Plan, request: Request, folder: RunFolder, lock: RunLock, *, resuming: bool
) -> dict[str, str]:
    """Return the kernel's environment: ours, and what the contract with ``start_run`` says."""
    ours = {
        "MEDKIT_RUN_DIR": str(folder.path),
        "MEDKIT_LOCK_FD": str(lock.fileno()),
        "MEDKIT_RESUME": "1" if resuming else "",
        "MEDKIT_ALLOW_INEXACT": "1" if request.allow_inexact else "",
        "PYTHONHASHSEED": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    merged = {"TQDM_MININTERVAL": "5"} | dict(os.environ) | ours | plan.environment
    return {name: value for name, value in merged.items() if value or name not in ours}


def _end_attempt(
    folder: RunFolder, ending: Ending, wall_s: float, before: resource.struct_rusage
) -> None:
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with folder.editing() as content:
        content["attempts"][-1] |= {
            "end": now(),
            "how": ending.status,
            "wall_s": round(wall_s, 2),
            "cpu_s": round(cpu_s, 2),
        }
        if ending.error:
            content["attempts"][-1]["error"] = ending.error[:500]
        attempts = content["attempts"]
        cost = content.get("cost") or {}
        content["cost"] = cost | {
            "wall_s": round(sum(a.get("wall_s", 0.0) for a in attempts), 2),
            "cpu_s": round(sum(a.get("cpu_s", 0.0) for a in attempts), 2),
            # an attempt that died with its launcher has no end, and cost more than was last seen
            "at_least": any(a.get("end") is None for a in attempts),
            "peak_memory_mb": max(cost.get("peak_memory_mb", 0), round(after.ru_maxrss / 1024)),
        }


def _close_folder(folder: RunFolder, ending: Ending, control: JobControl) -> None:
    fields: dict[str, Any] = {"status": ending.status, "end": now()}
    if ending.status == "interrupted" and not folder.read().get("interrupted_by"):
        fields["interrupted_by"] = control.received.name if control.received else "SIGINT"
    folder.update(**fields)


def _write_report(folder: RunFolder) -> None:
    from medkit.jobs.report import write_report

    try:
        write_report(folder)
    except Exception as error:  # a report that can't be drawn must not fail a finished run
        log.warning("report.html could not be written: %s: %s", type(error).__name__, error)


def _end_orphans(of_others: set[int]) -> None:
    """Kill and collect what the kernel has left behind; as its subreaper we have inherited it."""
    deadline = time.monotonic() + 5.0
    while left := set(watch.descendants(os.getpid())) - of_others:
        for pid in left:
            watch.kill_tree(pid)
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:  # in the middle of a disk or driver call
            log.warning("processes that can't be killed: %s", sorted(left))
            return
        time.sleep(0.02)
