"""Hugging Face's libraries, which are an extra."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["require"]


def require(name: str) -> ModuleType:
    """Import a library of the extra ``vlm``.

    Raises:
        ModuleNotFoundError: Where it is not installed; the message names the extra.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f"image-text models need {name}, which is not installed. Install it: "
            "pip install 'medkit[vlm]'.",
            name=name,
        ) from error
