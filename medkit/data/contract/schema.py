"""The data contract: what each column of a table must be, at each site, in words a person edits.

Kinds, units with conversion, values that mean missing, plausible ranges, and whether a column was
recorded before the outcome or after it. `medkit audit CSV` proposes one from the data
(:mod:`medkit.data.contract.proposal`); :meth:`Contract.apply` repairs a table by it and counts
every cell that broke it (:mod:`medkit.data.contract.repair`).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medkit.data.contract import repair, units
from medkit.data.contract.breaches import Broken
from medkit.data.contract.cells import Code, as_list, cell_key
from medkit.data.contract.contradictions import contradictions
from medkit.record.files import sha256_text

VERSION = 1
ROLES = ("target", "patient", "site", "split")


@dataclass(frozen=True)
class Column:
    """What the cells of one column must be.

    Attributes:
        kind: "number"; "binary" (0/1, or two ``levels``); "category" (becomes a 0/1 column per
            level); "text" (no feature).
        unit: Unit of the feature and of ``low`` and ``high``; empty: nothing is converted.
        units_at: Site -> unit its cells are in, where that is another one.
        analyte: What is measured, for mg/dL to mmol/L; empty: guessed from the column's name.
        missing: Values that mean missing, at every site.
        missing_at: Site -> values that mean missing there.
        low: Smallest plausible value [unit].
        high: Largest plausible value [unit].
        outside: What becomes of a value outside: "missing", or "clip" to the limit.
        levels: Values of a category; the two of a binary column, the one for 0 first.
        recorded: "before" or "after" the outcome was known; a column recorded "after" is no
            feature. None: nobody has said.
        meaning: One line for people.
    """

    kind: str = "number"
    unit: str = ""
    units_at: Mapping[str, str] = field(default_factory=dict)
    analyte: str = ""
    missing: Sequence[Code] = ()
    missing_at: Mapping[str, Sequence[Code]] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    outside: str = "missing"
    levels: Sequence[Code] = ()
    recorded: str | None = None
    meaning: str = ""

    def __post_init__(self) -> None:
        put = object.__setattr__  # frozen, but lists and single codes are welcome
        put(self, "missing", tuple(as_list(self.missing)))
        put(self, "levels", tuple(as_list(self.levels)))
        put(self, "units_at", dict(self.units_at))
        put(self, "missing_at", {s: tuple(as_list(c)) for s, c in self.missing_at.items()})

    @property
    def is_feature(self) -> bool:
        """Say whether the column may become a feature."""
        return self.kind != "text" and self.recorded != "after"

    def codes_at(self, site: str) -> tuple[Code, ...]:
        """Return the values that mean missing at a site."""
        return (*self.missing, *self.missing_at.get(site, ()))

    def mapping(self) -> dict[str, Any]:
        """Return what differs from the defaults, in plain types; the kind always."""
        plain: dict[str, Any] = {"kind": self.kind}
        for f in dataclasses.fields(self)[1:]:
            value = getattr(self, f.name)
            if isinstance(value, dict):
                value = {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}
            if isinstance(value, tuple):
                value = list(value)
            zero = value is not None and value == 0 and f.name in {"low", "high"}
            if (value or zero) and (f.name, value) != ("outside", "missing"):
                plain[f.name] = value
        return plain


@dataclass(frozen=True)
class Contract:
    """What a table must be.

    Attributes:
        columns: Column name -> what it must be; roles are not among them.
        target: Column of the label, or None.
        patient: Column of patient ids; None: each row is another patient.
        site: Column of sites, or None.
        split: Column that says train, val or test, or None.
        target_above: Labels above this are 1, where they are grades.
        sites: The sites that the contract was written for; empty: any.
        tolerance: Where more than this share of a column's filled cells at a site break the
            contract (10 cells at least), it contradicts the data and is refused: more likely a
            wrong unit than so many errors. 1: never.
        version: Of this format.
        remarks: Column (or "" for the whole) -> comments of :meth:`to_yaml`; not read back.
    """

    columns: Mapping[str, Column]
    target: str | None = None
    patient: str | None = None
    site: str | None = None
    split: str | None = None
    target_above: float | None = None
    sites: Sequence[str] = ()
    tolerance: float = 0.5
    version: int = VERSION
    remarks: Mapping[str, Sequence[str]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(as_list(self.sites)))
        for problem in contradictions(self):
            raise ValueError(problem)

    @property
    def roles(self) -> dict[str, str]:
        """Role -> column, for the roles that have one."""
        return {role: name for role in ROLES if (name := getattr(self, role)) is not None}

    @property
    def features(self) -> list[str]:
        """Names of the feature columns of a repaired table: a category is one per level."""
        return [
            name
            for column, rule in self.columns.items()
            if rule.is_feature
            for name in feature_names(column, rule)
        ]

    @property
    def recorded_after(self) -> list[str]:
        """Columns that were recorded after the outcome, for the audit of leaks."""
        return [name for name, rule in self.columns.items() if rule.recorded == "after"]

    @property
    def digest(self) -> str:
        """SHA-256 of the contract; remarks don't count."""
        return sha256_text(dataclasses.replace(self, remarks={}).to_yaml())

    def analyte(self, column: str) -> str | None:
        """Return what a column measures: as the contract says, else guessed from its name."""
        return self.columns[column].analyte or units.analyte_of(column)

    def apply(
        self, frame: pd.DataFrame, site: str | None = None, *, new: bool = False
    ) -> tuple[pd.DataFrame, list[Broken]]:
        """Repair a table: codes to NaN, units converted, values out of range dealt with.

        Args:
            frame: The table as it was read.
            site: All rows are of this site; None: the contract's site column says whose.
            new: Rows to predict: they may do without target and split, and a site where most
                cells break the contract is listed rather than refused.

        Returns:
            Role columns as they were and the features, float64; and what was done to how many
            cells, by column and site. Rows are neither dropped nor moved.

        Raises:
            ValueError: Where table and contract contradict each other.
        """
        return repair.apply(self, frame, site, new=new)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain types, for a checkpoint or JSON."""
        head = {"version": self.version, **self.roles}
        for name in ("target_above", "tolerance"):
            if getattr(self, name) != getattr(type(self), name):
                head[name] = getattr(self, name)
        if self.sites:
            head["sites"] = list(self.sites)
        return {**head, "columns": {n: rule.mapping() for n, rule in self.columns.items()}}

    def to_yaml(self) -> str:
        """Return the contract as YAML, the remarks as comments."""
        plain = self.to_mapping()
        columns = plain.pop("columns")
        lines = [f"# {remark}" for remark in self.remarks.get("", ())]
        lines += [f"{name}: {_flow(value)}" for name, value in plain.items()]
        lines += ["columns:"] if columns else ["columns: {}"]
        for name, rule in columns.items():
            lines += [f"  {_flow(name)}:"]
            lines += [f"    # {remark}" for remark in self.remarks.get(name, ())]
            lines += [f"    {key}: {_flow(value)}" for key, value in rule.items()]
        return "\n".join([*lines, ""])

    @classmethod
    def from_mapping(cls, plain: Mapping[str, Any], where: str = "the contract") -> Contract:
        """Build a contract from plain types.

        Raises:
            ValueError: For an unknown key, a newer version, a contradiction.
        """
        _require_keys(plain, cls, where, without={"remarks"})
        if plain.get("version", VERSION) != VERSION:
            raise ValueError(
                f"{where} must be of version {VERSION}, which this medkit reads, and is of version "
                f"{plain['version']!r}. Use the medkit that wrote it, or propose one anew with "
                "`medkit audit`."
            )
        columns = {}
        rules = plain.get("columns") or {}
        if not isinstance(rules, Mapping):
            raise ValueError(
                f"{where}: columns must be names and what they are, got {type(rules).__name__}. "
                "Write 'age: {kind: number}' below columns."
            )
        for name, rule in rules.items():
            inside = f"{where}, column {name!r}"
            if not isinstance(rule, Mapping):
                raise ValueError(
                    f"{inside} must be keys and values such as 'kind: number', got {rule!r}. "
                    f"Known keys: {[f.name for f in dataclasses.fields(Column)]}."
                )
            _require_keys(rule, Column, inside)
            for key in ("units_at", "missing_at"):
                if not isinstance(rule.get(key) or {}, Mapping):
                    raise ValueError(
                        f"{inside}: {key} must say what holds at which site, got {rule[key]!r}. "
                        f"Write '{key}: {{SITE: ...}}'."
                    )
            columns[name] = Column(**{k: v for k, v in rule.items() if v is not None})
        given = {key: value for key, value in plain.items() if value is not None}
        return cls(**{**given, "columns": columns})

    @classmethod
    def from_yaml(cls, path: str | Path) -> Contract:
        """Read a contract from a YAML file.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When it is no YAML, or no contract.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"a contract must be a YAML file, and {path} is none; the working directory is "
                f"{Path.cwd()}. `medkit audit CSV` proposes one."
            )
        return cls.from_text(path.read_text(encoding="utf-8"), str(path))

    @classmethod
    def from_text(cls, text: str, where: str = "the contract") -> Contract:
        """Read a contract from YAML text."""
        try:
            plain = yaml.load(text, Loader=_EachKeyOnce)
        except yaml.YAMLError as error:
            raise ValueError(
                f"{where} must be YAML; found: {' '.join(str(error).split())}. Correct that line; "
                "text with a colon or a hash in it needs quotes."
            ) from error
        if not isinstance(plain, Mapping):
            raise ValueError(
                f"{where} must be keys and values that begin with 'version: {VERSION}', got "
                f"{type(plain).__name__}. `medkit audit CSV` proposes one."
            )
        return cls.from_mapping(plain, where)

    @classmethod
    def of(cls, source: str | Path | Mapping[str, Any] | Contract) -> Contract:
        """Return the contract itself, or read it from a file or plain types."""
        if isinstance(source, Contract):
            return source
        if not isinstance(source, str | Path | Mapping):
            raise ValueError(
                "a contract must be a YAML file, plain types or a Contract, got "
                f"{type(source).__name__}. `medkit audit CSV` proposes one."
            )
        return cls.from_mapping(source) if isinstance(source, Mapping) else cls.from_yaml(source)


class _EachKeyOnce(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; YAML's own rule takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for place, _ in node.value:
            key = self.construct_object(place, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands there twice", place.start_mark
                )
            seen.append(key)
        return super().construct_mapping(node, deep)


def feature_names(column: str, rule: Column) -> list[str]:
    """Return the names of the features that a column becomes."""
    if rule.kind != "category":
        return [column]
    return [f"{column}={cell_key(level)}" for level in rule.levels]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, width=1_000_000, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _require_keys(
    plain: Mapping[str, Any], cls: type, where: str, without: set[str] | None = None
) -> None:
    known = [f.name for f in dataclasses.fields(cls) if f.name not in (without or set())]
    for key in plain:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            raise ValueError(
                f"{where} has no key {key!r}. "
                + (f"Did you mean {close[0]!r}? " if close else "")
                + f"Known keys: {known}."
            )
