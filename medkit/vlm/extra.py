"""Hugging Face's libraries, which are an extra."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["require"]

_EXTRAS = {"bitsandbytes": "qlora", "pytorch_optimizer": "galore"}


def require(name: str) -> ModuleType:
    """Import a library of an extra: ``vlm``, ``qlora`` or ``galore``.

    Raises:
        ModuleNotFoundError: Where it is not installed; the message names the extra.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f"this needs {name}, which is not installed. Install it: "
            f"pip install 'medkit[{_EXTRAS.get(name, 'vlm')}]'.",
            name=name,
        ) from error
