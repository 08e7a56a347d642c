"""Tables of encounters as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medkit.data import splits
from medkit.data.batches import Batch
from medkit.data.contract.schema import Contract
from medkit.data.linear import CHOSEN, LogisticBaseline, fit_logistic
from medkit.data.split_plan import SplitPlan
from medkit.data.splits import Split
from medkit.data.table_loader import TableLoader
from medkit.data.table_module import Source, TableDataModule
from medkit.data.tables import Code, Table, TableSpec, as_list, read_table

DRAWS = ("shuffled", "balanced")
EVAL_BATCH = 1024  # rows; evaluation needs no gradients, so larger batches cost nothing


class EHRDataModule(TableDataModule):
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
        baseline_c: Inverse strength of the baseline's penalty; "chosen": the one that would do
            best on training rows left out; None: no baseline.
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
        baseline_c: float | str | None = CHOSEN,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        # plain types only, so that a checkpoint loads with weights_only=True
        csv_path, ignore = str(csv_path), as_list(ignore)
        missing_codes = {name: as_list(codes) for name, codes in (missing_codes or {}).items()}
        patient, site = patient or None, site or None
        test_site, split_column = test_site or None, split_column or None
        agreed = None if not contract else Contract.of(contract)
        contract = None if agreed is None else agreed.to_mapping()
        if draws not in DRAWS:
            raise ValueError(
                f"draws must be one of {list(DRAWS)}, got {draws!r}. "
                "'shuffled' sees each row once an epoch."
            )
        super().__init__(
            csv_path,
            TableSpec(
                target, patient, site, split_column, tuple(ignore), missing_codes, target_above
            ),
            SplitPlan(
                test_site=test_site,
                test_fraction=test_fraction,
                test_folds=test_folds,
                test_fold=test_fold,
                val_fraction=val_fraction,
                folds=folds,
                fold=fold,
                split_seed=split_seed,
                split_column=split_column,
            ),
            contract=agreed,
            scale=scale,
            clip=clip,
            indicators=indicators,
            batch_size=batch_size,
        )
        self.save_hyperparameters()
        self.csv_path = csv_path
        self.draws = draws
        self.baseline_c = baseline_c
        self.num_workers = num_workers
        self.prior = float("nan")

    @property
    def baseline(self) -> LogisticBaseline:
        """Logistic regression, fitted on the training rows as the net sees them.

        Raises:
            RuntimeError: Where there is none.
        """
        return self._known_baseline("baseline_c", CHOSEN)

    @property
    def logit_shift(self) -> float:
        """What balanced draws leave out of the logits: the log odds of ``prior``; else 0."""
        return float(np.log(self.prior / (1 - self.prior))) if self.draws == "balanced" else 0.0

    def train_dataloader(self) -> TableLoader:
        """Return the training rows, shuffled or balanced; ``keyed(dm)`` makes the order keyed."""
        _, split, rows = self._ready()
        at = torch.as_tensor(split.train)
        labels = rows.y[at] if self.draws == "balanced" else None
        return TableLoader(
            rows, self._train_size, rows=at, shuffle=labels is None, balanced_by=labels
        )

    def rows_loader(self, rows: Batch) -> TableLoader:
        """Return a loader that goes through the rows in order, such as those of :meth:`apply`."""
        return TableLoader(rows, max(self.batch_size or 1, EVAL_BATCH))

    def state_dict(self) -> dict[str, Any]:
        """Return what prediction and resume need, in plain types."""
        state = super().state_dict()
        return state | {"prior": self.prior} if state else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the stored preprocessing; refuse it where it was fitted on other patients."""
        super().load_state_dict(state_dict)
        if self.table is None:
            self.prior = float(state_dict["prior"])

    def _read(
        self, source: Source, features: Sequence[str] | None = None
    ) -> tuple[Table, NDArray[np.int64]]:
        table = read_table(source, self.spec, features=features, contract=self.contract)
        return table, table.y

    def _require_learnable(self, table: Table, split: Split) -> None:
        splits.require_both_classes(table.y, split.train, part="training")
        splits.require_both_classes(table.y, split.val, part="validation")

    def _learn(self, rows: Batch, train: NDArray[np.int64]) -> None:
        x, y = rows.x.numpy(), rows.y.numpy()
        self.prior = float(y[train].mean())
        if self._baseline is None and self.baseline_c is not None:
            self._baseline = fit_logistic(x, y, c=self.baseline_c, rows=train)

    def _load_baseline(self, state: dict[str, Any]) -> LogisticBaseline:
        return LogisticBaseline.from_state(state)
