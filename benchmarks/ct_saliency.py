"""Saliency of 3-D nets: what it costs against Captum, and which maps of nodules may be shown.

Costs, CPU seconds in turn on one thread: integrated gradients in units of one forward of one
volume, with their correlation to Captum's default (50 nodes), and occlusion against Captum's (one
window at a time), on MONAI's 3-D ResNet-18 at 32^3 (random weights; 24^3 for --quick) and on a
trained CandidateNet at 24^3. Memory is what a forked process's peak adds to what it began with.

Checks: CandidateNets trained on made-up hospitals A and B (half of each batch nodules), their maps
of C's nodules against nets with random weights and nets trained on shuffled labels. Bars: every
method tells trained nets from these (on the half-trained nets of --quick: from random weights), the
input shown as a map never does, and occlusion passes all checks on every net (not in --quick). The
pointing game is printed as nodules lie, in the middle, and 4 voxels off it. That is about the net
as much as about the method: this one looks at the middle, and a nodule's log odds fall elsewhere.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
warnings.filterwarnings("ignore")

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, Occlusion
from monai.networks.nets import resnet18
from numpy.typing import NDArray
from report import Report
from torch import Tensor, nn
from trainer_overhead import in_turn, keep_freed_memory, median_interval

from medkit import keyed
from medkit.data.ct_augment import another_scanner, symmetries
from medkit.metrics.discrimination import auroc
from medkit.models.ct_net import CandidateNet
from medkit.saliency.cam import grad_cam
from medkit.saliency.checks import Explain, examine, random_net
from medkit.saliency.map_scores import energy, mean_of, overlap, pointing_game, spheres
from medkit.saliency.occlusion import occlusion
from medkit.saliency.volume_maps import VolumeMaps
from medkit.saliency.volume_net import VolumeNet
from medkit.saliency.volumes import gradient_shap, integrated_gradients, smooth_gradients
from medkit.synth.chest_ct import Candidates, make_candidates
from medkit.synth.chest_ct_scanner import AIR_HU, MUSCLE_HU

BATCH, OFF = 32, 4  # volumes a step; voxels that nodules are moved off the middle
Ints = NDArray[np.int64]


def window(hu: Tensor) -> Tensor:
    return ((hu + 1000) / 1400).clamp(0, 1)


def in_blocks(of: VolumeNet, hu: Tensor, *, how: Explain) -> VolumeMaps:
    return how(of, hu).in_blocks(4)


def show_input(_: VolumeNet, hu: Tensor) -> VolumeMaps:
    """A bad method: the windowed volume itself, whatever the net."""
    return VolumeMaps(window(hu)[:, 0], "the input itself", "of the window")


METHODS: dict[str, Explain] = {
    "occlusion": occlusion,
    "ig_blocks": partial(in_blocks, how=integrated_gradients),
    "gradient_shap_blocks": partial(in_blocks, how=partial(gradient_shap, draws=12)),
    "ig_voxels": integrated_gradients,
    "smooth_grad_blocks": partial(in_blocks, how=smooth_gradients),
    "grad_cam": grad_cam,
    "input": show_input,
}
USABLE = ("occlusion",)  # what the kit calls usable on these nets; of the others the verdict tells
QUICK = ("occlusion", "ig_blocks", "input")


def main() -> int:
    torch.set_num_threads(1)
    report = Report(__doc__)
    with keyed.globals_keyed(0, "init"):
        resnet = resnet18(spatial_dims=3, n_input_channels=1, num_classes=1).eval()
        small = CandidateNet().eval()
    short = report.quick
    memory(report, "resnet18", VolumeNet(resnet, window), 24 if short else 32, 2 if short else 6)
    memory(report, "candidate_net", VolumeNet(small, window), 24, 100)
    keep_freed_memory()

    each = 1500 if report.quick else 3000
    data = make_candidates(
        seed=0, sites={"A": each, "B": each, "C": 1200 if report.quick else 4000}
    )
    hu, site = corrected(data), data.table["site"].to_numpy()
    y, rows = data.table["y"].to_numpy(), np.flatnonzero(data.table["site"] != "C")
    shown = np.flatnonzero((site == "C") & (y == 1))[: 24 if report.quick else 40]
    nodules = hu[shown][:, None]

    steps, seeds, dealt = (250, 3, 0) if report.quick else (500, 5, 4)
    nets = [trained(hu, y, rows, seed, steps=steps) for seed in range(seeds)]
    shuffled = [trained(hu, y, rows, seed, steps=steps, shuffled=True) for seed in range(dealt)]
    fresh = np.flatnonzero(site == "C")
    for name, some in {"trained": nets, "shuffled_labels": shuffled}.items():
        if not some:
            continue
        prob = [VolumeNet(net, window).ask(hu[fresh][:, None]).sigmoid().numpy() for net in some]
        scores = [auroc(y[fresh], one).value for one in prob]
        report.figure(f"{name}/auroc_at_C", float(np.mean(scores)), (min(scores), max(scores)))

    large = F.interpolate(nodules[:5], size=24 if report.quick else 32, mode="trilinear")
    costs(report, "resnet18", VolumeNet(resnet, window), large[: 1 if report.quick else 5])
    costs(report, "candidate_net", VolumeNet(nets[0], window), nodules)
    few = slice(12 if report.quick else None)
    checked(report, data, shown[few], nodules[few], nets, shuffled)
    return report.finish()


def corrected(data: Candidates) -> Tensor:
    """Return volumes in HU, corrected by each exam's air and muscle, ``(N, 24, 24, 24)``."""
    air, muscle = (data.table[name].to_numpy(np.float32) for name in ("air_hu", "muscle_hu"))
    scale = torch.from_numpy((MUSCLE_HU - AIR_HU) / (muscle - air)).float()
    offset = torch.from_numpy(AIR_HU - air * (MUSCLE_HU - AIR_HU) / (muscle - air)).float()
    hu = torch.from_numpy(data.volume_hu).float()
    return hu.mul_(scale[:, None, None, None]).add_(offset[:, None, None, None])


