"""A notebook as the launcher sees it, read without Jupyter's libraries (they take a second)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.record.files import sha256_text


class UsageError(ValueError):
    """The command can't be run as it was given; nothing has been started or written."""


@dataclass(frozen=True)
class Notebook:
    """A Python notebook of format 4, and where it lies.

    Attributes:
        path: Absolute path of the file.
        shown: The path as the user gave it, for messages.
        cells: Its cells as plain dictionaries, each with ``source`` as one string.
    """

    path: Path
    shown: str
    cells: list[dict[str, Any]]

    @property
    def digest(self) -> str:
        """SHA-256 over what is executed: the code cells in order; outputs and prose don't count."""
        code = [cell["source"] for cell in self.cells if cell.get("cell_type") == "code"]
        return sha256_text(json.dumps(code))

    @property
    def parameters_source(self) -> str:
        """Source of the cell tagged ``parameters``.

        Raises:
            UsageError: When there is none, or more than one.
        """
        tagged = [c for c in self.cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        if len(tagged) != 1:
            raise UsageError(
                f"{self.shown} must have one code cell tagged 'parameters', found {len(tagged)}. "
                "In JupyterLab select the cell with the knobs and add the tag in the property "
                "inspector (the two gears on the right)."
            )
        return str(tagged[0]["source"])


def read_notebook(path: Path | str) -> Notebook:
    """Read a notebook.

    Raises:
        UsageError: When the file is missing, is no notebook of format 4, or is not Python's.
    """
    if "\x00" in str(path):
        raise UsageError(f"a notebook's path can't hold a NUL character, got {str(path)!r}.")
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob("*.ipynb")) if file.parent.is_dir() else []
        raise UsageError(
            f"there is no notebook at {str(path)!r}. "
            + (f"{file.parent} holds {', '.join(near)}." if near else f"Looked in {file.parent}.")
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise UsageError(
            f"{path} must be a notebook (JSON in UTF-8), but it can't be read: {error}."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise UsageError(
            f"{path} must be a notebook of format 4, but it has no list of cells. "
            "Convert an old one with `jupyter nbconvert --to notebook`."
        )
    spec = content.get("metadata", {}).get("kernelspec", {})
    language = spec.get("language", "python")
    if str(language).lower() != "python":
        raise UsageError(f"{path} must be a Python notebook, its kernel is for {language!r}.")
    cells = [cell | {"source": _joined(cell.get("source", ""))} for cell in content["cells"]]
    return Notebook(file, str(path), cells)


def _joined(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
