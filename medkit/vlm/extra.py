"""Hugging Face's libraries, which are an extra."""

from __future__ import annotations

import logging
from importlib import import_module
from types import ModuleType

__all__ = ["require"]

_EXTRAS = {"bitsandbytes": "qlora", "pytorch_optimizer": "galore"}


def require(name: str) -> ModuleType:
    """Import a library of an extra: ``vlm``, ``qlora`` or ``galore``.

    Raises:
        ModuleNotFoundError: Where it is not installed; the message names the extra.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_news)
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


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it is anything but that a kernel is missing.

    PEFT imports bitsandbytes wherever it is installed, which then warns in every process without
    any four-bit weight. The kit never calls that kernel: it has no gradient
    (:func:`~medkit.vlm.quantised.keep_trainable`).
    """
    return "gemm_4bit_forward from kernels-community" not in record.getMessage()
