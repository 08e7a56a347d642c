"""A trained model out of a run folder, to score rows with: nothing in the folder is changed.

Only weights and plain settings are read from checkpoints; no code in them is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medkit.data.batches import Batch
from medkit.data.ehr import EHRDataModule
from medkit.data.preprocessing import Preprocessing
from medkit.data.survival import SurvivalDataModule
from medkit.data.tables import Table
from medkit.models.classifier import LitClassifier
from medkit.models.ensemble import FoldEnsemble, Member
from medkit.models.saved_stages import checkpoint_in, chosen, content_of, groups_in
from medkit.models.survival import LitCox

Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class SavedClassifier:
    """One or several nets that give P(y = 1), their mean counting."""

    name: str
    stages: tuple[str, ...]
    ensemble: FoldEnsemble

    @property
    def dm(self) -> EHRDataModule:
        """The DataModule that knows how tables are read."""
        return self.ensemble.members[0].dm

    def score(self, table: Table) -> Columns:
        """Return ``prob``, ``prob_logistic`` and ``spread`` of each row; NaN of one net alone."""
        members = self.ensemble.members
        scores = self.ensemble.mean([_batch(member.dm, table) for member in members])
        found = {"prob": scores.prob}
        if all(member.dm.baseline_c is not None for member in members):
            found["prob_logistic"] = scores.baseline
        return found | {"spread": scores.spread if members[1:] else _nobody_else(scores.spread)}

    def risk(self, columns: Columns) -> NDArray[np.float64]:
        """Return the probability of the event."""
        return columns["prob"]


@dataclass(frozen=True)
class SavedCox:
    """One or several Cox nets: log relative hazard, and survival at horizons."""

    name: str
    stages: tuple[str, ...]
    members: tuple[tuple[SurvivalDataModule, LitCox], ...]
    horizons: tuple[float, ...]

    @property
    def dm(self) -> SurvivalDataModule:
        """The DataModule that knows how tables are read."""
        return self.members[0][0]

    def score(self, table: Table) -> Columns:
        """Return ``risk``, ``risk_cox``, ``spread`` and ``survival_<horizon>`` of each row."""
        eta, cox, alive = [], [], []
        for dm, model in self.members:
            x = _batch(dm, table).x
            if dm.state_dict().get("baseline") is not None:
                cox.append(dm.baseline.risk(x))
            with torch.no_grad():
                eta.append(model(x).double().numpy())
            alive.append([model.survival(x, horizon).double().numpy() for horizon in self.horizons])
        found = {"risk": np.mean(eta, axis=0)}
        if len(cox) == len(eta):
            found["risk_cox"] = np.mean(cox, axis=0)
        found["spread"] = np.std(eta, axis=0) if eta[1:] else _nobody_else(eta[0])
        mean = np.mean(alive, axis=0)
        return found | {f"survival_{h:g}": mean[i] for i, h in enumerate(self.horizons)}

    def risk(self, columns: Columns) -> NDArray[np.float64] | None:
        """Return the probability of the event until the first horizon."""
        return 1 - columns[f"survival_{self.horizons[0]:g}"] if self.horizons else None


def _nobody_else(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the spread of one net: not 0, as if others had agreed, but not known."""
    return np.full(len(values), np.nan)


