"""medkit: medical models that come out the same twice.

Nothing heavy is imported until a name is used, so that the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medkit.data.loader import keyed
    from medkit.trainer import stable_trainer, start_run

__version__ = "0.1.0"
__all__ = ["__version__", "keyed", "stable_trainer", "start_run"]

_HOMES = {
    "keyed": "medkit.data.loader",
    "stable_trainer": "medkit.trainer",
    "start_run": "medkit.trainer",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'medkit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # asked once
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
