"""Predictions in run folders: one run, or the runs of a sweep's point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medkit.record.folder import RunFolder
from medkit.study import columns
from medkit.study.predictions import Part, Predictions, in_order, joined, require_roles


def from_runs(path: Path, runs: Sequence[RunFolder], part: str | None) -> Predictions:
    """Read the predictions of one run, or of the runs of a folder, one seed each.

    Raises:
        ValueError: Where they are of several grid points, or have none.
    """
    points = sorted({run.path.parent.name for run in runs})
    if len(points) > 1:
        raise ValueError(
            f"{path} must hold the runs of one recipe; found those of {len(points)}: "
            f"{', '.join(points[:6])}. Name one of them: {path / points[0]}."
        )
    notes: list[str] = []
    parts, read = [], set()
    over = [run for run in runs if run.status == "done"]
    if len(over) < len(runs):
        states = sorted({run.status for run in runs} - {"done"})
        notes.append(
            f"{len(runs) - len(over)} of {len(runs)} runs of {path} are {' or '.join(states)} and "
            "left out: what follows is of those that ended well"
        )
    for run in over:
        file = _prediction_file(run.path, part)
        read.add(file.stem)
        frame, _ = columns.read(file)
        require_roles(frame, {}, file)
        parts.append(Part(str(run.read().get("seed", "?")), frame, str(file)))
    if not parts:
        raise ValueError(
            f"{path} must hold a run that is done; found {len(runs)}, none of them done. "
            "medkit runs lists them; medkit run --resume goes on with one."
        )
    if part is None and read != {"test"}:
        notes.append(f"of {path} the predictions named {', '.join(sorted(read))} were read")
    seeds = [one.seed for one in parts]
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"the runs of {path} must differ in their seed; found seeds {', '.join(seeds)}. "
            "Keep one run of each seed there: a repeat of a seed is no second training."
        )
    return joined(str(path), sorted(parts, key=lambda one: in_order(one.seed)), tuple(notes))


def _prediction_file(run: Path, part: str | None) -> Path:
    """Return the predictions named ``part``; without one "test", or what alone can be meant."""
    folder = run / "predictions"
    found = {file.stem: file for file in columns.tables_in(folder)} if folder.is_dir() else {}
    names = [part] if part else [name for name in found if name.startswith("test")] or list(found)
    names = ["test"] if part is None and "test" in found else names
    if len(names) != 1 or names[0] not in found:
        raise ValueError(
            f"{run} must hold predictions{f' named {part!r}' if part else ''} to compare; found "
            f"{sorted(found) or 'none'}. "
            + ("Name one with --part." if found else "Write them with run.predictions(...).")
        )
    return found[names[0]]
