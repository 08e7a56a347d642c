"""What predicts the label too well: one column, the order of the rows, the number in an id."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medkit.data.leakage.findings import ALPHA, Finding, two_sided
from medkit.data.splits import Split
from medkit.data.tables import Table

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

TOO_GOOD = 0.99  # AUROC of one column
NOTABLE = 0.6  # AUROC of the order or the id, within sites
FOLLOWS = 0.95  # rank correlation from which a column is the order in disguise
_EVENTS = 30  # fewer may follow a column by chance
_NUMBER = re.compile(r"\d+(?=\D*$)")  # the last number in an id
_PREFIXES = 10  # beginnings of ids, such as CASE and CTRL; with more they are no groups


@dataclass(frozen=True)
class Rank:
    """How a number ranks label 1 above label 0, within strata.

    Attributes:
        auroc: Weighted by pairs over the strata; 0.5 where no stratum holds both classes.
        p: Two-sided, by the normal approximation of Mann and Whitney (1947) with ties.
        pairs: Pairs of a 1 and a 0 compared.
    """

    auroc: float
    p: float
    pairs: int


def ranked(y: Rows, score: Floats, strata: Sequence[Rows] | None = None) -> Rank:
    """Compare labels 1 and 0 by a score, summed over strata (row numbers; None: one for all)."""
    above, expected, variance, pairs = 0.0, 0.0, 0.0, 0
    for rows in [np.arange(len(y))] if strata is None else strata:
        labels = y[rows]
        ones, n = int(labels.sum()), len(rows)
        zeros = n - ones
        if ones == 0 or zeros == 0:
            continue
        _, code, counts = np.unique(score[rows], return_inverse=True, return_counts=True)
        ties = counts.astype(np.float64)
        midrank = np.cumsum(ties) - (ties - 1) / 2
        above += float(midrank[code][labels == 1].sum()) - ones * (ones + 1) / 2
        expected += ones * zeros / 2
        tied = float((ties**3 - ties).sum()) / (n * (n - 1))
        variance += ones * zeros / 12 * (n + 1 - tied)
        pairs += ones * zeros
    if pairs == 0 or variance <= 0:
        return Rank(0.5, 1.0, pairs)
    return Rank(above / pairs, two_sided((above - expected) / sqrt(variance)), pairs)


def single_features(table: Table, rows: Rows, known: Sequence[str]) -> list[Finding]:
    """One column, or its being missing, that tells the classes apart by itself.

    Args:
        table: The table.
        rows: Training rows: held-out ones are not looked at.
        known: Columns somebody has vouched for.
    """
    found: dict[str, float] = {}
    y = table.y[rows]
    tests = 2 * max(len(table.features), 1)
    for index, name in enumerate(table.features):
        if name in known:
            continue
        column = table.values[rows, index].astype(np.float64)
        missing = np.isnan(column)
        results = {name: ranked(y[~missing], column[~missing])}
        if 0 < missing.sum() < len(column):
            results[f"{name} missing"] = ranked(y, missing.astype(np.float64))
        for what, result in results.items():
            auroc = max(result.auroc, 1 - result.auroc)
            if auroc > TOO_GOOD and result.p < ALPHA / tests:
                found[what] = auroc
    if not found:
        return []
    words = ", ".join(f"{name!r} (AUROC {value:.3f})" for name, value in list(found.items())[:5])
    columns = sorted({name.removesuffix(" missing") for name in found})
    return [
        Finding(
            "leak",
            "single feature",
            f"{words} tells the classes apart by itself in the training rows.",
            {"auroc": found},
            "Is it written down after the outcome, or made from it? Then leave it out: "
            f"ignore={columns}. If it is known when the prediction is made, say so: "
            "`recorded: before` in the contract (known= of audit).",
        )
    ]


def times(table: Table, rows: Rows, time: ArrayLike | None, known: Sequence[str]) -> list[Finding]:
    """One column that follows the time to the event, such as the time to another end of it.

    Args:
        table: The table; ``y`` is 1 where the event was seen.
        rows: Training rows: held-out ones are not looked at.
        time: Of the event or of the last look, ``(N,)``; None: rows are not followed.
        known: Columns somebody has vouched for.
    """
    seen = rows[table.y[rows] == 1]
    if time is None or len(seen) < _EVENTS:
        return []
    followers = _followers(table, seen, np.asarray(time, np.float64)[seen])
    found = [name for name in followers if name not in known]
    if not found:
        return []
    return [
        Finding(
            "leak",
            "single feature",
            f"{', '.join(map(repr, found[:5]))} follows the time to the event in the training rows "
            f"(rank correlation at least {FOLLOWS}).",
            {"columns": found, "events": len(seen)},
            f"Is it another time of the same follow-up? Then leave it out: ignore={found}. If it "
            "is known when the prediction is made, say so: `recorded: before` in the contract.",
        )
    ]


def order_and_ids(table: Table, split: Split, patients: Rows) -> list[Finding]:
    """Row order, numbers and beginnings of ids that predict the label, site by site.

    One row per patient counts (with label 1 if any of theirs has it): a patient's rows stand
    together and share their label.
    """
    used = np.sort(np.concatenate([split.train, split.val, split.test]))
    _, first, owner = np.unique(patients[used], return_index=True, return_inverse=True)
    label = np.zeros(len(first), np.int64)
    np.maximum.at(label, owner, table.y[used])
    rows = used[first]
    _, site = np.unique(table.site[rows], return_inverse=True)
    strata = [np.flatnonzero(site == number) for number in range(int(site.max()) + 1)]
    ids = [str(name) for name in table.patient[rows]]
    scores = {"the row order": rows.astype(np.float64)}
    if ids != [str(row) for row in rows]:  # there is no id column: they count the rows
        scores |= _from_ids(ids)
    results = {what: ranked(label, score, strata) for what, score in scores.items()}
    findings = []
    for what, result in results.items():
        if result.p >= ALPHA / len(scores):
            continue
        strong = max(result.auroc, 1 - result.auroc) >= NOTABLE
        proxies = _followers(table, rows, scores[what]) if strong else []
        # the order does no harm where no column knows it; an id that knows the outcome says that
        # the two classes were collected apart, and other columns may know that too
        bad = strong and (bool(proxies) or what != "the row order")
        also = f" Column {proxies[0]!r} follows it." if proxies else ""
        findings.append(
            Finding(
                "suspicious" if bad else "note",
                "order and ids",
                f"{what} predicts the label within sites (AUROC {result.auroc:.3f}, "
                f"p = {result.p:.1g}).{also}",
                {"what": what, "auroc": result.auroc, "p": result.p, "columns": proxies},
                "Were the two classes collected or exported apart? Find out what else differs "
                "between them"
                + (f", and leave out the column: ignore={proxies}." if proxies else ".")
                + ("" if bad else " Harmless as long as no column and no split follows it."),
            )
        )
    return findings + _order_and_site(rows, label, site)


def _from_ids(ids: Sequence[str]) -> dict[str, Floats]:
    """Return scores made of ids: the last number, and each beginning that many share."""
    scores: dict[str, Floats] = {}
    numbers = [_NUMBER.search(name) for name in ids]
    if all(numbers):
        scores["the number in the patient id"] = np.array([float(n.group()) for n in numbers if n])
    begins = [re.match(r"[^\W\d_]*", name.casefold()).group() for name in ids]  # type: ignore[union-attr]
    common = Counter(begins)
    if 1 < len(common) <= _PREFIXES:
        for place, beginning in enumerate(sorted(common), start=1):  # named by place: no part of id
            what = f"beginning {place} of {len(common)} of the patient id"
            scores[what] = np.array([float(begin == beginning) for begin in begins])
    return scores


def _followers(table: Table, rows: Rows, score: Floats) -> list[str]:
    """Return the columns whose ranks follow the score's."""
    found = []
    for index, name in enumerate(table.features):
        column = table.values[rows, index]
        there = ~np.isnan(column)
        if there.sum() < 0.5 * len(rows) or len(np.unique(column[there])) < 10:
            continue
        one, other = (
            np.argsort(np.argsort(x, kind="stable")) for x in (column[there], score[there])
        )
        if abs(float(np.corrcoef(one, other)[0, 1])) >= FOLLOWS:
            found.append(name)
    return found


def _order_and_site(rows: Rows, label: Rows, site: Rows) -> list[Finding]:
    """Note rows that stand site by site: batches taken in order would be of one site each."""
    sites = int(site.max()) + 1
    if sites < 2:
        return []
    smallest = 1.0
    for number in range(sites):
        here = (site == number).astype(np.int64)
        strata = [np.flatnonzero(label == value) for value in (0, 1)]
        smallest = min(smallest, ranked(here, rows.astype(np.float64), strata).p)
    if smallest >= ALPHA / sites:
        return []
    return [
        Finding(
            "note",
            "order and ids",
            f"the rows stand site by site (p = {smallest:.1g}, within label).",
            {"p": smallest},
            "Shuffle them in training (the kit does), and never split by position.",
        )
    ]
