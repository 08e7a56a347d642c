"""The settings of one training on a table, as plain values that a study's folder can keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from medkit.data.contract.schema import Contract
from medkit.data.ehr import EHRDataModule
from medkit.models.classifier import LitClassifier
from medkit.models.tabular import WARM, WEIGHT_DECAY
from medkit.study.table_members import OPTIMIZERS

CHOICES: Mapping[str, tuple[str, ...]] = {
    "scaling": ("robust", "standard"),
    "draws": ("shuffled", "balanced", "balanced, prior put back"),
    "schedule": ("cosine", "constant"),
    "start": ("logistic", "random"),
    "optimizer": tuple(OPTIMIZERS),
    "model": ("net", "logistic"),
}


@dataclass(frozen=True, kw_only=True)
class TableRecipe:
    """One recipe for tables; the defaults are the kit's.

    Attributes:
        csv_path: The table.
        columns: More arguments of :class:`EHRDataModule` that say what the table is: ``target``,
            ``patient``, ``site``, ``contract``, ``ignore``, ``test_fraction``, ``batch_size``.
        codes: Read the contract's codes as missing.
        units: Convert units by the contract.
        ranges: Take values outside the contract's ranges as missing.
        indicators: Add "was missing" columns.
        scaling: "robust", cut at 4 scales, or "standard", not cut.
        draws: "shuffled"; "balanced": both classes equally often; with the prior put back or not.
        schedule: "cosine" to zero after a warm-up, or "constant".
        start: "logistic": the kit's net, which starts as logistic regression (and has learnt
            curves of each column); "random": an MLP of 64 and 32 as one writes it by hand.
        dropout: Of its hidden layers.
        weight_decay: AdamW's.
        optimizer: See :data:`~medkit.study.table_members.OPTIMIZERS`.
        lr: Its highest rate; None: the optimizer's usual one.
        clip: Largest norm of each member's gradient; None: any.
        ema: Decay of an average of the weights; None: none.
        weigh: Let validation rows say how much of what the net adds to logistic regression counts.
        best_epoch: Take the epoch of least validation loss, not the last.
        folds: A net for each of so many inner folds, averaged; 1: one net on the split.
        members: Nets of a seed's own seeds, averaged; 1: one net.
        epochs: Of the fit.
        looks: Evaluations of the curves, evenly over the fit.
        model: "logistic" is the logistic regression itself, which draws nothing.
    """

    csv_path: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    codes: bool = True
    units: bool = True
    ranges: bool = True
    indicators: bool = True
    scaling: str = "robust"
    draws: str = "shuffled"
    schedule: str = "cosine"
    start: str = "logistic"
    dropout: float = 0.3
    weight_decay: float = WEIGHT_DECAY
    optimizer: str = "adamw"
    lr: float | None = None
    clip: float | None = None
    ema: float | None = None
    weigh: bool = True
    best_epoch: bool = False
    folds: int = 1
    members: int = 1
    epochs: int = 30
    looks: int = 80
    model: str = "net"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TableRecipe:
        """Read the settings.

        Raises:
            ValueError: For a setting or a choice that is not known.
        """
        known = [one.name for one in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown or "csv_path" not in settings:
            raise ValueError(
                f"a recipe for tables must have csv_path and some of {known[1:]}; found {unknown} "
                "besides. What describes the table goes into columns."
            )
        recipe = cls(**settings)
        for name, allowed in CHOICES.items():
            if getattr(recipe, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {list(allowed)}, got {getattr(recipe, name)!r}. The "
                    "first is the default."
                )
        return recipe

    def data(self, *, split_seed: int, site: str, fold: int) -> EHRDataModule:
        """Return the rows, read and split; of one inner fold where there are folds.

        Raises:
            ValueError: Where there are no test rows.
        """
        columns = dict(self.columns)
        apart = self.folds > 1
        dm = EHRDataModule(
            self.csv_path,
            **columns | {"contract": self._contract(columns.get("contract"))},
            test_site=site or None,
            split_seed=split_seed,
            folds=self.folds if apart else None,
            fold=fold if apart else None,
            scale=self.scaling,
            clip=4.0 if self.scaling == "robust" else None,
            indicators=self.indicators,
            draws=self.draws.split(",")[0],
        )
        dm.setup()
        if len(dm.rows("test").y) == 0:
            raise ValueError(
                "practices are judged on test rows, and this split has none. Put test_fraction "
                "into columns, or hold hospitals out by sites=[...] of the study."
            )
        return dm

    def net(self, dm: EHRDataModule) -> LitClassifier:
        """Return what the members are to be; its own weights do not matter."""
        shift = dm.logit_shift
        factory = "medkit.models.nets:mlp"
        arguments: dict[str, Any] = {"inputs": dm.num_features}
        if self.start == "logistic":
            factory = "medkit.models.tabular:warm_mlp"
            arguments = dict(WARM) | {
                "coef": list(dm.baseline.coef),
                "intercept": dm.baseline.intercept - shift,  # as the draws have it
                "periodic": dm.num_features - dm.num_indicators,
            }
        steps = self.epochs * dm.batches_per_epoch
        return LitClassifier(
            factory,
            arguments | {"dropout": self.dropout},
            total_steps=steps if self.schedule == "cosine" else None,
            lr=OPTIMIZERS[self.optimizer] if self.lr is None else self.lr,
            weight_decay=self.weight_decay,
            logit_shift=0.0 if self.draws == "balanced" else shift,
        )

    def _contract(self, given: Any) -> dict[str, Any] | None:
        """Return the contract without what is switched off; None where nothing is left of it."""
        if not given or not (self.codes or self.units or self.ranges):
            return None
        whole = Contract.of(given).to_mapping()
        if self.codes and self.units and self.ranges:
            return whole
        gone = [*(() if self.codes else ("missing", "missing_at"))]
        gone += [*(() if self.units else ("units_at",)), *(() if self.ranges else ("low", "high"))]
        columns = {}
        for name, rule in whole["columns"].items():
            left = {key: value for key, value in rule.items() if key not in gone}
            if not self.codes and rule["kind"] == "binary" and not rule.get("levels"):
                left["kind"] = "number"  # a code in it is then a number like any
            columns[name] = left
        # what is broken on purpose is not to be refused for it
        return whole | {"columns": columns, "tolerance": 1.0}