def trained(
    hu: Tensor, y: Ints, rows: Ints, seed: int, *, steps: int, shuffled: bool = False
) -> nn.Module:
    """Train a small net on batches that are half nodules."""
    labels = y[rows]
    if shuffled:
        labels = labels[keyed.generator(seed, "shuffled labels").permutation(len(labels))]
    members = [rows[labels == label] for label in (0, 1)]
    target = torch.arange(BATCH) % 2
    with keyed.globals_keyed(seed, "init"):
        net = CandidateNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    for step in range(steps):
        draw = keyed.generator(seed, "order", step)
        chosen = np.stack([draw.choice(some, BATCH // 2, replace=False) for some in members], 1)
        with keyed.globals_keyed(seed, "augment", step):
            x = window(another_scanner(symmetries(hu[chosen.ravel()])))[:, None]
        loss = F.binary_cross_entropy_with_logits(net(x)[:, 0], target.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def memory(report: Report, name: str, of: VolumeNet, size: int, count: int) -> None:
    """Whether the peak, less the maps themselves, stays with more volumes or more nodes."""
    volume = torch.linspace(-1000, 400, size**3).view(1, 1, size, size, size)
    lanes = of.lanes(volume.shape)
    maps = count * size**3 * 4 / 2**20
    one = peak(lambda: integrated_gradients(of, volume, nodes=lanes))  # one whole batch
    more = volume.expand(count, -1, -1, -1, -1)
    many = peak(lambda: integrated_gradients(of, more, nodes=lanes)) - maps
    fine = peak(lambda: integrated_gradients(of, volume, nodes=2 * lanes))
    blocks = peak(lambda: occlusion(of, volume, side=size // 2, stride=size // 4))
    peers = f"{lanes} volumes at a time"
    if not report.quick:
        x, x0 = of.seen(volume), of.nothing(volume)
        theirs = peak(lambda: IntegratedGradients(of.net).attribute(x, x0, target=0))
        peers += f"; Captum's default {theirs:.0f}"
    report.figure(f"{name}/ig/peak", one, unit="MiB", peers=peers)
    report.figure(f"{name}/ig/peak_{count}_volumes", many / one, at_most=1.25, unit="x")
    report.figure(f"{name}/ig/peak_twice_the_nodes", fine / one, at_most=1.25, unit="x")
    report.figure(f"{name}/occlusion/peak", blocks, unit="MiB")


def peak(do: Callable[[], Any]) -> float:
    """Return what the peak of a forked process adds to what it began with [MiB]."""
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)

    def measure() -> None:
        began = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        do()
        there.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - began / 2**20)

    process = multiprocessing.get_context("fork").Process(target=measure)
    process.start()
    there.close()
    found = float(here.recv())
    process.join()
    return found


def costs(report: Report, name: str, of: VolumeNet, volumes: Tensor) -> None:
    """Forwards, correlation and occlusion of one net, against Captum."""
    one, pairs, size = volumes[:1], 3 if report.quick else 9, volumes.shape[-1]
    x, x0 = of.seen(volumes), of.nothing(volumes)
    repeat = 1 if name == "resnet18" else 20  # a forward of the small net is below a millisecond
    short = 5 * repeat  # it takes a twentieth of the other's time, and single ones jitter
    theirs = IntegratedGradients(of.net)

    def forward() -> None:
        with torch.no_grad():
            of.net(x[:1])

    ours = partial(integrated_gradients, of, one)
    ratios = in_turn(pairs, partial(used, ours, repeat), partial(used, forward, short))
    forwards = [ratio * short / repeat for ratio in ratios]
    bar = 20.0 if name == "resnet18" else None
    report.figure(
        f"{name}/ig/forwards", *median_interval(forwards), at_most=bar, on_limit=True,
        peers="Captum's default 66",
    )  # fmt: skip
    began = time.process_time()
    maps = integrated_gradients(of, volumes)
    mine = time.process_time() - began
    assert maps.nodes is not None
    report.figure(f"{name}/ig/nodes_mean", float(maps.nodes.double().mean()), at_most=20)
    residual = maps.residual().numpy().astype(float)
    report.figure(f"{name}/ig/residual_largest", residual.max(), peers="of the sum of |shares|")
    default, began = [], time.process_time()
    for row in x.split(1):
        default.append(theirs.attribute(row, x0, target=0).detach()[0, 0])
    seconds = time.process_time() - began
    report.figure(f"{name}/ig/captum_over_ours", seconds / mine, unit="x")
    alike = np.array(
        [
            np.corrcoef(a.flatten(), b.flatten())[0, 1]
            for a, b in zip(maps.values, default, strict=True)
        ]
    )
    mean = mean_of(alike)
    limits = (float(alike.min()),) * 2 if mean.low is None else (mean.low, mean.high)
    report.figure(
        f"{name}/ig/correlation_mean", mean.value, limits, at_least=0.998, on_limit=True,
        peers=f"{np.mean(alike >= 0.998):.0%} of {len(alike)} volumes, lowest {alike.min():.4f}",
    )  # fmt: skip

    # blocks: 27 of the ResNet's volume, 343 of a patch
    side, stride = (size // 2, size // 4) if name == "resnet18" else (6, 3)
    shapes = {"sliding_window_shapes": (1, *3 * [side]), "strides": (1, *3 * [stride])}

    def captum_occlusion() -> Tensor:
        with torch.no_grad():
            return Occlusion(of.net).attribute(x[:1], baselines=x0, target=0, **shapes)

    quick = partial(occlusion, of, one, side=side, stride=stride)
    ratios = in_turn(pairs, partial(used, captum_occlusion), partial(used, quick))
    report.figure(
        f"{name}/occlusion/captum_over_ours", *median_interval(ratios), at_least=2.5,
        on_limit=True, unit="x",
    )  # fmt: skip
    reference = captum_occlusion()[:, 0]
    away = (quick().values - reference).abs().max() / reference.abs().max()
    report.figure(f"{name}/occlusion/largest_difference", float(away), at_most=1e-4)


def used(do: Callable[[], Any], repeat: int = 1) -> float:
    began = time.process_time()
    for _ in range(repeat):
        do()
    return time.process_time() - began


def checked(
    report: Report,
    data: Candidates,
    shown: Ints,
    nodules: Tensor,
    nets: list[nn.Module],
    shuffled: list[nn.Module],
) -> None:
    """Verdicts on each method, and where its maps point."""
    table = data.table.iloc[shown]
    exam, diameter = table["exam"].to_numpy(), table["diameter_mm"].to_numpy()
    sides = tuple(nodules.shape[2:])
    mask = spheres(diameter, sides)
    moved = F.pad(nodules, (OFF, 0) * 3, mode="replicate")[:, :, : sides[0], : sides[1], : sides[2]]
    off = spheres(diameter, sides, centre=np.full((len(shown), 3), 11.5 + OFF))
    moves = VolumeNet(nets[0], window)
    fall = mean_of((moves.ask(nodules) - moves.ask(moved)).double().numpy(), groups=exam)
    report.figure(
        "net/log_odds_lost_off_middle", fall.value, (fall.low or -np.inf, fall.high or np.inf)
    )
    tested = 1 if report.quick else 2
    for name, explain in METHODS.items():
        if report.quick and name not in QUICK:
            continue
        passed, told_apart = [], []
        for first in range(tested):
            verdict = examine(
                explain,
                VolumeNet(nets[first], window),
                nodules,
                seeds=[*nets[:first], *nets[first + 1 :]],
                shuffled=shuffled,
                mask=mask,
                groups=exam,
                draws=3 if report.quick else 7,
            )
            passed.append(verdict.passed)
            told_apart.append(all(c.passed for c in verdict.checks if "likeness to" in c.name))
            if first == 0:
                report.note(f"{name}: {verdict}")
        if name == "input":
            report.share("caught/input", told_apart.count(False), tested, at_least=1.0)
            continue
        report.share(f"trained_told_from_random/{name}", sum(told_apart), tested, at_least=1.0)
        # half the steps: maps of other seeds are others yet
        bar = 1.0 if name in USABLE and not report.quick else None
        report.share(f"usable/{name}", sum(passed), tested, at_least=bar)
        of = VolumeNet(nets[0], window)
        blind = random_net(of)
        for where, hu, there in (("middle", nodules, mask), ("off_middle", moved, off)):
            maps = explain(of, hu)
            hit, chance = (pointing_game(m, there) for m in (maps, explain(blind, hu)))
            report.figure(
                f"points_at_nodule/{name}/{where}", hit.value, (hit.low or 0.0, hit.high or 1.0),
                peers=f"random net {chance.value:.2f}",
            )  # fmt: skip
            if where == "middle":
                for what, score in (("energy", energy), ("iou", overlap)):
                    mean = mean_of(score(maps, there), groups=exam)
                    report.figure(
                        f"{what}_in_nodule/{name}", mean.value, (mean.low or 0.0, mean.high or 1.0)
                    )
    share = float(mask.double().mean())
    report.note(f"nodules, 1 mm around them included, are {share:.1%} of the voxels")


if __name__ == "__main__":
    sys.exit(main())
