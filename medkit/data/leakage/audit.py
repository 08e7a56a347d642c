"""The audit for leaks: ways in which held-out rows, or the outcome, get into the training.

After Kapoor and Narayanan (2023), as far as a table, its split and what was fitted can show it:

=============================  ====================================================================
check                          what it finds
=============================  ====================================================================
rows in two parts              one row in training and held out
patient ids                    one patient on two sides, ids written in two ways
split column                   rows kept for the test that are trained or validated on
external site                  the outside hospital under two names, or validated on
stored split                   a split that is not the one written down
fitted on training rows        medians and scales (or anything with a digest) that know other rows
sampler                        draws for training that are held-out rows
exact duplicates               one record under two ids in two parts
near duplicates                the same, rounded, jittered or with a value changed
oversampled before the split   a class repeated before rows were split
single feature                 a column that tells the classes apart, or follows the time to the
                               event, by itself
recorded after the outcome     by the contract, or (suspicious) by its name
order and ids                  row order or id that knows the label
label shuffle                  a linear model that predicts labels drawn by a coin
=============================  ====================================================================

It can't see a hidden patient under a new id with new values, columns chosen or imputed on all rows
before the table was written, scanners shared by cases, or what a pretrained net has read.
Checks that rest on chance say "leak" or "suspicious" at p < 1e-5 each, over all columns and pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medkit import keyed
from medkit.data.contract import breaches
from medkit.data.contract.schema import Contract, feature_names
from medkit.data.leakage import chance, fitted
from medkit.data.leakage import split as leak_split
from medkit.data.leakage.duplicates import Copies, duplicates
from medkit.data.leakage.findings import Finding, report, to_ledger, worst_first
from medkit.data.leakage.fitted import split_digests
from medkit.data.leakage.shuffle import label_shuffle, units
from medkit.data.preprocessing import Preprocessing
from medkit.data.splits import PARTS, Split
from medkit.data.tables import Table
from medkit.record.folder import own_run

__all__ = ["Finding", "after_setup", "audit", "report", "split_digests"]

log = logging.getLogger(__name__)

AFTER_SETUP_ROWS = 50_000  # a larger table is audited on that many of its patients' rows


def audit(
    table: Table,
    split: Split,
    preprocessing: Preprocessing | None,
    *,
    sampler_rows: ArrayLike | None = None,
    recorded_after: Sequence[str] = (),
    known: Sequence[str] = (),
    transformers: Mapping[str, str] | None = None,
    stored: Mapping[str, str] | None = None,
    x: NDArray[np.float32] | None = None,
    without: Sequence[str] = (),
    time: ArrayLike | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Look for leaks; nothing is changed, and no global generator is touched.

    Args:
        table: All rows, with labels.
        split: Who is in which part.
        preprocessing: As fitted; None where nothing was.
        sampler_rows: Rows of the table as they are drawn for training; None: each training row.
        recorded_after: Features that the contract says are recorded after the outcome.
        known: Features vouched for: known when the prediction is made, however telling.
        transformers: Name of any other fitted transformer -> ``digest_ids`` of its rows.
        stored: Part -> digest as written down when the split was drawn (:func:`split_digests`).
        x: The table as the net sees it, if it is at hand; else the preprocessing is applied.
        without: Checks that say nothing about this table.
        time: Of the event or of the last look, ``(N,)``, where rows are followed.
        seed: Decides the coins of the label shuffle.

    Returns:
        The findings, worst first. A clean table has notes at most.

    Raises:
        ValueError: When the arguments do not belong together.
    """
    drawn = _require_consistent(table, split, preprocessing, sampler_rows)
    patients = leak_split.normal_codes(table.patient)
    features = [name for name in table.features if name not in known]
    found, copies = duplicates(table, split, patients)
    findings = [
        *leak_split.parts(table, split),
        *leak_split.patient_ids(table, split, patients),
        *fitted.stored_split(table, split, stored or {}),
        *fitted.fitted(table, split, preprocessing, transformers or {}),
        *fitted.sampler(split, drawn),
        *found,
        *fitted.recorded_after(features, recorded_after),
        *chance.single_features(table, split.train, known),
        *chance.times(table, split.train, time, known),
        *chance.order_and_ids(table, split, patients),
        *_shuffle(table, split, preprocessing, drawn, patients, copies, x, seed),
    ]
    return worst_first([finding for finding in findings if finding.check not in without])


