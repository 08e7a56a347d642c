"""A net per fold, their probabilities averaged: every development row is learnt from.

Members on different folds gain more than members on one split (for the same rows held out each
time), and the mean of five moves half as much from seed to seed as one of them. How far the nets
may leave logistic regression is decided by the rows that each of them has not seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from medkit.data.batches import Batch
from medkit.data.ehr import EHRDataModule
from medkit.data.tables import read_table
from medkit.models.baseline import BoostingBaseline, fit_boosting
from medkit.models.classifier import LitClassifier
from medkit.models.member import Floats, Member, Scores, held_out_weight
from medkit.record.checkpoints import newest_sound
from medkit.record.files import read_json, write_json

__all__ = ["FoldEnsemble", "Member", "Scores", "fit_folds", "stage_names"]

_LONGEST = 60  # of a stage name the file system takes 100, and numbers are put behind it


@dataclass(frozen=True)
class FoldEnsemble:
    """Nets trained on different folds of the same development rows; see :func:`fit_folds`.

    Attributes:
        members: One per fold.
        weight: How much of what the nets add to logistic regression counts, from 0 to 1.
    """

    members: tuple[Member, ...]
    weight: float = 1.0

    def predict(self, table: str | Path | pd.DataFrame) -> Scores:
        """Score a new table: each member under its own medians and scales; nothing is fitted."""
        return self.mean([member.dm.apply(table) for member in self.members])

    def test(self) -> Scores:
        """Score the test rows, which no member has seen."""
        return self.mean([member.dm.rows("test") for member in self.members])

    def boosting(self, rows: str | pd.DataFrame) -> Floats:
        """Return what gradient boosting on the same folds says of the same rows, ``(N,)``.

        A model per member, fitted when first asked for, on that member's training rows as the
        table has them (NaN is missing, nothing is filled or scaled: trees like that best). Means
        for the test and new rows, one model each out of fold, as the nets' own.

        Args:
            rows: "test" or "out_of_fold", in the order of :meth:`test` and :meth:`out_of_fold`;
                or a new table, as for :meth:`predict`.

        Raises:
            ValueError: For another word, or where the training rows are not there.
        """
        if isinstance(rows, pd.DataFrame):
            return np.mean([model.prob(_raw(dm, rows)) for model, dm in self._boosting], axis=0)
        if rows == "test":
            return np.mean([model.prob(dm.values("test")) for model, dm in self._boosting], axis=0)
        if rows == "out_of_fold":
            prob = np.concatenate([model.prob(dm.values("val")) for model, dm in self._boosting])
            return prob[_order([dm.rows("val") for _, dm in self._boosting])]
        raise ValueError(
            f"rows must be 'test', 'out_of_fold' or a table, got {rows!r}. Read a file first."
        )

    def out_of_fold(self) -> Scores:
        """Score each development row by the one member that was not trained on it.

        For a threshold, or a look at calibration, without touching the test: one net's scores, so
        a little worse than the mean's. ``spread`` is 0.
        """
        batches = [member.dm.rows("val") for member in self.members]
        pairs = list(zip(self.members, batches, strict=True))
        order = _order(batches)
        prob = np.concatenate([member.prob(batch, weight=self.weight) for member, batch in pairs])
        baseline = np.concatenate([member.baseline_prob(batch) for member, batch in pairs])

        def joined(name: str) -> NDArray[np.int64]:
            return torch.cat([getattr(batch, name) for batch in batches]).numpy()[order]

        return Scores(
            prob=prob[order],
            baseline=baseline[order],
            y=joined("y"),
            row=joined("row"),
            site=joined("site"),
            spread=np.zeros(len(order)),
        )

    @classmethod
    def load(cls, run_dir: Path | str, *, name: str = "fold") -> FoldEnsemble:
        """Rebuild the ensemble from a run folder; no table is read and no code from it is run.

        Raises:
            FileNotFoundError: Where a stage ``fold0``, ``fold1``, ... has no sound checkpoint.
        """
        folder = Path(run_dir) / "checkpoints"
        stages = sorted(
            (path.name for path in folder.glob(f"{name}*") if path.name[len(name) :].isdigit()),
            key=lambda stage: int(stage[len(name) :]),
        )
        paths = {stage: newest_sound(folder / stage) for stage in stages}
        broken = [stage for stage, path in paths.items() if path is None]
        weighed = folder / f"{name}.json"
        if not stages or broken:
            raise FileNotFoundError(
                f"{folder} must hold a sound checkpoint per member ({name}0, {name}1, ...); found "
                f"{stages or 'none'}" + (f", of which {broken} have none" if broken else "") + ". "
                "Resume the run until it has finished, or pass the stages' name=."
            )
        if not weighed.is_file():
            raise FileNotFoundError(
                f"{weighed} must say how the members are weighed, and is not there: the ensemble "
                "was not finished. Resume the run."
            )
        return cls(
            weight=float(read_json(weighed)["weight"]),
            members=tuple(
                Member(
                    stage,
                    EHRDataModule.load_from_checkpoint(path, weights_only=True),
                    LitClassifier.load_from_checkpoint(path, weights_only=True).eval(),
                )
                for stage, path in paths.items()
                if path is not None
            ),
        )

    @cached_property
    def _boosting(self) -> list[tuple[BoostingBaseline, EHRDataModule]]:
        dms = [member.dm for member in self.members]
        if any(dm.table is None for dm in dms):
            raise ValueError(
                "gradient boosting is fitted on the members' training rows, and these members came "
                "from checkpoints, which hold no rows. Call member.dm.setup() for each of "
                "ensemble.members, where the table is at hand."
            )
        return [(fit_boosting(dm.values("train"), dm.rows("train").y), dm) for dm in dms]

    def mean(self, batches: list[Batch]) -> Scores:
        """Score rows given as a batch per member, each by its own medians and scales."""
        pairs = list(zip(self.members, batches, strict=True))
        prob = np.stack([member.prob(batch, weight=self.weight) for member, batch in pairs])
        baseline = np.stack([member.baseline_prob(batch) for member, batch in pairs])
        first = batches[0]
        return Scores(
            prob=prob.mean(axis=0),
            baseline=baseline.mean(axis=0),
            y=first.y.numpy(),
            row=first.row.numpy(),
            site=first.site.numpy(),
            spread=prob.std(axis=0),
        )


class RunLike(Protocol):
    """What is asked of a run: its folder, initial weights, the point a stage goes on from."""

    dir: Path

    def init(self, stage: str) -> AbstractContextManager[None]:
        """Key the draws of the initial weights."""

    def resume(self, stage: str) -> str | None:
        """Return the checkpoint to go on from."""


def fit_folds(
    run: RunLike,
    *,
    data: Callable[[int], EHRDataModule],
    model: Callable[[EHRDataModule], LitClassifier],
    trainer: Callable[..., pl.Trainer],
    folds: int = 5,
    name: str = "fold",
    weight: float | None = None,
) -> FoldEnsemble:
    """Train a member per fold, as stages ``fold0``, ``fold1``, ... of one run.

    ::

        ensemble = fit_folds(
            run,
            data=lambda fold: keyed(EHRDataModule(csv, target="died", folds=5, fold=fold)),
            model=lambda dm: warm_classifier(dm, max_epochs=30),
            trainer=partial(stable_trainer, run, max_epochs=30),
        )
        ensemble.predict("arrivals.csv").prob

    Killed anywhere and resumed, the ensemble is bitwise that of the uninterrupted run: finished
    members are loaded, the one that was cut goes on from its resume point.

    Args:
        run: From ``start_run``.
        data: Fold number -> a DataModule whose validation part is that fold.
        model: DataModule, set up -> a module with fresh weights. They depend on seed and stage.
        trainer: Called with ``name=<stage>``.
        folds: Members.
        name: What the stages' names begin with.
        weight: See :class:`FoldEnsemble`; None: the one with the least cross entropy on the rows
            that each member has not seen. Where there is nothing to learn beyond a linear model
            it comes out small, and the ensemble is then logistic regression.

    Raises:
        ValueError: Where a DataModule does not leave its fold out.
    """
    members: list[Member] = []
    for fold in range(folds):
        stage = f"{name}{fold}"
        dm = data(fold)
        if (dm.plan.folds, dm.plan.fold) != (folds, fold):
            raise ValueError(
                f"member {fold} of {folds} must leave fold {fold} out, and its DataModule has "
                f"folds={dm.plan.folds}, fold={dm.plan.fold}. Pass the number on: "
                f"data=lambda fold: EHRDataModule(..., folds={folds}, fold=fold)."
            )
        dm.setup()
        with run.init(stage):
            lit = model(dm)
        trainer(name=stage).fit(lit, dm, ckpt_path=run.resume(stage))
        members.append(Member(stage, dm, lit.eval()))
    if weight is None:
        weight = held_out_weight(members)
    write_json(run.dir / "checkpoints" / f"{name}.json", {"weight": weight})
    return FoldEnsemble(tuple(members), weight)


def stage_names(sites: Sequence[str], *, prefix: str = "site_") -> dict[str, str]:
    """Return for each site what its stages, files and metrics are called, no two alike.

    Letters, digits, "_", "-" and "." stay, other characters become "_", and all is lower case, as
    some file systems don't tell A from a; names that would be the same are numbered::

        stage_names(["A", "St. Mary/x", "a"])
        # {"A": "site_a", "St. Mary/x": "site_st._mary_x", "a": "site_a_2"}
    """
    names: dict[str, str] = {}
    for site in sites:
        plain = prefix + re.sub(r"[^a-z0-9_.-]", "_", site.lower())[:_LONGEST]
        name, number = plain, 1
        while name in names.values():
            name, number = f"{plain}_{number + 1}", number + 1
        names[site] = name
    return names


def _order(batches: Sequence[Batch]) -> NDArray[np.int64]:
    """Return what puts rows of several batches, one behind the other, into the table's order."""
    return np.argsort(np.concatenate([batch.row.numpy() for batch in batches]), kind="stable")


def _raw(dm: EHRDataModule, table: pd.DataFrame) -> NDArray[np.float32]:
    """Return a new table as ``dm.values`` would: neither filled nor scaled."""
    features = None if dm.preprocessing is None else dm.preprocessing.features
    return read_table(table, dm.spec, features=features, contract=dm.contract).values
