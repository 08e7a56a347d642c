"""The tables of `ehr_stability`, and what the kit's default recipe makes of them."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from medkit.data.ehr import EHRDataModule
from medkit.models.classifier import LitClassifier
from medkit.models.member import best_weight
from medkit.models.seed_ensemble import SeedEnsemble
from medkit.models.stacked_loader import stacked
from medkit.models.tabular import warm_classifier
from medkit.synth.ehr import contract_yaml, make_hospitals
from medkit.trainer import keyed, stable_trainer, start_run

Floats = NDArray[np.float64]
EPOCHS = 30
LOOKS = 88  # a training: 22 in its last quarter
TOGETHER = 5  # nets in an ensemble
MONITOR = 2400  # rows with 200 events at least


@dataclass(frozen=True)
class Cohort:
    """Development rows as their hospitals wrote them, and rows that nobody is trained on.

    Attributes:
        csv: The table.
        settings: What ``EHRDataModule`` is to know of it: the contract, who is left out.
        new: Rows to score, as written.
        y: Their labels.
        outside: Which of them are of the hospital that was left out.
        patient: Whose they are; None: each is another's.
        prob: P(y = 1 | row) of the best possible rule; None: not known.
    """

    csv: Path
    settings: dict[str, Any]
    new: pd.DataFrame
    y: NDArray[np.int64]
    outside: NDArray[np.bool_]
    patient: NDArray[Any] | None = None
    prob: Floats | None = None

    def data(self, kind: type[EHRDataModule] = EHRDataModule, **more: Any) -> EHRDataModule:
        """Return the table as the kit's recipe reads it, set up."""
        dm = kind(self.csv, **self.settings, **more)
        dm.setup()
        return dm

    @property
    def monitor(self) -> NDArray[np.int64]:
        """Numbers of new rows of the hospitals that are trained on, to watch a training by."""
        return np.flatnonzero(~self.outside)[:MONITOR]


@contextmanager
def hospitals(family: str, draw: int, rows: int) -> Iterator[Cohort]:
    """Yield made-up hospitals A and B to train on, ``rows`` fresh stays of theirs and of C."""
    drawn = make_hospitals(seed=draw, family=family)
    of_a = round(rows * 850 / 1400)
    stays = {"A": of_a, "B": rows - of_a, "C": rows}
    fresh = make_hospitals(seed=10_000 + draw, stays=stays, family=family)
    with TemporaryDirectory() as folder:
        csv, contract = Path(folder) / "encounters.csv", Path(folder) / "contract.yaml"
        csv.write_text(drawn.encounters_csv())
        contract.write_text(contract_yaml(family))
        settings = {"target": "died", "site": "site", "test_site": "C", "contract": contract}
        new = pd.read_csv(io.StringIO(fresh.encounters_csv()))
        yield Cohort(csv, settings, new, fresh.y, fresh.site == "C", fresh.patient, fresh.prob)


@contextmanager
def heart(csv: Path, left_out: str) -> Iterator[Cohort]:
    """Yield UCI heart with one of its four hospitals left out."""
    whole = pd.read_csv(csv)
    columns: dict[str, Any] = {n: {"kind": "number"} for n in whole if n not in ("num", "site")}
    columns["chol"]["missing"] = [0]
    contract = {"version": 1, "target": "num", "target_above": 0, "site": "site"}
    settings = {
        **{"target": "num", "target_above": 0, "site": "site", "patient": None},
        **{"test_site": left_out, "contract": contract | {"columns": columns}},
    }
    new = whole[whole["site"] == left_out].reset_index(drop=True)
    y = (new["num"] > 0).to_numpy(np.int64)
    yield Cohort(csv, settings, new, y, np.ones(len(new), bool))


