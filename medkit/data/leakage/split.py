"""Who is where: patients, rows and sites that stand on two sides of a split."""

from __future__ import annotations

import re
import unicodedata
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from medkit.data.leakage.findings import Finding
from medkit.data.splits import PARTS, Split
from medkit.data.tables import Table

Rows = NDArray[np.int64]

_RUNS = re.compile(r"\d+|[^\W\d_]+")
_USUAL = re.compile(r"([A-Za-z]*)0*([0-9]+)")  # nearly all ids, and five times faster
_FLOAT = re.compile(r"\s*(\d+)\.0+\s*")  # what pandas makes of whole numbers beside a blank


def normal_id(text: str) -> str:
    """Return an id without case, width, spaces, punctuation and leading zeros.

    ``P-0974``, ``p974`` and full-width digits become one; two numbers stay two, so that ``1-23``
    and ``12-3`` differ.
    """
    usual = _USUAL.fullmatch(text)
    if usual:
        return usual.group(1).lower() + usual.group(2)
    text = unicodedata.normalize("NFKC", text).casefold()
    whole = _FLOAT.fullmatch(text)
    runs = _RUNS.findall(whole.group(1) if whole else text)
    if not runs:
        return text.strip()
    parts = [runs[0].lstrip("0") or "0" if runs[0][0].isdecimal() else runs[0]]
    for before, run in pairwise(runs):
        digits = run[0].isdecimal()
        parts.append("|" if digits and before[0].isdecimal() else "")
        parts.append((run.lstrip("0") or "0") if digits else run)
    return "".join(parts)


def normal_codes(texts: NDArray[np.str_]) -> Rows:
    """Return a number per row that is the same where the normalised text is."""
    names, owner = np.unique(texts, return_inverse=True)
    # block by block, each freed in turn: a text object a row is ten times its letters
    blocks = (names[start : start + 8192].tolist() for start in range(0, len(names), 8192))
    names = np.concatenate([names[:0], *(np.array([*map(normal_id, some)]) for some in blocks)])
    _, code = np.unique(names, return_inverse=True)
    codes: Rows = code[owner].astype(np.int64)
    return codes


def patient_ids(table: Table, split: Split, codes: Rows) -> list[Finding]:
    """Patients on two sides once case, zeros, spaces and punctuation are set aside."""
    findings = []
    for one, other in combinations(PARTS, 2):
        rows, others = split.part(one), split.part(other)
        both = np.intersect1d(codes[rows], codes[others])
        if len(both) == 0:
            continue
        left = {code: row for row, code in zip(rows[::-1], codes[rows[::-1]], strict=True)}
        right = {code: row for row, code in zip(others[::-1], codes[others[::-1]], strict=True)}
        pairs = [(int(left[code]), int(right[code])) for code in both]
        near = [pair for pair in pairs if table.site[pair[0]] == table.site[pair[1]]]
        first = (near or pairs)[0]
        elsewhere = "" if near else ", though never at the same site"
        findings.append(
            Finding(
                "leak" if near else "suspicious",
                "patient ids",
                f"{len(both)} patients are in {one} and in {other} once case, leading zeros, "
                f"spaces and punctuation of their ids are set aside{elsewhere} (rows "
                f"{first[0] + 1} and {first[1] + 1} below the header).",
                {"parts": [one, other], "patients": len(both), "rows": [r + 1 for r in first]},
                "Write ids in one way before the split is drawn; where two hospitals number their "
                "patients alike, put the hospital into the id.",
            )
        )
    return findings


def parts(table: Table, split: Split) -> list[Finding]:
    """Rows in two parts or in none; a split column that says otherwise; sites held out by name."""
    findings = []
    for one, other in combinations(PARTS, 2):
        twice = np.intersect1d(split.part(one), split.part(other))
        if len(twice):
            findings.append(
                Finding(
                    "leak",
                    "rows in two parts",
                    f"{len(twice)} rows are in {one} and in {other} (first: row {twice[0] + 1}).",
                    {"parts": [one, other], "rows": len(twice)},
                    "Draw the split again: each row belongs to one part.",
                )
            )
    if table.split is not None:
        findings += _split_column(table.split, split)
    return findings + _sites(table, split)


def _split_column(column: NDArray[np.str_], split: Split) -> list[Finding]:
    """Folds may deal training and validation rows anew; the test's rows are the test's."""
    findings = []
    for used, purpose in (("train", "trained on"), ("val", "used to choose epoch and settings")):
        rows = split.part(used)
        wrong = rows[column[rows] == "test"]
        if len(wrong):
            findings.append(
                Finding(
                    "leak",
                    "split column",
                    f"{len(wrong)} rows that the split column keeps for the test are {purpose} "
                    f"(first: row {wrong[0] + 1} below the header).",
                    {"used": used, "rows": len(wrong)},
                    "Take the test from the column (split_column=), or drop the column if it is "
                    "no longer meant.",
                )
            )
    return findings


def _sites(table: Table, split: Split) -> list[Finding]:
    """A test that is meant to be another hospital's must be that hospital's alone."""
    sites = {part: set(table.site[split.part(part)].tolist()) for part in PARTS}
    external = sites["test"] - sites["train"] - {""}
    if not external:
        return []
    findings = []
    known = {normal_id(site): site for site in sorted(sites["train"] | sites["val"])}
    again = sorted(s for s in external if normal_id(s) in known and s not in known.values())
    if again:
        findings.append(
            Finding(
                "leak",
                "external site",
                f"site {again[0]!r} is kept for the test, and {known[normal_id(again[0])]!r}, the "
                "same name written otherwise, is in training or validation.",
                {"sites": again},
                "Write each site's name in one way.",
            )
        )
    seen = sorted(external & sites["val"])
    if seen:
        findings.append(
            Finding(
                "suspicious",
                "external site",
                f"site {seen[0]!r} is in test and in validation but not in training: the epoch and "
                "settings are chosen on the very hospital that is to be the outside one.",
                {"sites": seen},
                "Validate on the training sites (test_site= does so), or call the test internal.",
            )
        )
    return findings
