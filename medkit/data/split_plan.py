"""Which rows a DataModule trains, validates and tests on, as plain settings."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from medkit.data import splits
from medkit.data.splits import Split
from medkit.data.tables import Table


@dataclass(frozen=True)
class SplitPlan:
    """How a table is split: first who is in the test, then who of the others is in validation.

    Everything is by patient and stratified by site and outcome.

    Attributes:
        test_site: Keep this site for the test.
        test_fraction: Share of the patients in the test, where no site is kept.
        test_folds: Deal all patients into so many folds for the test instead.
        test_fold: Which of them is the test.
        val_fraction: Share of the patients in validation, where ``folds`` is None.
        folds: Deal the development patients (all but the test's) into so many folds.
        fold: Which of them is the validation.
        split_seed: Decides who is where.
        split_column: Column that says it all, where there is one.
    """

    test_site: str | None = None
    test_fraction: float = 0.0
    test_folds: int | None = None
    test_fold: int | None = None
    val_fraction: float = 0.2
    folds: int | None = None
    fold: int | None = None
    split_seed: int = 0
    split_column: str | None = None

    def __post_init__(self) -> None:
        if self.split_column and (self.test_site or self.test_folds):
            raise ValueError(
                "a split comes from a column or leaves one site (or fold) out, not both; got "
                f"split_column={self.split_column!r}, test_site={self.test_site!r} and "
                f"test_folds={self.test_folds}. Keep one of them."
            )
        _require_pair("folds", self.folds, "fold", self.fold)
        _require_pair("test_folds", self.test_folds, "test_fold", self.test_fold)
        tests = {
            "test_site": self.test_site,
            "test_fraction": self.test_fraction or None,
            "test_folds": self.test_folds,
        }
        given = {name: value for name, value in tests.items() if value is not None}
        if len(given) > 1:
            raise ValueError(
                f"the test part is one site, a share of the patients or one fold, got {given}. "
                "Keep one of them."
            )

    def split(self, table: Table) -> Split:
        """Split the rows of a table; a split column of its own decides who is in the test."""
        stratum = np.char.add(np.char.add(table.site, "/"), table.y.astype("<U2"))
        split = self._outside(table, stratum)
        if self.folds is None or self.fold is None:
            return split
        return splits.nested(
            split,
            table.patient,
            folds=self.folds,
            fold=self.fold,
            split_seed=self.split_seed,
            stratum=stratum,
        )

    def _outside(self, table: Table, stratum: splits.Texts) -> Split:
        if table.split is not None:
            return splits.by_column(table.split, table.patient)
        if self.test_site is not None:
            return splits.leave_site_out(
                table.site,
                table.patient,
                test_site=self.test_site,
                val_fraction=self.val_fraction,
                split_seed=self.split_seed,
                stratum=stratum,
            )
        if self.test_folds is not None:
            return self._test_fold(table, stratum)
        return splits.by_patient(
            table.patient,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            split_seed=self.split_seed,
            stratum=stratum,
        )

    def _test_fold(self, table: Table, stratum: splits.Texts) -> Split:
        number = splits.in_folds(
            table.patient,
            folds=self.test_folds or 0,
            split_seed=self.split_seed,
            stratum=stratum,
        )
        inside = np.flatnonzero(number != self.test_fold)
        rest = splits.by_patient(
            table.patient[inside],
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            stratum=stratum[inside],
        )
        return Split(inside[rest.train], inside[rest.val], np.flatnonzero(number == self.test_fold))


def _require_pair(many: str, folds: int | None, one: str, fold: int | None) -> None:
    given: dict[str, Any] = {many: folds, one: fold}
    for name, number in given.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, Integral)):
            raise ValueError(
                f"{name} must be a whole number or None, got {number!r}. folds=5 and fold=0 is the "
                "first of five."
            )
    if folds is not None and fold is not None:
        if folds < 2:
            raise ValueError(f"{many} must be at least 2, got {folds}. 5 is usual.")
        if not 0 <= fold < folds:
            raise ValueError(
                f"{one} must be 0 to {folds - 1}, as {many}={folds} are counted from 0; got "
                f"{one}={fold}. The last one is {one}={folds - 1}."
            )
    elif folds is not None or fold is not None:
        raise ValueError(
            f"{many} says into how many parts patients are dealt and {one} which of them is meant, "
            f"from 0; got {many}={folds} and {one}={fold}. Pass both, or neither."
        )
