"""Faults in a training under the guard: is the state as before them, and does the run end well?

Faults (NaN and infinite inputs, infinite losses and gradients, and from the fourth epoch on, when
limits are known, a loss 10,000 times too large) at random steps of small trainings: a net in fp32,
one that gathers four micro-batches a step, and one with BatchNorm, dropout and averaged weights.
Compared bit for bit before the fault's window and after it: weights, buffers, optimizer, scheduler,
averages, step count, logged means, attributes.

Then rows of the sample hospitals' table are poisoned after all cleaning, and the net of the EHR
recipe is trained on them: its validation AUROC and loss must lie inside the 99 % prediction
interval (t) of at least 40 clean seeds of the same recipe. Every window that no step came of, as a
callback behind the guard counts them, must be in the ledger; clean runs must have none. Beside it
stock Lightning on the same poison.
"""

from __future__ import annotations

import logging
import math
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np
import pytorch_lightning as pl
import torch
from _spikes import BATCHES, Net, Watch, loader
from pytorch_lightning.callbacks import EMAWeightAveraging
from report import Report
from scipy import stats
from torch import nn

from medkit.callbacks.guard_state import not_finite
from medkit.callbacks.spike_guard import SpikeGuard
from medkit.data.ehr import EHRDataModule
from medkit.models.classifier import LitClassifier
from medkit.trainer import keyed, stable_trainer, start_run

TABLE = Path(__file__).resolve().parent.parent / "data_samples" / "ehr" / "encounters.csv"
SUBJECTS = ("fp32", "accumulation", "batchnorm")
KINDS = ("nan", "inf", "loss", "gradient", "large")
EPOCHS, FAULTS_A_RUN, EARLIEST_LARGE = 12, 2, 3  # a third fault so near would roll back
RECIPE_EPOCHS, BATCH = 15, 64
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


class Counts:
    """Interventions seen from outside, and those written down."""

    def __init__(self) -> None:
        self.happened = self.in_ledger = 0

    def add(self, run: Any, trainer: pl.Trainer, still: int) -> None:
        """Add one run's."""
        lines = run.ledger.read()
        guard = next(c for c in trainer.callbacks if isinstance(c, SpikeGuard))  # type: ignore[attr-defined]
        written = sum(line["action"] == "step skipped" for line in lines)
        rest = len(guard.events) - sum(e["action"] == "step skipped" for e in guard.events)
        self.happened += still + rest
        self.in_ledger += min(written, still) + min(len(lines) - written, rest)


