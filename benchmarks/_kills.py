"""Real kills: trainings in forked children, ended by SIGKILL at a chosen place, and compared.

Importing torch, Lightning and MONAI takes seconds, a small training tenths of one. So the parent
imports them once, without starting a thread, and every training is a fork of it.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from medkit.record import identity

FINISHED = "finished.ckpt"
PLACES = ("batch_start", "backward", "batch_end", "validation", "epoch_end", "write")


@dataclass(frozen=True)
class Kill:
    """Where a training dies.

    Attributes:
        place: One of ``PLACES``: a hook of Lightning, or "write": a system call of a checkpoint's
            commit (fsync or rename).
        number: At which such moment of this process, counted from 1.
        group: Whether loader workers die in the same moment; else they notice a few seconds later.
    """

    place: str
    number: int
    group: bool = True

    def now(self) -> None:
        """Die."""
        os.killpg(0, signal.SIGKILL) if self.group else os.kill(os.getpid(), signal.SIGKILL)


class KillAt(pl.Callback):
    """Counts the hooks of one place and kills its own process at the one asked for.

    Args:
        kill: None: only looks on, so that a training has the same callbacks with and without.
    """

    seen: ClassVar[list[str]] = []  # on the class: a resume would put an attribute back

    def __init__(self, kill: Kill | None) -> None:
        self.kill = kill

    def _count(self, place: str) -> None:
        if self.kill is not None and place == self.kill.place:
            self.seen.append(place)
            if len(self.seen) == self.kill.number:
                self.kill.now()

    def on_train_start(self, *_: Any) -> None:
        """Watch the system calls that commit a checkpoint."""
        if self.kill is None or self.kill.place != "write":
            return
        for name in ("fsync", "rename", "replace"):
            original = getattr(os, name)

            def counted(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
                if "checkpoints" in _path(args[0]):
                    self._count("write")
                return _original(*args, **kwargs)

            setattr(os, name, counted)

    def on_train_batch_start(self, *_: Any) -> None:
        """Count."""
        self._count("batch_start")

    def on_after_backward(self, *_: Any) -> None:
        """Count."""
        self._count("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        """Count."""
        self._count("batch_end")

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count, the sanity check left out."""
        if not trainer.sanity_checking:
            self._count("validation")

    def on_train_epoch_end(self, *_: Any) -> None:
        """Count."""
        self._count("epoch_end")


# read once, so that all forks agree though somebody edits the sources meanwhile
identity.code_digest()
identity.environment()


def _path(target: Any) -> str:
    return os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)


def in_child(work: Callable[[], object], log: Path) -> int:
    """Run ``work`` in a forked child, leader of its own process group.

    Returns:
        Its exit code; minus the signal where one ended it. What it said is in ``log``.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    code = 1
    try:
        os.setpgid(0, 0)
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        sys.stdout = sys.stderr = os.fdopen(fd, "w", buffering=1)  # where a test runner has its own
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # the parent reads the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def until_done(
    train: Callable[[Path, Kill | None], object], run_dir: Path, kills: Sequence[Kill]
) -> int:
    """Train in ``run_dir``, dying as told, each time resumed in a new process, to the end.

    Returns:
        How many of the kills happened; a training may be over before its kill's moment.

    Raises:
        RuntimeError: When a training ended otherwise than by its kill or by being done.
    """
    log = run_dir.with_name(run_dir.name + ".log")
    for happened, kill in enumerate((*kills, None)):
        code = in_child(lambda kill=kill: train(run_dir, kill), log)  # type: ignore[misc]
        if code == 0:
            return happened
        if kill is None or code != -signal.SIGKILL:
            raise RuntimeError(f"a training ended with {code}:\n{log.read_text()[-3000:]}")
    raise AssertionError("the last training has no kill")


def digest(value: Any) -> str:
    """Digest tensors, numbers, strings and containers of them, bit for bit."""
    running = hashlib.sha256()
    _feed(running, value)
    return running.hexdigest()


def _feed(running: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        running.update(f"{value.dtype}{tuple(value.shape)}".encode())
        running.update(flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            running.update(f"{key}=".encode())
            _feed(running, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(running, item)
    else:
        running.update(repr(value).encode())


def outcome(run_dir: Path, stage: str = "fit") -> dict[str, str]:
    """Return what must be equal after a resume: digests of weights, optimizers and files."""
    path = run_dir / "checkpoints" / stage / FINISHED
    end = torch.load(path, weights_only=True)
    found = {
        "weights": digest(end["state_dict"]),
        "averaged": digest(end.get("averaging_state", {})),
        "optimizers": digest(end["optimizer_states"]),
        "schedulers": digest(end["lr_schedulers"]),
        "step": repr((end["epoch"], end["global_step"])),
    }
    for name in ("metrics.json", f"logs/{stage}/metrics.csv"):
        file = run_dir / name
        found[name] = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
    return found


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Name what differs."""
    return [name for name in one if one[name] != other.get(name)]


def wait_for(path: Path, *, seconds: float, folder_of: str = "") -> bool:
    """Busily wait until a file that matches ``folder_of`` (a glob) or ``path`` itself is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(path.glob(folder_of)) if folder_of else path.exists():
            return True
    return False
