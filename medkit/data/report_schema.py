"""Predefined fields of a report: what each may be, as JSON, and how right an answer is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LUNG_NODULE", "NODULE", "Field", "ReportSchema"]


@dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
        name: Its key.
        values: What it may be, one of these.
        low: Least whole number, for a field without ``values``.
        high: Greatest whole number.
        near: How far a whole number may be off and still be right.
    """

    name: str
    values: tuple[str, ...] = ()
    low: int = 0
    high: int = 0
    near: int = 0

    def __post_init__(self) -> None:
        values: object = self.values
        if isinstance(values, str):
            raise ValueError(
                f"values of field {self.name!r} must be several, got the text {values!r}, "
                f"which would be its letters. Write Field({self.name!r}, ({values!r}, ...))."
            )
        if len(set(self.values)) != len(self.values) or (
            not self.values and not 0 <= self.low < self.high
        ):
            raise ValueError(
                "a field needs different values, or whole numbers from low to high, 0 or more; "
                f"got {self}."
            )

    @property
    def json_schema(self) -> dict[str, Any]:
        """The field's part of a JSON schema."""
        if self.values:
            return {"enum": list(self.values)}
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    def allows(self, value: object) -> bool:
        """Return whether it may be this value."""
        if self.values:
            return isinstance(value, str) and value in self.values
        return type(value) is int and self.low <= value <= self.high

    def right(self, found: object, true: object) -> bool:
        """Return whether a value that it may be is the true one, or near enough."""
        if isinstance(found, int) and isinstance(true, int) and not self.values:
            return abs(found - true) <= self.near
        return found == true


@dataclass(frozen=True)
class ReportSchema:
    """Fields in their order, after a first one that says whether there is anything at all.

    ``{"nodule": false}``, or ``{"nodule": true}`` with all the others, and nothing else.

    Attributes:
        head: Key of the field that is true or false.
        fields: Those that are there where it is true.
    """

    head: str
    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = self.names
        if not self.fields or len(set(names)) != len(names):
            raise ValueError(f"a schema needs fields of different names, got {names}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of all fields, the head first."""
        return self.head, *(field.name for field in self.fields)

    @property
    def json_schema(self) -> dict[str, Any]:
        """The whole as a JSON schema (draft 2020-12)."""
        parts: list[dict[str, Any]] = [{self.head: {"const": False}}]
        parts.append({self.head: {"const": True}} | {f.name: f.json_schema for f in self.fields})
        return {
            "anyOf": [
                {
                    "type": "object",
                    "properties": one,
                    "required": list(one),
                    "additionalProperties": False,
                }
                for one in parts
            ]
        }

    def text(self, report: Mapping[str, Any]) -> str:
        """Return fields as text, in their order and without spaces.

        Raises:
            ValueError: For what the schema does not allow.
        """
        found = {name: report[name] for name in self.names if name in report}
        if len(found) != len(report) or not self.allows(found):
            raise ValueError(
                f"a report must have {self.head} alone, false, or all of {list(self.names)} with "
                f"values that are allowed; got {dict(report)}."
            )
        return json.dumps(found, separators=(",", ":"))

    def parse(self, text: str) -> dict[str, Any] | None:
        """Return the fields, or None for what the schema does not allow, such as a key twice."""
        try:
            found = json.loads(text, object_pairs_hook=_once)
        except ValueError:
            return None
        return found if isinstance(found, dict) and self.allows(found) else None

    def allows(self, report: Mapping[str, Any]) -> bool:
        """Return whether these are fields as they must be, in whatever order."""
        there = report.get(self.head)
        if there is False:
            return len(report) == 1
        return (
            there is True
            and set(report) == set(self.names)
            and all(field.allows(report[field.name]) for field in self.fields)
        )

    def require(self, true: Sequence[Any], remedy: str) -> None:
        """Refuse true fields that the schema does not allow: they would count as wrong answers.

        Args:
            true: Fields of each row.
            remedy: How another schema is named there.

        Raises:
            ValueError: With row, field, what was found and what is allowed.
        """
        for row, one in enumerate(true):
            wrong = self._wrong(one)
            if wrong:
                raise ValueError(
                    f"true fields must be of the schema {list(self.names)}; row {row} has {wrong}. "
                    f"Correct the data, or {remedy}."
                )

    def _wrong(self, report: Any) -> str:
        """Return what is wrong with fields and what is allowed instead, or nothing."""
        if not isinstance(report, Mapping):
            text = "; json.loads reads text" if isinstance(report, str) else ""
            return f"{report!r}, where a mapping of fields is allowed{text}"
        there = report.get(self.head)
        if type(there) is not bool:
            found = f"{self.head}={there!r}" if self.head in report else f"no {self.head!r}"
            return f"{found}, where true or false is allowed (its keys are {list(report)})"
        names = self.names if there else (self.head,)
        if set(report) != set(names):
            return f"keys {list(report)}, where {self.head}={there} allows exactly {list(names)}"
        for field in self.fields if there else ():
            value = report[field.name]
            if not field.allows(value):
                numbers = f"whole numbers from {field.low} to {field.high}"
                allowed = f"one of {list(field.values)}" if field.values else numbers
                return f"{field.name}={value!r}, where {allowed} is allowed"
        return ""

    def score(self, found: Mapping[str, Any] | None, true: Mapping[str, Any]) -> dict[str, bool]:
        """Return which fields are right, of those that the true report has; none for None."""
        found = found or {}
        out = {self.head: self.head in found and found[self.head] == true[self.head]}
        for field in self.fields:
            if field.name in true:
                there = field.name in found
                out[field.name] = there and field.right(found[field.name], true[field.name])
        return out

    def pieces(self) -> list[str]:
        """Return the texts of which every report is made, as few and long as can be.

        A tokenizer that has each as one token writes a report in as many tokens as it has fields.
        """
        start = json.dumps(self.head)
        pieces = [f"{{{start}:false}}"]
        before = f"{{{start}:true,"
        for number, field in enumerate(self.fields):
            end = "}" if number == len(self.fields) - 1 else ""
            pieces.append(f"{before}{json.dumps(field.name)}:")
            if field.values:
                pieces += [json.dumps(value) + end for value in field.values]
            else:
                pieces += [str(digit) for digit in range(10)] + ([end] if end else [])
            before = ","
        return list(dict.fromkeys(pieces))

    def longest(self) -> int:
        """Return the characters of the longest report that is allowed."""
        values = {f.name: max(f.values, key=len) if f.values else f.high for f in self.fields}
        return len(self.text({self.head: True} | values))


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


NODULE = ReportSchema(
    "nodule",
    (
        Field("side", ("left", "right")),
        Field("zone", ("upper", "middle", "lower")),
        Field("size", ("small", "medium", "large")),
        Field("density", ("solid", "ground glass")),
    ),
)
"""The fields of :mod:`medkit.synth.reports`."""
LUNG_NODULE = ReportSchema(
    "nodule",
    (
        Field(
            "lobe",
            ("right upper", "right middle", "right lower", "left upper", "left lower"),
        ),
        Field("size_mm", low=2, high=60, near=2),
        Field("category", ("1", "2", "3", "4A", "4B", "4X")),
    ),
)
"""Lobe, diameter and Lung-RADS category of a nodule on CT."""
