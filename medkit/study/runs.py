"""Predictions in run folders: one run, the runs of a sweep's point, or a study's trainings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medkit.record.files import read_json
from medkit.record.folder import RunFolder
from medkit.study import columns
from medkit.study.outcomes import OUTCOME_NAME, PREDICTIONS_NAME
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


def study_members(path: Path) -> list[Path]:
    """Return the folders of a study's trainings in a folder, second ones of a seed left out.

    Raises:
        ValueError: Where they are of several recipes, splits or sites.
    """
    found = [file.parent for deep in (1, 2, 3) for file in path.glob("*/" * deep + OUTCOME_NAME)]
    members = sorted(folder for folder in found if re.fullmatch(r"s-?\d+", folder.name))
    cells = sorted({folder.parent for folder in members})
    if len(cells) > 1:
        raise ValueError(
            f"{path} must hold a study's trainings of one recipe, split and site; found those of "
            f"{len(cells)}: {', '.join(str(cell.relative_to(path)) for cell in cells[:6])}. Name "
            f"one of them: {cells[0]}."
        )
    return members


def from_study(path: Path, members: Sequence[Path], part: str | None) -> Predictions:
    """Read the predictions of a study's trainings, one seed each.

    Raises:
        ValueError: Where none is done, or one has left no predictions.
    """
    if part is not None:
        raise ValueError(
            f"--part names predictions of runs; {path} holds a study's trainings, which have "
            f"one table each, and {part!r} was given. Leave --part out."
        )
    done = [one for one in members if read_json(one / OUTCOME_NAME)["status"] == "done"]
    lacking = [one.name for one in done if not (one / PREDICTIONS_NAME).is_file()]
    if not done or lacking:
        raise ValueError(
            f"{path} must hold trainings that are done and have predictions; of {len(members)} "
            f"{len(done)} are done, {len(lacking)} of them without. Yield "
            "Outcome(..., predictions=table) in train."
        )
    parts = []
    for one in done:
        frame, _ = columns.read(one / PREDICTIONS_NAME)
        require_roles(frame, {}, one / PREDICTIONS_NAME)
        parts.append(Part(one.name.removeprefix("s"), frame, str(one)))
    failed = len(members) - len(done)
    said = f"{failed} of {len(members)} trainings of {path} failed and are left out: what follows "
    notes = (f"{said}is of those that ended well",) if failed else ()
    return joined(str(path), sorted(parts, key=lambda one: in_order(one.seed)), notes)


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
