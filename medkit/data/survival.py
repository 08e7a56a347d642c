"""Patients followed until an event or the last look, as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from medkit.data.batches import Batch
from medkit.data.contract.schema import Contract
from medkit.data.cox import PENALTIES, CoxBaseline, choose_l2, fit_cox
from medkit.data.follow_up import FollowUp, read_follow_up, require_events
from medkit.data.split_plan import SplitPlan
from medkit.data.splits import Split
from medkit.data.table_loader import TableLoader
from medkit.data.table_module import Source, TableDataModule
from medkit.data.tables import Code, Table, TableSpec, as_list

_FEW = 10  # events; fewer can't say which penalty is best
_MANY = 20_000  # patients; as many do


class SurvivalDataModule(TableDataModule):
    """Patients with a time and whether it ended in the event, split by patient.

    Batches are ``Batch(x, y, row, site)``; ``x`` float32 ``(B, F)`` without missing values, ``y``
    float32 ``(B, 2)``: time, and 1 where the event was seen (else 0); NaN in a table of new
    patients. Medians and scales are fitted on the training rows, kept in the checkpoint with a
    digest of whose rows those were, and never fitted again on resume.

    By default one batch holds the whole training set: a patient with the event is compared with
    all who were still followed then. Small batches change that: see ``medkit.models.survival``.

    After :meth:`setup`: ``features`` (names of the columns of ``x``), ``num_features``, ``sites``,
    ``split``, ``follow_up``, ``table`` (of it), ``preprocessing``, ``digests`` (part -> digest of
    its patients), ``findings`` (of the audit for leaks, with the event as the label),
    ``baseline`` (penalised Cox regression fitted on the training rows; in the checkpoint too).

    Args:
        csv_path: CSV or Parquet, one row per patient; a DataFrame is taken too.
        time: Column of the time of the event or of the last look.
        event: Column that is 1 where it was the event and 0 where it was the last look.
        start: Column of the time at which follow-up began; None: times count from there.
        patient: Column of patient ids; None (or empty): there is none.
        site: Column of hospitals; None (or empty): there is one.
        ignore: Columns that are no features.
        missing_codes: Column (or "*" for all) -> values that mean missing.
        contract: What the columns must be (YAML file, plain types or a ``Contract``), the times
            among them; its target is the event. What was done is in ``table.broken``.
        test_site: Keep this site for the external test.
        split_column: Take the split from a column that says train, val and test; val may be empty
            where every choice was made before.
        val_fraction: Share of the patients in validation, stratified by site and event.
        test_fraction: Share of the patients in test, where no ``test_site`` is kept.
        split_seed: Decides who is where. Keep it while the run's ``seed`` varies.
        folds: Deal the patients that are not in test into so many folds, in place of
            ``val_fraction``.
        fold: Which of the folds is validation, from 0.
        test_folds: Deal all patients into so many folds for the test, not ``test_fraction``.
        test_fold: Which of those is the test.
        scale: "robust" (median, interquartile range) or "standard" (mean, standard deviation).
        clip: Scaled values are cut at plus and minus this; None: not.
        indicators: Add a 0/1 column "was missing" per column: a site's habit, does not travel.
        baseline_l2: The baseline's penalty, as of ``fit_cox``; "chosen": by cross-validation within
            the training patients (the strongest where they have fewer than ten events; among every
            n-th where there are more than 20,000). None: no baseline.
        batch_size: Patients a batch; None: all of the training set.
    """

    # who came early was followed for longer: order and ids know the event of any clinic
    not_audited = ("order and ids",)

    def __init__(
        self,
        csv_path: Source,
        *,
        time: str,
        event: str,
        start: str | None = None,
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
        baseline_l2: float | str | None = "chosen",
        batch_size: int | None = None,
    ) -> None:
        source = csv_path
        # plain types only, so that a checkpoint loads with weights_only=True
        csv_path = "" if isinstance(source, pd.DataFrame) else str(source)
        ignore = as_list(ignore)
        missing_codes = {name: as_list(codes) for name, codes in (missing_codes or {}).items()}
        patient, site, start = patient or None, site or None, start or None
        test_site, split_column = test_site or None, split_column or None
        agreed = None if not contract else Contract.of(contract)
        contract = None if agreed is None else agreed.to_mapping()
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 2):
            raise ValueError(
                f"batch_size must be at least 2 or None (all), got {batch_size!r}. A patient alone "
                "is compared with nobody."
            )
        if isinstance(baseline_l2, str) and baseline_l2 != "chosen":
            raise ValueError(
                f"baseline_l2 must be a number, 'chosen' or None, got {baseline_l2!r}. 'chosen' "
                "takes the best by cross-validation."
            )
        super().__init__(
            source,
            TableSpec(event, patient, site, split_column, tuple(ignore), missing_codes),
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
        self.baseline_l2 = baseline_l2
        self.time = time
        self.start = start
        self.follow_up: FollowUp | None = None

    @property
    def baseline(self) -> CoxBaseline:
        """Penalised Cox regression, fitted on the training rows as the net sees them.

        Raises:
            RuntimeError: Where there is none.
        """
        return self._known_baseline("baseline_l2", "chosen")

    def train_dataloader(self) -> TableLoader:
        """Return the training rows: all at once in their order, or shuffled in small batches."""
        _, split, rows = self._ready()
        at = torch.as_tensor(split.train)
        return TableLoader(rows, self._train_size, rows=at, shuffle=self.batch_size is not None)

    def rows_loader(self, rows: Batch) -> TableLoader:
        """Return a loader with all rows in one batch: risk sets are whole."""
        return TableLoader(rows, len(rows.y))

    def _read(
        self, source: Source, features: Sequence[str] | None = None
    ) -> tuple[Table, NDArray[np.float32]]:
        found = read_follow_up(
            source,
            self.spec,
            time=self.time,
            start=self.start,
            features=features,
            contract=self.contract,
        )
        if features is None:
            self.follow_up = found
        return found.table, found.y

    def _require_learnable(self, table: Table, split: Split) -> None:
        require_events(table.y[split.train], part="training")
        if len(split.val):
            require_events(table.y[split.val], part="validation")

    def _learn(self, rows: Batch, train: NDArray[np.int64]) -> None:
        if self._baseline is None and self.baseline_l2 is not None:
            x, y = rows.x.numpy()[train], rows.y.numpy()[train]
            l2 = self._penalty(x, y) if self.baseline_l2 == "chosen" else float(self.baseline_l2)
            self._baseline = fit_cox(x, *y.T, l2=l2)

    def _penalty(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
        if y[:, 1].sum() < _FEW:
            return max(PENALTIES)
        some = slice(None, None, -(-len(y) // _MANY))
        return choose_l2(x[some], *y[some].T, split_seed=self.plan.split_seed)[0]

    def _load_baseline(self, state: dict[str, Any]) -> CoxBaseline:
        return CoxBaseline.from_state(state)
