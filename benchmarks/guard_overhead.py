"""What the guard against non-finite and exploding steps costs a training that needs none.

The same fit by ``stable_trainer`` with the guard and without, and by a plain Trainer with the guard
as its one callback and without: CPU seconds, arms in turn in one process, one thread; the interval
is that of the median over pairs (binomial order statistics, 95 %), and the bar is on its limit. A
3-D net with BatchNorm and a step of about 20 ms carries the bar; for a net of a table, whose step
takes half a millisecond, the price is printed in microseconds.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from report import Report
from torch import Tensor, nn
from trainer_overhead import (
    BATCH,
    Lean,
    Tensors,
    bare_fit,
    batches,
    cnn3d,
    in_turn,
    keep_freed_memory,
    median_interval,
    mlp,
    rows,
)

from medkit.callbacks.spike_guard import SpikeGuard
from medkit.trainer import keyed, stable_trainer, start_run

PAIRS, STEPS, STEPS_AN_EPOCH = 21, 500, 25  # 15 pairs leave 3 % within noise
Fit = Callable[[], float]


def kit(
    net: Callable[[], nn.Module], data: Tensors, size: int, epochs: int, guarded: bool,
    *, option: str = "spike_guard", silent: Callable[[pl.Trainer], None] | None = None,
) -> Fit:  # fmt: skip
    """Return a fit by ``stable_trainer``, with or without a guard, that returns its CPU seconds.

    Args:
        net: Makes what is trained.
        data: The rows.
        size: Of a batch.
        epochs: Of the fit.
        guarded: Whether the guard is on.
        option: The guard's, of ``stable_trainer``.
        silent: Raises where the guard did anything; None: what this is for ``SpikeGuard``.
    """

    def fit() -> float:
        with tempfile.TemporaryDirectory() as folder:
            run = start_run(Path(folder) / "run", seed=1)
            module, loader = Lean(net()), keyed(batches(data, size))
            options: dict[str, Any] = {option: guarded, "accelerator": "cpu"}
            trainer = stable_trainer(
                run,
                max_epochs=epochs,
                checkpoint_every_s=None,
                enable_progress_bar=False,
                **options,
            )
            began = time.process_time()
            trainer.fit(module, loader)
            used = time.process_time() - began
            run.finish()
        torch.use_deterministic_algorithms(False)
        if guarded:
            (silent or _must_be_silent)(trainer)
        return used

    return fit


def plain(
    net: Callable[[], nn.Module], data: Tensors, size: int, epochs: int, guarded: bool
) -> Fit:
    """Return a fit by a Trainer with everything off, with or without the guard."""

    def fit() -> float:
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            callbacks=[SpikeGuard()] if guarded else [],
        )  # fmt: skip
        module, loader = Lean(net()), batches(data, size)
        began = time.process_time()
        trainer.fit(module, loader)
        used = time.process_time() - began
        if guarded:
            _must_be_silent(trainer)
        return used

    return fit


def _must_be_silent(trainer: pl.Trainer) -> None:
    guard = next(c for c in trainer.callbacks if isinstance(c, SpikeGuard))  # type: ignore[attr-defined]
    if guard.events or not guard.policy.steps:
        raise RuntimeError(f"the guard was to look on and do nothing, it did {guard.events}")


def volumes(count: int) -> tuple[Tensor, Tensor]:
    """Noise with labels: what is learnt does not matter here."""
    made = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 24, 24, 24, generator=made)
    return x, torch.randint(2, (count,), generator=made)


def main() -> int:
    """Print the figures; 1 when a bar falls short."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    report = Report(__doc__)
    keep_freed_memory()
    table, epochs = Tensors(*rows()), 4 if report.quick else 20
    without = kit(mlp, table, BATCH, epochs, False)
    ratios = in_turn(PAIRS, kit(mlp, table, BATCH, epochs, True), without)
    step_us = min(without() for _ in range(3)) / (epochs * -(-len(table) // BATCH)) * 1e6
    value, (low, high) = median_interval(ratios)
    report.figure("mlp/kit_with_guard_over_without", value, (low, high), unit="x")
    price = [(ratio - 1) * step_us for ratio in (value, low, high)]
    report.figure("mlp/price_of_the_guard", price[0], (price[1], price[2]), unit="us a step")
    steps, size = (100 if report.quick else STEPS), 12
    x, y = volumes(size * STEPS_AN_EPOCH)
    step_ms = bare_fit(cnn3d(), x, y, size, 4) / (4 * STEPS_AN_EPOCH) * 1e3
    report.note(f"3-D CNN: {step_ms:.1f} ms a step in the bare loop, {steps} steps a run")
    data, epochs = Tensors(x, y), steps // STEPS_AN_EPOCH
    for name, arm in (("kit", kit), ("plain_trainer", plain)):
        ratios = in_turn(
            PAIRS, arm(cnn3d, data, size, epochs, True), arm(cnn3d, data, size, epochs, False)
        )
        report.figure(
            f"cnn3d/{name}_with_guard_over_without", *median_interval(ratios), at_most=1.03,
            on_limit=True, unit="x", peers="gradient norm each step 1.01-1.07, detect_anomaly 1.3+",
        )  # fmt: skip

    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
