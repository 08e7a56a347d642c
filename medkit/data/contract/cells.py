"""Single cells: numbers as they may be written, codes, and how complaints quote them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Code = float | str
_FEW = 5  # a column with more different texts may hold names; those are not quoted
_COMMA = re.compile(r"[+-]?\d+,\d+")


def as_list(codes: Any) -> list[Any]:
    """Return codes as a list, also where one alone was given."""
    return [codes] if isinstance(codes, str | int | float) else list(codes)


def cell_key(cell: Any) -> str:
    """Return one text for cells that mean the same: 3, 3.0 and " 3.0 " are "3", True is "1"."""
    text = str(int(cell) if isinstance(cell, bool | np.bool_) else cell).strip()
    try:
        return f"{float(text):.15g}"
    except ValueError:
        return text


def numbers_of(codes: Sequence[Code]) -> list[float]:
    """Return those codes that are numbers, or read as one."""
    found = []
    for code in codes:
        try:
            found.append(float(code))
        except ValueError:  # a text code
            continue
    return found


def parse(column: pd.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Read a column as numbers.

    Returns:
        ``(N,)`` float64, NaN where blank or no number; ``(N,)`` True where there is text that is
        no number.
    """
    column = plain(column)
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(np.float64, na_value=np.nan), np.zeros(len(column), np.bool_)
    if column.dtype.kind in "mM" or isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.astype(str)  # to_numeric would make nanoseconds of it
    numbers = pd.to_numeric(column, errors="coerce")
    text = (numbers.isna() & column.notna()).to_numpy(np.bool_)
    return numbers.to_numpy(np.float64, na_value=np.nan), text


def plain(column: pd.Series) -> pd.Series:
    """Return a column without categories and without blanks around its texts; "" is missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if pd.api.types.is_numeric_dtype(column) or column.dtype.kind in "mM":  # dates
        return column
    trimmed = column.map(lambda cell: cell.strip() if isinstance(cell, str) else cell)
    return trimmed.mask(trimmed == "")


def quoted(cells: pd.Series) -> str:
    """Return the different texts of some cells for a message, or only their number."""
    different = sorted({"" if cell is None or cell != cell else str(cell)[:20] for cell in cells})
    said = ", ".join(repr(cell) for cell in different)
    if len(different) > _FEW:
        said = f"{len(different)} different texts"  # perhaps names: not for a log
    return said + comma_hint(different)


def comma_hint(texts: Iterable[str]) -> str:
    """Return a question with an example where texts look like numbers with commas, else ""."""
    example = next(filter(with_comma, texts), None)
    return "" if example is None else f" (such as {example!r}: decimal commas? Write points)"


def with_comma(text: str) -> bool:
    """Say whether a text is a number but for a comma in it."""
    return _COMMA.fullmatch(text.strip()) is not None


def rows_of(mask: NDArray[np.bool_]) -> str:
    """Return how many rows and which is the first, for a message."""
    count, first = int(mask.sum()), int(np.argmax(mask)) + 1
    rows = "1 row" if count == 1 else f"{count} rows"
    return f"{rows} (first: row {first} below the header)"
