"""Why a job ended: what the message, the exit status and the system's counters say."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

_WORKER_DIED = re.compile(r"DataLoader worker \(pid.*?\) (exited unexpectedly|is killed by signal)")
_HINTS = (
    (
        r"No space left on device|Disk quota exceeded|File too large|\[Errno (28|122|27)\]",
        "the disk is full or over quota; older checkpoints are intact. Free some space "
        "(`medkit runs --prune-checkpoints`), then resume.",
    ),
    (
        r"bus error|SIGBUS|unable to (open|write to|mmap).*shared memory|/dev/shm",
        "shared memory is full, which loader workers need: start the container with --shm-size=8g "
        "or --ipc=host, or use num_workers=0.",
    ),
    (
        r"DataLoader worker .* is killed by signal: Killed",
        "a loader worker was killed, most likely for memory: fewer workers or smaller batches.",
    ),
    (
        r"OutOfMemoryError|out of memory",
        "the device's memory is full: a smaller batch with accumulate_grad_batches, "
        "or precision='bf16-mixed'.",
    ),
    (r"MemoryError", "this machine's memory is full: smaller batches or fewer loader workers."),
    (
        r"(ModuleNotFoundError|ImportError)",
        "a package is missing or of another version here; `medkit doctor` compares them.",
    ),
    (
        r"FileNotFoundError",
        "a path inside a notebook starts at the notebook's own folder; "
        "one given with -p starts where you call.",
    ),
    (
        r"SystemExit",
        "the notebook ended itself (sys.exit or exit()); the cells after it have not run.",
    ),
    (
        r"device-side assert|illegal memory access|no kernel image",
        "a fault on the device: run once with --device cpu to see the line that causes it.",
    ),
)
_EXIT_HINTS = {
    -signal.SIGSEGV: "a crash in compiled code (segmentation fault); its trace is in kernel.log.",
    -signal.SIGABRT: "compiled code gave up (abort); its last words are in kernel.log.",
    -signal.SIGBUS: "shared memory is full: start the container with --shm-size=8g or --ipc=host.",
    -signal.SIGILL: "compiled code made for another processor (illegal instruction).",
    -signal.SIGTERM: "somebody sent SIGTERM to the kernel itself.",
}


def hint(message: str) -> str:
    """Return the likely cause of an exception, from its type and text; empty when unknown."""
    return next((text for shape, text in _HINTS if re.search(shape, message, re.IGNORECASE)), "")


def worker_died(message: str) -> bool:
    """Whether an exception says that a loader worker died, which is no fault of the notebook."""
    return bool(_WORKER_DIED.search(message))


def death(exit_status: int | None, oom_kills: int) -> str:
    """Say what killed a kernel.

    Args:
        exit_status: Negative for a signal.
        oom_kills: How often the system killed for memory while the kernel lived.
    """
    if exit_status == -signal.SIGKILL:
        if oom_kills:
            return (
                "the system ran out of memory and killed it: smaller batches, fewer loader "
                "workers, or a larger memory limit."
            )
        return (
            "it was killed with SIGKILL: by hand, by a scheduler, or for memory "
            "by a limit that can't be seen from here."
        )
    if exit_status is not None and exit_status in _EXIT_HINTS:
        return _EXIT_HINTS[exit_status]
    if exit_status is not None and exit_status >= 0:
        return f"the kernel's process ended itself with status {exit_status} (os._exit or quit)."
    return "" if exit_status is None else f"it died of {signal.Signals(-exit_status).name}."


def count_oom_kills() -> int:
    """Return how many processes the system has killed for memory, here and in our cgroup."""
    total = 0
    for path in (Path("/proc/vmstat"), *_cgroup_files()):
        try:
            lines = path.read_text().splitlines()
        except OSError:  # not on this system
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total


def _cgroup_files() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found.append(Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(Path("/sys/fs/cgroup/memory") / path.lstrip("/") / "memory.oom_control")
    return found


def tail(path: Path, lines: int = 20, limit: int = 65_536) -> list[str]:
    """Return the last lines of a log."""
    if not path.is_file():
        return []
    with path.open("rb") as handle:
        handle.seek(max(0, os.fstat(handle.fileno()).st_size - limit))
        return handle.read().decode(errors="replace").splitlines()[-lines:]
