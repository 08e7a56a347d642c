"""What many seeds cost when they are trained together: against one run, and against runs in turn.

The EHR net (35-64-32-1, AdamW, batch 64, 340 steps), CPU seconds, arms in turn in one process, one
intra-op thread; figures are medians over alternating pairs with the median's 95 % interval, bars
are on the median. *One bare run* is a plain torch loop over one net, fused AdamW, without dropout
and clipping; *unfused* is the same with AdamW as it comes, *alike* with dropout and clipping by
torch's layers. The prototype that the bars are from took 520 us a bare step. *Bare stack* is the
same loop over the kit's stacked net, each member with the order, masks and gradient norm of its own
seed; *lean* and *torch* say which dropout layer drew the masks. Rates are constant, but where it
says *scheduled*. The heap keeps what is freed, in all arms.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import torch
import torch.nn.functional as F
from report import Report
from torch import Tensor, nn
from trainer_overhead import (
    bare_fit,
    cnn3d,
    in_turn,
    keep_freed_memory,
    median_interval,
    tutorial_fit,
)

from medkit.data.batches import Batch
from medkit.data.table_loader import TableLoader
from medkit.models.masks import LeanDropout, MemberMasks
from medkit.models.seed_ensemble import SeedEnsemble, clip_each
from medkit.models.stacked import StackedNet
from medkit.models.stacked_loader import StackedLoader
from medkit.trainer import stable_trainer, start_run

FEATURES, BATCH, EPOCHS = 35, 64, 20
ROWS = 17 * BATCH  # 340 steps
CLIP = 1.0
DROPOUT: dict[str, type[nn.Dropout]] = {"lean": LeanDropout, "torch": nn.Dropout}


def table(device: str = "cpu") -> Batch:
    """Random rows: what is learnt does not matter here."""
    made = torch.Generator().manual_seed(0)
    x, row = torch.randn(ROWS, FEATURES, generator=made), torch.arange(ROWS)
    y = (torch.rand(ROWS, generator=made) < 0.2).long()
    return Batch(*(part.to(device) for part in (x, y, row, torch.zeros_like(row))))


def ehr_net(dropout: str = "") -> nn.Module:
    """The net of hospital tables; ``dropout`` names the layer that drops 0.2, if any."""
    drop = [DROPOUT[dropout](0.2)] if dropout else []
    first, second = [nn.Linear(FEATURES, 64), nn.ReLU()], [nn.Linear(64, 32), nn.ReLU()]
    return nn.Sequential(*first, *drop, *second, *drop, nn.Linear(32, 1))


def bare(rows: Batch, dropout: str = "", *, fused: bool = True) -> float:
    """One net in a plain loop: permute, gather, forward, backward, (clip,) AdamW."""
    net = ehr_net(dropout).to(rows.x.device)
    began = _now(rows.x)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused or None)
    y = rows.y.float()
    for _ in range(EPOCHS):
        order = torch.randperm(ROWS).to(rows.x.device)
        for start in range(0, ROWS, BATCH):
            index = order[start : start + BATCH]
            loss = F.binary_cross_entropy_with_logits(net(rows.x[index])[:, 0], y[index])
            optimizer.zero_grad()
            loss.backward()
            if dropout:
                nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
    return _now(rows.x) - began


def stack(rows: Batch, seeds: int, dropout: str = "") -> float:
    """The same loop over the stacked net, keyed by each member's seed."""
    net = StackedNet([ehr_net(dropout) for _ in range(seeds)]).to(rows.x.device)
    began = _now(rows.x)
    masks = MemberMasks(range(seeds), net.dropouts)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    loader = StackedLoader(TableLoader(rows, BATCH, shuffle=True, seed=0), range(seeds))
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for number, batch in enumerate(loader):
            drawn: list[Tensor] = []
            if dropout:
                place = (epoch, number, 0, 0)
                drawn = masks.draw(BATCH, *place, padded=BATCH, device=rows.x.device)
            loss = net.loss(batch.x, batch.y.float(), drawn)
            optimizer.zero_grad()
            loss.backward()
            if dropout:
                clip_each(net.gradients(), CLIP)
            optimizer.step()
    return _now(rows.x) - began


