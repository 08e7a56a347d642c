"""The settings of one training on patches of CT, as plain values that a study's folder can keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from medkit.data.ct_nodules import NoduleDataModule

CHOICES: Mapping[str, tuple[str, ...]] = {
    "draws": ("half positive", "shuffled"),
    "augment": ("all", "flips", "none"),
    "intensity": ("window", "raw"),
    "schedule": ("cosine", "constant"),
    "norm": ("batch", "group"),
}


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """One recipe for nodule candidates; the defaults are the kit's.

    Attributes:
        folder: Of :func:`~medkit.synth.chest_ct.write_candidates`.
        draws: "half positive": each batch half and half, the prior put back into the logits; or
            "shuffled": as they come, one in fifty.
        augment: "all": flips, transpositions and another scanner; "flips": without the scanner.
        intensity: "window": [-1000, 400] HU to [0, 1]; "raw": HU / 1000.
        reference: Correct HU by each exam's air and muscle.
        schedule: "cosine" to zero after a warm-up of 10 %, highest rate 3e-3; or "constant", 1e-3.
        norm: Of the net: "batch", or "group".
        clip: Largest norm of the gradient; None: any.
        ema: Decay of an average of the weights, BatchNorm's statistics copied; None: none.
        turns: Answer with the mean over four turns of a patch
            (:class:`~medkit.models.views.MeanOverTurns`).
        best_epoch: Take the look of highest validation AUROC, not the last.
        steps: Of the training.
        batch_size: Rows a step.
        every: Steps between two looks at the validation rows.
        val_negatives: Negatives among these, at most.
        quarantine: Set rows aside that are not finite, constant or half padded.
    """

    folder: str
    draws: str = "half positive"
    augment: str = "all"
    intensity: str = "window"
    reference: bool = True
    schedule: str = "cosine"
    norm: str = "batch"
    clip: float | None = None
    ema: float | None = 0.98
    turns: bool = True
    best_epoch: bool = False
    steps: int = 500
    batch_size: int = 32
    every: int = 20
    val_negatives: int = 600
    quarantine: bool = True

    def data(self, split_seed: int, site: str) -> NoduleDataModule:
        """Return the candidates as this recipe sees them; ``site`` is tested on."""
        return NoduleDataModule(
            self.folder,
            test_site=site,
            split_seed=split_seed,
            window_hu=(-1000.0, 400.0) if self.intensity == "window" else None,
            harmonise="reference" if self.reference else "none",
            draws=self.draws,
            augment=self.augment,
            batch_size=self.batch_size,
            val_negatives=self.val_negatives,
        )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ImageRecipe:
        """Read the settings.

        Raises:
            ValueError: For a setting or a choice that is not known, or a training without looks.
        """
        known = [one.name for one in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown or "folder" not in settings:
            raise ValueError(
                f"a recipe for candidates must have folder and some of {known[1:]}; found "
                f"{unknown} besides. Spell them alike."
            )
        recipe = cls(**settings)
        for name, allowed in CHOICES.items():
            if getattr(recipe, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {list(allowed)}, got {getattr(recipe, name)!r}. The "
                    "first is the default."
                )
        if not 1 <= recipe.every <= recipe.steps or recipe.batch_size < 2:
            raise ValueError(
                "a training must look at least once and have batches of at least 2 rows, got "
                f"every={recipe.every}, steps={recipe.steps}, batch_size={recipe.batch_size}. The "
                "defaults are 20, 500 and 32."
            )
        return recipe