def after_setup(
    table: Table,
    split: Split,
    preprocessing: Preprocessing | None,
    *,
    contract: Contract | None = None,
    sampler_rows: ArrayLike | None = None,
    x: NDArray[np.float32] | None = None,
    without: Sequence[str] = (),
    time: ArrayLike | None = None,
) -> list[Finding]:
    """Audit what a DataModule has set up: findings go to the log, and to the ledger of a run.

    Notes do not. What is suspicious is logged once a process, not for each fold again.

    Digests and draws are checked for all rows. Of a table with more than ``AFTER_SETUP_ROWS`` rows
    about as many, whole patients at random, are looked at for the rest: telling columns are found
    all the same, a few copies among millions by :func:`audit` alone.

    Args:
        table: All rows, with labels.
        split: Who is in which part.
        preprocessing: As fitted.
        contract: Says what is recorded before the outcome (those columns are vouched for) and
            what after it.
        sampler_rows: As for :func:`audit`.
        x: The table as the net sees it.
        without: As for :func:`audit`.
        time: As for :func:`audit`.

    Returns:
        The findings, as :func:`audit` does.
    """
    after, known = recorded(contract)
    if len(table.y) <= AFTER_SETUP_ROWS:
        findings = audit(
            table,
            split,
            preprocessing,
            sampler_rows=sampler_rows,
            recorded_after=after,
            known=known,
            x=x,
            without=without,
            time=time,
        )
    else:
        drawn = _require_consistent(table, split, preprocessing, sampler_rows)
        small, part = _sample(table, split)
        findings = worst_first(
            [
                *fitted.fitted(table, split, preprocessing, {}),
                *fitted.sampler(split, drawn),
                *chance.times(table, split.train, time, known),
                *audit(small, part, None, recorded_after=after, known=known, without=without),
            ]
        )
    for finding in findings:
        if finding.severity == "leak":
            log.warning("%s", finding)
        elif finding.severity == "suspicious":
            breaches.warn_once(str(finding))
    write_down(table, findings)
    return findings


def recorded(contract: Contract | None) -> tuple[list[str], list[str]]:
    """Return the columns recorded after the outcome, and the features recorded before it."""
    if contract is None:
        return [], []
    before = (pair for pair in contract.columns.items() if pair[1].recorded == "before")
    known = [name for column, rule in before for name in feature_names(column, rule)]
    return contract.recorded_after, known


def _sample(table: Table, split: Split) -> tuple[Table, Split]:
    """Take whole patients, both ways of writing an id included."""
    draw = keyed.generator(0, "audit", "patients")
    n = len(table.y)
    code = leak_split.normal_codes(table.patient)
    patients = int(code.max()) + 1
    take = draw.random(patients) < AFTER_SETUP_ROWS / n
    rows = np.flatnonzero(take[code])
    new = np.full(n, -1)
    new[rows] = np.arange(len(rows))
    parts = (new[split.part(part)] for part in PARTS)
    small = replace(
        table,
        values=table.values[rows],
        y=table.y[rows],
        patient=table.patient[rows],
        site=table.site[rows],
        split=None if table.split is None else table.split[rows],
    )
    return small, Split(*(part[part >= 0] for part in parts))


def _shuffle(
    table: Table,
    split: Split,
    preprocessing: Preprocessing | None,
    drawn: NDArray[np.int64],
    patients: NDArray[np.int64],
    copies: Copies,
    x: NDArray[np.float32] | None,
    seed: int,
) -> list[Finding]:
    held = np.concatenate([split.val, split.test])
    unit = units(patients, copies.group, copies.pairs)
    if x is None:
        x = _filled(table, split) if preprocessing is None else preprocessing.apply(table.values)
    return label_shuffle(x, unit, drawn, held, seed=seed)


def _filled(table: Table, split: Split) -> NDArray[np.float32]:
    """Fill and scale by the training rows, for a model of the audit's own."""
    x = np.zeros(table.values.shape, np.float32)
    for index in range(len(table.features)):
        column = table.values[:, index]
        there = column[split.train][~np.isnan(column[split.train])].astype(np.float64)
        if len(there) and there.std() > 0:
            scaled = (column - np.median(there)) / there.std()
            x[:, index] = np.clip(np.nan_to_num(scaled), -4, 4)
    return x


def write_down(table: Table, findings: Sequence[Finding]) -> None:
    """Put breaches of the contract and findings (notes aside) into the run of this process."""
    run = own_run()
    if run is not None:
        breaches.to_ledger(table.broken, run.ledger)
        to_ledger(findings, run.ledger)


def _require_consistent(
    table: Table, split: Split, preprocessing: Preprocessing | None, sampler_rows: ArrayLike | None
) -> NDArray[np.int64]:
    """Return the rows drawn for training, or say what does not belong together."""
    n = len(table.y)
    drawn = split.train if sampler_rows is None else np.asarray(sampler_rows)
    if drawn.ndim != 1 or not (np.issubdtype(drawn.dtype, np.integer) or len(drawn) == 0):
        raise ValueError(
            "sampler_rows must be row numbers of the table, a vector of integers; got "
            f"{drawn.dtype} of shape {drawn.shape}. Pass the rows drawn, not weights or a mask."
        )
    for name, rows in [*((part, split.part(part)) for part in PARTS), ("sampler_rows", drawn)]:
        if len(rows) and (rows.min() < 0 or rows.max() >= n):
            raise ValueError(
                f"{name} must hold row numbers from 0 to {n - 1}, found {rows.min()} to "
                f"{rows.max()}. Pass the table that the split was drawn from."
            )
    if len(split.train) == 0 or not np.isin(table.y, (0, 1)).all():
        raise ValueError(
            f"an audit needs training rows and a label 0 or 1 in each row; found "
            f"{len(split.train)} training rows and labels {np.unique(table.y)[:4].tolist()}. Leave "
            "out rows without a label."
        )
    if preprocessing is not None and tuple(preprocessing.features) != tuple(table.features):
        raise ValueError(
            f"the preprocessing must be that of this table; it knows {len(preprocessing.features)} "
            f"columns and the table has {len(table.features)}, or in another order. Pass the one "
            "fitted on this table's training rows."
        )
    return drawn.astype(np.int64)