def ensemble(
    rows: Batch, seeds: int, dropout: str = "", *, validate: bool = False, scheduled: bool = False
) -> float:
    """The kit: ``SeedEnsemble`` under ``stable_trainer``."""
    total_steps = 340 if scheduled else None
    module = SeedEnsemble(
        "__main__:ehr_net", {"dropout": dropout}, seeds=range(seeds), total_steps=total_steps
    )
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(Path(folder) / "run", seed=0)
        train = StackedLoader(TableLoader(rows, BATCH, shuffle=True), range(seeds))
        val = TableLoader(Batch(*(part[:400] for part in rows)), 1024) if validate else None
        began = time.process_time()
        trainer = stable_trainer(
            run, max_epochs=EPOCHS, accelerator="cpu", enable_progress_bar=False,
            checkpoint_every_s=None, gradient_clip_val=CLIP if dropout else None,
        )  # fmt: skip
        trainer.fit(module, train, val)
        used = time.process_time() - began
        run.finish()
    torch.use_deterministic_algorithms(False)
    return used


def default_trainer(rows: Batch) -> float:
    """A default Trainer run as tutorials write it, of the same net and rows."""
    layers = [nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2)]
    return tutorial_fit(nn.Sequential(*layers), rows.x, rows.y)


def stacked_cnn(volumes: Tensor, labels: Tensor, seeds: int, steps: int) -> float:
    """A 3-D net of each seed as one, by ``torch.func``; batch statistics alone, for it to work."""
    nets = [cnn3d().to(volumes.device) for _ in range(seeds)]
    for layer in (part for net in nets for part in net.modules()):
        if isinstance(layer, nn.BatchNorm3d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    weights, buffers = torch.func.stack_module_state(nets)  # type: ignore[arg-type]
    one = nets[0]

    def loss(w: dict[str, Tensor], b: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(one, (w, b), (x,)), y)

    gradients = torch.func.vmap(torch.func.grad(loss))
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, fused=True)
    began = _now(volumes)
    for _ in range(steps):
        index = torch.randint(len(volumes), (seeds, 12), device=volumes.device)
        found = gradients(weights, buffers, volumes[index], labels[index])
        for name, weight in weights.items():
            weight.grad = found[name]
        optimizer.step()
    return _now(volumes) - began


def wall_of(jobs: list[Callable[[], object]], at_once: int) -> float:
    """Wall seconds of jobs in forked processes, so many at a time."""
    began, running = time.perf_counter(), 0
    for job in jobs:
        if running == at_once:
            os.wait()
            running -= 1
        running += 1
        if os.fork() == 0:
            job()
            os._exit(0)
    for _ in range(running):
        os.wait()
    return time.perf_counter() - began


def _now(where: Tensor) -> float:
    if where.device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


