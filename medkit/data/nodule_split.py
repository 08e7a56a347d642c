"""Whose candidates are in which part, by patient or by hospital, and whether that can be learnt."""

from __future__ import annotations

import logging
import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit import keyed
from medkit.data import splits
from medkit.data.splits import PARTS, Split

__all__ = ["require_each_site", "split_candidates", "watched"]

_log = logging.getLogger(__name__)


def split_candidates(
    table: pd.DataFrame,
    *,
    test_site: str | None,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
) -> Split:
    """Split the sound rows of a table of candidates, stratified by site and outcome.

    Args:
        table: With ``patient``, ``site``, ``y`` and ``problem``, "" for a sound row.
        test_site: The hospital that becomes the test part; None: by patient.
        val_fraction: Share of the (other) patients in validation.
        test_fraction: Share in test, where no hospital is kept.
        split_seed: Decides who is where.

    Raises:
        ValueError: For a hospital that is not there, too few patients, and a part without nodules
            or without other candidates.
    """
    sound = np.flatnonzero(table["problem"].to_numpy() == "")
    y = table["y"].to_numpy(np.int64)
    site, patient = (table[name].to_numpy().astype(str) for name in ("site", "patient"))
    there = sorted(set(site[sound].tolist()))
    if test_site is not None and (test_site not in there or len(there) < 2):
        raise ValueError(
            f"test_site must be one of at least two sites, got {test_site!r}; the candidates are "
            f"from {there}. Pass one of them, or test_fraction= for a share of all patients."
        )
    inside = sound if test_site is None else sound[site[sound] != test_site]
    parts = 2 + (test_site is None and test_fraction > 0)
    patients = len(set(patient[inside].tolist()))
    if patients < parts:
        raise ValueError(
            f"a split into {parts} parts needs as many patients at least; found {patients} with "
            f"{len(inside)} candidates. Add exams of other patients."
        )
    stratum = np.char.add(np.char.add(site, "|"), y.astype(str))[sound]
    if test_site is not None:
        part = splits.leave_site_out(
            site[sound], patient[sound], test_site=test_site, val_fraction=val_fraction,
            split_seed=split_seed, stratum=stratum,
        )  # fmt: skip
    else:
        part = splits.by_patient(
            patient[sound], val_fraction=val_fraction, test_fraction=test_fraction,
            split_seed=split_seed, stratum=stratum,
        )  # fmt: skip
    split = Split(*(sound[part.part(name)] for name in PARTS))
    for name in PARTS:
        rows = split.part(name)
        if name == "test" and not len(rows) and test_site is None and not test_fraction:
            continue
        ones = int(y[rows].sum())
        if ones in (0, len(rows)):
            exams = table["patient"].to_numpy()
            bearing = len(set(exams[inside][y[inside] == 1].tolist()))
            raise ValueError(
                f"the {name} part must hold nodules and other candidates; found {len(rows)} "
                f"candidates of {len(set(exams[rows].tolist()))} patients, {ones} of them nodules, "
                f"in a split of {patients} patients, {bearing} of them with a nodule. "
                "Each part needs one at least: change val_fraction, take another split_seed, or "
                "add patients with nodules."
            )
    unseen = sorted({*site[inside].tolist()} - {*site[split.val].tolist()})
    if unseen:
        _log.warning("the validation part has no patient of %s: too few to choose from", unseen)
    return split


def require_each_site(table: pd.DataFrame, split: Split, *, val_fraction: float) -> None:
    """Refuse a split whose validation lacks nodules or other candidates of a site.

    Args:
        table: As in :func:`split_candidates`.
        split: Of its rows.
        val_fraction: Of the split, for the message.

    Raises:
        ValueError: Where nothing can be said of a site.
    """
    there = table.iloc[np.concatenate([split.train, split.val])]
    patients = there[there["y"] == 1].groupby("site")["patient"].nunique()
    kinds = table.iloc[split.val].groupby("site")["y"].nunique()
    bad = [site for site in sorted(set(there["site"])) if kinds.get(site, 0) < 2]
    if bad:
        found = ", ".join(f"{patients.get(site, 0)} at {site}" for site in bad)
        raise ValueError(
            f"the validation part must hold nodules and other candidates of each site, and of "
            f"{', '.join(bad)} it does not: there are too few patients with a nodule, {found}. "
            f"With val_fraction={val_fraction:g} a site needs {math.ceil(1 / val_fraction)} at "
            "least: add patients, leave the site out, or take a larger val_fraction."
        )


def watched(
    rows: splits.Rows, y: NDArray[np.int64], *, most: int | None, split_seed: int
) -> splits.Rows:
    """Return the validation rows that are looked at: all positives, ``most`` negatives."""
    negative = rows[y[rows] == 0]
    if most is None or len(negative) <= most:
        return rows
    kept = keyed.generator(split_seed, "watched").permutation(negative)[:most]
    return np.sort(np.concatenate([rows[y[rows] == 1], kept]))
