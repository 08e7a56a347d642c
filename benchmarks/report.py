"""How a benchmark reports: one line a figure, the machine named, exit 1 where a bar falls short.

    report = Report(__doc__)
    report.share("resume/exact", hits, kills, at_least=1.0, peers="stock Lightning 0/31")
    report.figure("overhead/ratio", 1.12, (1.08, 1.16), at_most=1.25, on_limit=True)
    sys.exit(report.finish())

Scripts here run as ``python benchmarks/<what>.py [--quick] [--json FILE]``; ``report`` is their
sibling, and does nothing when it is run itself.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medkit.record.files import write_json
from medkit.record.identity import cpu_model, environment, git_commit

Interval = tuple[float, float]
_WIDTHS = (44, 14, 20, 14)


def wilson(hits: int, of: int, z: float = 1.959964) -> Interval:
    """Return Wilson's 95 % interval of a proportion (1927); (0, 1) where nothing was counted."""
    if of == 0:
        return 0.0, 1.0
    share, spread = hits / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    low = 0.0 if hits == 0 else max(0.0, middle - half)  # exact at the ends, whatever the rounding
    return low, 1.0 if hits == of else min(1.0, middle + half)


class Report:
    """The lines of one benchmark.

    Args:
        doc: The script's docstring; its first line is the title.
        argv: Arguments; None takes the command line's. ``quick`` and ``json`` are read from it.
    """

    def __init__(self, doc: str | None, argv: Sequence[str] | None = None) -> None:
        parser = argparse.ArgumentParser(description=doc)
        parser.add_argument("--quick", action="store_true", help="fewer repeats; bars stay")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
        options = parser.parse_args(argv)
        self.quick: bool = options.quick
        self.json: Path | None = options.json
        self.lines: list[dict[str, Any]] = []
        self.fell_short: list[str] = []
        self.machine = machine()
        title = (doc or "").strip().splitlines()[:1]
        self.note(*title, self.machine, "quick" if self.quick else "full")
        self._print(("name", "value", "interval", "bar", "peers"))

    def note(self, *texts: str) -> None:
        """Print a remark."""
        for text in texts:
            print(f"# {text}", flush=True)

    def figure(
        self,
        name: str,
        value: float,
        interval: Interval | None = None,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        on_limit: bool = False,
        unit: str = "",
        peers: str = "",
    ) -> bool:
        """Print one figure and return whether its bar is met.

        Args:
            name: ``what/figure``.
            value: The point value.
            interval: Its 95 % interval.
            at_least: The bar, from below.
            at_most: The bar, from above.
            on_limit: The bar is on the interval's worse limit: for noisy figures.
            unit: Unit of the value.
            peers: What others reach on the same, in words.
        """
        return self._line(
            name,
            value,
            interval,
            f"{_short(value)} {unit}".strip(),
            at_least,
            at_most,
            on_limit,
            peers,
        )

    def share(
        self, name: str, hits: int, of: int, *, at_least: float | None = None, peers: str = ""
    ) -> bool:
        """Print ``hits/of`` with its Wilson interval; the bar is on the share itself."""
        value = hits / of if of else math.nan
        text = f"{hits}/{of}"
        return self._line(name, value, wilson(hits, of), text, at_least, None, False, peers)

    def finish(self) -> int:
        """Write the JSON file if one was asked for; return the exit code."""
        for name in self.fell_short:
            self.note(f"FELL SHORT: {name}")
        if self.json is not None:
            content = {
                "machine": self.machine,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": git_commit(Path(__file__).parent),
                "environment": environment(),
                "quick": self.quick,
                "figures": self.lines,
                "fell_short": self.fell_short,
            }
            self.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.json, content)
        return 1 if self.fell_short else 0

    def _line(
        self,
        name: str,
        value: float,
        interval: Interval | None,
        text: str,
        at_least: float | None,
        at_most: float | None,
        on_limit: bool,
        peers: str,
    ) -> bool:
        if on_limit and interval is None:
            raise ValueError(f"{name} has a bar on its interval's limit and no interval. Pass one.")
        low, high = interval if on_limit and interval is not None else (value, value)
        met = not (at_least is not None and not low >= at_least)
        met = met and not (at_most is not None and not high <= at_most)
        sides = ((">=", at_least), ("<=", at_most))
        bar = ", ".join(f"{sign} {_short(side)}" for sign, side in sides if side is not None)
        if not met:
            self.fell_short.append(name)
            bar += " SHORT"
        limits = f"[{_short(interval[0])}, {_short(interval[1])}]" if interval else ""
        self._print((name, text, limits, bar, peers))
        self.lines.append(
            {
                "name": name,
                "value": value if math.isfinite(value) else None,  # JSON has no NaN
                "text": text,
                "interval": list(interval) if interval else None,
                "at_least": at_least,
                "at_most": at_most,
                "on_limit": on_limit,
                "met": met,
                "peers": peers,
            }
        )
        return met

    @staticmethod
    def _print(cells: Sequence[str]) -> None:
        padded = [cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False)]
        print("  ".join([*padded, *cells[len(_WIDTHS) :]]).rstrip(), flush=True)


def machine() -> str:
    """Name processor, cores, device and the versions a figure depends on, in one line."""
    cores = len(os.sched_getaffinity(0))
    packages = environment()
    text = f"{cpu_model()}, {cores} cores, {platform.system()} {platform.machine()}"
    text += f", Python {packages['python']}, torch {packages['torch']}"
    return f"{text}, pytorch-lightning {packages['pytorch-lightning']}"


def _short(value: float) -> str:
    return f"{value:.4g}"
