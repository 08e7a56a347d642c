"""The knobs of a notebook: read from its ``parameters`` cell, checked before a kernel starts.

The cell is parsed, never run. papermill only warns of a name it does not know, so a misspelt
learning rate would train with the default, and it writes names into the notebook unchecked, so a
name with a newline would be code. Here a name must be one that the cell assigns.
"""

from __future__ import annotations

import ast
import difflib
import io
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.jobs.notebook import Notebook, UsageError
from medkit.jobs.redact import why_secret
from medkit.jobs.values import BadValueError, annotation_of, convert

_PATH_ENDINGS = ("_path", "_dir", "_paths", "_dirs")


@dataclass(frozen=True)
class Parameter:
    """One knob.

    Attributes:
        name: What the notebook calls it.
        annotation: Its type as written, or as read off the default; empty when unknown.
        default: The default value; None with ``literal`` False when it has to be computed.
        help: The comment behind it.
        literal: Whether the default is a plain value.
        source: The default as written.
    """

    name: str
    annotation: str
    default: Any
    help: str
    literal: bool = True
    source: str = ""


def read_parameters(notebook: Notebook) -> dict[str, Parameter]:
    """Read name, type, default and help of each knob in the ``parameters`` cell.

    Raises:
        UsageError: When there is no such cell, or it is not plain Python.
    """
    source = notebook.parameters_source
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"the parameters cell of {notebook.shown} must be plain Python assignments, "
            f"but it can't be parsed: {error}. Move magics and shell commands to another cell."
        ) from error
    comments = _comments(source)
    found: dict[str, Parameter] = {}
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign | ast.Assign):
            continue
        target: ast.expr = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if not isinstance(target, ast.Name):
            continue
        literal, default, text = False, None, ""
        if node.value is not None:
            text = ast.unparse(node.value)
            try:
                literal, default = True, ast.literal_eval(node.value)
            except ValueError:  # computed, such as Path("x") or 2 * n
                literal = False
        written = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
        note = comments.get(node.end_lineno or 0) or comments.get(node.lineno, "")
        annotation = written or (annotation_of(default) if literal else "")
        found[target.id] = Parameter(target.id, annotation, default, note, literal, text)
    return found


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def check_values(
    notebook: Notebook,
    known: Mapping[str, Parameter],
    given: Iterable[tuple[str, Any]],
    *,
    base: Path | None = None,
) -> dict[str, Any]:
    """Return the given values, checked and typed; the last of a name given twice wins.

    Args:
        notebook: Whose parameters they are; for messages.
        known: What ``read_parameters`` found.
        given: Names with text (from the command line) or with values (from a YAML file).
        base: Folder that relative ``*_path`` and ``*_dir`` values are resolved against.

    Raises:
        UsageError: For an unknown name, an ill-typed value, or one that looks like a secret.
    """
    checked: dict[str, Any] = {}
    for name, raw in given:
        if name not in known:
            raise UsageError(_unknown(notebook, known, name))
        parameter = known[name]
        try:
            value = convert(raw, parameter.annotation)
        except BadValueError as error:
            about = f" {name}: {parameter.help}." if parameter.help else ""
            raise UsageError(
                f"{notebook.shown}: parameter {name!r} must be {parameter.annotation}, {error}."
                f"{about} The default is {parameter.source}."
            ) from None
        reason = why_secret(name, value)
        if reason:
            raise UsageError(
                f"{notebook.shown}: parameter {name!r} looks like a secret ({reason}), and "
                "parameters are written into run.json, the notebook and the report. Export an "
                "environment variable and read it in the notebook with os.environ."
            )
        if base is not None and name.endswith(_PATH_ENDINGS):
            value = resolve_path(value, base)
        checked[name] = value
    return checked


def resolve_path(value: Any, base: Path) -> Any:
    """Make a relative path absolute; a URL, an empty string and a non-string stay as they are."""
    if isinstance(value, list):
        return [resolve_path(item, base) for item in value]
    if not isinstance(value, str) or not value or "://" in value:
        return value
    # not resolve(): a symlink in the path is the user's choice
    return str((base / Path(value).expanduser()).absolute())


def _unknown(notebook: Notebook, known: Mapping[str, Parameter], name: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(known) or 'none'}."
    return f"{notebook.shown} has no parameter {name!r}. {hint}"


def read_values_file(path: Path | str) -> list[tuple[str, Any]]:
    """Read parameters from a YAML (or JSON) file: a mapping of names to values.

    Raises:
        UsageError: When the file is missing, is not a mapping, or names a parameter twice.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise UsageError(
            f"-f {str(path)!r} must be a YAML file that can be read: {error}"
        ) from None
    if content is None:
        return []
    shaped = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not shaped or not isinstance(node, yaml.MappingNode):
        raise UsageError(f"-f {path} must map parameter names to values, such as `seed: 1`.")
    names = [key.value for key, _ in node.value]  # as written, before YAML merges them
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:  # YAML would take the last without a word
        raise UsageError(f"-f {path} gives {', '.join(map(repr, twice))} more than once.")
    return list(content.items())
