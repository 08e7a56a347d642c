"""Text or YAML in, typed value out, by the annotation that a notebook gives its parameter."""

from __future__ import annotations

import ast
import re
from typing import Any

_INT = re.compile(r"[+-]?\d+(_\d+)*")
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_NONE = {"none", "null"}
_STRICTEST_FIRST = ("None", "bool", "int", "float", "Literal", "list", "tuple", "dict")


class BadValueError(ValueError):
    """A value is not of the type asked for; the message starts with 'got'."""


def annotation_of(default: Any) -> str:
    """Return the annotation that a default without one would have; empty when it says nothing."""
    if default is None:
        return ""
    plain = isinstance(default, bool | int | float | str | dict)
    return type(default).__name__ if plain else "list"


def convert(value: Any, annotation: str) -> Any:
    """Return ``value`` as what ``annotation`` says.

    Text is read as the command line's; so is text from YAML where no string is meant, since YAML
    takes ``1e-3`` for a string. An unknown annotation (``Path``) takes text as it is.

    Raises:
        BadValueError: When it is not of that type.

    Example:
        >>> convert("1e-3", "float"), convert("none", "int | None"), convert("a,b", "list[str]")
        (0.001, None, ['a', 'b'])
    """
    if isinstance(value, str) and "\x00" in value:
        raise BadValueError(f"got {value!r}, which holds a NUL character")
    tree = ast.parse(annotation, mode="eval").body if annotation else None
    return _convert(value, tree)


def _convert(value: Any, kind: ast.expr | None) -> Any:
    if isinstance(kind, ast.Constant) and isinstance(kind.value, str):  # a quoted annotation
        kind = ast.parse(kind.value, mode="eval").body
    name = _name(kind)
    if name == "Union":
        for option in sorted(_options(kind), key=_strictness):
            try:
                return _convert(value, option)
            except BadValueError:
                continue
        raise BadValueError(f"got {value!r}")
    if name == "Literal":
        return _literal(value, kind)
    if name in {"list", "tuple", "Sequence"}:
        return _list(value, kind)
    known = {"None": _none, "bool": _bool, "int": _int, "float": _float, "dict": _dict, "str": _str}
    return known[name](value) if name in known else value


def _name(kind: ast.expr | None) -> str:
    if isinstance(kind, ast.BinOp):
        return "Union"
    if isinstance(kind, ast.Subscript):
        outer = _name(kind.value)
        return "Union" if outer == "Optional" else outer
    if isinstance(kind, ast.Constant) and kind.value is None:
        return "None"
    if isinstance(kind, ast.Attribute):  # typing.Literal
        return kind.attr
    return kind.id if isinstance(kind, ast.Name) else ""


def _options(kind: ast.expr | None) -> list[ast.expr]:
    if isinstance(kind, ast.BinOp):
        return _options(kind.left) + _options(kind.right)
    if isinstance(kind, ast.Subscript) and _name(kind.value) == "Optional":
        return [ast.Constant(None), *_options(kind.slice)]
    if isinstance(kind, ast.Subscript) and _name(kind.value) == "Union":
        return kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
    return [kind] if kind is not None else []


def _strictness(kind: ast.expr) -> int:
    """Order the arms of a union: ``str`` takes any text, so it is asked last."""
    name = _name(kind)
    return _STRICTEST_FIRST.index(name) if name in _STRICTEST_FIRST else len(_STRICTEST_FIRST)


def _none(value: Any) -> None:
    if value is not None and str(value).lower() not in _NONE:
        raise BadValueError(f"got {value!r}")


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = value.lower() if isinstance(value, str) else ""
    if text in _TRUE | _FALSE:
        return text in _TRUE
    raise BadValueError(f"got {value!r}; say true or false")


def _int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _INT.fullmatch(value.strip()):
        return int(value)
    raise BadValueError(f"got {value!r}")


def _float(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass  # said below, as for any other wrong value
    raise BadValueError(f"got {value!r}")


def _str(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise BadValueError(f"got {value!r}, which is no string; quote it")


def _parsed(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise BadValueError(f"got {text!r}, which can't be read") from error


def _dict(value: Any) -> dict[Any, Any]:
    got = _parsed(value) if isinstance(value, str) else value
    if not isinstance(got, dict):
        raise BadValueError(f"got {value!r}; say it as {{'name': value}}")
    return got


def _list(value: Any, kind: ast.expr | None) -> list[Any]:
    if isinstance(value, str):
        text = value.strip()
        bracketed = text[:1] in {"[", "("}
        items = _parsed(text) if bracketed else [part.strip() for part in text.split(",")]
        items = [] if not text else items
    else:
        items = value
    if not isinstance(items, list | tuple):
        raise BadValueError(f"got {value!r}; say it as a,b,c")
    item_kind = kind.slice if isinstance(kind, ast.Subscript) else None
    if isinstance(item_kind, ast.Tuple):  # tuple[int, ...] and tuple[int, float]
        item_kind = item_kind.elts[0]
    try:
        return [_convert(item, item_kind) for item in items]
    except BadValueError as error:
        raise BadValueError(f"{error} in {value!r}") from error


def _literal(value: Any, kind: ast.expr | None) -> Any:
    inside = kind.slice if isinstance(kind, ast.Subscript) else None
    nodes = inside.elts if isinstance(inside, ast.Tuple) else [inside] if inside else []
    allowed = [ast.literal_eval(node) for node in nodes]
    for option in allowed:
        if value == option and type(value) is type(option):
            return option
    by_text = {str(option): option for option in allowed}
    if isinstance(value, str) and value in by_text:
        return by_text[value]
    raise BadValueError(f"got {value!r}; allowed: {', '.join(by_text)}")
