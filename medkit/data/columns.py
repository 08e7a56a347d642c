"""A column of a table as an array: numbers, labels or texts, or a message that names its rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.data.contract.cells import Code, numbers_of, quoted, rows_of


def numbers(column: pd.Series, codes: Sequence[Code], where: str) -> NDArray[np.float32]:
    """Return a feature, ``(N,)``; NaN where it is missing or coded as missing.

    Raises:
        ValueError: For text that is no code, and numbers that are not finite in float32.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if not pd.api.types.is_numeric_dtype(column):
        trimmed = column.map(lambda cell: cell.strip() if isinstance(cell, str) else cell)
        column = trimmed.mask(trimmed.isin([code for code in codes if isinstance(code, str)]))
        if column.dtype.kind in "mM" or isinstance(column.dtype, pd.DatetimeTZDtype):
            column = column.astype(str)  # to_numeric would make nanoseconds of it
        found = pd.to_numeric(column, errors="coerce")
        text = (found.isna() & column.notna()).to_numpy()
        if text.any():
            raise ValueError(
                f"{where}: column {column.name!r} must be numeric; found {quoted(column[text])} "
                f"in {rows_of(text)}. If that means missing, pass missing_codes={{{column.name!r}: "
                f"[...]}}; if the column is no feature, pass ignore=[{column.name!r}]."
            )
        column = found
    exact = column.to_numpy(np.float64, na_value=np.nan)
    gone = np.isin(exact, numbers_of(codes))
    with np.errstate(over="ignore"):  # what float32 can't hold is reported as infinite below
        values = np.where(gone, np.nan, exact).astype(np.float32)
    infinite = np.isinf(values)
    if infinite.any():
        raise ValueError(
            f"{where}: column {column.name!r} must hold finite numbers; found infinite ones (or "
            f"beyond 3e38) in {rows_of(infinite)}. One of them makes every mean and every gradient "
            "useless: correct the export, or name the value in missing_codes."
        )
    return values


def labels(
    column: pd.Series, where: str, *, above: float | None = None, new: bool = False
) -> NDArray[np.int64]:
    """Return 0/1 labels, ``(N,)``.

    Args:
        column: The target.
        where: Name of the table.
        above: Labels above this are 1, the others 0; None: they are 0 and 1 already.
        new: Rows without a label may be among them: -1.

    Raises:
        ValueError: For anything but 0 and 1.
    """
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if above is not None:
        values = np.where(np.isnan(values), np.nan, values > above)
    if new:
        values[column.isna()] = -1
    wrong = ~np.isin(values, (0.0, 1.0, -1.0) if new else (0.0, 1.0))
    if wrong.any():
        raise ValueError(
            f"{where}: the target {column.name!r} must be 0 or 1 in each row; found "
            f"{quoted(column[wrong])} in {rows_of(wrong)}. {_label_advice(column[wrong])}, and "
            "leave out rows without a label."
        )
    return values.astype(np.int64)


def _label_advice(wrong: pd.Series) -> str:
    words = wrong.notna() & pd.to_numeric(wrong, errors="coerce").isna()
    if words.any():
        return "Write 1 for the word that is to be predicted and 0 for the other"
    return "Pass target_above=T where labels above T count as 1"


def texts(column: pd.Series, where: str) -> NDArray[np.str_]:
    """Return ids or names as text, ``(N,)``.

    Raises:
        ValueError: For an empty cell.
    """
    number, different = pd.factorize(column)  # sites repeat: one text each, not one per row
    words = np.array([*(str(cell).strip() for cell in different), ""], np.str_)  # -1: a blank cell
    empty = (words == "")[number]
    if empty.any():
        raise ValueError(
            f"{where}: column {column.name!r} must be filled in each row; it is empty in "
            f"{rows_of(empty)}. Whose row that is decides on which side of a split it may stand: "
            "fill it in, or leave those rows out."
        )
    return words[number]