def load(
    run_dir: str | Path, *, stage: str | None = None, horizons: Sequence[float] = ()
) -> SavedClassifier | SavedCox:
    """Load what a run has trained.

    A checkpoint holds no rows: what is loaded scores new tables, and ``ensemble.test()`` and
    ``out_of_fold()`` need ``member.dm.setup()`` first for each of ``ensemble.members``, where the
    table of training is at hand.

    Args:
        run_dir: The run folder.
        stage: A stage, or what the names of an ensemble's stages begin with ("fold"). None: the
            only one there is, or ``best`` (a ModelCheckpoint's choice on validation rows).
        horizons: Times at which a Cox net's survival is wanted.

    Raises:
        FileNotFoundError: Where the run has no finished model, or not the one asked for.
        ValueError: Where its model is none of the kit's, or several could be meant; for a horizon
            that is no positive time.
    """
    if wrong := [horizon for horizon in horizons if not horizon > 0]:
        raise ValueError(
            f"a horizon must be a time above 0, in the unit of training, and {wrong[0]:g} is "
            "negative or none. Say how long after the start survival is wanted."
        )
    folder = Path(run_dir) / "checkpoints"
    groups = groups_in(folder)
    name = chosen(groups, stage, folder)
    stages = groups.get(name, (name,))
    paths = [checkpoint_in(folder / each) for each in stages]
    kinds = {_kind(path) for path in paths}
    if kinds == {"survival"}:
        return SavedCox(name, stages, tuple(_cox(p, horizons) for p in paths), tuple(horizons))
    if len(kinds) > 1:
        raise ValueError(
            f"stages that are averaged must be alike, and {list(stages)} are of {sorted(kinds)}. "
            "Choose one of them with --stage."
        )
    if horizons:
        raise ValueError(
            f"a horizon is for survival, and {name!r} is a classifier without times. "
            "Leave --horizon out."
        )
    if name not in stages and (name == "fold" or (folder / f"{name}.json").is_file()):
        return SavedClassifier(name, stages, FoldEnsemble.load(run_dir, name=name))
    members = tuple(_member(each, path) for each, path in zip(stages, paths, strict=True))
    return SavedClassifier(name, stages, FoldEnsemble(members))


def _kind(path: Path) -> str:
    """Say what is in a checkpoint: "survival" or "classifier"; anything else is refused."""
    content = content_of(path)
    settings: dict[str, Any] = content.get("datamodule_hyper_parameters") or {}
    model = content.get("hyper_parameters") or {}
    known = any(isinstance(v, dict) and "preprocessing" in v for v in content.values())
    if known and "net" in model and {"time", "event"} <= settings.keys() and "l2" in model:
        return "survival"
    if known and "net" in model and "target" in settings:
        return "classifier"
    raise ValueError(
        "medkit predict needs a LitClassifier with an EHRDataModule, or a LitCox with a "
        f"SurvivalDataModule, and {path.parent.name}/{path.name} is of another module or data. "
        "Load it in your own code: Module.load_from_checkpoint(path, weights_only=True)."
    )


def _member(stage: str, path: Path) -> Member:
    dm = _restored(EHRDataModule, path)
    return Member(stage, dm, _restored(LitClassifier, path).eval())


def _cox(path: Path, horizons: Sequence[float]) -> tuple[SurvivalDataModule, LitCox]:
    dm, model = _restored(SurvivalDataModule, path), _restored(LitCox, path).eval()
    nobody = torch.zeros((0, dm.num_features))
    if horizons and model.hazard is None:
        raise ValueError(
            f"survival at a horizon needs the baseline hazard of training, and {path} has none. "
            "Train with a SurvivalDataModule, which it is fitted on; the risks need none."
        )
    for horizon in horizons:
        model.survival(nobody, horizon)  # refuses one beyond the follow-up
    return dm, model


def _restored(cls: Any, path: Path) -> Any:
    try:
        return cls.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (TypeError, RuntimeError, KeyError) as error:  # settings or weights of another version
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} must hold what {cls.__name__} of this medkit stores, and it does not "
            f"({reason}). Use the medkit that trained it; run.json names its version."
        ) from error


def _batch(dm: EHRDataModule | SurvivalDataModule, table: Table) -> Batch:
    """Return rows as a member sees them; read once for all members."""
    stored = dm.preprocessing
    if not isinstance(stored, Preprocessing) or stored.features != table.features:
        raise ValueError(
            "members of one model must have the same columns; found "
            f"{None if stored is None else stored.features} and {table.features}. "
            "Choose one of them with --stage."
        )
    x = torch.from_numpy(stored.apply(table.values))
    rows = torch.arange(len(x))
    return Batch(x, torch.from_numpy(table.y), rows, torch.full_like(rows, -1))
