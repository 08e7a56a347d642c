"""The kit's practices for rare nodules on CT, each with a switch, and the training that obeys.

One seed after the other: stacking does not pay for 3-D convolutions on a CPU, a process per core
does (``Study.run(train, jobs=2, seeds_per_job=1)``).
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
from scipy.special import expit
from torch import Tensor

from medkit import keyed
from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.callbacks.quarantine import Quarantine
from medkit.callbacks.weight_averaging import AveragedWeights
from medkit.data.batches import Batch
from medkit.data.ct_nodules import NoduleDataModule
from medkit.data.loader import keyed as keyed_data
from medkit.data.screen import Screen
from medkit.metrics.thresholds import choose
from medkit.models.classifier import LitClassifier
from medkit.models.member_metrics import of_members
from medkit.record.pseudonym import pseudonym
from medkit.study.ablation import Ablation, Practice, without
from medkit.study.image_recipe import ImageRecipe
from medkit.study.outcomes import Outcome
from medkit.study.quiet import quiet

BALANCED, AUGMENTED = "balanced draws", "augmentation"
SCREENED = ("finite", "constant", "padded")
UNSCALED_HU = 1024.0  # of most scanners' rescale
PRACTICES = (
    Practice(BALANCED, on={"draws": "half positive"}, off={"draws": "shuffled"}),
    Practice("another scanner", on={"augment": "all"}, off={"augment": "flips"}),
    Practice(AUGMENTED, on={}, off={"augment": "none"}),
    Practice("HU window", on={"intensity": "window"}, off={"intensity": "raw"}),
    Practice("exam reference", on={"reference": True}, off={"reference": False}),
    Practice("warm-up and cosine", on={"schedule": "cosine"}, off={"schedule": "constant"}),
    Practice("EMA 0.98", on={"ema": 0.98}, off={"ema": None}),
    Practice("mean over turns", on={"turns": True}, off={"turns": False}),
    Practice("gradient clip 1.0", on={"clip": 1.0}, off={"clip": None}, used=False),
    Practice("best epoch", on={"best_epoch": True}, off={"best_epoch": False}, used=False),
    Practice("GroupNorm", on={"norm": "group"}, off={"norm": "batch"}, used=False),
)
""""another scanner" is augmentation of values, kernel, slices and noise; "augmentation" is that and
flips, so put into the start alone it is flips. GroupNorm has the head that sees the centre; under
a mean alone it learns nothing (:class:`~medkit.models.ct_net.CandidateNet`)."""


def image_ablation(
    folder: str | Path,
    *,
    leave_out: Sequence[str] = (),
    pairs: Sequence[tuple[str, str]] = ((BALANCED, AUGMENTED),),
    ways: Sequence[str] = ("left out", "tried", "pairs"),
    **settings: Any,
) -> Ablation:
    """Return the ablation of the kit's recipe for rare nodules, to be run by :func:`train`.

    It starts from a script with raw HU, plain shuffling and no augmentation.

    Args:
        folder: Of :func:`~medkit.synth.chest_ct.write_candidates`.
        leave_out: Names of :data:`PRACTICES` to be kept as the recipe has them.
        pairs: Practices looked at together too.
        ways: As for :class:`Ablation`; adding one at a time misleads here.
        **settings: Other fields of :class:`ImageRecipe`, the same in all arms, such as ``steps``.

    Raises:
        ValueError: For names that are not known.
    """
    kept = without(PRACTICES, leave_out)
    common = {"folder": str(Path(folder).absolute()), **settings}
    ImageRecipe.of(common)
    return Ablation(
        kept,
        common=common,
        pairs=[pair for pair in pairs if not {*leave_out} & {*pair}],
        ways=ways,
    )


def train(
    recipe: Mapping[str, Any], seeds: Sequence[int], split_seed: int, site: str
) -> Iterator[Outcome]:
    """Train one arm seed by seed, as a :class:`~medkit.study.study.Study` asks for it.

    Curves are ``val/auroc`` and ``val/loss`` on exams of the other hospitals that were not trained
    on, of the weights that would be used (averaged, where they are). Metrics are the end's:
    ``test/auroc``, ``test/auprc``, ``test/brier``, ``test/loss`` at the hospital held out, and the
    same under ``val/``; ``test/auroc_unscaled`` is what is left where that hospital's rescale is
    forgotten: 1,024 HU more, in its patches as in its air and muscle. Rows of one exam count as one
    patient's.
    """
    settings = ImageRecipe.of(recipe)
    for seed in seeds:
        yield _train_one(settings, split_seed, site, seed)


def set_aside(recipe: Mapping[str, Any], split_seed: int, site: str) -> dict[int, str]:
    """Return the training rows that the recipe's quarantine sets aside -> why."""
    dm = ImageRecipe.of(recipe).data(split_seed, site)
    dm.setup()
    findings = dm.train_dataloader().quarantine(Screen(checks=SCREENED), receive=_nobody)
    return {int(one.row): one.kind for one in findings}


