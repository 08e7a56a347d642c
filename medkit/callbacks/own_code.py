"""Which lines are somebody's own: not Python's, not an installed package's, not the kit's."""

from __future__ import annotations

import linecache
import site
import sys
import sysconfig
from pathlib import Path
from types import FrameType

import medkit

_PLACES: list[str] = []
_LIGHTNING = ("pytorch_lightning", "lightning_fabric")


def is_theirs(file: str, roots: tuple[str, ...] = ()) -> bool:
    """Whether a file is somebody's own code.

    Args:
        file: Its path.
        roots: Folders whose files are somebody's own although they are installed.
    """
    if not Path(file).is_absolute():  # "<string>", torch's made-up modules
        return False
    if roots and file.startswith(roots):
        return True
    return not file.startswith(_not_theirs())


def line_here() -> str:
    """Return "file:line: source" of the innermost line of somebody's own below Lightning's loops.

    Empty where there is none: in the kit's own modules, and in a backward pass.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_LIGHTNING):
            return ""  # the line that called fit
        file = frame.f_code.co_filename
        if is_theirs(file):
            source = linecache.getline(file, frame.f_lineno).strip()
            return f"{Path(file).name}:{frame.f_lineno}: {source}"
        frame = frame.f_back
    return ""


def _not_theirs() -> tuple[str, ...]:
    if not _PLACES:
        paths = sysconfig.get_paths()
        places = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
        places |= {*site.getsitepackages(), str(Path(medkit.__file__).parent)}
        _PLACES.extend(sorted(f"{place.rstrip('/')}/" for place in places))
    return tuple(_PLACES)
