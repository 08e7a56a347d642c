"""The kit's practices for tables, each with a switch, and the training that obeys the switches.

All seeds of an arm train in one process (:class:`~medkit.models.seed_ensemble.SeedEnsemble`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from medkit.data.ehr import EHRDataModule
from medkit.metrics.thresholds import choose
from medkit.models.member import best_weight
from medkit.models.member_metrics import of_members
from medkit.models.stacked_loader import stacked
from medkit.models.tabular import WEIGHT_DECAY
from medkit.record.pseudonym import pseudonym
from medkit.study.ablation import WAYS, Ablation, Practice, without
from medkit.study.outcomes import Outcome
from medkit.study.quiet import quiet
from medkit.study.table_members import WatchedMembers
from medkit.study.table_recipe import TableRecipe

PRACTICES = (
    Practice("missing codes", on={"codes": True}, off={"codes": False}),
    Practice("units", on={"units": True}, off={"units": False}),
    Practice("ranges", on={"ranges": True}, off={"ranges": False}),
    Practice("robust scaling", on={"scaling": "robust"}, off={"scaling": "standard"}),
    Practice("missing indicators", on={"indicators": True}, off={"indicators": False}),
    Practice("plain shuffling", on={"draws": "shuffled"}, off={"draws": "balanced"}),
    Practice("warm-up and cosine", on={"schedule": "cosine"}, off={"schedule": "constant"}),
    Practice("dropout", on={"dropout": 0.3}, off={"dropout": 0.0}),
    Practice("weight decay 3.0", on={"weight_decay": WEIGHT_DECAY}, off={"weight_decay": 0.01}),
    Practice("logistic start", on={"start": "logistic"}, off={"start": "random"}),
    Practice("weighed on held-out rows", on={"weigh": True}, off={"weigh": False}),
    Practice("balanced and corrected", on={"draws": "balanced, prior put back"}, used=False),
    Practice("best epoch", on={"best_epoch": True}, off={"best_epoch": False}, used=False),
    Practice("gradient clip 1.0", on={"clip": 1.0}, off={"clip": None}, used=False),
    Practice("EMA 0.98", on={"ema": 0.98}, off={"ema": None}, used=False),
    Practice("SGD", on={"optimizer": "sgd"}, off={"optimizer": "adamw"}, used=False),
    Practice("five folds", on={"folds": 5}, off={"folds": 1}, used=False),
    Practice("five seeds", on={"members": 5}, off={"members": 1}, used=False),
)
"""In the recipe (``used``) is what the evidence speaks for; clip and EMA bought nothing on tables.
"balanced and corrected" draws have their prior put back, an alternative to plain shuffling; added
to the start, which draws so without, it is the prior alone. What is weighed is how far the net
leaves logistic regression, as ``fit_folds`` does it."""


def table_ablation(
    csv_path: str | Path,
    columns: Mapping[str, Any],
    *,
    leave_out: Sequence[str] = (),
    pairs: Sequence[tuple[str, str]] = (("plain shuffling", "warm-up and cosine"),),
    ways: Sequence[str] = WAYS,
    **settings: Any,
) -> Ablation:
    """Return the ablation of the kit's recipe for tables, to be run by :func:`train`.

    It starts from a script with the same clean data (and from nothing): what codes and units cost
    is seen where they are left out of the recipe.

    Args:
        csv_path: The table.
        columns: What it is: arguments of ``EHRDataModule`` such as ``target`` and ``contract``.
            Without a contract, codes, units and ranges are no practices.
        leave_out: Names of :data:`PRACTICES` not to be tried: each stays as the recipe has it in
            all arms, "start" and "nothing" included.
        pairs: Practices looked at together too.
        ways: As :class:`Ablation`'s.
        **settings: Other fields of :class:`TableRecipe`, the same in all arms, such as ``epochs``.

    Raises:
        ValueError: For names that are not known.
    """
    kept = without(PRACTICES, leave_out)
    names = [practice.name for practice in PRACTICES]
    contract = names[:3] if columns.get("contract") else []
    gone = {*leave_out, *(names[:3] if not contract else [])}
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in columns.items()}
    common = {"csv_path": str(csv_path), "columns": plain, **settings}
    TableRecipe.of(common)
    return Ablation(
        [practice for practice in kept if practice.name not in gone],
        common=common,
        pairs=[pair for pair in pairs if not gone & set(pair)],
        start=[name for name in contract if name not in gone],
        fixed={"logistic regression": {"model": "logistic"}},
        ways=ways,
    )


def train(
    recipe: Mapping[str, Any], seeds: Sequence[int], split_seed: int, site: str
) -> Iterator[Outcome]:
    """Train the members of one arm, as a :class:`~medkit.study.study.Study` asks for them.

    Curves are ``val/loss`` and ``val/auroc`` on the rows not trained on (each fold's own), and
    ``monitor/loss`` and ``monitor/auroc`` on the test rows, which nothing is chosen by: all arms
    share those. They are of the weights as they are, neither the best epoch's nor weighed, and
    with the prior put back in all arms (see :class:`WatchedMembers`).
    Metrics are the end's: ``test/auroc``, ``test/auprc``, ``test/brier``, ``test/loss`` and the
    same under ``val/``.
    """
    settings, seeds = TableRecipe.of(recipe), list(seeds)
    parts = []
    for fold in range(settings.folds):
        dm = settings.data(split_seed=split_seed, site=site, fold=fold)
        if settings.model == "logistic":
            parts.append(_logistic(dm, len(seeds)))
        else:
            parts.append(_fit(settings, dm, seeds, stage=f"fold-{fold}"))
    dm = parts[0].dm
    y = {"val": torch.cat([part.dm.rows("val").y for part in parts]), "test": dm.rows("test").y}
    looks = len(parts[0].steps)
    if settings.weigh and looks:
        _weigh(parts, y["val"])
    found: list[dict[str, dict[str, Tensor]]] = []  # of each look, and last of the end
    for look in range(looks + 1):
        logits = {
            "val": torch.cat([part.val[look] for part in parts], dim=1),
            "test": _mean([part.test[look] for part in parts]),
        }
        found.append({rows: of_members(logits[rows], y[rows]) for rows in y})
    table = _test_rows(dm)
    for at, seed in enumerate(seeds):
        curves = {
            f"{'monitor' if rows == 'test' else rows}/{name}": np.array(
                [one[rows][name][at].item() for one in found[:-1]]
            )
            for rows in y
            for name in ("loss", "auroc")
            if looks
        }
        ends = {
            f"{rows}/{n}": values[at].item() for rows in y for n, values in found[-1][rows].items()
        }
        prob = expit(logits["test"][at].double().numpy())
        known = expit(logits["val"][at].double().numpy())
        yield Outcome(
            recipe="",
            seed=seed,
            steps=parts[0].steps,
            curves=curves,
            metrics=ends,
            predictions=table.assign(score=prob),
            threshold=choose(None, known) if np.isfinite(known).all() else None,
            epochs=settings.epochs if looks else 0,
            weights_sha256=hashlib.sha256(b"".join(part.weights[at] for part in parts)).hexdigest(),
        )


class _Fitted:
    """One fold's members: their log odds at each look and, last, in the end."""

    def __init__(
        self,
        dm: EHRDataModule,
        steps: NDArray[np.int64],
        val: list[Tensor],
        test: list[Tensor],
        weights: Sequence[bytes],
    ) -> None:
        self.dm, self.steps, self.val, self.test, self.weights = dm, steps, val, test, weights


def _fit(recipe: TableRecipe, dm: EHRDataModule, seeds: Sequence[int], *, stage: str) -> _Fitted:
    apart = [seed * recipe.members + k for seed in seeds for k in range(recipe.members)]
    # members are stacked from two on, and do not depend on who the others are
    together = apart if len(apart) > 1 else [*apart, apart[0] + 1]
    members = WatchedMembers.of(recipe.net(dm), together, stage=stage, best_epoch=recipe.best_epoch)
    total = recipe.epochs * dm.batches_per_epoch
    steps = np.unique(np.linspace(0, total, recipe.looks + 1).round().astype(np.int64)[1:])
    rows = {part: dm.rows(part).x for part in ("val", "test")}
    members.watch(
        rows, steps.tolist(), shift=dm.logit_shift, optimizer=recipe.optimizer, ema=recipe.ema
    )
    with quiet():
        trainer = pl.Trainer(
            max_epochs=recipe.epochs,
            gradient_clip_val=recipe.clip,
            deterministic=True,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(members, stacked(dm, together))
    members.keep_best()
    ends = {part: members.logits(x, members.logit_shift) for part, x in rows.items()}
    groups = [range(at, at + recipe.members) for at in range(0, len(apart), recipe.members)]
    weights = [members.net.rows().cpu()[list(group)].numpy().tobytes() for group in groups]
    val, test = (
        [torch.stack([_mean(x[list(group)]) for group in groups]) for x in (*seen, ends[part])]
        for part, seen in members.seen.items()
    )
    return _Fitted(dm, steps, val, test, weights)


def _weigh(parts: Sequence[_Fitted], y: Tensor) -> None:
    """Let rows not trained on say how far the nets may leave logistic regression, as fit_folds."""
    starts = {
        rows: [torch.as_tensor(part.dm.baseline.logits(part.dm.rows(rows).x)) for part in parts]
        for rows in ("val", "test")
    }
    start = torch.cat(starts["val"]).numpy()
    nets = torch.cat([part.val[-1] for part in parts], dim=1).double().numpy()
    finite = [np.isfinite(net).all() for net in nets]
    weights = [
        best_weight(start, net, y.numpy()) if sound else 1.0
        for net, sound in zip(nets, finite, strict=True)
    ]
    weight = torch.tensor(weights)[:, None]
    for part, *own in zip(parts, starts["val"], starts["test"], strict=True):
        for looks, begun in zip((part.val, part.test), own, strict=True):
            looks[-1] = (begun + weight * (looks[-1].double() - begun)).float()


def _logistic(dm: EHRDataModule, many: int) -> _Fitted:
    ends = {
        part: torch.as_tensor(dm.baseline.logits(dm.rows(part).x)).float().expand(many, -1)
        for part in ("val", "test")
    }
    weights = np.array([*dm.baseline.coef, dm.baseline.intercept]).tobytes()
    none = np.empty(0, np.int64)
    return _Fitted(dm, none, [ends["val"]], [ends["test"]], [weights] * many)


def _mean(logits: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the log odds of the mean probability, over the first dimension."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack(list(logits)).double().sigmoid().mean(0).logit()


def _test_rows(dm: EHRDataModule) -> pd.DataFrame:
    rows = dm.rows("test")
    ids = dm.row_ids(rows.row)
    return pd.DataFrame(
        {
            "patient": [pseudonym(name.rpartition(":")[0]) for name in ids],
            "row": [pseudonym(name) for name in ids],
            "y": rows.y.numpy(),
            "site": np.asarray(dm.sites)[rows.site.numpy()],
        }
    )
