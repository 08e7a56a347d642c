"""Patches of CT as a training sees them: split by exam, corrected, windowed, drawn, augmented."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from medkit import keyed
from medkit.data.batches import Batch
from medkit.synth.chest_ct import Candidates
from medkit.synth.chest_ct_scanner import AIR_HU, MUSCLE_HU

WINDOW_HU = (-1000.0, 400.0)
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Row numbers of each part; no exam is in two of them."""

    train: Ints
    val: Ints
    test: Ints


def split(candidates: Candidates, *, site: str, split_seed: int, negatives: int) -> Parts:
    """Hold a hospital out for testing and 30 % of the other exams for validation.

    Args:
        candidates: Of all hospitals.
        site: The hospital to test on.
        split_seed: Decides which exams validate.
        negatives: At most so many of the validation's negatives are looked at, drawn once.

    Raises:
        ValueError: Where a part would lack one of the classes.
    """
    table = candidates.table
    y, exam = table["y"].to_numpy(), table["exam"].to_numpy().astype(str)
    outside = table["site"].to_numpy() == site
    exams = np.unique(exam[~outside])
    draw = keyed.generator(split_seed, "split")
    held = np.isin(exam, draw.permutation(exams)[: round(0.3 * len(exams))])
    watched = np.flatnonzero(held & (y == 0))
    watched = draw.permutation(watched)[:negatives]
    val = np.sort(np.concatenate([np.flatnonzero(held & (y == 1)), watched]))
    parts = Parts(np.flatnonzero(~held & ~outside), val, np.flatnonzero(outside))
    short = [name for name, at in vars(parts).items() if len(set(y[at])) < 2]
    if short:
        raise ValueError(
            f"training, validation and test rows must hold both classes; with {site!r} held out "
            f"{short} lack one, of hospitals {sorted(set(table['site']))}. Name one of them in "
            "sites=[...] of the study, or write more candidates."
        )
    return parts


class Patches(Dataset[Batch]):
    """Candidates as float32 ``(1, 24, 24, 24)``, augmented where that is asked for.

    Args:
        candidates: Volumes may lie on the disk.
        rows: Which of them.
        window: Map :data:`WINDOW_HU` to [0, 1]; without it the values are HU / 1000.
        reference: Correct scale and offset by each exam's air and muscle first.
        flips: Flip and transpose at random: the 48 symmetries of a cube.
        intensity: Change values, kernel, slice thickness and noise at random.

    Draws come from torch's global generator, which a keyed loader sets from each sample's place.
    """

    def __init__(
        self,
        candidates: Candidates,
        rows: Ints,
        *,
        window: bool = True,
        reference: bool = True,
        flips: bool = False,
        intensity: bool = False,
    ) -> None:
        table = candidates.table
        self.volume_hu, self.rows = candidates.volume_hu, rows
        self.y = torch.tensor(table["y"].to_numpy(), dtype=torch.int64)
        self.site = torch.tensor(table["site"].factorize(sort=True)[0], dtype=torch.int64)
        air, muscle = (table[name].to_numpy(np.float64) for name in ("air_hu", "muscle_hu"))
        self.scale = (MUSCLE_HU - AIR_HU) / (muscle - air) if reference else np.ones(len(air))
        self.offset = AIR_HU - air * self.scale if reference else np.zeros(len(air))
        self.window, self.flips, self.intensity = window, flips, intensity
        self.draws_nothing = not (flips or intensity)

    def __len__(self) -> int:
        return len(self.rows)

    def all(self) -> Batch:
        """Return all rows at once."""
        return Batch(
            *(
                torch.stack(parts)
                for parts in zip(*map(self.__getitem__, range(len(self))), strict=True)
            )
        )

    def __getitem__(self, index: int) -> Batch:
        row = int(self.rows[index])
        hu = torch.from_numpy(np.array(self.volume_hu[row], np.float32))
        hu.mul_(float(self.scale[row])).add_(float(self.offset[row]))
        if self.flips:
            hu = symmetry(hu)
        if self.intensity:
            hu = another_scanner(hu)
        if self.window:
            low, high = WINDOW_HU
            hu = (hu - low).div_(high - low).clamp_(0, 1)
        else:
            hu = hu / 1000
        return Batch(hu[None].contiguous(), self.y[row], torch.tensor(row), self.site[row])


class HalfPositive(Sampler[int]):
    """As many draws as there are rows, every second one positive: each even batch is half and half.

    Negatives come without replacement; positives in shuffled rounds, each as often as the others.
    ``WeightedRandomSampler`` has a batch's share of positives vary, and rows be missed by chance.

    Args:
        y: Labels 0 and 1, ``(N,)``.
    """

    def __init__(self, y: NDArray[np.int64]) -> None:
        self._members = [np.flatnonzero(y == label) for label in (0, 1)]

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._members)

    def __iter__(self) -> Iterator[int]:
        # without a key: from torch's global generator, as torch's own samplers draw
        seed = int(torch.empty((), dtype=torch.int64).random_())
        return iter(self.keyed_order(keyed.generator(seed, "order")).tolist())

    def keyed_order(self, draw: np.random.Generator) -> Ints:
        """Draw the rows of one epoch, ``(N,)``; a keyed loader hands in the epoch's generator."""
        order = np.empty(len(self), np.int64)
        for label, rows in enumerate(self._members):
            count = len(order[label::2])
            rounds = [draw.permutation(rows) for _ in range(-(-count // len(rows)))]
            order[label::2] = np.concatenate(rounds)[:count]
        return order


def symmetry(hu: Tensor) -> Tensor:
    """Return one of the 48 flips and transpositions of a cube."""
    axes = [axis for axis, coin in enumerate(torch.rand(3).tolist()) if coin < 0.5]
    return hu.permute(*torch.randperm(3).tolist()).flip(axes)


def another_scanner(hu: Tensor) -> Tensor:
    """Return a patch as another scanner might have shown it, ``(24, 24, 24)`` [HU].

    Values move by up to 40 HU and 4 %; half are blurred (sd up to 1 mm), a third get slices of 2
    to 5 mm along one axis, half get noise of up to 60 HU, smoothed or not.
    """
    u = torch.rand(9).tolist()
    hu = hu * (1 + 0.04 * (2 * u[0] - 1)) + 40 * (2 * u[1] - 1)
    if u[2] < 0.5:
        hu = _blurred(hu, 0.3 + 0.7 * u[3])
    if u[4] < 0.5:
        noise = torch.randn(hu.shape)
        if u[5] < 0.5:
            noise = 1.6 * _blurred(noise, 0.5)
        hu = hu + 60 * u[6] * noise
    if u[7] < 0.33:
        hu = _thick(hu, 2 + int(4 * u[8]))
    return hu


def _blurred(hu: Tensor, sd_mm: float) -> Tensor:
    distance = torch.arange(hu.shape[0], dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((distance[:, None] - distance) / sd_mm) ** 2)
    kernel /= kernel.sum(dim=1, keepdim=True)
    for _ in range(3):  # along the last axis, which is then the first
        hu = (hu @ kernel.T).permute(2, 0, 1)
    return hu


def _thick(hu: Tensor, slice_mm: int) -> Tensor:
    side = hu.shape[-1]
    rows = hu.reshape(1, -1, side)
    averaged = F.avg_pool1d(rows, slice_mm, stride=slice_mm, ceil_mode=True)
    return F.interpolate(averaged, size=side, mode="linear").reshape(hu.shape)