def _nobody(*_: object) -> None:
    return None


class _Looks(pl.Callback):
    """Keeps what each validation found and, if asked to, the weights of the best.

    Stands before :class:`AveragedWeights` in the list, so that it sees the averaged ones.
    """

    def __init__(self, best: bool) -> None:
        self.steps: list[int] = []
        self.found: dict[str, list[float]] = {"val/loss": [], "val/auroc": []}
        self._best = best
        self._kept: tuple[float, dict[str, Tensor]] | None = None
        self._now: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._best:
            self._now = {k: v.clone() for k, v in pl_module.state_dict().items()}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps.append(trainer.global_step)
        for name, values in self.found.items():
            values.append(float(trainer.callback_metrics[name]))
        auroc = self.found["val/auroc"][-1]
        if self._best and (self._kept is None or auroc > self._kept[0]):
            self._kept = auroc, self._now

    def keep_best(self, module: pl.LightningModule) -> None:
        """Put the best look's weights into the module."""
        if self._kept is not None:
            module.load_state_dict(self._kept[1])


def _train_one(recipe: ImageRecipe, split_seed: int, site: str, seed: int) -> Outcome:
    dm = recipe.data(split_seed, site)
    dm.setup()
    module = _module(recipe, dm.logit_shift, seed)
    looks = _Looks(recipe.best_epoch)
    average = [AveragedWeights(recipe.ema)] if recipe.ema is not None else []
    quarantine = [Quarantine(checks=SCREENED, budget=0.02)] if recipe.quarantine else []
    with quiet():
        trainer = pl.Trainer(
            max_steps=recipe.steps,
            val_check_interval=recipe.every,
            check_val_every_n_epoch=None,
            gradient_clip_val=recipe.clip,
            callbacks=[KeyedSteps(seed=seed), *quarantine, looks, *average],
            deterministic=True,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, keyed_data(dm, seed=seed))
    looks.keep_best(module)
    module.cpu().eval()
    rows = {name: dm.rows(name) for name in ("val", "test")}
    said = {name: _logits(module, batch.x) for name, batch in rows.items()}
    ends = {
        f"{name}/{what}": values[0].item()
        for name, batch in rows.items()
        for what, values in of_members(said[name][None], batch.y).items()
    }
    unscaled = _logits(module, dm.rows("test", added_hu=UNSCALED_HU).x)
    ends["test/auroc_unscaled"] = of_members(unscaled[None], rows["test"].y)["auroc"][0].item()
    prob = {name: expit(values.double().numpy()) for name, values in said.items()}
    sound = bool(np.isfinite(prob["val"]).all())
    weights = b"".join(value.numpy().tobytes() for value in module.state_dict().values())
    return Outcome(
        seed=seed,
        steps=np.asarray(looks.steps),
        curves={name: np.asarray(values) for name, values in looks.found.items()},
        metrics=ends,
        predictions=_test_rows(dm, rows["test"]).assign(score=prob["test"]),
        threshold=choose(None, prob["val"]) if sound else None,
        epochs=-(-recipe.steps // dm.batches_per_epoch),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )


def _module(recipe: ImageRecipe, logit_shift: float, seed: int) -> LitClassifier:
    cosine = recipe.schedule == "cosine"
    net: tuple[str, dict[str, Any]] = ("medkit.models.ct_net:CandidateNet", {"norm": recipe.norm})
    if recipe.turns:
        net = "medkit.models.views:MeanOverTurns", {"net": net[0], "net_args": net[1]}
    with keyed.globals_keyed(seed, "init", "fit"):
        return LitClassifier(
            *net,
            total_steps=recipe.steps if cosine else None,
            lr=3e-3 if cosine else 1e-3,
            warmup=0.1,
            logit_shift=logit_shift,
        )


def _logits(module: LitClassifier, x: Tensor) -> Tensor:
    """Return the log odds of rows, prior put back."""
    with torch.no_grad():
        return torch.cat([module(some) for some in x.split(128)]) + module.logit_shift


def _test_rows(dm: NoduleDataModule, rows: Batch) -> pd.DataFrame:
    whose = dm.whose(rows.row)
    return pd.DataFrame(
        {
            "patient": [pseudonym(patient) for patient in whose["patient_ids"]],
            "row": [pseudonym(name) for name in whose["row_ids"]],
            "y": rows.y.numpy(),
            "site": whose["site"],
        }
    )