def main() -> int:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("medkit").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    keep_freed_memory()
    report = Report(__doc__)
    rows = table()
    pairs = 7 if report.quick else 15

    def ratio(
        name: str, a: Callable[[], float], b: Callable[[], float], times: float = 1.0,
        at_most: float | None = None, at_least: float | None = None, peers: str = "",
        pairs: int = pairs,
    ) -> None:  # fmt: skip
        value, limits = median_interval([times * one for one in in_turn(pairs, a, b)])
        report.figure(
            name, value, limits, at_most=at_most, at_least=at_least, unit="x", peers=peers
        )

    for name, fused in (("one bare run", True), ("one unfused run", False)):
        step_us = statistics.median(bare(rows, fused=fused) for _ in range(5)) / 340 * 1e6
        report.note(f"{name}: {step_us:.0f} us a step")
    for seeds, plain, with_masks, prototype in ((16, 2.6, 4.0, 2.3), (32, 4.2, 7.0, 3.8)):
        ratio(
            f"ehr/{seeds}_stacked_over_one_bare_run",
            partial(stack, rows, seeds), partial(bare, rows),
            at_most=plain, peers=f"prototype {prototype}x, in turn {seeds}x",
        )  # fmt: skip
        ratio(
            f"ehr/{seeds}_stacked_over_one_unfused_run",
            partial(stack, rows, seeds), partial(bare, rows, fused=False),
        )  # fmt: skip
        ratio(
            f"ehr/{seeds}_masked_clipped_over_one_bare_run",
            partial(stack, rows, seeds, "lean"), partial(bare, rows), at_most=with_masks,
        )  # fmt: skip
        ratio(
            f"ehr/{seeds}_masked_clipped_over_one_unfused_run",
            partial(stack, rows, seeds, "lean"), partial(bare, rows, fused=False),
        )  # fmt: skip
        ratio(
            f"ehr/{seeds}_lean_masked_clipped_over_one_alike",
            partial(stack, rows, seeds, "lean"), partial(bare, rows, "torch"),
            peers="lean masks against torch's dropout",
        )  # fmt: skip
        ratio(
            f"ehr/{seeds}_masked_clipped_over_one_alike",
            partial(stack, rows, seeds, "torch"), partial(bare, rows, "torch"),
            peers="torch's dropout in both",
        )  # fmt: skip
    ratio(
        "ehr/32_in_lightning_over_bare_stack",
        lambda: ensemble(rows, 32), lambda: stack(rows, 32), at_most=1.3,
    )  # fmt: skip
    ratio(
        "ehr/32_in_lightning_over_bare_stack_masked",
        lambda: ensemble(rows, 32, "lean"), lambda: stack(rows, 32, "lean"), at_most=1.3,
    )  # fmt: skip
    ratio(
        "ehr/32_in_lightning_scheduled_over_bare_stack",
        lambda: ensemble(rows, 32, scheduled=True), lambda: stack(rows, 32),
    )  # fmt: skip
    ratio(
        "ehr/16_default_trainers_over_ensemble",
        lambda: default_trainer(rows), lambda: ensemble(rows, 16, validate=True),
        times=16, at_least=30, pairs=3 if report.quick else 7, peers="a run of 16, validated too",
    )  # fmt: skip
    report.note("3-D CNN: stacking does not pay on a CPU, its products fill the core alone;")
    report.note("seeds are trained a process each (medkit sweep)")
    made = torch.Generator().manual_seed(0)
    volumes = torch.randn(120, 1, 24, 24, 24, generator=made)
    labels = torch.randint(2, (120,), generator=made)
    ratio(
        "cnn3d/4_stacked_over_4_in_turn",
        lambda: stacked_cnn(volumes, labels, 4, 10),
        lambda: bare_fit(cnn3d(), volumes, labels, 12, 1), times=1 / 4, pairs=5,
    )  # fmt: skip
    jobs: list[Callable[[], object]] = [lambda: bare_fit(cnn3d(), volumes, labels, 12, 5)] * 4
    cores = len(os.sched_getaffinity(0))
    gains = [wall_of(jobs, 1) / wall_of(jobs, cores) for _ in range(3)]
    report.figure(f"cnn3d/4_in_turn_over_{cores}_at_once", statistics.median(gains), unit="x")
    if torch.accelerator.is_available():
        device = str(torch.accelerator.current_accelerator())
        there, films, classes = table(device), volumes.to(device), labels.to(device)
        for seeds in (32, 64):
            ratio(
                f"device/ehr_{seeds}_stacked_over_one_bare_run",
                partial(stack, there, seeds), partial(bare, there), pairs=5,
            )  # fmt: skip
            ratio(
                f"device/ehr_{seeds}_masked_clipped_over_one_alike",
                partial(stack, there, seeds, "lean"), partial(bare, there, "torch"), pairs=5,
            )  # fmt: skip
            ratio(
                f"device/cnn3d_{seeds}_stacked_over_in_turn",
                partial(stacked_cnn, films, classes, seeds, 10),
                partial(_one_cnn, films, classes), times=1 / seeds, pairs=5,
            )  # fmt: skip
    return report.finish()


def _one_cnn(volumes: Tensor, labels: Tensor) -> float:
    net = cnn3d().to(volumes.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    began = _now(volumes)
    for _ in range(10):
        index = torch.randint(len(volumes), (12,), device=volumes.device)
        loss = F.cross_entropy(net(volumes[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _now(volumes) - began


if __name__ == "__main__":
    sys.exit(main())
