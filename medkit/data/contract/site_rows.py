"""Which rows of a table are of which site."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.data.contract.cells import rows_of


@dataclass(frozen=True)
class Sites:
    """The rows of each site; one unnamed site where nobody said."""

    names: tuple[str, ...]
    rows: tuple[NDArray[np.int64] | slice, ...]

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.int64] | slice]]:
        return iter(zip(self.names, self.rows, strict=True))


def sites_of(frame: pd.DataFrame, column: str | None, site: str | None = None) -> Sites:
    """Return the rows of each site of a table; ``site``: all rows are of that one."""
    if site is not None:
        return Sites((site,), (slice(None),))
    if column is None or column not in frame:
        return Sites(("",), (slice(None),))
    number, cells = pd.factorize(frame[column])  # few different ones: no text per row
    names = [str(cell).strip() for cell in cells]
    different = sorted({name for name in names if name})
    at = np.array([*(different.index(n) if n else -1 for n in names), -1])
    number = at[number]
    if (number < 0).any():
        raise ValueError(
            f"the site column {column!r} must be filled in each row; it is empty in "
            f"{rows_of(number < 0)}. Codes and units are the site's: fill it in, or leave those "
            "rows out."
        )
    order = np.argsort(number, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(number, minlength=len(different)))[:-1])
    return Sites(tuple(different), tuple(rows))
