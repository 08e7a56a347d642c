"""What a process is ordered to suffer, and how it comes to know: by no line of its own.

``MEDKIT_FAULT`` names a JSON file (:class:`Order`). A ``sitecustomize.py`` that only the suite puts
on the path calls :func:`when_imported`, and Lightning is patched once it has been imported. Nothing
more is imported here before, so that other processes start as quickly as ever.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

VARIABLE = "MEDKIT_FAULT"
SITE = """import sys
mine = sys.modules.pop("sitecustomize")
sys.path.remove({folder!r})
try:
    import sitecustomize  # the one that this one hides
except ImportError:
    pass
sys.modules["sitecustomize"] = mine
from medkit.study.faults_order import when_imported
when_imported()
"""
_LIGHTNING = "pytorch_lightning.trainer.trainer"


@dataclass(frozen=True)
class Order:
    """What is to happen in a run.

    Attributes:
        fault: Name of the fault; "" only counts batches.
        seed: Draws the rows of a fault in the data.
        batch: The training batch, counted from 0 through the fits that count.
        folder: Where it is written down what has happened; one a run.
        checkpoints: Where the run's checkpoints lie.
        protected: Only fits with the kit's resume points count and are disturbed.
    """

    fault: str
    seed: int
    batch: int
    folder: str
    checkpoints: str
    protected: bool

    def write(self, path: Path) -> None:
        """Write it for the process that is to be disturbed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)))


def when_imported() -> None:
    """Patch Lightning when it is imported, if the environment orders a fault."""
    path = os.environ.get(VARIABLE, "")
    if path and _LIGHTNING not in sys.modules:
        sys.meta_path.insert(0, _Watch(Order(**json.loads(Path(path).read_text()))))


class _Watch(MetaPathFinder):
    """Stands in the way of one import, and patches once it is done."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the ordinary spec, its loader followed by the patching."""
        spec = PathFinder.find_spec(name, path) if name == _LIGHTNING else None
        if spec is None or spec.loader is None:
            return None
        sys.meta_path.remove(self)
        load = spec.loader.exec_module

        def load_and_patch(module: Any) -> None:
            from medkit.study.faults_inject import inject

            load(module)
            inject(self.order)

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec
