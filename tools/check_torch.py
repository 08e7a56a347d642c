"""Exit 1 where the installed torch is not the one pyproject.toml asks for."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def asked_torch(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """Return the release torch is pinned to, such as ``2.13``."""
    table = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    pins = [
        found[1]
        for line in table["project"]["dependencies"]
        if (found := re.fullmatch(r"torch==(\d+\.\d+)\.\*", line))
    ]
    if len(pins) != 1:
        raise ValueError(f"{pyproject} must pin torch once, as 'torch==X.Y.*'; found {pins}")
    return pins[0]


def main() -> int:
    """Compare the pin with what is installed."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        found = "none"
    asked = asked_torch()
    if found.startswith(f"{asked}."):
        return 0
    print(
        f"torch must be {asked}.*, found {found}: something replaced it. "
        "Run `make clean-venv` and start again.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
