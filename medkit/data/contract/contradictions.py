"""What in a data contract contradicts what."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from math import isfinite
from typing import TYPE_CHECKING, Any

from medkit.data.contract import units
from medkit.data.contract.cells import cell_key

if TYPE_CHECKING:
    from medkit.data.contract.schema import Column, Contract

KINDS = ("number", "category", "binary", "text")
OUTSIDE = ("missing", "clip")
RECORDED = ("before", "after", None)


def contradictions(contract: Contract) -> Iterator[str]:
    """Yield what in a contract contradicts what, and what to do about it."""
    taken: dict[str, str] = {}
    for role, name in contract.roles.items():
        if name in taken:
            yield (
                f"a contract gives each column one role, and {name!r} is {taken[name]} and {role}. "
                "Correct one of the two."
            )
        taken[name] = role
        if name in contract.columns:
            yield (
                f"a contract's roles are no features, and {name!r} is the {role} and stands under "
                "columns too. Remove it from one of the two."
            )
    if not _finite(contract.tolerance) or not 0 < contract.tolerance <= 1:
        yield f"tolerance must be a share in (0, 1], got {contract.tolerance}. 0.5 is the default."
    if contract.target_above is not None and not _finite(contract.target_above):
        yield (
            f"target_above must be a finite number, got {contract.target_above!r}. Labels above it "
            "count as 1."
        )
    for name, rule in contract.columns.items():
        words: Any  # what they should be, YAML doesn't say
        for words in (name, *contract.sites, *rule.units_at, *rule.missing_at, *taken):
            if not isinstance(words, str):
                yield (
                    f"names of columns and sites must be text, and {words!r} in column {name!r} is "
                    f"{type(words).__name__}. YAML reads NO, on and 1 as something else: put "
                    "quotes around it."
                )
        yield from _contradictions_of(name, rule, contract)
    twice = sorted({name for name in contract.features if contract.features.count(name) > 1})
    if twice:
        yield (
            f"features must have different names, and {twice} come up twice: as a column, and as a "
            "level of a category. Rename the column."
        )


def _contradictions_of(name: str, rule: Column, contract: Contract) -> Iterator[str]:
    at = f"column {name!r}"
    for key, known in (("kind", KINDS), ("outside", OUTSIDE), ("recorded", RECORDED)):
        if getattr(rule, key) not in known:
            close = difflib.get_close_matches(str(getattr(rule, key)), map(str, known), n=1)
            yield (
                f"{at}: {key} must be one of {list(known)}, got {getattr(rule, key)!r}. "
                + (f"Did you mean {close[0]!r}?" if close else "See medkit.data.contract.Column.")
            )
    yield from (f"{at}: {problem}" for problem in _of_amounts(name, rule))
    yield from (f"{at}: {problem}" for problem in _of_levels(rule))
    if contract.site is None and (rule.units_at or rule.missing_at):
        yield (
            f"{at}: what holds at one site needs the contract's column of sites, and the contract "
            "names none. Add 'site: COLUMN'."
        )
    strange = sorted({*rule.units_at, *rule.missing_at} - set(contract.sites))
    if contract.sites and strange:
        close = difflib.get_close_matches(strange[0], contract.sites, n=1)
        yield (
            f"{at}: units and codes must be of the contract's sites {list(contract.sites)}, and "
            f"{strange} are not. "
            + (f"Did you mean {close[0]!r}?" if close else "Add them to sites, or remove them.")
        )


def _of_amounts(name: str, rule: Column) -> Iterator[str]:
    for key in ("low", "high"):
        value = getattr(rule, key)
        if value is not None and not _finite(value):
            yield f"{key} must be a finite number, got {value!r}. Write it without quotes or unit."
            return
    if rule.low is not None and rule.high is not None and not rule.low < rule.high:
        yield f"low must be below high, got low {rule.low} and high {rule.high}. Swap them?"
    numeric = {"unit": rule.unit, "units_at": rule.units_at, "low": rule.low, "high": rule.high}
    given = [key for key, value in numeric.items() if value not in ("", None, {})]
    if rule.kind != "number" and given and (rule.kind, given) != ("binary", ["unit"]):
        yield (
            f"a column of kind {rule.kind!r} has neither unit nor range, and {given} are given. "
            "Remove them, or write kind: number."
        )
    if rule.units_at and not rule.unit:
        yield (
            "units_at must come with the unit to convert to, and unit is not given. "
            "Add it, such as 'unit: mg/dL'."
        )
    given_units: list[Any] = [rule.unit, rule.analyte, *rule.units_at.values()]
    for unit in given_units:
        if not isinstance(unit, str):
            yield f"a unit or analyte must be text, got {unit!r}. Put quotes around it."
            return
    analyte = rule.analyte or units.analyte_of(name)
    try:
        if rule.unit:
            units.canonical(rule.unit)
        if rule.analyte:
            units.named(rule.analyte)
        for unit in rule.units_at.values():
            units.convert(1.0, unit, rule.unit or unit, analyte)
    except ValueError as error:
        yield str(error)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _of_levels(rule: Column) -> Iterator[str]:
    codes = [code for site in ("", *rule.missing_at) for code in rule.codes_at(site)]
    cells: list[Any] = [*codes, *rule.levels]  # what they should be, YAML doesn't say
    for cell in cells:
        if isinstance(cell, bool) or not isinstance(cell, str | int | float):
            yield (
                f"codes and levels must be text or numbers, got {cell!r}. YAML reads NO, yes and "
                "2020-01-01 as something else: put quotes around it."
            )
            return
    levels = rule.levels or ((0, 1) if rule.kind == "binary" else ())
    keys = [cell_key(level) for level in levels]
    if rule.kind == "category" and len(set(keys)) < 2:
        yield f"a category must list two levels at least, got {list(rule.levels)}. Add them."
    if len(set(keys)) < len(keys):
        yield f"levels must differ, got {list(rule.levels)}. 1 and 1.0 are the same."
    if rule.kind == "binary" and len(levels) != 2:
        yield (
            f"a binary column has two levels, the one for 0 first, got {list(rule.levels)}. "
            "Write kind: category for more."
        )
    both = sorted(set(keys) & {cell_key(code) for code in codes})
    if both:
        yield (
            f"a value can't be a level and mean missing, and {both} does both. "
            "Remove it from levels or from the codes."
        )
