"""Patients followed until an event or the last look, as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medkit.data import preprocessing
from medkit.data.batches import Batch, TableDataset
from medkit.data.follow_up import FollowUp, read_follow_up, require_events
from medkit.data.preprocessing import Preprocessing, digest_ids, require_same_rows
from medkit.data.split_plan import SplitPlan
from medkit.data.splits import Split
from medkit.data.tables import Code, TableSpec, as_list
from medkit.record.files import sha256_file


class SurvivalDataModule(pl.LightningDataModule):
    """Patients with a time and whether it ended in the event, split by patient.

    Batches are ``Batch(x, y, row, site)``; ``x`` float32 ``(B, F)`` without missing values, ``y``
    float32 ``(B, 2)``: time, and 1 where the event was seen (else 0); NaN in a table of new
    patients. Medians and scales are fitted on the training rows, kept in the checkpoint with a
    digest of whose rows those were, and never fitted again on resume.

    By default one batch holds the whole training set: a patient with the event is compared with
    all who were still followed then. Small batches change that: see ``medkit.models.survival``.

    After :meth:`setup`: ``features`` (names of the columns of ``x``), ``num_features``, ``sites``,
    ``split``, ``follow_up``, ``preprocessing``.

    Args:
        csv_path: CSV or Parquet, one row per patient; a DataFrame is taken too.
        time: Column of the time of the event or of the last look.
        event: Column that is 1 where it was the event and 0 where it was the last look.
        start: Column of the time at which follow-up began; None: times count from there.
        patient: Column of patient ids; None (or empty): there is none.
        site: Column of hospitals; None (or empty): there is one.
        ignore: Columns that are no features.
        missing_codes: Column (or "*" for all) -> values that mean missing.
        test_site: Keep this site for the external test.
        split_column: Take the split from a column that says train, val and test; val may be empty
            where every choice was made before.
        val_fraction: Share of the patients in validation, stratified by site and event.
        test_fraction: Share of the patients in test, where no ``test_site`` is kept.
        split_seed: Decides who is where. Keep it while the run's ``seed`` varies.
        scale: "robust" (median, interquartile range) or "standard" (mean, standard deviation).
        clip: Scaled values are cut at plus and minus this; None: not.
        indicators: Add a 0/1 column "was missing" per column: a site's habit, does not travel.
        batch_size: Patients a batch; None: all of the training set.
    """

    def __init__(
        self,
        csv_path: str | Path | pd.DataFrame,
        *,
        time: str,
        event: str,
        start: str | None = None,
        patient: str | None = "patient_id",
        site: str | None = None,
        ignore: Sequence[str] = (),
        missing_codes: Mapping[str, Sequence[Code]] | None = None,
        test_site: str | None = None,
        split_column: str | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        scale: str = "robust",
        clip: float | None = 4.0,
        indicators: bool = True,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.source = csv_path
        csv_path = "" if isinstance(csv_path, pd.DataFrame) else str(csv_path)
        # plain types only, so that a checkpoint loads with weights_only=True
        ignore = list(ignore)
        missing_codes = {name: as_list(codes) for name, codes in (missing_codes or {}).items()}
        patient, site, start = patient or None, site or None, start or None
        test_site, split_column = test_site or None, split_column or None
        self.save_hyperparameters()
        if split_column and test_site:
            raise ValueError(
                "a split comes from a column or leaves one site out, not both; got split_column="
                f"{split_column!r} and test_site={test_site!r}. Keep one of the two."
            )
        if batch_size is not None and batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2 or None (all), got {batch_size}. A patient alone "
                "is compared with nobody."
            )
        self.spec = TableSpec(event, patient, site, split_column, tuple(ignore), missing_codes)
        self.time = time
        self.start = start
        self.plan = SplitPlan(
            test_site=test_site,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
        )
        self.scale = scale
        self.clip = clip
        self.indicators = indicators
        self.batch_size = batch_size

        self.follow_up: FollowUp | None = None
        self.split: Split | None = None
        self.preprocessing: Preprocessing | None = None
        self.sites: list[str] = []
        self.data_sha256 = ""  # of the file read, for the run folder
        self._rows: Batch | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read, check, split and fit; once, however often Lightning asks."""
        if self._rows is not None:
            return
        found = read_follow_up(self.source, self.spec, time=self.time, start=self.start)
        table, split = found.table, self.plan.split(found.table)
        require_events(table.y[split.train], part="training")
        if len(split.val):
            require_events(table.y[split.val], part="validation")
        fitted = preprocessing.fit(
            table.values[split.train],
            table.features,
            scale=self.scale,
            clip=self.clip,
            indicators=self.indicators,
            fitted_on=digest_ids(table.patient[split.train]),
        )
        if self.preprocessing is not None:  # from a checkpoint
            require_same_rows(self.preprocessing, fitted)
            fitted = self.preprocessing
        self.follow_up, self.split, self.preprocessing = found, split, fitted
        self.sites = sorted(set(table.site.tolist()))
        if not isinstance(self.source, pd.DataFrame):
            self.data_sha256 = sha256_file(self.source)
        self._rows = self._batch(found)

    @property
    def features(self) -> list[str]:
        """Name of each column of ``x``."""
        return self._fitted().names

    @property
    def num_features(self) -> int:
        """Columns of ``x``."""
        return len(self.features)

    @property
    def batches_per_epoch(self) -> int:
        """Training batches; times the epochs, what ``LitCox`` calls ``total_steps``."""
        self._read()
        train = len(self.split.train)  # type: ignore[union-attr]
        return -(-train // (self.batch_size or train))

    def rows(self, part: str) -> Batch:
        """Return all rows of "train", "val" or "test" as one batch."""
        self._read()
        at = torch.as_tensor(self.split.part(part))  # type: ignore[union-attr]
        return Batch(*(values[at] for values in self._rows))  # type: ignore[union-attr]

    def apply(self, table: str | Path | pd.DataFrame) -> Batch:
        """Turn a table of new patients into a batch with the stored medians and scales.

        Needs no :meth:`setup` where the preprocessing came from a checkpoint, and no times: ``y``
        is NaN.
        """
        stored = self._fitted().features
        return self._batch(read_follow_up(table, self.spec, time=self.time, features=stored))

    def row_ids(self, row: Tensor | Sequence[int]) -> list[str]:
        """Return patient and row number as text; make a pseudonym of it before you keep it."""
        patient = self._read().table.patient
        return [f"{patient[r]}:{r}" for r in map(int, row)]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training rows: all at once in their order, or shuffled in small batches."""
        return self._loader(self.rows("train"), self.batch_size)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return the validation rows as one batch (their risk sets are whole), or nothing."""
        rows = self.rows("val")
        return [self.rows_loader(rows)] if len(rows.y) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test rows as one batch.

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

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the test rows where there are any, else the validation rows."""
        rows = self.rows("test")
        return self.rows_loader(rows if len(rows.y) else self.rows("val"))

    def rows_loader(self, rows: Batch) -> DataLoader[Batch]:
        """Return a loader with all rows in one batch, such as those of :meth:`apply`."""
        return self._loader(rows, None)

    def state_dict(self) -> dict[str, Any]:
        """Return what prediction and resume need, in plain types."""
        if self.preprocessing is None:
            return {}
        return {
            "preprocessing": self.preprocessing.state(),
            "sites": self.sites,
            "data_sha256": self.data_sha256,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the stored preprocessing; refuse it where it was fitted on other patients."""
        stored = Preprocessing.from_state(state_dict["preprocessing"])
        if self.preprocessing is not None:
            require_same_rows(stored, self.preprocessing)
        changed = stored != self.preprocessing
        self.preprocessing = stored
        if self.follow_up is None:
            self.sites, self.data_sha256 = list(state_dict["sites"]), state_dict["data_sha256"]
        elif changed:  # the last bit of a mean on another CPU: the stored one counts
            self._rows = self._batch(self.follow_up)

    @staticmethod
    def _loader(rows: Batch, size: int | None) -> DataLoader[Batch]:
        return DataLoader(
            TableDataset(rows),
            batch_size=size or len(rows.x),  # by keyword: Lightning gives its own at predict
            shuffle=size is not None,
            collate_fn=_as_it_is,
        )

    def _read(self) -> FollowUp:
        if self.follow_up is None:
            raise RuntimeError(
                "the table must be read before its rows are asked for, and setup() has not run. "
                "Call dm.setup() first; a Trainer does so by itself."
            )
        return self.follow_up

    def _fitted(self) -> Preprocessing:
        if self.preprocessing is None:
            raise RuntimeError(
                "medians and scales must be fitted or loaded first, and neither was done. "
                "Call dm.setup(), or SurvivalDataModule.load_from_checkpoint(path)."
            )
        return self.preprocessing

    def _batch(self, found: FollowUp) -> Batch:
        code = {name: number for number, name in enumerate(self.sites)}
        table = found.table
        y = np.column_stack([found.time, np.where(np.isnan(found.time), np.nan, table.y)])
        return Batch(
            x=torch.from_numpy(self._fitted().apply(table.values)),
            y=torch.from_numpy(y.astype(np.float32)),
            row=torch.arange(len(y)),
            site=torch.tensor([code.get(name, -1) for name in table.site.tolist()]),
        )


def _as_it_is(batch: Any) -> Any:
    return batch
