"""Somebody's module and data: found by name, built as often as a check needs them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from medkit.callbacks.own_code import is_theirs
from medkit.data.loader import keyed

SEED = 0
_log = logging.getLogger(__name__)


class SpecError(ValueError):
    """A ``package:Name`` does not lead to something that can be checked."""


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        module_spec: ``package:Name`` of the LightningModule.
        data_spec: ``package:Name`` of the DataModule or DataLoader.
        make_module: Builds a fresh module.
        make_data: Builds fresh data, not keyed.
        roots: Folders of the two packages: their files count as somebody's own even if installed.
    """

    module_spec: str
    data_spec: str
    make_module: Callable[[], pl.LightningModule]
    make_data: Callable[[], pl.LightningDataModule]
    roots: tuple[str, ...]

    def data(self) -> pl.LightningDataModule:
        """Build the data, keyed."""
        found: pl.LightningDataModule = keyed(self.make_data(), seed=SEED)
        return found

    def sources(self) -> str:
        """Return the text of somebody's own modules that lie beside the two, if loaded."""
        files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
        beside = tuple(
            root if root.endswith("/") else f"{Path(root).parent}/" for root in self.roots
        )
        own = [f for f in files if f.endswith(".py") and f.startswith(beside)]
        own = [file for file in own if is_theirs(file, self.roots)]
        return "\n".join(Path(file).read_text(encoding="utf-8", errors="replace") for file in own)


class _OneLoader(pl.LightningDataModule):
    """A DataLoader as a DataModule."""

    def __init__(self, make: Callable[[], DataLoader[Any]]) -> None:
        super().__init__()
        self._make = make

    def train_dataloader(self) -> DataLoader[Any]:
        return self._make()


def load(module_spec: str, data_spec: str) -> Subject:
    """Import what two specs name.

    Raises:
        SpecError: Saying what was tried, and what is there instead.
    """
    make_module, module_root = factory(module_spec)
    make_data, data_root = factory(data_spec)

    def module() -> pl.LightningModule:
        built = _call(make_module, module_spec)
        if not isinstance(built, pl.LightningModule):
            raise _wrong_kind(module_spec, "a LightningModule", built)
        return built

    def data() -> pl.LightningDataModule:
        built = _call(make_data, data_spec)
        if isinstance(built, DataLoader):
            return _OneLoader(lambda: built)
        if not isinstance(built, pl.LightningDataModule):
            raise _wrong_kind(data_spec, "a LightningDataModule or a DataLoader", built)
        return built

    for build in (module, data):
        try:
            build()
        except SpecError:
            raise
        except Exception as error:  # their own error: the round that meets it reports it
            _log.info("%s", error)
    return Subject(module_spec, data_spec, module, data, (module_root, data_root))


def factory(spec: str) -> tuple[Callable[[], Any], str]:
    """Return what ``package:Name`` names, and the folder of its package.

    Raises:
        SpecError: Saying what was tried, and what is there instead.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise SpecError(
            f"what to check is written package:Name, got {spec!r}. "
            "For instance: medkit check project.model:Net project.data:Data"
        )
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if missing != name and not name.startswith(f"{missing}."):
            raise SpecError(
                f"{spec!r} needs {missing!r}, which is not installed. Install it, and check again."
            ) from error
        tried = [str(Path(place or ".").absolute()) for place in sys.path[:4]]
        raise SpecError(
            f"{spec!r} names a package that can be imported, but {missing!r} was not found in "
            f"{', '.join(tried)} or the installed packages. Run medkit check in the folder from "
            "which your own script imports it, or set PYTHONPATH."
        ) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in dir(found) if not n.startswith("_")]
            near = difflib.get_close_matches(part, names, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise SpecError(f"{name} ({module.__file__}) has no {attribute!r}.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise SpecError(
            f"{spec!r} must be a class or a function that needs no arguments, "
            f"got a {type(found).__name__}. Write a function that returns it."
        )
    return found, _root(module)


def _root(module: ModuleType) -> str:
    """Return the folder of the package, or the file of a module that stands alone."""
    file = getattr(module, "__file__", None) or ""
    top = sys.modules[module.__name__.partition(".")[0]]
    if top.__name__ == "medkit" or not getattr(top, "__path__", None):
        return file
    return f"{Path(next(iter(top.__path__)))}/"


def _call(make: Callable[[], Any], spec: str) -> Any:
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise SpecError(
            f"{spec!r} must be callable without arguments, but: {error}. Write a function that "
            "returns one with the arguments you train with, and check that."
        ) from error
    except ValueError:
        pass  # no signature to be had: the call itself tells
    return make()


def _wrong_kind(spec: str, wanted: str, built: Any) -> SpecError:
    kind = type(built)
    return SpecError(
        f"{spec!r} must give {wanted}, got a {kind.__module__}.{kind.__qualname__}. "
        "The module comes first, the data second."
    )
