"""A batch that runs out of memory, under the guard: is it survived, and is it the whole batch?

Memory runs out at chosen places of small trainings: in forward and backward pass of the first, the
second and the last batch with few or many parts to come of it, and in the optimizer's step when
all weights have moved. Trained are a net of linear layers and one of convolutions (GroupNorm), both
with dropout keyed by sample, under class weights of 1 : 50 and a penalty, with and without gathered
gradients, beside SpikeGuard, batches of odd sizes. Compared with the same training undisturbed: the
gradient of every step (rate 0, so that all are taken at the same weights), and how often each row
was trained on, read from the gradient of a weight of its own; after a step that ran out, all
weights and the optimizer's state bit for bit. Each shortage must be a line of the run's ledger.

Beside it what the competent script does, halves of the batch whose mean losses are averaged, on the
same batches: its gradient is off by the class weights. BatchNorm is printed without a bar: there a
split step is not the whole one.

Last what the guard costs a training that never runs out: CPU seconds, arms in turn in one process,
one thread; the interval is that of the median over pairs, and the bar is on its limit.
"""

from __future__ import annotations

import itertools
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import pytorch_lightning as pl
import torch
from _memory import Memory, Net, Trouble, cnn, deviation, fit, loader, lost_and_doubled, mlp
from guard_overhead import kit, volumes
from report import Report
from torch import Tensor, nn
from trainer_overhead import (
    BATCH,
    Tensors,
    bare_fit,
    cnn3d,
    in_turn,
    keep_freed_memory,
    median_interval,
    rows,
)
from trainer_overhead import mlp as table_mlp

from medkit.callbacks.memory_guard import MemoryGuard
from medkit.trainer import keyed, stable_trainer, start_run

EPOCHS = 2
PAIRS, STEPS, STEPS_AN_EPOCH = 21, 500, 25  # 15 pairs leave 3 % within noise
NETS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn}


@dataclass(frozen=True)
class Case:
    """One shortage: in which net, where, when, and how many samples fit."""

    net: str
    where: str
    size: int
    most: int
    gathered: int
    batch: int

    @property
    def lr(self) -> float:
        """A step that ran out is compared by the weights it leaves, others by gradients."""
        return 1e-2 if self.where == "step" else 0.0

    @property
    def trouble(self) -> Trouble:
        """In the first epoch, at its batch."""
        return {(0, self.batch): (self.where, self.most)}


def cases(quick: bool) -> list[Case]:
    """Return all of them; in a quick run every fifth."""
    passes = [
        Case(net, where, size, most, gathered, batch)
        for net, where, (size, most), gathered, batch in itertools.product(
            NETS, ("forward", "backward"), ((9, 5), (9, 1), (16, 3), (53, 7)), (1, 3), (0, 1, -1)
        )
    ]
    steps = [
        Case(net, "step", 9, 0, gathered, batch)
        for net, gathered, batch in itertools.product(NETS, (1, 3), (2, 5))
    ]
    fit_in = [_with_batch(case) for case in [*passes, *steps]]
    unique = list(dict.fromkeys(fit_in))
    return unique[::5] if quick else unique


def _with_batch(case: Case) -> Case:
    count = len(loader(case.size))
    return Case(**{**vars(case), "batch": case.batch % count if case.batch < 0 else
                   min(case.batch, count - 1)})  # fmt: skip


def train(case: Case, trouble: Trouble, folder: Path, *, norm: Any = None) -> tuple[Net, Any, Any]:
    """Return the module, the trainer and the run of one training."""
    run = start_run(folder, seed=1)
    with run.init("fit"):
        net = cnn(norm) if norm is not None else NETS[case.net]()
        module = Net(net, Memory(trouble), lr=case.lr)
    trainer = stable_trainer(
        run, max_epochs=EPOCHS, checkpoint_every_s=None, accumulate_grad_batches=case.gathered,
        spike_guard=True, memory_guard=True, accelerator="cpu", enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, keyed(loader(case.size)))
    run.finish()
    return module, trainer, run


class Found:
    """Counts over all cases."""

    def __init__(self) -> None:
        self.survived = self.stock = self.cases = self.raised = self.written = 0
        self.lost = self.doubled = self.samples = 0
        self.steps = self.same_steps = 0
        self.deviations: list[float] = []
        self.losses: list[float] = []

    def add(self, case: Case, folder: Path, whole: tuple[Net, Any]) -> None:
        """Train with the shortage, and compare with the undisturbed training."""
        self.cases += 1
        self.stock += survived_by_stock(case, folder)
        split, trainer, run = train(case, case.trouble, folder)
        reference, undisturbed = whole
        self.survived += trainer.global_step == undisturbed.global_step
        self.raised += len(split.memory.raised)
        lines = [line for line in run.ledger.read() if line["event"] == "out of memory"]
        self.written += sum("injected" in line["detail"] for line in lines)
        self.samples += EPOCHS * 53
        lost, doubled = lost_and_doubled(split, reference)
        if case.where == "step":
            self.steps += 1
            self.same_steps += _moved(split, trainer) == _moved(reference, undisturbed)
            return
        self.lost, self.doubled = self.lost + lost, self.doubled + doubled
        self.deviations.append(deviation(split, reference))
        pairs = zip(split.losses, reference.losses, strict=True)
        self.losses.append(max(abs(a - b) / abs(b) for a, b in pairs))


