"""``medkit check``: which promises hold for somebody's module and data, and what breaks them.

Everything is done twice from the same place (under the same key) and with another history: other
states of the global generators, other samples fetched in between, a later wall time, another
process. What comes out otherwise is traced to the first line of somebody's own code where a
variable differs. Shown: that these few steps kept or broke a promise; not proven: that none will.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from medkit import keyed as keys

_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "medkit")


def run_check(module_spec: str, data_spec: str) -> int:
    """Check a module and data, and write a table to stdout; the progress goes to stderr.

    Args:
        module_spec: ``package:Name`` of a LightningModule that needs no arguments, or of a
            function that returns one.
        data_spec: The same for a LightningDataModule or a DataLoader.

    Returns:
        0 when no promise is broken, 1 when one is, 2 when there is nothing to check.
    """
    from medkit.check.findings import table
    from medkit.check.subject import SpecError

    began = time.monotonic()
    try:
        findings = check(module_spec, data_spec, _progress)
    except SpecError as error:
        sys.stderr.write(f"medkit check: {error}\n")
        return 2
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{'':60}\r")
    sys.stdout.write(f"{module_spec}  {data_spec}\n{table(findings)}")
    broken = sum(finding.holds is False for finding in findings)
    unseen = sum(finding.holds is None for finding in findings)
    end = f"{broken} of {len(findings)} promises broken" if broken else "no promise was broken"
    end += f", {unseen} not checked" if unseen else ""
    seconds = time.monotonic() - began
    sys.stdout.write(f"{end}, in the few steps that were run ({seconds:.0f} s)\n")
    return 1 if broken else 0


def check(
    module_spec: str, data_spec: str, progress: Callable[[str, int, int], None] | None = None
) -> list[Any]:
    """Return one ``Finding`` a promise; see :func:`run_check`.

    Args:
        module_spec: As there.
        data_spec: As there.
        progress: Called with the promise that is looked at next, its number and their number.

    Raises:
        SpecError: When a spec leads nowhere.
    """
    from medkit.check.rounds import Rounds
    from medkit.check.subject import load

    with quiet(), tempfile.TemporaryDirectory(prefix="medkit-check-") as folder:
        return Rounds(load(module_spec, data_spec), Path(folder), progress).run()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's talk out of the table; put generators and deterministic mode back."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    state = keys.get_globals()
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        keys.restore_globals(state)


def _progress(promise: str, number: int, total: int) -> None:
    text = f"[{number}/{total}] {promise} ..."
    sys.stderr.write(f"\r{text:60}" if sys.stderr.isatty() else f"{text}\n")
    sys.stderr.flush()
