"""What two processes wrote of their training steps, and where they first part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.callbacks.step_hashes import FILE
from medkit.record.files import sha256_file
from medkit.record.folder import RunFolder
from medkit.record.identity import compare
from medkit.record.results import METRICS_NAME

Line = dict[str, Any]
# in the order in which a step makes them
FIELDS = ("rows", "batch", "loss", "buffers", "gradients", "weights", "optimizer")
START, END = "initial weights", "number of steps"


@dataclass(frozen=True)
class Recorded:
    """What one process left in its run folder.

    Attributes:
        facts: Its run.json.
        stages: Lines by stage and place, "start" first; a run inside the run folder has its own
            name before that of its stage.
        results: Digests of metrics.json and of predictions, by name.
    """

    facts: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Line]]
    results: Mapping[str, str]

    @property
    def steps(self) -> int:
        """Batches of all stages."""
        return sum(len(lines) - 1 for lines in self.stages.values())


@dataclass(frozen=True)
class Parting:
    """Where two processes first part.

    Attributes:
        stage: The stage.
        place: "epoch/batch", or "start".
        number: The batch, counted from 0 through the stage.
        field: One of ``FIELDS``, ``START`` or ``END``.
        a: The line of one process.
        b: That of the other.
        same_samples: Whether that epoch's samples are the same ones in another order.
    """

    stage: str
    place: str
    number: int
    field: str
    a: Line
    b: Line
    same_samples: bool = False


def read_recorded(run_dir: Path) -> Recorded:
    """Read what a process left; there are no stages where nothing was asked for."""
    files = sorted(run_dir.rglob(FILE), key=lambda path: path.stat().st_mtime_ns)
    stages = {_name(file.relative_to(run_dir)): _lines(file) for file in files}
    results = [run_dir / METRICS_NAME, *sorted((run_dir / "predictions").glob("*.parquet"))]
    digests = {path.name: sha256_file(path) for path in results if path.is_file()}
    folder = RunFolder(run_dir)
    facts = folder.read() if folder.exists() else {}
    return Recorded(facts, {name: lines for name, lines in stages.items() if lines}, digests)


def _name(relative: Path) -> str:
    return "/".join(part for part in relative.parts[:-1] if part != "logs")


def _lines(file: Path) -> dict[str, Line]:
    """Return the lines of a file by place; a step lived through again counts as it was last."""
    found: dict[str, Line] = {}
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # torn by a kill; the step was lived through again
            continue
        if line["place"] != "start" or "start" not in found:
            found[line["place"]] = line
    return found


def parting(a: Recorded, b: Recorded) -> Parting | None:
    """Return where two processes first part, stage by stage in the order of their ends."""
    for name, other in _pairs(a, b):
        found = _in_stage(name, a.stages[name], b.stages[other])
        if found is not None:
            return found
    return None


def unpaired(a: Recorded, b: Recorded) -> list[str]:
    """Return the stages that only one process has, where their numbers differ."""
    return [] if len(a.stages) == len(b.stages) else sorted({*a.stages} ^ {*b.stages})


def _pairs(a: Recorded, b: Recorded) -> list[tuple[str, str]]:
    """Pair stages by name; what is left (a folder with a random name) by their order."""
    left = iter([name for name in b.stages if name not in a.stages])
    pairs = [(name, name if name in b.stages else next(left, "")) for name in a.stages]
    return [(name, other) for name, other in pairs if other]


def _in_stage(name: str, a: Mapping[str, Line], b: Mapping[str, Line]) -> Parting | None:
    start = a.get("start", {}), b.get("start", {})
    if start[0].get("weights") != start[1].get("weights"):
        return Parting(name, "start", 0, START, *start)
    places = [place for place in a if place != "start"]
    for number, place in enumerate(places):
        if place not in b:
            return Parting(name, place, number, END, a[place], {})
        for field in FIELDS:
            if a[place].get(field) != b[place].get(field):
                same = field == "batch" and _same_samples(place, a, b)
                return Parting(name, place, number, field, a[place], b[place], same)
    more = [place for place in b if place not in a]
    return Parting(name, more[0], len(places), END, {}, b[more[0]]) if more else None


def _same_samples(place: str, a: Mapping[str, Line], b: Mapping[str, Line]) -> bool:
    """Whether the sum over the samples' digests is the same at the end of this epoch."""
    epoch = place.partition("/")[0]
    last = [[li["bag"] for p, li in x.items() if p.startswith(f"{epoch}/")][-1:] for x in (a, b)]
    return last[0] == last[1]


def surroundings_differ(a: Recorded, b: Recorded) -> tuple[list[str], bool]:
    """Return how the surroundings of two processes differ, and whether only in their threads."""
    names = ("environment", "hardware_class", "code_sha256", "notebook_sha256", "data")
    mine, theirs = ({n: x.facts[n] for n in names if n in x.facts} for x in (a, b))
    both = mine.keys() & theirs.keys()
    lines = compare({n: mine[n] for n in both}, {n: theirs[n] for n in both})
    lines = [line for line in lines if "platform" not in line]
    return lines, bool(lines) and all("threads" in line for line in lines)
