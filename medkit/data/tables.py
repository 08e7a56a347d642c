"""Tables of encounters: read, checked column by column, kept as arrays.

Every complaint says what must be, what was found and what to do, and names rows by their number,
never by the patient's id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.data import columns
from medkit.data.contract import repair
from medkit.data.contract.agreement import agreed_features
from medkit.data.contract.breaches import Broken
from medkit.data.contract.cells import Code, as_list
from medkit.data.contract.schema import Contract
from medkit.data.parquet import open_table
from medkit.data.table_files import load_table, require_columns, require_unique

__all__ = ["Code", "Table", "TableSpec", "as_list", "load_table", "read_table"]


@dataclass(frozen=True)
class TableSpec:
    """What the columns of a table are.

    Attributes:
        target: Column of the label.
        patient: Column of patient ids; None where each row is another patient.
        site: Column of site names, or None.
        split: Column that says train, val or test, or None.
        ignore: Columns that are no features.
        missing_codes: Column (or "*" for all) -> values that mean missing.
        target_above: Labels above this are 1, the others 0; None: labels are 0 and 1 already.
    """

    target: str
    patient: str | None = "patient_id"
    site: str | None = None
    split: str | None = None
    ignore: tuple[str, ...] = ()
    missing_codes: Mapping[str, Sequence[Code]] = field(default_factory=dict)
    target_above: float | None = None

    def __post_init__(self) -> None:
        if self.target_above is not None and not isfinite(self.target_above):
            raise ValueError(
                f"target_above must be a finite number or None, got {self.target_above}. Labels "
                "above it count as 1."
            )

    @classmethod
    def of(cls, contract: Contract) -> TableSpec:
        """Take the roles from a contract.

        Raises:
            ValueError: When the contract names no target.
        """
        if contract.target is None:
            raise ValueError(
                "a table to learn from must have a target, and the contract names none. "
                "Add 'target: COLUMN' to it."
            )
        roles = (contract.target, contract.patient, contract.site, contract.split)
        return cls(*roles, target_above=contract.target_above)

    @property
    def named(self) -> list[str]:
        """Columns with a role of their own."""
        roles = (self.target, self.patient, self.site, self.split)
        return [name for name in roles if name is not None]

    def codes(self, name: str) -> list[Code]:
        """Return the values that mean missing in a column."""
        return [code for at in ("*", name) for code in as_list(self.missing_codes.get(at, ()))]


@dataclass(frozen=True)
class Table:
    """A checked table as arrays, one entry per row.

    Attributes:
        features: Names of the feature columns, in the order of ``values``.
        values: ``(N, F)`` float32, NaN where missing or coded as missing.
        y: ``(N,)`` int64 in {0, 1}; -1 everywhere where the table has no target.
        patient: ``(N,)`` ids as text.
        site: ``(N,)`` site names; empty text where the table has no site column.
        split: ``(N,)`` as in the split column, or None.
        broken: What a contract found and did, by column and site.
    """

    features: tuple[str, ...]
    values: NDArray[np.float32]
    y: NDArray[np.int64]
    patient: NDArray[np.str_]
    site: NDArray[np.str_]
    split: NDArray[np.str_] | None
    broken: tuple[Broken, ...] = ()


def read_table(
    source: str | Path | pd.DataFrame,
    spec: TableSpec,
    *,
    features: Sequence[str] | None = None,
    contract: Contract | None = None,
) -> Table:
    """Read a table and check it.

    Args:
        source: A CSV or Parquet file, or a DataFrame.
        spec: What the columns are.
        features: Take exactly these columns as features, and do without the target, patients and
            sites where the table has none (for new rows). None: all columns that have no role and
            are not ignored.
        contract: What the columns must be: the features are its columns, repaired by it, with
            what was done in ``Table.broken``. Its roles must be those of ``spec``
            (:meth:`TableSpec.of` takes them from it), and codes belong in it alone.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: For anything in the table that is not as it must be.
    """
    texts = [name for name in (spec.patient, spec.site, spec.split) if name is not None]
    where = "the table" if isinstance(source, pd.DataFrame) else str(source)
    frame: Any  # of a Parquet file, its columns one by one
    frame = source if isinstance(source, pd.DataFrame) else open_table(source, texts)
    _require_rows_and_names(frame, where)
    new = features is not None
    coded = [name for name in spec.missing_codes if name != "*"]
    require_columns(frame, _needed(spec, features, contract, coded), where)
    broken: tuple[Broken, ...] = ()
    if contract is not None:
        features = agreed_features(contract, spec, features, where)
        values, broken = _repaired(contract, frame, features, spec.ignore, new=new)
    else:
        if features is None:
            features = [c for c in frame.columns if c not in spec.named and c not in spec.ignore]
        _require_patients_named(frame, spec, features, where)
        values = np.empty((len(frame), len(features)), np.float32, order="F")
        for index, name in enumerate(features):
            values[:, index] = columns.numbers(frame[name], spec.codes(name), where)
    require_features(features, spec.named, where)
    empty = np.full(len(frame), "")

    def text(name: str | None) -> NDArray[np.str_] | None:
        return columns.texts(frame[name], where) if name is not None and name in frame else None

    patient, site = text(spec.patient), text(spec.site)
    y = np.full(len(frame), -1)
    if not new or spec.target in frame:
        y = columns.labels(frame[spec.target], where, above=spec.target_above, new=new)
    return Table(
        features=tuple(features),
        values=values,
        y=y,
        patient=_numbered(len(frame)) if patient is None else patient,
        site=empty if site is None else site,
        split=None if new else text(spec.split),
        broken=broken,
    )


def require_features(features: Sequence[str], roles: Sequence[str], where: str) -> None:
    """Refuse a table of roles alone."""
    if not features:
        raise ValueError(
            f"{where} must have at least one feature, and none is left beside the roles "
            f"{list(roles)}, ignored columns and what a contract takes out (text, recorded after "
            "the outcome). Name fewer of them."
        )


def _needed(
    spec: TableSpec, features: Sequence[str] | None, contract: Contract | None, coded: list[str]
) -> Sequence[str]:
    if contract is not None:  # which checks its own columns
        return spec.named if features is None else ()
    return features or [*spec.named, *spec.ignore, *coded]


def _repaired(
    contract: Contract,
    frame: pd.DataFrame,
    features: Sequence[str],
    ignore: Sequence[str],
    *,
    new: bool,
) -> tuple[NDArray[np.float32], tuple[Broken, ...]]:
    place = {name: index for index, name in enumerate(features)}
    values = np.empty((len(frame), len(features)), np.float32, order="F")
    broken = [b for b in repair.unused(contract, frame, new=new) if b.column not in ignore]
    for repaired, found in repair.repaired(contract, frame, new=new):
        for name, column in repaired.items():
            if name in place:
                values[:, place[name]] = column
                broken += found
                found = []
    return values, tuple(broken)


def _require_rows_and_names(frame: pd.DataFrame, where: str) -> None:
    require_unique([str(name) for name in frame.columns], where)
    if len(frame) == 0:
        raise ValueError(
            f"{where} must have at least one row below its column names, and it has none. "
            "Was the export cut off, or its filter too narrow?"
        )


def _require_patients_named(
    frame: pd.DataFrame, spec: TableSpec, features: Sequence[str], where: str
) -> None:
    """A patient id among the features is the oldest leak."""
    ids = [name for name in features if name.lower() in {"patient_id", "patientid", "subject_id"}]
    if ids:
        raise ValueError(
            f"{where}: patient ids must not be a feature, and column {ids[0]!r} looks like them. "
            f"Pass patient={ids[0]!r}, or ignore=[{ids[0]!r}]."
        )


def _numbered(rows: int) -> NDArray[np.str_]:
    return np.arange(rows).astype(f"<U{len(str(rows))}")  # numpy would take 21 letters each
