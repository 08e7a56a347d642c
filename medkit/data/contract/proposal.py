"""A data contract proposed from the data, every line of it with its evidence.

A proposal is for a person to edit: what it can't know (which levels are labels, what was recorded
when) it leaves open, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.data.contract import suspicion, units
from medkit.data.contract.cells import Code, cell_key, comma_hint, parse, plain, with_comma
from medkit.data.contract.schema import Column, Contract
from medkit.data.contract.site_rows import Sites, sites_of
from medkit.data.table_files import load_table, require_unique
from medkit.record.files import sha256_file, write_text

Floats = NDArray[np.float64]

_ROLE_NAMES = {
    "target": ["died", "death", "in hospital death", "mortality", "outcome", "target", "label"],
    "patient": ["patient id", "patientid", "subject id", "patient", "subject", "recordid", "pid"],
    "site": ["site", "hospital", "hospital id", "center", "centre", "institution", "clinic"],
    "split": ["split", "fold", "part", "partition"],
}
_ID_WORDS = {"id", "mrn", "uid", "uuid", "guid", "recordid", "patientid", "accession", "ssn"}
_KEYS = {
    "a column, and what they mean": "medkit.data.contract.Column",
    "the whole": "medkit.data.contract.Contract",
}
_MANY_LEVELS = 20
_FEW_LEVELS = 10
_DATE = re.compile(r"(\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{2,4})([T ].*)?")
_ENOUGH_FOR_IDS = 50  # rows; fewer may all differ by chance


def audit_csv(
    path: str | Path,
    out: str | Path | None = None,
    *,
    target: str | None = None,
    patient: str | None = None,
    site: str | None = None,
    split: str | None = None,
) -> str:
    """Return the contract proposed for a CSV or Parquet file, as YAML with comments.

    Args:
        path: The table.
        out: Write it there too.
        target: Column of the label; None: guessed by name. So for the other roles.
        patient: Column of patient ids.
        site: Column of sites.
        split: Column that says train, val or test.

    Raises:
        FileNotFoundError: When there is no such table.
        ValueError: When the table can't be read, or ``out`` is there already.
    """
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise FileNotFoundError(
            f"a proposed contract must go into a folder that exists, and {Path(out).parent} does "
            "not. Make it, or name another."
        )
    if out is not None and Path(out).exists():
        raise ValueError(
            f"a proposed contract must not replace one that somebody may have edited, and {out} is "
            "there. Name another file, or remove that one."
        )
    text = propose(path, target=target, patient=patient, site=site, split=split).to_yaml()
    if out is not None:
        write_text(Path(out), text)
    return text


def propose(
    source: str | Path | pd.DataFrame,
    *,
    target: str | None = None,
    patient: str | None = None,
    site: str | None = None,
    split: str | None = None,
) -> Contract:
    """Propose a contract; the evidence is in its ``remarks`` and in the comments of its YAML.

    Args:
        source: A CSV or Parquet file, or a table.
        target: Column of the label; None: guessed by name. So for the other roles.
        patient: Column of patient ids.
        site: Column of sites.
        split: Column that says train, val or test.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the table can't be read, has no such column, or has blank sites.
    """
    frame = source if isinstance(source, pd.DataFrame) else load_table(source)
    where = "the table" if isinstance(source, pd.DataFrame) else str(source)
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    require_unique(list(frame.columns), where)
    if frame.empty:
        raise ValueError(
            f"{where} must have at least one row and one column to propose a contract from; it has "
            f"{frame.shape[0]} and {frame.shape[1]}. Was the export cut off?"
        )
    given = {"target": target, "patient": patient, "site": site, "split": split}
    roles, head = _roles(frame, given)
    sites = sites_of(frame, roles["site"])
    y = _outcome(frame, roles["target"], head)
    columns: dict[str, Column] = {}
    remarks: dict[str, list[str]] = {"": head}
    for name in frame.columns:
        if name not in roles.values():
            columns[name], remarks[name] = _column(frame[name], name, sites, y)
    if not isinstance(source, pd.DataFrame):
        where = f"{Path(source).name} (sha256 {sha256_file(source)[:12]})"
        head.insert(0, f"Proposed from {where}: read each line, correct it, keep it.")
    head += [f"Keys of {of}: python -m pydoc {key}" for of, key in _KEYS.items()]
    named = sorted(sites.names) if roles["site"] is not None else []
    above = 0.0 if y is not None and np.nanmax(y) > 1 else None
    return Contract(
        columns,
        target=roles["target"],
        patient=roles["patient"],
        site=roles["site"],
        split=roles["split"],
        target_above=above,
        sites=named,
        remarks=remarks,
    )


def _roles(
    frame: pd.DataFrame, given: Mapping[str, str | None]
) -> tuple[dict[str, str | None], list[str]]:
    found = [str(name) for name in frame.columns]
    roles: dict[str, str | None] = {}
    head = []
    for role, name in given.items():
        if name is not None and name not in found:
            raise ValueError(
                f"the {role} must be a column of the table, and {name!r} is not among {found}. "
                "Correct its name."
            )
        if name is None:
            plain_names = {" ".join(re.findall(r"[a-z0-9]+", c.lower())): c for c in found}
            name = next((plain_names[n] for n in _ROLE_NAMES[role] if n in plain_names), None)
            if name is not None and name not in roles.values():
                head.append(f"{role}: {name}, guessed by its name.")
            elif role == "target":
                head.append("target: none guessed; name it.")
            elif role == "patient":
                head.append("patient: none guessed: each row counts as another patient.")
        roles[role] = None if name in roles.values() else name
    return roles, head


def _outcome(frame: pd.DataFrame, target: str | None, head: list[str]) -> Floats | None:
    if target is None:
        return None
    y, _ = parse(frame[target])
    there = set(np.unique(y[~np.isnan(y)]).tolist())
    if not there:
        head.append(f"target: {target} holds no number; it must be 0 or 1 in each row.")
        return None
    if not there <= {0.0, 1.0}:
        said = ", ".join(f"{value:g}" for value in sorted(there)[:6])
        head.append(f"target: {target} holds {said}; taken as 1 above 0: correct target_above.")
    return y


def _column(
    cells: pd.Series, name: str, sites: Sites, y: Floats | None
) -> tuple[Column, list[str]]:
    """Propose one column and say why."""
    values, text = parse(cells)
    infinite = np.isinf(values)
    values = np.where(infinite, np.nan, values)
    filled = text | ~np.isnan(values)
    tokens = plain(cells)[text].astype(str)
    coded = sorted(t for t in set(tokens) if t.lower() in suspicion.TEXT_CODES)
    others = sorted(set(tokens) - set(coded))
    if not filled.any():
        return Column("text"), ["empty or infinite in every row: not a feature"]
    try:
        every = cells[filled].nunique() == filled.sum() >= _ENOUGH_FOR_IDS
    except TypeError:  # lists can't be counted
        return Column("text"), ["its cells are lists or the like: not a feature"]
    words = any(not with_comma(text) for text in others)
    every = every and (words if others else _runs_on(values[filled]))
    parts = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    if every or set(parts) & _ID_WORDS:
        why = "another value in each row" if every else "its name"
        return Column("text"), [f"an id among the features? ({why}): not a feature"]
    remarks = []
    if infinite.any():
        remarks.append(f"{int(infinite.sum())} cells are infinite: set missing when it is applied")
    if coded:
        remarks.append(f"{int(tokens.isin(coded).sum())} cells are text for missing: {coded}")
    if others:
        column, said = _words(cells, others, coded)
        known = np.where(filled, 1.0, np.nan)  # whether there is anything may tell the outcome
    else:
        column, said, known = _numbers(name, values, sites, coded)
    column, late = _after(column, name, known, y)
    return column, [*remarks, *said, *late]


def _runs_on(values: Floats) -> bool:
    """Say whether different numbers look counted out rather than measured."""
    if not (values % 1 == 0).all():
        return False
    step = np.diff(values)
    ordered = bool((step > 0).all() or (step < 0).all())
    return ordered or float(np.ptp(values)) < 100 * len(values)


def _numbers(
    name: str, values: Floats, sites: Sites, coded: list[str]
) -> tuple[Column, list[str], Floats]:
    """Propose for a column of numbers; the last returned are its values without codes."""
    by_site = {s: values[rows][~np.isnan(values[rows])] for s, rows in sites}
    codes = suspicion.codes(by_site)
    missing: list[Code] = list(coded)
    missing_at: dict[str, list[Code]] = {}
    remarks = []
    decoded = values.copy()
    for number, evidence in codes.items():
        code = int(number) if number.is_integer() else number
        remarks += [f"{s + ': ' if s else ''}{said}" for s, said in sorted(evidence.items())]
        if set(evidence) == set(by_site):
            missing.append(code)
        else:
            for s in sorted(evidence):
                missing_at.setdefault(s, []).append(code)
        for s, rows in sites:
            if s in evidence:
                decoded[rows] = np.where(decoded[rows] == number, np.nan, decoded[rows])
    there = {s: decoded[rows][~np.isnan(decoded[rows])] for s, rows in sites}
    for s, rows in sites:
        if s and not len(there[s]):
            remarks.append(f"{s}: nothing measured in {len(values[rows])} rows")
    levels = sorted(set(np.unique(decoded[~np.isnan(decoded)]).tolist()))
    if set(levels) <= {0.0, 1.0}:
        return Column("binary", missing=missing, missing_at=missing_at), remarks, decoded
    if len(levels) <= _FEW_LEVELS and all(level.is_integer() for level in levels):
        said = ", ".join(f"{level:g}" for level in levels)
        remarks.append(f"{len(levels)} values ({said}): labels rather than amounts? Then write")
        remarks.append(f"kind: category and levels: [{said}] in place of low and high")
    column, why = _amounts(name, there, missing, missing_at)
    return column, [*remarks, *why], decoded


def _words(
    cells: pd.Series, others: Sequence[str], missing: Sequence[Code]
) -> tuple[Column, list[str]]:
    """Propose for a column with words in it: labels, or text."""
    there = plain(cells).dropna()
    keys = sorted({cell_key(cell) for cell in there} - {cell_key(code) for code in missing})
    numbers = [text for text in others if with_comma(text)]
    strange = int(there.astype(str).isin({*others} - {*numbers}).sum())
    if 2 * strange < len(there):
        text = f"numbers, and {len(others)} different texts that are none{comma_hint(numbers)}: "
        return Column("number", missing=missing), [text + "correct them, or add them to missing"]
    if all(map(_DATE.fullmatch, others)):
        said = "dates: not a feature. The time between two of them is one, as a number, if it is"
        return Column("text"), [said, "known when the prediction is made"]
    if 2 <= len(keys) <= min(_MANY_LEVELS, len(there) // 2):
        kind = "binary" if len(keys) == 2 else "category"
        said = "the first is 0, the second 1" if kind == "binary" else "one 0/1 column each"
        column = Column(kind, levels=keys, missing=missing)
        return column, [f"{len(keys)} different words: {said}"]
    return Column("text"), [f"{len(keys)} different texts: not a feature"]


def _amounts(
    name: str,
    by_site: Mapping[str, Floats],
    missing: Sequence[Code],
    missing_at: Mapping[str, Sequence[Code]],
) -> tuple[Column, list[str]]:
    unit, units_at, evidence = suspicion.unit_of(name, by_site)
    remarks = [f"{s + ': ' if s else ''}{said}" for s, said in evidence.items()]
    analyte = units.analyte_of(name)
    same = [
        units.convert(v, units_at[s], unit, analyte) if s in units_at else v
        for s, v in by_site.items()
    ]
    together = np.concatenate(same)
    low, high = suspicion.limits(together) or (None, None)
    if unit == "%" and len(together) and together.max() <= 100 and high is not None:
        high = min(high, 100.0)
    most = units.most(analyte, unit) if analyte is not None and unit else np.inf
    if high is not None and np.median(together) < most:
        high = min(high, most)
    outside = 0 if low is None else int(((together < low) | (together > high)).sum())
    if outside:
        worst = together[(together < low) | (together > high)]
        said = f"{worst.min():g}" if outside == 1 else f"{worst.min():g} to {worst.max():g}"
        remarks.append(f"{outside} of {len(together)} values are outside low and high: {said}")
    column = Column(
        "number",
        unit=unit,
        units_at=units_at,
        missing=missing,
        missing_at=missing_at,
        low=low,
        high=high,
    )
    return column, remarks


def _after(column: Column, name: str, values: Floats, y: Floats | None) -> tuple[Column, list[str]]:
    word = suspicion.after_by_name(name)
    why = f"its name says {word!r}" if word else ""
    if not why and y is not None:
        why = suspicion.knows_outcome(values, np.where(np.isnan(y), np.nan, y > 0))
    if not why:
        return column, []
    rule = Column(**{**column.mapping(), "recorded": "after"})
    return rule, [f"known only after the outcome? {why}: not a feature while recorded: after"]
