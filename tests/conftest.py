"""What every test stands on: one thread, no home folder, an accelerator or a reason to skip."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch or numpy is imported, and inherited by the processes that tests start.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.accelerator.is_available():
        pytest.skip("needs an accelerator, and torch sees none on this machine")


@pytest.fixture(scope="session", autouse=True)
def _nothing_in_the_home_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the pseudonym key, IPython's history and Jupyter's files of a test out of ``~``."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDKIT_KEY_FILE", str(home / "pseudonym.key"))
        patch.setenv("IPYTHONDIR", str(home / "ipython"))
        patch.setenv("JUPYTER_CONFIG_DIR", str(home / "jupyter"))
        patch.setenv("JUPYTER_DATA_DIR", str(home / "jupyter-data"))
        yield


@pytest.fixture(autouse=True)
def _deterministic_flag_as_it_was() -> Iterator[None]:
    """Undo ``Trainer(deterministic=True)``, which is global, after each test."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "use_deterministic_algorithms"):
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def quiet(tmp_path: Path) -> dict[str, Any]:
    """Arguments of a Trainer that runs on the CPU, says nothing and writes into ``tmp_path``."""
    return {
        "accelerator": "cpu",
        "devices": 1,
        "deterministic": True,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(tmp_path),
    }


@pytest.fixture
def _as_before_a_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the run a test started, and undo what ``start_run`` sets for the whole process."""
    import torch

    from medkit import keyed, start

    for name in ("MEDKIT_RUN_DIR", "MEDKIT_LAUNCHER_PID", "MEDKIT_ALLOW_INEXACT", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that it is put back even where it was not there
        monkeypatch.delenv(name)
    monkeypatch.setattr(keyed, "_run_seed", None)
    threads, globals_were = torch.get_num_threads(), keyed.get_globals()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    if start._active is not None:
        start._active.finish()
        start._active = None
    torch.set_num_threads(threads)
    keyed.restore_globals(globals_were)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data sets named by MEDKIT_REAL_DATA; skips, with the reason, without it."""
    name = os.environ.get("MEDKIT_REAL_DATA", "")
    if not name:
        pytest.skip("real data: set MEDKIT_REAL_DATA to the folder that holds it")
    folder = Path(name)
    if not folder.is_dir():
        pytest.skip(f"real data: MEDKIT_REAL_DATA is {folder}, which is not a folder")
    return folder
