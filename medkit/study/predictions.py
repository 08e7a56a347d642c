"""Predictions of one recipe, seed by seed, from run folders or anybody's files.

Patient ids are compared and never shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.metrics.checks import Floats, labels_and_scores
from medkit.record.folder import RunFolder
from medkit.study import columns
from medkit.study.columns import LAYOUTS, tables_in

_ID = ("patient", "row")


@dataclass(frozen=True)
class Predictions:
    """What the trainings of one recipe say of the same rows, in the order of their ids.

    Attributes:
        name: As the reader called it.
        seeds: Of each training; a training without a known seed is called "?".
        row: Patient and row, ``(N,)``: what must be the same in what is compared.
        patient: Patient of each row, ``(N,)``.
        y: 0 and 1, ``(N,)``.
        scores: ``(S, N)``.
        site: Of each row, ``(N,)``, or None.
        notes: What the reader has to know of how they were read.
    """

    name: str
    seeds: tuple[str, ...]
    row: NDArray[np.str_]
    patient: NDArray[np.str_]
    y: Floats
    scores: Floats
    site: NDArray[np.str_] | None = None
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> NDArray[np.str_] | None:
        """Patient of each row where some have several; else None."""
        return self.patient if len(np.unique(self.patient)) < len(self.patient) else None


@dataclass(frozen=True)
class Part:
    """The rows of one training."""

    seed: str
    frame: pd.DataFrame
    where: str


def from_tables(
    name: str, tables: Sequence[tuple[Path, pd.DataFrame, dict[str, str]]]
) -> Predictions:
    """Put tables, as :func:`medkit.study.columns.read` returns them, together.

    Raises:
        ValueError: Where they are not predictions, or not of the same rows.
    """
    parts = [part for path, frame, wide in tables for part in _parts(path, frame, wide)]
    seeds = [part.seed for part in parts]
    unknown = seeds.count("?")
    if len(set(seeds)) < len(seeds) - max(0, unknown - 1):
        twice = sorted({seed for seed in seeds if seed != "?" and seeds.count(seed) > 1})
        raise ValueError(
            f"{name} must hold each seed once; seeds {', '.join(twice)} are in several files. "
            "Name each file for its seed, and keep one recipe in a folder."
        )
    return _joined(name, sorted(parts, key=lambda part: _numeric(part.seed)), ())


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
        _require(frame, {}, file)
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
    return _joined(str(path), sorted(parts, key=lambda one: _numeric(one.seed)), tuple(notes))


def require_same_rows(a: Predictions, b: Predictions) -> None:
    """Refuse recipes that were scored on other patients, or with other labels.

    Raises:
        ValueError: With the numbers, never with an id.
    """
    mine, theirs = set(a.row.tolist()), set(b.row.tolist())
    if mine != theirs:
        raise ValueError(
            f"both recipes must score the same rows; {a.name} has {len(mine)} and {b.name} "
            f"{len(theirs)}, of which {len(mine & theirs)} are in both. Score the same test set "
            "with both, and write ids alike (7, 7.0 and 007 are three patients; run folders hold "
            "pseudonyms)."
        )
    wrong = int((a.y != b.y).sum())
    if wrong:
        raise ValueError(
            f"y must be the same in both; {a.name} and {b.name} differ in {wrong} of {len(a.y)} "
            "rows. One of them has another outcome, or its rows in another order."
        )


def _prediction_file(run: Path, part: str | None) -> Path:
    """Return the predictions named ``part``; without one "test", or what alone can be meant."""
    folder = run / "predictions"
    found = {file.stem: file for file in tables_in(folder)} if folder.is_dir() else {}
    names = [part] if part else [name for name in found if name.startswith("test")] or list(found)
    names = ["test"] if part is None and "test" in found else names
    if len(names) != 1 or names[0] not in found:
        raise ValueError(
            f"{run} must hold predictions{f' named {part!r}' if part else ''} to compare; found "
            f"{sorted(found) or 'none'}. "
            + ("Name one with --part." if found else "Write them with run.predictions(...).")
        )
    return found[names[0]]


def _parts(path: Path, frame: pd.DataFrame, wide: dict[str, str]) -> list[Part]:
    _require(frame, wide, path)
    if wide:
        kept = frame[[c for c in frame.columns if c in (*_ID, "y", "site")]]
        return [
            Part(seed, kept.assign(score=frame[column]), f"{path}, {column}")
            for seed, column in wide.items()
        ]
    if "seed" not in frame:
        return [Part(columns.seed_of_name(path) or "?", frame, str(path))]
    groups = frame.groupby("seed", sort=False)
    return [Part(str(seed), rows, f"{path}, seed {seed}") for seed, rows in groups]


def _require(frame: pd.DataFrame, wide: dict[str, str], path: Path) -> None:
    missing = [] if wide or "score" in frame else ["score"]
    missing += [] if "y" in frame else ["y"]
    missing += [] if any(name in frame for name in _ID) else ["patient"]
    if missing:
        raise ValueError(
            f"{path} has no column for {', '.join(sorted(missing))}; found {list(frame.columns)}. "
            f"{LAYOUTS} Rename its columns so."
        )


def _joined(name: str, parts: Sequence[Part], notes: tuple[str, ...]) -> Predictions:
    first = _rows(parts[0])
    said = list(notes)
    scores = []
    for part in parts:
        rows = _rows(part)
        if set(rows.index) != set(first.index):
            both = len(set(rows.index) & set(first.index))
            raise ValueError(
                f"each training must score the same rows; {part.where} has {len(rows)}, "
                f"{parts[0].where} {len(first)}, and {both} are in both. Score one test set with "
                "all seeds; patients that one seed lacks can't be compared."
            )
        try:
            labels, score = labels_and_scores(_number(rows["y"]), _number(rows["score"]))
        except ValueError as error:
            raise ValueError(f"{part.where}: {error}") from error
        wrong = int((labels != _number(first["y"])).sum())
        if wrong:
            raise ValueError(
                f"y must be the same for all seeds; {part.where} differs from {parts[0].where} in "
                f"{wrong} of {len(labels)} rows. Their rows are in another order, or are others."
            )
        scores.append(score)
    if "patient" not in parts[0].frame:
        said.append(f"{name} names rows, not patients: each row counts as a patient of its own")
    elif first["place"].max() > 0 and "row" not in parts[0].frame:
        said.append(
            f"{name} has several rows of a patient and no row ids: they are matched by their order"
        )
    return Predictions(
        name,
        tuple(part.seed for part in parts),
        np.array(first.index, dtype=np.str_),
        first["patient"].to_numpy(np.str_),
        _number(first["y"]),
        np.array(scores),
        _sites(first),
        tuple(said),
    )


def _rows(part: Part) -> pd.DataFrame:
    """Return a training's rows by an id that is the same in all of them, in its order."""
    frame = part.frame
    given: Any = frame["patient"] if "patient" in frame else frame["row"]
    gone = int(given.isna().sum())
    if gone:
        raise ValueError(
            f"{part.where} must name the patient of each row; {gone} of {len(frame)} rows have "
            "none. Fill them in, or give each such row an id of its own."
        )
    rows = frame.assign(patient=given.astype(str)).reset_index(drop=True)
    rows["place"] = rows.groupby("patient").cumcount()
    inside = rows["row"].astype(str) if "row" in rows else rows["place"].astype(str)
    rows.index = pd.Index(rows["patient"] + "\x1f" + inside)
    if not rows.index.is_unique:
        twice = int(rows.index.duplicated().sum())
        raise ValueError(
            f"{part.where} must hold each row once; {twice} of {len(rows)} are there again. Where "
            "the file holds several trainings, name them in a column seed."
        )
    return rows.sort_index()


def _sites(rows: pd.DataFrame) -> NDArray[np.str_] | None:
    if "site" not in rows or rows["site"].isna().any() or rows["site"].nunique() < 2:
        return None
    return rows["site"].astype(str).to_numpy(np.str_)


def _number(column: Any) -> Floats:
    """Return a column as numbers, NaN where there is none: such a place is complained of."""
    return np.asarray(pd.to_numeric(column, errors="coerce"), np.float64)


def _numeric(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.isdigit() else (-1, seed)
