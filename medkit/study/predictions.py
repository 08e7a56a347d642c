"""Predictions of one recipe, seed by seed, from run folders or anybody's files.

Patient ids are compared and never shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from medkit.metrics.checks import Floats, labels_and_scores
from medkit.study import columns
from medkit.study.columns import LAYOUTS

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

    @classmethod
    def of(
        cls,
        name: str,
        *,
        y: ArrayLike,
        scores: Mapping[int, ArrayLike],
        patient: ArrayLike | None = None,
        row: ArrayLike | None = None,
        site: ArrayLike | None = None,
    ) -> Predictions:
        """Return predictions that are in memory.

        ``Predictions.of("net", y=y, scores={0: prob_0, 1: prob_1}, patient=patient)``

        Args:
            name: Of the recipe.
            y: Labels 0 and 1, ``(N,)``.
            scores: Seed -> score of each row, ``(N,)``.
            patient: Of each row, ``(N,)``; None: each row is another patient.
            row: Its id, ``(N,)``, where a patient has several.
            site: Of each row, ``(N,)``.
        """
        rows = pd.DataFrame({"y": np.asarray(y)})
        rows["patient"] = np.arange(len(rows)) if patient is None else np.asarray(patient)
        if row is not None:
            rows["row"] = np.asarray(row)
        if site is not None:
            rows["site"] = np.asarray(site)
        parts = [
            Part(str(seed), rows.assign(score=np.asarray(score)), f"{name}, seed {seed}")
            for seed, score in scores.items()
        ]
        return joined(name, sorted(parts, key=lambda part: in_order(part.seed)), ())

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
    return joined(name, sorted(parts, key=lambda part: in_order(part.seed)), ())


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


def _parts(path: Path, frame: pd.DataFrame, wide: dict[str, str]) -> list[Part]:
    require_roles(frame, wide, path)
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


def require_roles(frame: pd.DataFrame, wide: dict[str, str], path: Path) -> None:
    """Refuse a table that lacks what predictions need, under the names of its roles."""
    missing = [] if wide or "score" in frame else ["score"]
    missing += [] if "y" in frame else ["y"]
    missing += [] if any(name in frame for name in _ID) else ["patient"]
    if missing:
        raise ValueError(
            f"{path} has no column for {', '.join(sorted(missing))}; found {list(frame.columns)}. "
            f"{LAYOUTS} Rename its columns so."
        )


def joined(name: str, parts: Sequence[Part], notes: tuple[str, ...]) -> Predictions:
    """Put the trainings of one recipe together.

    Raises:
        ValueError: Where they are not of the same rows and labels, or a score is no number.
    """
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
    if len(scores) > 1 and all(np.array_equal(score, scores[0]) for score in scores):
        said.append(
            f"all trainings of {name} say the same of every row: it draws nothing, or they are "
            "copies of one"
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


def _number(column: pd.Series[Any]) -> Floats:
    """Return a column as numbers, NaN where there is none: such a place is complained of.

    Raises:
        ValueError: Where a place holds a text.
    """
    numbers = pd.to_numeric(column, errors="coerce")
    texts = column[numbers.isna() & column.notna()]
    if len(texts):
        raise ValueError(
            f"{column.name} must be numbers; {len(texts)} of {len(column)} rows hold a text, such "
            f"as {texts.iloc[0]!r}. Write 0.512, with a point and no sign, and labels as 0 and 1."
        )
    return np.asarray(numbers, np.float64)


def in_order(seed: str) -> tuple[int, str]:
    """Return what seeds are sorted by: 2 before 10."""
    return (int(seed), "") if seed.isdigit() else (-1, seed)
