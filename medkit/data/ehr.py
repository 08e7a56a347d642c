"""Tables of encounters as a LightningDataModule."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from medkit.data import preprocessing, splits
from medkit.data.batches import Batch
from medkit.data.contract.schema import Contract
from medkit.data.leakage.audit import Finding, after_setup
from medkit.data.linear import LogisticBaseline, fit_logistic
from medkit.data.preprocessing import Preprocessing, digest_ids, require_same_rows
from medkit.data.split_plan import SplitPlan
from medkit.data.splits import Split
from medkit.data.table_loader import TableLoader
from medkit.data.tables import Code, Table, TableSpec, as_list, read_table
from medkit.record.files import sha256_file

log = logging.getLogger(__name__)

DRAWS = ("shuffled", "balanced")
EVAL_BATCH = 1024  # rows; evaluation needs no gradients, so larger batches cost nothing


class EHRDataModule(pl.LightningDataModule):
    """Encounters with missing values and a rare positive class, split by patient.

    Medians and scales are fitted on the training rows, then applied to all; they are kept in the
    checkpoint with a digest of whose rows those were, and never fitted again on resume. Batches
    are ``Batch(x, y, row, site)``, ``x`` float32 ``(B, F)`` without missing values.

    After :meth:`setup`: ``features`` (names of the columns of ``x``), ``num_features``, ``prior``
    (share of label 1 in the training rows), ``baseline`` (logistic regression fitted on them),
    ``sites``, ``split``, ``table``, ``preprocessing``, ``digests`` (part -> digest of its
    patients), ``findings`` (of the audit for leaks). Prior, baseline and digests are in the
    checkpoint too.

    Args:
        csv_path: CSV or Parquet, one row per encounter.
        target: Column of the 0/1 label.
        target_above: Where labels are grades: those above this count as 1.
        patient: Column of patient ids; None (or empty): each row is another patient.
        site: Column of hospitals; None (or empty): there is one.
        ignore: Columns that are no features.
        missing_codes: Column (or "*" for all) -> values that mean missing, such as
            ``{"chol": [0], "*": ["?"]}``. Blank cells are missing anyway.
        contract: What the columns must be (YAML file, plain types or a ``Contract``): its columns
            are the features, repaired by it. What was done is in ``table.broken``.
        test_site: Keep this site for the external test.
        split_column: Take the split from a column that says train, val and test.
        val_fraction: Share of the patients in validation, stratified by site and outcome.
        test_fraction: Share of the patients in test, where no ``test_site`` is kept.
        split_seed: Decides who is where. Keep it while the run's ``seed`` varies.
        folds: Deal the patients that are not in test into so many folds, in place of
            ``val_fraction``: a net per fold sees all of them.
        fold: Which of the folds is validation, from 0.
        test_folds: Deal all patients into so many folds for the test, not ``test_fraction``.
        test_fold: Which of those is the test.
        scale: "robust" (median, interquartile range) or "standard" (mean, standard deviation).
        clip: Scaled values are cut at plus and minus this; None: not.
        indicators: Add a 0/1 column "was missing" per column. Helps inside the training
            hospitals; a habit of measuring does not travel to others.
        draws: "shuffled": each row once an epoch. "balanced": both classes equally often, with
            replacement, which doubles the spread over seeds and shifts every probability: pass
            ``logit_shift=dm.logit_shift`` to the model to put the prior back.
        baseline_c: Inverse strength of the baseline's penalty; None: no baseline.
        batch_size: Encounters a batch.
        num_workers: Has no effect: rows in memory leave nothing to do for worker processes.
    """

    def __init__(
        self,
        csv_path: str | Path,
        *,
        target: str,
        target_above: float | None = None,
        patient: str | None = "patient_id",
        site: str | None = None,
        ignore: Sequence[str] = (),
        missing_codes: Mapping[str, Sequence[Code]] | None = None,
        contract: str | Path | Mapping[str, Any] | Contract | None = None,
        test_site: str | None = None,
        split_column: str | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int | None = None,
        test_folds: int | None = None,
        test_fold: int | None = None,
        scale: str = "robust",
        clip: float | None = 4.0,
        indicators: bool = True,
        draws: str = "shuffled",
        baseline_c: float | None = 0.1,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        # plain types only, so that a checkpoint loads with weights_only=True
        csv_path = str(csv_path)
        ignore = list(ignore)
        missing_codes = {name: as_list(codes) for name, codes in (missing_codes or {}).items()}
        patient, site = patient or None, site or None
        test_site, split_column = test_site or None, split_column or None
        agreed = None if not contract else Contract.of(contract)
        contract = None if agreed is None else agreed.to_mapping()
        self.save_hyperparameters()
        if draws not in DRAWS:
            raise ValueError(
                f"draws must be one of {list(DRAWS)}, got {draws!r}. "
                "'shuffled' sees each row once an epoch."
            )
        chosen = {"split_column": split_column, "test_site": test_site, "test_folds": test_folds}
        if split_column and (test_site or test_folds):
            raise ValueError(
                "a split comes from a column or leaves one site (or fold) out, not both; got "
                f"{chosen}. Keep one of them."
            )
        self.csv_path = csv_path
        self.contract = agreed
        self.spec = TableSpec(
            target, patient, site, split_column, tuple(ignore), missing_codes, target_above
        )
        self.plan = SplitPlan(
            test_site=test_site,
            test_fraction=test_fraction,
            test_folds=test_folds,
            test_fold=test_fold,
            val_fraction=val_fraction,
            folds=folds,
            fold=fold,
            split_seed=split_seed,
        )
        self.scale = scale
        self.clip = clip
        self.indicators = indicators
        self.draws = draws
        self.baseline_c = baseline_c
        self.batch_size = batch_size
        self.num_workers = num_workers

        self.table: Table | None = None
        self.split: Split | None = None
        self.preprocessing: Preprocessing | None = None
        self.sites: list[str] = []
        self.prior = float("nan")
        self.digests: dict[str, str] = {}
        self.findings: list[Finding] = []  # of the audit for leaks
        self.data_sha256 = ""  # of the file read, for the run folder
        self._baseline: LogisticBaseline | None = None
        self._rows: Batch | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read, check, split and fit; once, however often Lightning asks."""
        if self._rows is not None:
            return
        table = read_table(self.csv_path, self.spec, contract=self.contract)
        split = self.plan.split(table)
        splits.require_both_classes(table.y, split.train, part="training")
        splits.require_both_classes(table.y, split.val, part="validation")
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
        self.prior = float(table.y[split.train].mean())
        self.digests = {name: digest_ids(table.patient[split.part(name)]) for name in splits.PARTS}
        self.data_sha256 = sha256_file(self.csv_path)
        self._rows = self._batch(table)
        if self._baseline is None and self.baseline_c is not None:
            x, y = self._rows.x.numpy(), self._rows.y.numpy()
            self._baseline = fit_logistic(x, y, c=self.baseline_c, rows=split.train)
        x = self._rows.x.numpy()
        self.findings = after_setup(table, split, fitted, contract=self.contract, x=x)

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
        """Training batches; times the epochs, what ``LitClassifier`` calls ``total_steps``."""
        self._read()
        return -(-len(self.split.train) // self.batch_size)  # type: ignore[union-attr]

    @property
    def baseline(self) -> LogisticBaseline:
        """Logistic regression, fitted on the training rows as the net sees them.

        Raises:
            RuntimeError: Where there is none.
        """
        if self._baseline is None:
            raise RuntimeError(
                "the baseline is fitted by setup() or loaded from a checkpoint; neither was done, "
                f"or baseline_c is None (it is {self.baseline_c}). Call dm.setup() first, with "
                "baseline_c=0.1."
            )
        return self._baseline

    @property
    def logit_shift(self) -> float:
        """What balanced draws leave out of the logits: the log odds of ``prior``; else 0."""
        return float(np.log(self.prior / (1 - self.prior))) if self.draws == "balanced" else 0.0

    def rows(self, part: str) -> Batch:
        """Return all rows of "train", "val" or "test" as one batch."""
        self._read()
        at = torch.as_tensor(self.split.part(part))  # type: ignore[union-attr]
        return Batch(*(values[at] for values in self._rows))  # type: ignore[union-attr]

    def values(self, part: str) -> NDArray[np.float32]:
        """Return the rows of a part before filling and scaling, ``(N, F)`` with NaN for missing.

        What gradient boosting likes best; ``table.features`` names the columns.
        """
        values = self._read().values
        return values[self.split.part(part)]  # type: ignore[union-attr]

    def apply(self, table: str | Path | pd.DataFrame) -> Batch:
        """Turn a new table into a batch with the stored medians and scales; nothing is fitted.

        Needs no :meth:`setup` where the preprocessing came from a checkpoint. ``row`` counts the
        rows of this table; ``y`` is -1 where it has no target.

        Raises:
            ValueError: Where a feature is missing or is not what it must be.
        """
        return self._batch(
            read_table(table, self.spec, features=self._fitted().features, contract=self.contract)
        )

    def row_ids(self, row: Tensor | Sequence[int]) -> list[str]:
        """Return patient and row number as text; make a pseudonym of it before you keep it."""
        patient = self._read().patient
        return [f"{patient[r]}:{r}" for r in map(int, row)]

    def missingness(self) -> dict[str, dict[str, float]]:
        """Return site -> feature -> share missing, coded ones counted, over all rows."""
        table = self._read()
        gone = np.isnan(table.values)
        return {
            site: dict(zip(table.features, gone[table.site == site].mean(0).tolist(), strict=True))
            for site in self.sites
        }

    def train_dataloader(self) -> TableLoader:
        """Return the training rows, shuffled or balanced; ``keyed(dm)`` makes the order keyed."""
        self._read()
        at = torch.as_tensor(self.split.train)  # type: ignore[union-attr]
        labels = self._rows.y[at] if self.draws == "balanced" else None  # type: ignore[union-attr]
        return TableLoader(
            self._rows,  # type: ignore[arg-type]
            self.batch_size,
            rows=at,
            shuffle=labels is None,
            balanced_by=labels,
        )

    def val_dataloader(self) -> TableLoader:
        """Return the validation rows in order."""
        return self.rows_loader(self.rows("val"))

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

    def rows_loader(self, rows: Batch) -> TableLoader:
        """Return a loader that goes through the rows in order, such as those of :meth:`apply`."""
        return TableLoader(rows, max(self.batch_size, EVAL_BATCH))

    def state_dict(self) -> dict[str, Any]:
        """Return what prediction and resume need, in plain types."""
        if self.preprocessing is None:
            return {}
        return {
            "preprocessing": self.preprocessing.state(),
            "sites": self.sites,
            "prior": self.prior,
            "baseline": None if self._baseline is None else self._baseline.state(),
            "digests": self.digests,
            "data_sha256": self.data_sha256,
            "contract_sha256": self._contract_sha256,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the stored preprocessing; refuse it where it was fitted on other patients."""
        stored = Preprocessing.from_state(state_dict["preprocessing"])
        agreed = state_dict.get("contract_sha256", "")
        if agreed != self._contract_sha256:
            raise ValueError(
                "a checkpoint goes on with the data contract it was trained under; its digest is "
                f"{agreed[:12] or 'none'}, this one's {self._contract_sha256[:12] or 'none'}. Take "
                "that contract (it is in the checkpoint's hyper_parameters), or begin a new run."
            )
        if self.preprocessing is not None:
            require_same_rows(stored, self.preprocessing)
        changed = stored != self.preprocessing
        self.preprocessing = stored
        if state_dict.get("baseline") is not None:
            self._baseline = LogisticBaseline.from_state(state_dict["baseline"])
        if self.table is None:
            self.digests = dict(state_dict.get("digests", {}))
            self.sites, self.prior = list(state_dict["sites"]), float(state_dict["prior"])
            self.data_sha256 = state_dict["data_sha256"]
        elif changed:  # the last bit of a mean on another CPU: the stored one counts
            self._rows = self._batch(self.table)

    @property
    def _contract_sha256(self) -> str:
        return "" if self.contract is None else self.contract.digest

    def _read(self) -> Table:
        if self.table is None:
            raise RuntimeError(
                "the table must be read before its rows are asked for, and setup() has not run. "
                "Call dm.setup() first; a Trainer does so by itself."
            )
        return self.table

    def _fitted(self) -> Preprocessing:
        if self.preprocessing is None:
            raise RuntimeError(
                "medians and scales must be fitted or loaded first, and neither was done. "
                "Call dm.setup(), or EHRDataModule.load_from_checkpoint(path)."
            )
        return self.preprocessing

    def _batch(self, table: Table) -> Batch:
        names, number = np.unique(table.site, return_inverse=True)
        code = {name: number for number, name in enumerate(self.sites)}
        codes = torch.tensor([code.get(name, -1) for name in names.tolist()])
        return Batch(
            x=torch.from_numpy(self._fitted().apply(table.values)),
            y=torch.from_numpy(table.y),
            row=torch.arange(len(table.y)),
            site=codes[torch.from_numpy(number)],
        )
