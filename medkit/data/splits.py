"""Who is in train, validation and test: by patient, by a column, or by hospital."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medkit import keyed

PARTS = ("train", "val", "test")
Rows = NDArray[np.int64]
Texts = NDArray[np.str_]


@dataclass(frozen=True)
class Split:
    """Row numbers of each part, ascending; ``test`` may be empty."""

    train: Rows
    val: Rows
    test: Rows

    def part(self, name: str) -> Rows:
        """Return the rows of "train", "val" or "test"."""
        if name not in PARTS:
            raise ValueError(f"a part must be one of {list(PARTS)}, got {name!r}. Check the name.")
        rows: Rows = getattr(self, name)
        return rows


def by_patient(
    patient: Texts,
    *,
    val_fraction: float,
    test_fraction: float = 0.0,
    split_seed: int,
    stratum: Sequence[str] | Texts | None = None,
) -> Split:
    """Split patients, never rows; the same patients whatever the order of the rows.

    Args:
        patient: Patient id of each row, ``(N,)``.
        val_fraction: Share of patients in validation.
        test_fraction: Share of patients in test.
        split_seed: Another seed, another split. The run's ``seed`` has no say in it.
        stratum: Group of each row, such as site and outcome: each group is split in the same
            shares, as nearly as whole patients go. A patient counts in the last (by name) of
            their rows' groups.
    """
    if not (val_fraction > 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            "val_fraction must be above 0, test_fraction not below 0 and their sum below 1, got "
            f"{val_fraction} and {test_fraction}. They are shares of the patients, such as 0.2."
        )
    ids, owner, group = _grouped(patient, stratum)
    parts = 2 + (test_fraction > 0)
    if len(ids) < parts:
        raise ValueError(
            f"a split by patient into {parts} parts needs as many patients at least, found "
            f"{len(ids)} in {len(patient)} rows. Is patient= the right column? patient=None says "
            "that each row is another patient."
        )
    # raw bits, which NumPy promises for ever: a split outlives the version that made it
    raw = keyed.generator(split_seed, "split").bit_generator.random_raw(len(ids) + 2)
    starts = (raw[-2:] >> np.uint64(11)) * 2.0**-53
    order = np.argsort(raw[:-2], kind="stable")
    order = order[np.argsort(group[order], kind="stable")]
    test = _every(len(order), test_fraction, float(starts[0]))
    val = np.zeros(len(order), dtype=np.bool_)
    rest = val_fraction / (1 - test_fraction)
    val[~test] = _every(int((~test).sum()), rest, float(starts[1]))
    part = np.zeros(len(ids), dtype=np.int64)
    part[order[val]], part[order[test]] = 1, 2
    return Split(*(np.flatnonzero(part[owner] == number) for number in range(3)))


def by_column(column: Texts, patient: Texts) -> Split:
    """Take the split a column gives, in the words train, val and test.

    Raises:
        ValueError: For other words, or when a patient stands on two sides.
    """
    other = sorted(set(column.tolist()) - set(PARTS))
    if other:
        raise ValueError(
            f"a split column must say train, val or test in each row; found {other[:5]} too. "
            "Rename them in the table, or give another split_column."
        )
    split = Split(*(np.flatnonzero(column == name) for name in PARTS))
    require_disjoint(split, patient)
    return split


def leave_site_out(
    site: Texts,
    patient: Texts,
    *,
    test_site: str,
    val_fraction: float,
    split_seed: int,
    stratum: Texts | None = None,
) -> Split:
    """Keep one site for the external test; split the patients of the others.

    Raises:
        ValueError: For an unknown site, or when a patient of the test site is seen elsewhere.
    """
    sites = sorted(set(site.tolist()))
    if test_site not in sites or len(sites) < 2:
        raise ValueError(
            f"test_site must be one of at least two sites, got {test_site!r}; the table has "
            f"{sites}. Pass one of them, and the column of sites as site=."
        )
    inside = np.flatnonzero(site != test_site)
    rest = by_patient(
        patient[inside],
        val_fraction=val_fraction,
        split_seed=split_seed,
        stratum=None if stratum is None else stratum[inside],
    )
    split = Split(inside[rest.train], inside[rest.val], np.flatnonzero(site == test_site))
    require_disjoint(split, patient)
    return split


def in_folds(
    patient: Texts, *, folds: int, split_seed: int, stratum: Sequence[str] | Texts | None = None
) -> Rows:
    """Deal patients into folds; return each row's fold, ``(N,)``.

    The same patients together whatever the order of the rows. Each stratum is dealt out one by
    one, so that its share differs by one patient at most from fold to fold.

    Args:
        patient: Patient id of each row, ``(N,)``.
        folds: How many.
        split_seed: Another seed, other folds.
        stratum: As in :func:`by_patient`.
    """
    ids, owner, group = _grouped(patient, stratum)
    if not 2 <= folds <= len(ids):
        raise ValueError(
            f"folds must be at least 2 and at most the number of patients, got {folds} for "
            f"{len(ids)} patients. 5 is usual."
        )
    raw = keyed.generator(split_seed, "split", "folds").bit_generator.random_raw(len(ids))
    order = np.argsort(raw, kind="stable")
    order = order[np.argsort(group[order], kind="stable")]
    fold = np.empty(len(ids), dtype=np.int64)
    fold[order] = np.arange(len(ids)) % folds
    return fold[owner]


def nested(
    split: Split,
    patient: Texts,
    *,
    folds: int,
    fold: int,
    split_seed: int,
    stratum: Texts | None = None,
) -> Split:
    """Deal the development patients (train and val) into folds; ``fold`` becomes validation.

    The test part stays as it is, and has no say in who is in which fold.
    """
    inside = np.sort(np.concatenate([split.train, split.val]))
    number = in_folds(
        patient[inside],
        folds=folds,
        split_seed=split_seed,
        stratum=None if stratum is None else stratum[inside],
    )
    return Split(inside[number != fold], inside[number == fold], split.test)


def require_disjoint(split: Split, patient: Texts) -> None:
    """Raise where a patient has rows in two parts; rows are named, ids are not."""
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        rows, others = split.part(one), split.part(other)
        both = np.intersect1d(patient[rows], patient[others])
        if len(both):
            first = rows[patient[rows] == both[0]][0] + 1
            second = others[patient[others] == both[0]][0] + 1
            raise ValueError(
                f"a patient must be in one part of the split only; {len(both)} are both in {one} "
                f"and in {other} (one of them in rows {first} and {second} below the header). Move "
                "all rows of a patient to one part; if two hospitals gave the same id to different "
                "people, put the hospital into the id."
            )


def require_both_classes(y: NDArray[np.int64], rows: Rows, *, part: str) -> None:
    """Raise where a part holds one class only (or nothing): no AUROC, no choice of an epoch."""
    ones, total = int(y[rows].sum()), len(rows)
    if len(y) and (y == y[0]).all():
        raise ValueError(
            f"a table to learn from must hold both classes; all {len(y)} rows have label {y[0]}. "
            "Is target= the right column (and target_above the right grade), and were rows "
            "without the event left out of the export?"
        )
    if ones in (0, total):
        raise ValueError(
            f"the {part} part must hold both classes; found {total} rows, {ones} of them with "
            "label 1. Raise val_fraction or take fewer folds, take another split_seed, or give a "
            "split_column that puts patients of both classes there."
        )


def _grouped(patient: Texts, stratum: Sequence[str] | Texts | None) -> tuple[Texts, Rows, Rows]:
    """Return the patients, each row's patient number, and each patient's group."""
    ids, owner = np.unique(patient, return_inverse=True)
    group = np.zeros(len(ids), dtype=np.int64)
    if stratum is not None:
        _, code = np.unique(np.asarray(stratum), return_inverse=True)
        np.maximum.at(group, owner, code)
    return ids, owner, group


def _every(count: int, fraction: float, start: float) -> NDArray[np.bool_]:
    """Mark a fraction of ``count`` places, evenly spread: each stretch gets its share."""
    steps = np.floor(np.arange(count + 1) * fraction + start)
    return steps[1:] > steps[:-1]
