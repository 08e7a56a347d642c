"""What the DataModules of tables share: read once, split by patient, fit on the training rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from medkit.data import preprocessing
from medkit.data.batches import Batch, to_batch
from medkit.data.contract.agreement import require_same_contract
from medkit.data.contract.schema import Contract
from medkit.data.leakage.audit import Finding, after_setup, write_down
from medkit.data.preprocessing import Preprocessing, digest_ids, require_same_rows
from medkit.data.split_plan import SplitPlan
from medkit.data.splits import PARTS, Split
from medkit.data.table_loader import TableLoader
from medkit.data.tables import Table, TableSpec
from medkit.record.files import sha256_file

Source = str | Path | pd.DataFrame


class TableDataModule(pl.LightningDataModule):
    """Rows of a table in memory, split by patient; the base of those that know what a target is.

    Medians and scales are fitted on the training rows, then applied to all; they are kept in the
    checkpoint with a digest of whose rows those were, and never fitted again on resume. So is the
    baseline, a linear model of the training rows as the net sees them.

    A subclass calls ``save_hyperparameters()`` with plain types, so that its checkpoints load with
    ``weights_only=True``.

    Args:
        source: CSV, Parquet or DataFrame.
        spec: What the columns are.
        plan: Who is in which part.
        contract: What the columns must be, and how they are repaired; None: as they are.
        scale: See :func:`medkit.data.preprocessing.fit`, as for ``clip`` and ``indicators``.
        batch_size: Rows a batch in training; None: all.
    """

    not_audited: ClassVar[tuple[str, ...]] = ()  # checks for leaks that say nothing about it

    def __init__(
        self,
        source: Source,
        spec: TableSpec,
        plan: SplitPlan,
        *,
        contract: Contract | None,
        scale: str,
        clip: float | None,
        indicators: bool,
        batch_size: int | None,
    ) -> None:
        super().__init__()
        self.source = source
        self.spec = spec
        self.plan = plan
        self.contract = contract
        self.scale = scale
        self.clip = clip
        self.indicators = indicators
        self.batch_size = batch_size

        self.table: Table | None = None
        self.split: Split | None = None
        self.preprocessing: Preprocessing | None = None
        self.sites: list[str] = []
        self.digests: dict[str, str] = {}  # part -> digest of its patients
        self.findings: list[Finding] = []  # of the audit for leaks
        self.data_sha256 = ""  # of the file read, for the run folder
        self._baseline: Any = None  # of the subclass's kind
        self._rows: Batch | None = None

    @abstractmethod
    def _read(
        self, source: Source, features: Sequence[str] | None = None
    ) -> tuple[Table, NDArray[Any]]:
        """Return a table and its targets, one per row; with ``features``, of new rows."""

    @abstractmethod
    def _require_learnable(self, table: Table, split: Split) -> None:
        """Refuse parts without enough of what is to be learnt."""

    @abstractmethod
    def _learn(self, rows: Batch, train: NDArray[np.int64]) -> None:
        """Take from the training rows what training needs, such as the baseline, once."""

    @abstractmethod
    def _load_baseline(self, state: dict[str, Any]) -> Any:
        """Rebuild the baseline from its state."""

    def setup(self, stage: str | None = None) -> None:
        """Read, check, split and fit; once, however often Lightning asks."""
        if self._rows is not None and self.table is not None:
            write_down(self.table, self.findings)  # a run may have begun since
            return
        table, y = self._read(self.source)
        split = self.plan.split(table)
        self._require_learnable(table, split)
        fitted = preprocessing.fit(
            table.values,
            table.features,
            scale=self.scale,
            clip=self.clip,
            indicators=self.indicators,
            fitted_on=digest_ids(table.patient[split.train]),
            rows=split.train,
        )
        if self.preprocessing is not None:  # from a checkpoint
            require_same_rows(self.preprocessing, fitted)
            fitted = self.preprocessing
        self.table, self.split, self.preprocessing = table, split, fitted
        self.sites = sorted(set(table.site.tolist()))
        self.digests = {part: digest_ids(table.patient[split.part(part)]) for part in PARTS}
        if not isinstance(self.source, pd.DataFrame):
            self.data_sha256 = sha256_file(self.source)
        self._rows = self._batch(table, y)
        self._learn(self._rows, split.train)
        self.findings = after_setup(
            table,
            split,
            fitted,
            contract=self.contract,
            x=self._rows.x.numpy(),
            without=self.not_audited,
        )

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

    def apply(self, table: Source) -> Batch:
        """Turn a new table into a batch with the stored medians and scales; nothing is fitted.

        Needs no :meth:`setup` where the preprocessing came from a checkpoint, and no targets.
        ``row`` counts the rows of this table.

        Raises:
            ValueError: Where a feature is missing or is not what it must be.
        """
        return self._batch(*self._read(table, self._fitted().features))

    def row_ids(self, row: Tensor | Sequence[int]) -> list[str]:
        """Return patient and row number as text; make a pseudonym of it before you keep it."""
        patient = self._ready()[0].patient
        return [f"{patient[r]}:{r}" for r in map(int, row)]

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

    def state_dict(self) -> dict[str, Any]:
        """Return what prediction and resume need, in plain types."""
        if self.preprocessing is None:
            return {}
        return {
            "preprocessing": self.preprocessing.state(),
            "sites": self.sites,
            "baseline": None if self._baseline is None else self._baseline.state(),
            "digests": self.digests,
            "data_sha256": self.data_sha256,
            "contract_sha256": "" if self.contract is None else self.contract.digest,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the stored preprocessing; refuse it where it was fitted on other patients."""
        stored = Preprocessing.from_state(state_dict["preprocessing"])
        require_same_contract(state_dict.get("contract_sha256", ""), self.contract)
        if self.preprocessing is not None:
            require_same_rows(stored, self.preprocessing)
        changed = stored != self.preprocessing
        self.preprocessing = stored
        if state_dict.get("baseline") is not None:
            self._baseline = self._load_baseline(state_dict["baseline"])
        if self.table is None:
            self.digests = dict(state_dict.get("digests", {}))
            self.sites, self.data_sha256 = list(state_dict["sites"]), state_dict["data_sha256"]
        elif changed and self._rows is not None:  # another CPU's last bit of a mean: it counts
            x = torch.from_numpy(stored.apply(self.table.values))
            self._rows = self._rows._replace(x=x)

    def _known_baseline(self, setting: str, usual: object) -> Any:
        if self._baseline is None:
            raise RuntimeError(
                "the baseline is fitted by setup() or loaded from a checkpoint; neither was done, "
                f"or {setting} is None (it is {getattr(self, setting)}). Call dm.setup() first, "
                f"with {setting}={usual!r}."
            )
        return self._baseline

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
