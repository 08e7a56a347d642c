"""What the kit's DataModules yield, and rows in memory fetched in whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset


class Batch(NamedTuple):
    """What every DataModule of the kit yields.

    Attributes:
        x: Features, float32 ``(B, F)`` for a table.
        y: Target: a label, int64 ``(B,)``, -1 where it is not known; or time and event, float32
            ``(B, 2)``, NaN where they are not.
        row: Row number in the source, int64 ``(B,)``.
        site: Index into the DataModule's ``sites``, int64 ``(B,)``; -1 for a site not seen before.
    """

    x: Tensor
    y: Tensor
    row: Tensor
    site: Tensor


def to_batch(
    x: NDArray[np.float32], y: NDArray[Any], site: NDArray[np.str_], sites: Sequence[str]
) -> Batch:
    """Return a whole table as one batch; ``site`` holds a name a row, ``sites`` the known ones."""
    names, number = np.unique(site, return_inverse=True)
    place = {name: index for index, name in enumerate(sites)}
    codes = torch.tensor([place.get(name, -1) for name in names.tolist()])
    return Batch(
        x=torch.from_numpy(x),
        y=torch.from_numpy(y),
        row=torch.arange(len(y)),
        site=codes[torch.from_numpy(number)],
    )


class TableDataset(Dataset[Any]):
    """Rows in memory, a whole batch indexed at once.

    Row by row, a DataLoader takes twenty times as long as slicing does. Fetching draws no random
    numbers, and says so: the keyed loader then leaves the generators alone.

    Args:
        rows: Tensors with one entry per row; what is fetched is of the same type.
        at: Only these of the rows, int64 ``(N,)``, without a copy of them; None: all.
    """

    draws_nothing = True

    def __init__(self, rows: tuple[Tensor, ...], at: Tensor | None = None) -> None:
        self.rows = rows
        self.at = at

    def __len__(self) -> int:
        return len(self.rows[0] if self.at is None else self.at)

    def __getitem__(self, index: int) -> Any:
        at = index if self.at is None else int(self.at[index])
        return alike(self.rows, [values[at] for values in self.rows])

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return the rows at ``indices`` as one batch; what DataLoader asks for."""
        at = torch.as_tensor(indices)
        if self.at is not None:
            at = self.at.index_select(0, at)
        at = at.to(self.rows[0].device)
        return alike(self.rows, [values.index_select(0, at) for values in self.rows])


def alike(rows: tuple[Tensor, ...], parts: Sequence[Tensor]) -> Any:
    """Return parts in a tuple of the type of ``rows``, a named one included."""
    make = getattr(type(rows), "_make", tuple)
    return make(parts)
