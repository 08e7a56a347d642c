"""Whether the rows that a run predicted are those that its own stages held out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medkit.data.leakage.findings import Finding
from medkit.data.splits import PARTS, Split
from medkit.data.tables import Table
from medkit.record.pseudonym import key_path, pseudonym

Codes = NDArray[np.int8]  # place in PARTS of each row; -1 where it is in none


@dataclass(frozen=True)
class Known:
    """A table that stages were trained on.

    Attributes:
        rows: Pseudonym of a row -> its number.
        parts: Stage -> the part of each row, ``(N,)``.
    """

    rows: Mapping[str, int]
    parts: Mapping[str, Codes]


@dataclass(frozen=True)
class Judged:
    """What the rows of a file are to the stages that explain it best.

    Attributes:
        rows: How many are of their table.
        wrong: Of these, how many are not in the part that the file names.
        trained: Of these again, how many were trained on.
    """

    rows: int
    wrong: int
    trained: int


def tables_of(stages: Sequence[tuple[str, Table, Split]]) -> list[Known]:
    """Return each table with its stages; none where this machine has no key for pseudonyms."""
    if not key_path().exists():  # an audit must not make one
        return []
    found: list[tuple[list[str], dict[str, Codes]]] = []
    for stage, table, split in stages:
        codes = np.full(len(table.y), -1, np.int8)
        for number, part in enumerate(PARTS):
            codes[split.part(part)] = number
        ids = [f"{patient}:{row}" for row, patient in enumerate(table.patient)]
        same = next((parts for there, parts in found if there == ids), None)
        if same is None:
            found.append((ids, {stage: codes}))
        else:
            same[stage] = codes
    return [Known({pseudonym(one): row for row, one in enumerate(ids)}, p) for ids, p in found]


def part_of(name: str) -> str:
    """Return the part that a file of predictions names ("test" for "test_site_a"), or ""."""
    return next((p for p in PARTS if name == p or name.startswith((f"{p}_", f"{p}-"))), "")


def judge(name: str, rows: Sequence[str], tables: Sequence[Known]) -> Judged | None:
    """Judge a file by the stages that hold most of its rows out; None: it is of no known table.

    A stage alone may explain it, or stages each of which held out other rows: the folds of a
    cross-validation together. Where stages are named as the file is (``test_site_a`` and
    ``site_a_fold0``), they alone.

    Args:
        name: The file's, which begins with its part.
        rows: Pseudonyms, ``(N,)``.
        tables: From :func:`tables_of`.
    """
    part = part_of(name)
    found = []
    for table in tables:
        at = np.array([table.rows[row] for row in rows if row in table.rows], np.int64)
        if len(at) == 0:
            continue
        own = re.compile(re.escape(name[len(part) + 1 :] or "-") + r"(_fold|_seed)?\d*")
        named = {stage: codes for stage, codes in table.parts.items() if own.fullmatch(stage)}
        for group in _groups(named or table.parts, PARTS.index(part)):
            wrong = ~(group == PARTS.index(part)).any(axis=0)[at]
            trained = wrong & (group == PARTS.index("train")).any(axis=0)[at]
            found.append(Judged(len(at), int(wrong.sum()), int(trained.sum())))
    return min(found, key=lambda one: (-one.rows, one.wrong, one.trained), default=None)


def _groups(parts: Mapping[str, Codes], number: int) -> Iterator[NDArray[np.int8]]:
    """Yield ``(stages, N)``: each alone, and those that hold out other rows each, together."""
    families: dict[str, dict[bytes, Codes]] = {}
    for stage, codes in parts.items():
        yield codes[None]
        held = (codes == number).tobytes()
        for family in {re.sub(r"\d+$", "", stage), ""}:  # numbered alike; all there are
            families.setdefault(family, {}).setdefault(held, codes)
    for different in families.values():
        group = np.stack(list(different.values()))
        if len(group) > 1 and ((group == number).sum(axis=0) <= 1).all():
            yield group


def of_predictions(
    files: Mapping[str, Sequence[str]], judged: Mapping[str, Judged | None]
) -> Iterator[Finding]:
    """Yield rows of other parts, and rows that were both validated and tested on.

    Args:
        files: Name -> pseudonyms of its rows.
        judged: Name -> what they are; None: not known.
    """
    explained = {name for name, found in judged.items() if found and not found.wrong}
    for name, found in judged.items():
        part = part_of(name)
        if found and found.wrong:
            yield Finding(
                "leak",
                "predictions",
                f"predictions {name!r} hold {found.wrong} rows that are not in {part}, "
                f"{found.trained} of them trained on.",
                {"name": name, "rows": found.wrong, "trained": found.trained},
                f"Score dm.rows({part!r}) alone.",
            )
        for other in judged:
            if (part, part_of(other)) != ("val", "test") or {name, other} <= explained:
                continue  # each of a model's own: one fold's test is another's validation
            if both := len(set(files[name]) & set(files[other])):
                yield Finding(
                    "leak",
                    "predictions",
                    f"{both} rows are in predictions {name!r} and in {other!r}: the test was "
                    "used to choose.",
                    {"names": [name, other], "rows": both},
                    "Draw validation and test apart.",
                )
