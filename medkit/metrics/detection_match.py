"""Which nodule each candidate is on, by LUNA16's rule (Setio et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medkit.metrics.checks import Codes, Floats, codes, named_codes

FALSE, IGNORED = -1, -2

_UNSIZED_MM = 10.0  # what LUNA16 takes where a finding's diameter is -1


class Columns(Protocol):
    """What has columns by name: a dictionary of arrays, a structured array, a DataFrame."""

    def __getitem__(self, name: str, /) -> Any:
        """Return a column."""
        ...


@dataclass(frozen=True, eq=False)
class Matched:
    """Candidates held against nodules.

    Attributes:
        exams: Ids of all exams searched, those without nodules or candidates among them.
        nodule_exam: Place of each nodule's exam in ``exams``, ``(M,)``.
        nodule_score: Highest score on each nodule; -inf where no candidate is on it.
        candidate_exam: Place of each candidate's exam in ``exams``, ``(N,)``.
        candidate_score: As given.
        candidate_on: Number of the nodule a candidate is on (the nearest of several);
            ``FALSE`` for a false positive, ``IGNORED`` on an excluded finding.
    """

    exams: tuple[Any, ...]
    nodule_exam: Codes
    nodule_score: Floats
    candidate_exam: Codes
    candidate_score: Floats
    candidate_on: Codes


def match(
    candidates: Columns,
    nodules: Columns,
    excluded: Columns | None = None,
    *,
    exams: ArrayLike | None = None,
) -> Matched:
    """Say which nodule each candidate is on: its place is less than the nodule's radius away.

    All tables must be in the same coordinates [mm]: LUNA16's are LPS, medkit's RAS (turn the signs
    of x and y). A candidate on two nodules finds both. A diameter below 0 means not known, and
    10 mm is taken, as LUNA16's script does.

    Args:
        candidates: Columns ``exam``, ``x``, ``y``, ``z`` and ``score``.
        nodules: Columns ``exam``, ``x``, ``y``, ``z`` and ``diameter_mm``.
        excluded: Findings that are neither right nor wrong to mark; columns as ``nodules``. Those
            in other exams are passed over.
        exams: All exams that were searched. Without it they are those in the first two tables, and
            a scan without nodule and candidate is missing from the denominator.

    Raises:
        ValueError: For columns that are missing, differ in length or are not finite, and for
            candidates or nodules in exams that were not searched.
    """
    at, marked = _places(candidates, "score", "candidates")
    centre, owner = _places(nodules, "diameter_mm", "nodules")
    aside, other = np.empty((0, 4)), owner[:0]
    if excluded is not None:
        aside, other = _places(excluded, "diameter_mm", "excluded")
    ids, (of, theirs, others) = coded(exams, marked, owner, other)

    best, on = np.full(len(centre), -np.inf), np.full(len(at), FALSE, np.int64)
    order = np.argsort(of, kind="stable")
    ends = np.searchsorted(of[order], np.arange(len(ids)), side="right")
    for number, mine in enumerate(np.split(order, ends)[: len(ids)]):
        near, _ = _within(at[mine], aside[others == number])
        on[mine[near.any(axis=1)]] = IGNORED
        here = np.flatnonzero(theirs == number)
        near, distance = _within(at[mine], centre[here])
        hit = near.any(axis=1)
        for column, nodule in enumerate(here):
            best[nodule] = at[mine[near[:, column]], 3].max(initial=-np.inf)
        if hit.any():
            on[mine[hit]] = here[np.where(near, distance, np.inf)[hit].argmin(axis=1)]
    return Matched(ids, theirs, best, of, at[:, 3], on)


def coded(
    exams: ArrayLike | None, marked: NDArray[Any], owner: NDArray[Any], other: NDArray[Any]
) -> tuple[tuple[Any, ...], tuple[Codes, Codes, Codes]]:
    """Return the exams searched, and the place among them of each row of three tables.

    Raises:
        ValueError: When a row of the first two is in none of ``exams``. Of the third, such a row
            is -1.
    """
    searched = np.concatenate([marked, owner]) if exams is None else np.asarray(exams)
    codes(searched, searched.size, "exams")
    every = np.concatenate([searched, marked, owner, other])
    names, code = named_codes(every, len(every), "exam")
    known = np.unique(code[: len(searched)])
    place = np.full(len(names), -1)
    place[known] = np.arange(len(known))
    starts = np.cumsum([len(part) for part in (searched, marked, owner)]).tolist()
    parts = np.split(place[code], starts)
    for rows, start, what in zip(parts[1:3], starts, ("candidates", "nodules"), strict=False):
        if (rows < 0).any():
            first = names[int(code[start + rows.argmin()])]
            raise ValueError(
                f"{what} must be in exams that were searched; {int((rows < 0).sum())} of "
                f"{len(rows)} are not, the first in exam {first!r}. Add it to exams, or leave its "
                "rows out of every table."
            )
    return tuple(names[one] for one in known), (parts[1], parts[2], parts[3])


def _places(table: Columns, last: str, what: str) -> tuple[Floats, NDArray[Any]]:
    """Return x, y, z and a last column, ``(N, 4)``, and the exam of each row."""
    columns = []
    for name in ("x", "y", "z", last):
        try:
            column = table[name]
        except (KeyError, ValueError, IndexError) as error:  # a structured array's is a ValueError
            raise ValueError(
                f"{what} must have columns exam, x, y, z and {last}; there is no {name!r}. LUNA16 "
                "calls them seriesuid, coordX, coordY, coordZ, probability: rename them."
            ) from error
        columns.append(np.asarray(column, np.float64))
    if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
        raise ValueError(
            f"columns of {what} must be vectors of one length; got shapes "
            f"{[column.shape for column in columns]}. Pass one row per finding."
        )
    whole = np.stack(columns, axis=1)
    bad = ~np.isfinite(whole).all(axis=1)
    if bad.any():
        raise ValueError(
            f"x, y, z and {last} of {what} must be finite; found {int(bad.sum())} of {len(whole)} "
            f"rows that are not, the first at row {int(bad.argmax())}. A detector with such a "
            "score has failed on that exam: count it as a failed run."
        )
    if last == "diameter_mm":
        whole[whole[:, 3] < 0, 3] = _UNSIZED_MM
    exam = np.asarray(table["exam"])
    codes(exam, len(whole), "exam")
    return whole, exam


def _within(at: Floats, centre: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Return whether each place is inside each ball, and its squared distance, ``(N, M)``."""
    distance = np.sum((at[:, None, :3] - centre[None, :, :3]) ** 2, axis=2)
    return distance < (centre[:, 3] / 2) ** 2, distance
