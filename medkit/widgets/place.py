"""Who looks at what is shown: a person in a notebook, a job, or nobody."""

from __future__ import annotations

import os
import sys


def surroundings() -> str:
    """Return "live" (a notebook somebody looks at), "job" or "none" (no notebook)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return "none"
    if "MEDKIT_LAUNCHER_PID" in os.environ:
        return "job"
    try:
        import ipywidgets  # noqa: F401
    except ModuleNotFoundError:
        return "job"
    return "live"
