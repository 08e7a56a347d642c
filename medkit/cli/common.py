"""What commands have in common: how they are added, parameters of a notebook, wrong usage."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Command = Callable[[argparse.Namespace], int]
Option = Callable[..., Any]
Add = Callable[..., Option]  # (name, command, text, epilog=""): what adds the command's options

AT_ONCE = "runs at a time (default: one per core)"


def parameter_options(add: Option) -> None:
    """Add -p and -f."""
    text = "set a parameter; `medkit params NOTEBOOK` lists them"
    add("-p", "--parameter", nargs=2, action="append", metavar=("NAME", "VALUE"), help=text)
    add("-f", "--file", metavar="FILE", help="parameters from YAML; -p wins")


def device_option(add: Option) -> None:
    """Add --device."""
    add("--device", default="", metavar="D", help="auto, cpu, gpu or gpu:1")


def pairs(given: list[list[str]] | None) -> tuple[tuple[str, str], ...]:
    """Return the names and values that were given by -p or -g."""
    return tuple((name, value) for name, value in given or ())


@contextmanager
def as_usage() -> Iterator[None]:
    """What the user named is not what it must be, or can't be read or written."""
    from medkit.jobs.notebook import UsageError

    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