def _moved(module: Net, trainer: Any) -> list[bytes]:
    """Return weights and the optimizer's state, byte for byte."""
    states = [value for own in trainer.optimizers[0].state.values() for value in own.values()]
    moved = [*module.state_dict().values(), *states]
    return [value.detach().numpy().tobytes() for value in moved]


def survived_by_stock(case: Case, folder: Path) -> bool:
    """Return whether a Trainer without the guard gets through."""
    module = Net(NETS[case.net](), Memory(case.trouble), lr=case.lr)
    try:
        fit(module, folder / "stock", size=case.size, accumulate_grad_batches=case.gathered)
    except torch.OutOfMemoryError:
        return False
    return True


def averaged_halves(case: Case) -> float:
    """Return how far the mean over two halves' mean losses is from the gradient of the batch."""
    torch.manual_seed(1)
    module = Net(NETS[case.net](), lr=0.0).eval()
    x, y, row = next(iter(loader(case.size)))

    def gradient(parts: list[slice]) -> Tensor:
        terms = [module.loss_terms((x[part], y[part], row[part])) for part in parts]
        weights = list(module.net.parameters())
        made = torch.autograd.grad(
            torch.stack([total / weight for total, weight in terms]).mean(), weights
        )
        return torch.cat([one.flatten() for one in made])

    whole, half = gradient([slice(None)]), case.size // 2
    halves = gradient([slice(None, half), slice(half, None)])
    return float((halves - whole).norm() / whole.norm())


def _must_be_silent(trainer: pl.Trainer) -> None:
    there = [c for c in trainer.callbacks if isinstance(c, MemoryGuard)]  # type: ignore[attr-defined]
    if len(there) != 1 or there[0].events:
        raise RuntimeError(f"the guard was to look on and do nothing, found {there}")


def price(report: Report) -> None:
    """Print what the guard costs where it has nothing to do."""
    keep_freed_memory()
    table, epochs = Tensors(*rows()), 4 if report.quick else 20
    arm = partial(kit, option="memory_guard", silent=_must_be_silent)
    with_it = arm(table_mlp, table, BATCH, epochs, True)
    without = arm(table_mlp, table, BATCH, epochs, False)
    value, (low, high) = median_interval(in_turn(PAIRS, with_it, without))
    step_us = min(without() for _ in range(3)) / (epochs * -(-len(table) // BATCH)) * 1e6
    us = [(ratio - 1) * step_us for ratio in (value, low, high)]
    report.figure("price/mlp", us[0], (us[1], us[2]), unit="us a step")
    steps, size = (100 if report.quick else STEPS), 12
    x, y = volumes(size * STEPS_AN_EPOCH)
    step_ms = bare_fit(cnn3d(), x, y, size, 4) / (4 * STEPS_AN_EPOCH) * 1e3
    report.note(f"3-D CNN: {step_ms:.1f} ms a step in the bare loop, {steps} steps a run")
    data, epochs = Tensors(x, y), steps // STEPS_AN_EPOCH
    ratios = in_turn(
        PAIRS,
        arm(cnn3d, data, size, epochs, True),
        arm(cnn3d, data, size, epochs, False),
    )
    report.figure(
        "price/cnn3d_with_guard_over_without", *median_interval(ratios), at_most=1.03,
        on_limit=True, unit="x",
    )  # fmt: skip


def main() -> int:
    """Print the figures; 1 when a bar falls short."""
    for name in ("pytorch_lightning", "lightning", "medkit"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    report, found = Report(__doc__), Found()
    with tempfile.TemporaryDirectory(prefix="memory-guard-") as name:
        folder = Path(name)
        wholes: dict[tuple[Any, ...], tuple[Net, Any]] = {}
        for number, case in enumerate(cases(report.quick)):
            key = (case.net, case.size, case.gathered, case.lr)
            if key not in wholes:
                wholes[key] = train(case, {}, folder / f"whole-{number}")[:2]
            found.add(case, folder / str(number), wholes[key])
        one = Case("cnn", "forward", 16, 8, 1, 1)
        clean, *_ = train(one, {}, folder / "norm", norm=nn.BatchNorm1d)
        split, *_ = train(one, one.trouble, folder / "norm-split", norm=nn.BatchNorm1d)
    report.share("survived/shortages", found.survived, found.cases, at_least=1.0,
                 peers=f"stock Lightning {found.stock}/{found.cases}")  # fmt: skip
    report.figure(
        "gradient/largest deviation from the whole batch", max(found.deviations), at_most=1e-6,
        peers=f"halves averaged {averaged_halves(one):.2g}",
    )  # fmt: skip
    report.figure("loss/largest deviation", max(found.losses), at_most=1e-6)
    report.figure("samples/lost", found.lost, at_most=0, peers=f"of {found.samples}")
    report.figure("samples/doubled", found.doubled, at_most=0, peers=f"of {found.samples}")
    report.share("step/bitwise as if it had fitted", found.same_steps, found.steps, at_least=1.0)
    report.share("ledger/shortages written down", found.written, found.raised, at_least=1.0)
    report.figure("batchnorm/deviation in two parts", deviation(split, clean),
                  peers="said in the ledger, exact: false")  # fmt: skip
    price(report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
