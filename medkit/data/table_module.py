"""What the DataModules of tables share: read once, split by patient, fit on the training rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from medkit.data import preprocessing
from medkit.data.batches import Batch
from medkit.data.contract import breaches
from medkit.data.contract.agreement import require_same_contract
from medkit.data.contract.schema import Contract
from medkit.data.leakage.audit import Finding, after_setup, write_down
from medkit.data.preprocessing import Preprocessing, digest_ids, require_same_rows
from medkit.data.split_plan import SplitPlan
from medkit.data.splits import PARTS, Split
from medkit.data.table_rows import RowsDataModule
from medkit.data.tables import Table, TableSpec
from medkit.record.files import sha256_file

Source = str | Path | pd.DataFrame


class TableDataModule(RowsDataModule):
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
        super().__init__(batch_size)
        self.source = source
        self.spec = spec
        self.plan = plan
        self.contract = contract
        self.scale = scale
        self.clip = clip
        self.indicators = indicators
        self.digests: dict[str, str] = {}  # part -> digest of its patients
        self.findings: list[Finding] = []  # of the audit for leaks
        self.data_sha256 = ""  # of the file read, for the run folder
        self._baseline: Any = None  # of the subclass's kind

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
        self._warn_of_breaches(table)
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
            time=self.times,
        )

    def _warn_of_breaches(self, table: Table) -> None:
        if self.contract is None:
            return
        rules = self.contract.columns.items()
        features = sum(rule.is_feature for name, rule in rules if name not in self.spec.ignore)
        named = not isinstance(self.source, pd.DataFrame)
        where = Path(self.source).name if named else "the table"  # type: ignore[arg-type]
        for line in breaches.summary(table.broken, where=where, features=features):
            breaches.warn_once(line)

    def apply(self, table: Source) -> Batch:
        """Turn a new table into a batch with the stored medians and scales; nothing is fitted.

        Needs no :meth:`setup` where the preprocessing came from a checkpoint, and no targets.
        ``row`` counts the rows of this table.

        Raises:
            ValueError: Where a feature is missing or is not what it must be.
        """
        return self._batch(*self._read(table, self._fitted().features))

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
