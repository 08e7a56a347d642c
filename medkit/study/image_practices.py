"""The kit's practices for rare nodules on CT, each with a switch, and the training that obeys.

One seed after the other: stacking does not pay for 3-D convolutions on a CPU, a process per core
does (``Study.run(train, jobs=2, seeds_per_job=1)``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from scipy.special import expit, logit
from torch import Tensor
from torch.utils.data import DataLoader

from medkit import keyed
from medkit.callbacks.weight_averaging import AveragedWeights
from medkit.data.batches import Batch, TableDataset
from medkit.data.loader import KeyedLoader
from medkit.metrics.thresholds import choose
from medkit.models.classifier import LitClassifier
from medkit.models.member_metrics import of_members
from medkit.record.pseudonym import pseudonym
from medkit.study.ablation import Ablation, Practice, without
from medkit.study.image_data import HalfPositive, Ints, Parts, Patches, split
from medkit.study.image_recipe import ImageRecipe
from medkit.study.outcomes import Outcome
from medkit.study.quiet import quiet
from medkit.synth.chest_ct import Candidates, read_candidates

BALANCED, AUGMENTED = "balanced draws", "augmentation"
PRACTICES = (
    Practice(BALANCED, on={"draws": "half positive"}, off={"draws": "shuffled"}),
    Practice("another scanner", on={"augment": "all"}, off={"augment": "flips"}),
    Practice(AUGMENTED, on={}, off={"augment": "none"}),
    Practice("HU window", on={"intensity": "window"}, off={"intensity": "raw"}),
    Practice("exam reference", on={"reference": True}, off={"reference": False}),
    Practice("warm-up and cosine", on={"schedule": "cosine"}, off={"schedule": "constant"}),
    Practice("EMA 0.98", on={"ema": 0.98}, off={"ema": None}),
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
    same under ``val/``. Rows of one exam count as one patient's.
    """
    settings = ImageRecipe.of(recipe)
    candidates = read_candidates(settings.folder)
    parts = split(candidates, site=site, split_seed=split_seed, negatives=settings.val_negatives)
    for seed in seeds:
        yield _train_one(settings, candidates, parts, seed)


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


def _train_one(recipe: ImageRecipe, candidates: Candidates, parts: Parts, seed: int) -> Outcome:
    augment = {"flips": recipe.augment != "none", "intensity": recipe.augment == "all"}
    rows = _patches(recipe, candidates, parts.train, **augment)
    labels = rows.y[torch.from_numpy(parts.train)]
    module = _module(recipe, labels, seed)
    loader = DataLoader(
        rows,
        recipe.batch_size,
        shuffle=recipe.draws == "shuffled",
        sampler=HalfPositive(labels.numpy()) if recipe.draws == "half positive" else None,
        drop_last=True,  # a last batch of few rows would spoil BatchNorm's statistics
    )
    looks = _Looks(recipe.best_epoch)
    average = [AveragedWeights(recipe.ema)] if recipe.ema is not None else []
    with quiet():
        trainer = pl.Trainer(
            max_steps=recipe.steps,
            val_check_interval=recipe.every,
            check_val_every_n_epoch=None,
            gradient_clip_val=recipe.clip,
            callbacks=[looks, *average],
            deterministic=True,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        val = TableDataset(_patches(recipe, candidates, parts.val).all())  # read once, seen often
        batches = KeyedLoader(loader, seed=seed)
        batches.bind(trainer)  # which says what epoch it is: another order, other augmentation
        trainer.fit(module, batches, DataLoader(val, 128, collate_fn=_same))
    looks.keep_best(module)
    test = _patches(recipe, candidates, parts.test)
    of = {"val": DataLoader(val, 128, collate_fn=_same), "test": DataLoader(test, 128)}
    y = {name: rows.y[torch.from_numpy(getattr(parts, name))] for name in of}
    said = {name: _logits(module, batches) for name, batches in of.items()}
    ends = {
        f"{name}/{what}": values[0].item()
        for name in y
        for what, values in of_members(said[name][None], y[name]).items()
    }
    prob = {name: expit(values.double().numpy()) for name, values in said.items()}
    sound = bool(np.isfinite(prob["val"]).all())
    weights = b"".join(value.numpy().tobytes() for value in module.cpu().state_dict().values())
    return Outcome(
        seed=seed,
        steps=np.asarray(looks.steps),
        curves={name: np.asarray(values) for name, values in looks.found.items()},
        metrics=ends,
        predictions=_test_rows(candidates, parts.test).assign(score=prob["test"]),
        threshold=choose(None, prob["val"]) if sound else None,
        epochs=-(-recipe.steps // len(loader)),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )


def _module(recipe: ImageRecipe, y: Tensor, seed: int) -> LitClassifier:
    half, cosine = recipe.draws == "half positive", recipe.schedule == "cosine"
    with keyed.globals_keyed(seed, "init", "fit"):
        return LitClassifier(
            "medkit.models.ct_net:CandidateNet",
            {"norm": recipe.norm},
            total_steps=recipe.steps if cosine else None,
            lr=3e-3 if cosine else 1e-3,
            warmup=0.1,
            logit_shift=float(logit(y.double().mean().item())) if half else 0.0,
        )


def _patches(recipe: ImageRecipe, candidates: Candidates, rows: Ints, **augment: bool) -> Patches:
    window = recipe.intensity == "window"
    return Patches(candidates, rows, window=window, reference=recipe.reference, **augment)


def _logits(module: LitClassifier, batches: Iterable[Batch]) -> Tensor:
    """Return the log odds of rows, prior put back, on the CPU."""
    module.eval()
    with torch.no_grad():
        found = [module(batch.x.to(module.device)).cpu() for batch in batches]
    return torch.cat(found) + module.logit_shift


def _same(batch: Any) -> Any:
    return batch


def _test_rows(candidates: Candidates, rows: Ints) -> pd.DataFrame:
    table = candidates.table.iloc[rows]
    return pd.DataFrame(
        {
            "patient": [pseudonym(exam) for exam in table["exam"]],
            "row": [pseudonym(name) for name in table["candidate"]],
            "y": table["y"].to_numpy(),
            "site": table["site"].to_numpy(),
        }
    )
