"""Rows of a table in memory, as parts, batches and loaders of a LightningDataModule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from medkit.data.batches import Batch, to_batch
from medkit.data.preprocessing import Preprocessing
from medkit.data.splits import Split
from medkit.data.table_loader import TableLoader
from medkit.data.tables import Table


class RowsDataModule(pl.LightningDataModule):
    """What can be asked of rows once they have been read, split and prepared.

    Args:
        batch_size: Rows a batch in training; None: all.
    """

    def __init__(self, batch_size: int | None) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.table: Table | None = None
        self.split: Split | None = None
        self.preprocessing: Preprocessing | None = None
        self.sites: list[str] = []
        self._rows: Batch | None = None

    @property
    def features(self) -> list[str]:
        """Name of each column of ``x``."""
        return self._fitted().names

    @property
    def num_features(self) -> int:
        """Columns of ``x``."""
        return len(self.features)

    @property
    def num_indicators(self) -> int:
        """How many of the columns, the last ones, say "was missing"."""
        return len(self._fitted().indicators)

    @property
    def batches_per_epoch(self) -> int:
        """Training batches; times the epochs, what the kit's models call ``total_steps``."""
        return -(-len(self._ready()[1].train) // self._train_size)

    @property
    def times(self) -> NDArray[np.float32] | None:
        """Time of the event or of the last look of each row; None where rows are not followed."""
        y = self._ready()[2].y
        return y[:, 0].numpy() if y.ndim == 2 else None

    def rows(self, part: str) -> Batch:
        """Return all rows of "train", "val" or "test" as one batch."""
        _, split, rows = self._ready()
        at = torch.as_tensor(split.part(part))
        return Batch(*(values[at] for values in rows))

    def values(self, part: str) -> NDArray[np.float32]:
        """Return the rows of a part before filling and scaling, ``(N, F)`` with NaN for missing.

        What gradient boosting likes best; ``table.features`` names the columns.
        """
        table, split, _ = self._ready()
        return table.values[split.part(part)]

    def row_ids(self, row: Tensor | Sequence[int]) -> list[str]:
        """Return patient and row number as text; make a pseudonym of it before you keep it."""
        patient = self._ready()[0].patient
        return [f"{patient[r]}:{r}" for r in map(int, row)]

    def whose(self, row: Tensor | Sequence[int]) -> dict[str, list[str]]:
        """Return what ``run.predictions`` is to know of rows: their ids, patients and sites."""
        table, at = self._ready()[0], [int(r) for r in row]
        patients, sites = (column[at].tolist() for column in (table.patient, table.site))
        return {"row_ids": self.row_ids(at), "patient_ids": patients, "site": sites}

    def missingness(self) -> dict[str, dict[str, float]]:
        """Return site -> feature -> share missing, coded ones counted, over all rows."""
        table = self._ready()[0]
        gone = np.isnan(table.values)
        return {
            site: dict(zip(table.features, gone[table.site == site].mean(0).tolist(), strict=True))
            for site in self.sites
        }

    def val_dataloader(self) -> TableLoader | list[TableLoader]:
        """Return the validation rows in order; an empty list where there are none."""
        rows = self.rows("val")
        return self.rows_loader(rows) if len(rows.y) else []

    def test_dataloader(self) -> TableLoader:
        """Return the test rows in order.

        Raises:
            ValueError: When the split has none.
        """
        rows = self.rows("test")
        if len(rows.y) == 0:
            raise ValueError(
                "a test needs test rows, and this split has none. Pass test_fraction=, test_site= "
                "or a split_column with the word test."
            )
        return self.rows_loader(rows)

    def predict_dataloader(self) -> TableLoader:
        """Return the test rows where there are any, else the validation rows."""
        rows = self.rows("test")
        return self.rows_loader(rows if len(rows.y) else self.rows("val"))

    @abstractmethod
    def rows_loader(self, rows: Batch) -> TableLoader:
        """Return a loader that goes through the rows in order, such as those of :meth:`apply`."""

    @property
    def _train_size(self) -> int:
        return self.batch_size or len(self._ready()[1].train)

    def _ready(self) -> tuple[Table, Split, Batch]:
        if self.table is None or self.split is None or self._rows is None:
            raise RuntimeError(
                "the table must be read before its rows are asked for, and setup() has not run. "
                "Call dm.setup() first; a Trainer does so by itself."
            )
        return self.table, self.split, self._rows

    def _fitted(self) -> Preprocessing:
        if self.preprocessing is None:
            raise RuntimeError(
                "medians and scales must be fitted or loaded first, and neither was done. "
                f"Call dm.setup(), or {type(self).__name__}.load_from_checkpoint(path)."
            )
        return self.preprocessing

    def _batch(self, table: Table, y: NDArray[Any]) -> Batch:
        x = self._fitted().apply(table.values)
        return to_batch(x, y, table.site, self.sites)
