"""Which errors say that memory has run out, and what is freed then."""

from __future__ import annotations

import gc

import torch

# What the C runtime of an accelerator answers where torch's own allocator did not ask.
_NO_MEMORY = 2
# torch's allocator for the CPU raises a plain RuntimeError; nothing but its name tells it apart
_CPU_ALLOCATOR = "DefaultCPUAllocator"


class DoesNotFitError(torch.OutOfMemoryError, MemoryError):
    """Memory ran out, and no smaller part of the work could be found that fits."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, by its type.

    Texts differ from one version of a driver to the next. Only the CPU's allocator is known by
    its name, since the type it raises is everybody's.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, torch.AcceleratorError):
        return getattr(error, "error_code", None) == _NO_MEMORY
    return type(error) is RuntimeError and _CPU_ALLOCATOR in str(error)


def first_line(error: BaseException) -> str:
    """Return type and first line of an error."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:160]}"


def free(device: torch.device) -> None:
    """Give back what nobody holds any more; call it outside the handler, which holds the graph."""
    if device.type == "cpu":
        gc.collect(1)  # what the failed try has made is young
    else:
        gc.collect()
        torch.get_device_module(device).empty_cache()
