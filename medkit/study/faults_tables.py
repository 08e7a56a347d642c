"""Faults that change the truth: a table as it might be exported after something has gone wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medkit import keyed

FLIPPED, EMPTIED, SHIFT, DOUBLED = 0.1, 0.5, 0.5, 0.1
_CODES = (-1, 0, 999)  # usual for "not measured": an instrument's shift leaves them alone
_LEVELS = 10  # a column with fewer values is no measurement


def change(
    table: pd.DataFrame, fault: str, *, seed: int, target: str, patient: str = ""
) -> pd.DataFrame:
    """Return the table with a fault in it; the one given stays as it is.

    ``label_flips``: a tenth of the labels is the other one. ``missingness_jump``: half of the
    cells of three columns are blank. ``intensity_shift``: the values of two columns are larger by
    half of their interquartile range. ``duplicated_patients``: a tenth of the patients is there
    twice, under new ids (without ids: of the rows).

    Args:
        table: One row per encounter.
        fault: One of the four.
        seed: Draws rows and columns.
        target: Column of the label.
        patient: Column of patient ids; "" where there is none.

    Raises:
        ValueError: For another fault, or a table that can't have this one.
    """
    draw = keyed.generator(seed, "fault", fault)
    changed = table.copy()
    measured = [
        name
        for name in table.select_dtypes("number").columns
        if name not in (target, patient) and table[name].nunique() >= _LEVELS
    ]
    if fault == "label_flips":
        low, high = _labels(table, target)
        others = table[target].map({low: high, high: low})
        changed[target] = table[target].mask(draw.random(len(table)) < FLIPPED, others)
    elif fault == "missingness_jump":
        for name in _some(measured, 3, draw):
            changed.loc[draw.random(len(table)) < EMPTIED, name] = np.nan
    elif fault == "intensity_shift":
        for name in _some(measured, 2, draw):
            values = table[name].where(~table[name].isin(_CODES))
            more = SHIFT * float(values.quantile(0.75) - values.quantile(0.25))
            changed[name] = table[name].where(values.isna(), table[name] + more)
    elif fault == "duplicated_patients":
        owners = table[patient].to_numpy() if patient else np.arange(len(table))
        known = pd.unique(owners)
        twice = draw.choice(known, max(1, round(DOUBLED * len(known))), replace=False)
        copies = table[np.isin(owners, twice)].copy()
        if patient:
            copies[patient] = copies[patient].astype(str) + "-2"
        changed = pd.concat([table, copies]).iloc[draw.permutation(len(table) + len(copies))]
    else:
        raise ValueError(
            "a table can have label_flips, missingness_jump, intensity_shift or "
            f"duplicated_patients, got {fault!r}. Other faults happen while a net is trained."
        )
    return changed


def _labels(table: pd.DataFrame, target: str) -> tuple[object, object]:
    found = sorted(table[target].dropna().unique())
    if len(found) != 2:
        raise ValueError(
            f"labels can be flipped where there are two, and {target!r} has {found[:4]}. "
            "Leave label_flips out for grades and times."
        )
    return found[0], found[1]


def _some(names: list[str], count: int, draw: np.random.Generator) -> list[str]:
    if not names:
        raise ValueError(
            f"a column of measurements must have at least {_LEVELS} values, and no column of this "
            "table does. Leave missingness_jump and intensity_shift out."
        )
    return [str(name) for name in draw.choice(names, min(count, len(names)), replace=False)]
