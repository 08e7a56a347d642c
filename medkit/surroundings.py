"""What a run finds around itself: the machine, the notebook or script, the folder it belongs in."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from medkit.record import identity as identities
from medkit.record.files import sha256_file
from medkit.record.folder import new_run_path


def hardware_class() -> dict[str, Any]:
    """Return what the bits of a result may depend on besides the code: the promises hold within."""
    found: dict[str, Any] = dict(identities.hardware_class_base())
    found |= {
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
    }
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        module = torch.get_device_module(device)
        describe = getattr(module, "get_device_name", None)
        found["accelerator"] = describe() if callable(describe) else str(device)
        found["accelerators"] = torch.accelerator.device_count()
    return found


def place_of(run_dir: str | Path, seed: int) -> tuple[Path, bool]:
    """Return the folder and whether a launcher prepared it."""
    prepared = os.environ.get("MEDKIT_RUN_DIR", "")
    same = not str(run_dir) or (prepared and Path(run_dir).absolute() == Path(prepared))
    if prepared and same and "MEDKIT_LAUNCHER_PID" in os.environ:
        return Path(prepared), True
    if prepared and same and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return Path(prepared), False
    if str(run_dir):
        return Path(run_dir).absolute(), False
    return new_run_path(_runs_base(), Path(script_name()).stem or "interactive", seed), False


def _runs_base() -> Path:
    """``runs`` beside the project's ``pyproject.toml`` or ``.git``, else in the working folder."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder / "runs"
    return here / "runs"


def script_name() -> str:
    """Name of the notebook (as Jupyter tells its kernel) or of the script."""
    session = os.environ.get("JPY_SESSION_NAME")
    if session:
        return Path(session).name
    main = sys.modules.get("__main__")
    return Path(getattr(main, "__file__", None) or "interactive").name


def script_digest() -> str:
    """SHA-256 of the script that runs; empty for a notebook, whose cells change as one works."""
    if "ipykernel" in sys.modules:
        return ""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return sha256_file(file) if file and Path(file).exists() else ""


def quiet_notebook() -> None:
    """Keep out of a notebook what Lightning says of itself and what nobody there can mend."""
    if "ipykernel" not in sys.modules:
        return
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # hints, GPU available: False
    for text in (
        ".*LeafSpec.* is deprecated",
        ".*does not have many workers",
        ".*logging interval",
        ".*exists and is not empty",  # a fit that goes on ...
        ".*your dataloader is not resumable",  # ... and whose keyed loader needs no state
        "To exit: use 'exit'",  # after Stop: nobody wants to leave
    ):
        warnings.filterwarnings("ignore", text)
