"""What one training of a study left behind, in one folder that is whole or absent."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medkit.metrics.checks import Floats
from medkit.record.files import read_json, write_bytes, write_json

OUTCOME_NAME = "outcome.json"
CURVES_NAME = "curves.npz"
PREDICTIONS_NAME = "predictions.parquet"
STATES = ("done", "failed")
_COLUMNS = ["patient", "y", "score"]

Ints = NDArray[np.int64]


class OutcomeError(ValueError):
    """What a training has left is not an outcome: its code is at fault, not the training."""


def _no_steps() -> Ints:
    return np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What one training left.

    Curves and metrics are named ``<rows>/<what>``: "val/loss" is measured on the training's own
    validation rows (others for another split), "monitor/loss" on rows that all trainings share.
    A metric that has no value (AUROC of one class) is left out: NaN means a training that failed.

    Attributes:
        seed: Decided init, order and dropout.
        recipe: Name of the recipe; the study fills it in, like split and site.
        split_seed: Decided who is in which part.
        site: The hospital that was held out; empty where none is.
        status: "done" or "failed"; a training with anything non-finite has failed, whatever its
            best checkpoint says.
        reason: Why it failed.
        steps: Optimizer steps at which the curves were measured, ``(T,)``, rising.
        curves: Name -> ``(T,)``, of the weights as they were then, not of the best so far.
        metrics: Name -> value of the training's result, such as "test/auroc".
        predictions: Of the test rows: columns patient (or row), y, score and perhaps site, ids as
            pseudonyms.
        threshold: The training's own: at or above it a row is flagged.
        cpu_s: Processor time [s].
        gpu_s: Time on an accelerator [s].
        skipped_steps: Batches after which a guard left the weights as they were.
        wasted_steps: Steps that were trained twice, after a kill or a roll-back.
        epochs: Trained.
        weights_sha256: Of the final weights, for bitwise repeats.
    """

    seed: int
    recipe: str = ""
    split_seed: int = 0
    site: str = ""
    status: str = "done"
    reason: str = ""
    steps: Ints = field(default_factory=_no_steps)
    curves: Mapping[str, Floats] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    predictions: pd.DataFrame | None = None
    threshold: float | None = None
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    skipped_steps: int = 0
    wasted_steps: int = 0
    epochs: int = 0
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        """Refuse what could not be read as what one training left.

        Raises:
            OutcomeError: For curves of another length than the steps, steps that do not rise,
                metrics that are texts, predictions without their columns, or another status.
        """
        object.__setattr__(self, "steps", np.asarray(self.steps, np.int64))
        curves = {name: np.asarray(c, np.float64) for name, c in self.curves.items()}
        object.__setattr__(self, "curves", curves)
        wrong = {name: c.shape for name, c in curves.items() if c.shape != self.steps.shape}
        if wrong or self.steps.ndim != 1:
            raise OutcomeError(
                f"each curve must have one value per step, {self.steps.shape}; got {wrong}. "
                "Measure all curves at the same steps, and put NaN where one was not measured."
            )
        if (np.diff(self.steps) <= 0).any():
            raise OutcomeError(
                f"steps must rise, from the first measurement to the last; got {self.steps[:8]}. "
                "Sort steps and curves alike."
            )
        values: Mapping[str, object] = self.metrics
        if texts := [f"{n}={v!r}" for n, v in values.items() if isinstance(v, str)]:
            raise OutcomeError(f"metrics must be numbers, got {', '.join(texts)}. Pass float(...).")
        found = list(self.predictions.columns) if self.predictions is not None else _COLUMNS
        if not {"y", "score"} <= set(found) or not {"patient", "row"} & set(found):
            raise OutcomeError(
                "predictions must have the columns patient (or row), y and score, one row per test "
                f"row; found {found}. Rename its columns so; site may be there too."
            )
        if self.status not in STATES:
            raise OutcomeError(
                f"status must be one of {STATES}, got {self.status!r}. A training that was stopped "
                "from outside has no outcome yet: do not yield it."
            )

    @property
    def cell(self) -> tuple[str, int, str]:
        """Recipe, split seed and site: trainings of one cell are scored on the same rows."""
        return self.recipe, self.split_seed, self.site

    @property
    def name(self) -> str:
        """The training in a few words."""
        where = f" without {self.site}" if self.site else ""
        return f"{self.recipe} split {self.split_seed}{where} seed {self.seed}"

    def checked(self) -> Outcome:
        """Return it as failed where a number of its end is not finite."""
        if self.status != "done":
            return self
        bad = [name for name, value in self.metrics.items() if not math.isfinite(value)]
        for name, curve in self.curves.items():
            if name.endswith("loss") and len(curve) and not math.isfinite(curve[-1]):
                bad.append(f"{name} at step {self.steps[-1]}")
        if self.predictions is not None and not np.isfinite(self.predictions["score"]).all():
            bad.append("a score")
        if not bad:
            return self
        return replace(self, status="failed", reason=f"not finite: {', '.join(sorted(bad)[:4])}")

    def save(self, folder: Path) -> None:
        """Write the folder; ``outcome.json`` last, so that without it nothing is there."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OUTCOME_NAME).unlink(missing_ok=True)
        buffer = io.BytesIO()
        # by number: a name with a slash would be a folder in the archive, and may be any text
        arrays = {f"c{number}": curve for number, curve in enumerate(self.curves.values())}
        np.savez_compressed(buffer, steps=self.steps, **arrays)  # type: ignore[arg-type]
        write_bytes(folder / CURVES_NAME, buffer.getvalue(), durable=False)
        if self.predictions is not None:
            buffer = io.BytesIO()
            self.predictions.to_parquet(buffer, index=False)
            write_bytes(folder / PREDICTIONS_NAME, buffer.getvalue(), durable=False)
        write_json(
            folder / OUTCOME_NAME,
            {
                "schema": 1,
                "recipe": self.recipe,
                "seed": int(self.seed),
                "split_seed": int(self.split_seed),
                "site": self.site,
                "status": self.status,
                "reason": self.reason,
                "curves": list(self.curves),
                "metrics": {name: _plain(value) for name, value in self.metrics.items()},
                "predictions": self.predictions is not None,
                "threshold": None if self.threshold is None else float(self.threshold),
                "cpu_s": float(self.cpu_s),
                "gpu_s": float(self.gpu_s),
                "skipped_steps": int(self.skipped_steps),
                "wasted_steps": int(self.wasted_steps),
                "epochs": int(self.epochs),
                "weights_sha256": self.weights_sha256,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Outcome:
        """Read a folder back.

        Raises:
            ValueError: When it was damaged.
        """
        said = read_json(folder / OUTCOME_NAME)
        try:
            names, there = said.pop("curves"), said.pop("predictions")
            with np.load(folder / CURVES_NAME, allow_pickle=False) as arrays:
                steps = arrays["steps"]
                curves = {name: arrays[f"c{number}"] for number, name in enumerate(names)}
            frame = pd.read_parquet(folder / PREDICTIONS_NAME) if there else None
            said["metrics"] = {name: float(value) for name, value in said["metrics"].items()}
            said.pop("schema")
            return cls(**said, steps=steps, curves=curves, predictions=frame)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder} must hold what a training of a study left, but it can't be read "
                f"({error}). Remove the folder: the study then trains that member again."
            ) from error


def _plain(value: float) -> float | str:
    """Return a number as JSON holds it: what is not finite as text."""
    return float(value) if math.isfinite(value) else repr(float(value))