def main() -> int:
    """Print the figures; 1 when a bar falls short."""
    for name in ("pytorch_lightning", "lightning", "medkit"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    report = Report(__doc__)
    folder = Path(tempfile.mkdtemp(prefix="guard-faults-"))
    counts = Counts()
    try:
        _inject(report, folder, counts)
        _poison(report, folder, counts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.share("ledger/interventions written down", counts.in_ledger, counts.happened, at_least=1)
    return report.finish()


def _inject(report: Report, folder: Path, counts: Counts) -> None:
    """State after a fault against the state before it."""
    wanted = 10 if report.quick else 50
    for subject in SUBJECTS:
        rng = random.Random(subject)
        size = 4 if subject == "accumulation" else 1
        injected = equal = 0
        while injected < wanted:
            faults = _faults(rng, size)
            run = start_run(folder / f"{subject}-{injected}", seed=injected)
            with run.init("fit"):
                net = Net(faults, norm=subject == "batchnorm")
            if subject != "batchnorm":
                net.net[-2] = nn.Identity()  # no dropout
            watch = Watch()
            average = [EMAWeightAveraging(decay=0.9)] if subject == "batchnorm" else []
            trainer = stable_trainer(
                run, max_epochs=EPOCHS, callbacks=[*average, watch], checkpoint_every_s=None,
                accumulate_grad_batches=size, spike_guard=True, **QUIET,
            )  # fmt: skip
            trainer.fit(net, keyed(loader()))
            run.finish()
            for epoch, batch in faults:
                moved = watch.moved(epoch, batch // size * size)
                if moved:
                    report.note(
                        f"{subject}: {faults[epoch, batch]} at {epoch, batch} moved {moved}"
                    )
                injected, equal = injected + 1, equal + (not moved)
            counts.add(run, trainer, len(watch.still()))
        report.share(f"injected/{subject} state as before", equal, injected, at_least=1.0)


def _faults(rng: random.Random, size: int) -> dict[tuple[int, int], str]:
    """Return faults at random batches, in windows of their own."""
    found: dict[tuple[int, int], str] = {}
    while len(found) < FAULTS_A_RUN:
        kind = rng.choice(KINDS)
        # what is finite is seen once 32 losses in order have set a limit: three epochs
        first = EARLIEST_LARGE if kind == "large" else 0
        epoch, batch = rng.randrange(first, EPOCHS), rng.randrange(BATCHES)
        windows = {(e, b // size) for e, b in found}
        if (epoch, batch // size) not in windows:
            found[epoch, batch] = kind
    return found


class Poisoned(EHRDataModule):
    """The table with infinite values in some training rows, after everything that cleans it."""

    poisoned: Sequence[int] = ()

    def train_dataloader(self) -> Any:
        """Poison the rows, by their place among the training rows."""
        made = super().train_dataloader()
        data = made.dataset
        at = torch.arange(len(data)) if data.at is None else data.at
        for place in self.poisoned:
            data.rows[0][at[place % len(at)], place % data.rows[0].shape[1]] = math.inf
        return made


def _data(poisoned: Sequence[int]) -> Poisoned:
    data = Poisoned(TABLE, target="died", site="site", batch_size=BATCH)
    data.poisoned = poisoned
    data.setup("fit")
    return data


class Still(pl.Callback):
    """Counts the batches that no step came of."""

    def __init__(self) -> None:
        self.count = self._step = 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Note the step."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count."""
        self.count += trainer.global_step == self._step


def _module(data: EHRDataModule) -> LitClassifier:
    batches = len(data.train_dataloader())
    arguments = {"inputs": data.num_features, "dropout": 0.2}
    return LitClassifier("medkit.models.nets:mlp", arguments, total_steps=RECIPE_EPOCHS * batches)


def _train(
    folder: Path, seed: int, poisoned: Sequence[int], counts: Counts
) -> tuple[dict[str, float], int, bool]:
    """Return the validation metrics of one run, its void steps, and whether it ended finite."""
    run = start_run(folder, seed=seed)
    data = keyed(_data(poisoned))
    with run.init("fit"):
        module = _module(data)
    still = Still()
    trainer = stable_trainer(
        run,
        max_epochs=RECIPE_EPOCHS,
        callbacks=[still],
        checkpoint_every_s=None,
        spike_guard=True,
        **QUIET,
    )
    trainer.fit(module, data)
    run.finish()
    counts.add(run, trainer, still.count)
    found = {name: float(trainer.callback_metrics[name]) for name in ("val/auroc", "val/loss")}
    return found, still.count, not not_finite(module)


def _stock(folder: Path, seed: int, poisoned: Sequence[int]) -> bool:
    """Return whether stock Lightning ends finite on the same rows."""
    pl.seed_everything(seed, verbose=False)
    data = _data(poisoned)
    module = _module(data)
    trainer = pl.Trainer(
        max_epochs=RECIPE_EPOCHS, logger=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=folder, gradient_clip_val=1.0, **QUIET,
    )  # fmt: skip
    trainer.fit(module, data)
    return not not_finite(module)


def _poison(report: Report, folder: Path, counts: Counts) -> None:
    """Runs on poisoned rows against clean runs of the same recipe."""
    clean, alarms = [], 0
    seeds, repeats = 40, 3 if report.quick else 10
    for seed in range(seeds):
        found, void, _ = _train(folder / f"clean-{seed}", seed, (), counts)
        clean.append(found)
        alarms += void > 0
    report.share("clean/runs without an alarm", seeds - alarms, seeds, at_least=1.0)
    limits = {name: _interval([found[name] for found in clean]) for name in clean[0]}
    for name, (low, high) in limits.items():
        report.figure(
            f"clean/{name}", float(np.mean([found[name] for found in clean])), (low, high),
            peers=f"99 % prediction interval of {seeds} seeds",
        )  # fmt: skip
    cases = {"1 row": (17,), "0.5 % of rows": tuple(range(5, 1_600, 230))}
    for case, rows in cases.items():
        inside = finite = steps = stock = 0
        for seed in range(100, 100 + repeats):
            found, void, ok = _train(folder / f"{case}-{seed}", seed, rows, counts)
            into = all(limits[name][0] <= found[name] <= limits[name][1] for name in found)
            inside, finite, steps = inside + into, finite + ok, steps + void
            stock += _stock(folder, seed, rows)
            if not into:
                report.note(f"{case}, seed {seed}: {found} is outside {limits}")
        peers = f"stock Lightning, clipped: {stock}/{repeats}"
        report.share(f"poisoned/{case}: ends finite", finite, repeats, at_least=1.0, peers=peers)
        report.share(f"poisoned/{case}: inside the clean range", inside, repeats, at_least=1.0)
        report.figure(f"poisoned/{case}: void steps a run", steps / repeats, unit="steps")


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 99 % prediction interval of one more value."""
    n, middle, sd = len(values), float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.995, n - 1)) * sd * math.sqrt(1 + 1 / n)
    return middle - half, middle + half


if __name__ == "__main__":
    sys.exit(main())