class Watch(pl.Callback):
    """Scores rows on the way: the weights as they are.

    Args:
        rows: Name -> ``(rows, F)``.
        total: Steps of the training.
        late: Names that are looked at in the last quarter only.
    """

    def __init__(self, rows: dict[str, Tensor], total: int, late: Sequence[str] = ()) -> None:
        self.rows, self.total, self.late = rows, total, late
        self.steps: dict[str, list[int]] = {name: [] for name in rows}
        self.logits: dict[str, list[Tensor]] = {name: [] for name in rows}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Look."""
        step = trainer.global_step
        if step * LOOKS // self.total == (step - 1) * LOOKS // self.total:
            return
        pl_module.eval()
        with torch.no_grad():
            for name, rows in self.rows.items():
                if name not in self.late or step > 0.75 * self.total:
                    self.steps[name].append(step)
                    self.logits[name].append(torch.atleast_2d(pl_module(rows).float()))
        pl_module.train()

    def curves(self, name: str) -> Tensor:
        """Return the logits, ``(looks, members, rows)``."""
        return torch.stack(self.logits[name])


@dataclass(frozen=True)
class Runs:
    """Trainings of the recipe on one split.

    Attributes:
        dm: The data.
        new: Log odds of the new rows, ``(S, N)``.
        val: Of the validation rows, ``(S, V)``.
        watch: What was seen on the way.
    """

    dm: EHRDataModule
    new: Floats
    val: Floats
    watch: Watch
    start: tuple[Floats, Floats]  # log odds of the baseline, of new and validation rows
    y_val: NDArray[np.int64]
    finite: NDArray[np.bool_]

    def prob(self, together: int = 1) -> tuple[Floats, Floats, Floats]:
        """Return P(y = 1) of new and validation rows, and how much of the nets counts.

        As ``fit_folds`` does it for its members: validation rows say how far the nets may leave
        logistic regression, a weight an ensemble; ``(S / together, N)``, ``(.., V)``, ``(..,)``.
        """
        (new, val), parts, weights = self.start, [], []
        for first in range(0, len(self.new) - together + 1, together):
            some = slice(first, first + together)
            weight = best_weight(
                np.tile(val, together), self.val[some].ravel(), np.tile(self.y_val, together)
            )
            weights.append(weight)
            pairs = ((new, self.new[some]), (val, self.val[some]))
            parts.append([expit(at + weight * (own - at)).mean(0) for at, own in pairs])
        return np.array([a for a, _ in parts]), np.array([b for _, b in parts]), np.array(weights)


def recipe(
    cohort: Cohort, dm: EHRDataModule, seeds: Sequence[int], *, monitor: bool = True, **more: Any
) -> Runs:
    """Train the kit's default net for tables: many seeds at once, or one under its own run.

    Args:
        cohort: Where the new rows are.
        dm: The data, of one split.
        seeds: Several: a ``SeedEnsemble``. One: a ``LitClassifier``.
        monitor: Look at the monitor too, late.
        **more: Of the Trainer.
    """
    return _trained(cohort, dm, seeds, warm_classifier, "monitor" if monitor else "", more)


def random_mlp(cohort: Cohort, dm: EHRDataModule, seeds: Sequence[int]) -> Watch:
    """Train a plain MLP from random weights under the kit's schedule; return what was seen."""

    def made(dm: EHRDataModule, *, max_epochs: int) -> LitClassifier:
        steps = max_epochs * dm.batches_per_epoch
        return LitClassifier(
            "medkit.models.nets:mlp", {"inputs": dm.num_features}, total_steps=steps
        )

    return _trained(cohort, dm, seeds, made, "whole", {}).watch


def _trained(
    cohort: Cohort,
    dm: EHRDataModule,
    seeds: Sequence[int],
    made: Callable[..., LitClassifier],
    monitor: str,
    more: dict[str, Any],
) -> Runs:
    x, part = dm.apply(cohort.new).x, dm.rows("val")
    rows = {"val": part.x}
    if monitor:
        rows["monitor"] = x[cohort.monitor]
    late = ["monitor"] if monitor == "monitor" else []
    watch = Watch(rows, EPOCHS * dm.batches_per_epoch, late)
    with TemporaryDirectory() as folder:
        run = start_run(Path(folder) / "run", seed=seeds[0], threads=1)
        with run.init("fit"):
            lit: Any = made(dm, max_epochs=EPOCHS)
        data = dm
        if len(seeds) > 1:
            lit = SeedEnsemble.of(lit, seeds)
            data = stacked(dm, seeds)
        quiet = {"enable_progress_bar": False, "checkpoint_every_s": None, "accelerator": "cpu"}
        trainer = stable_trainer(run, max_epochs=EPOCHS, callbacks=[watch], **quiet, **more)
        trainer.fit(lit, keyed(data))
        run.finish()
    lit.eval()
    with torch.no_grad():
        new, val = (
            np.concatenate([np.atleast_2d(lit(some).double().numpy()) for some in x.split(512)], 1)
            for x in (x, part.x)
        )
    return Runs(
        dm, new, val, watch, tuple(dm.baseline.logits(one) for one in (x, part.x)),
        part.y.numpy(), np.isfinite(val).all(1),
    )  # fmt: skip


def digests(family: str, draw: int, rows: int, seeds: Sequence[int], alone: int) -> list[str]:
    """Train the seeds together, and some alone, and return the digest of what each says."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # a process of its own
    logging.getLogger("medkit").setLevel(logging.ERROR)
    with hospitals(family, draw, rows) as cohort:
        found = list(recipe(cohort, cohort.data(), seeds, monitor=False).new)
        for seed in seeds[:alone]:
            found.append(recipe(cohort, cohort.data(), [seed], monitor=False).new[0])
    return [hashlib.sha256(one.tobytes()).hexdigest() for one in found]


def entropy(logits: Tensor, y: Tensor, together: int = 1) -> Floats:
    """Return the loss of ensembles of so many members in turn: ``(looks, S, rows)`` to (S, looks).

    Args:
        logits: ``(looks, members, rows)``.
        y: Labels, ``(rows,)``.
        together: Members an ensemble: their probabilities' mean.
    """
    looks, members, rows = logits.shape
    groups = members // together
    prob = torch.sigmoid(logits.double()[:, : groups * together])
    mean = prob.view(looks, groups, together, rows).mean(2)
    labels = y.double().expand_as(mean)
    return (
        torch.nn.functional.binary_cross_entropy(mean, labels, reduction="none").mean(2).T.numpy()
    )
