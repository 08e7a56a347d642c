"""May these maps be shown? A method is put to the test on the trained net before it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from medkit.metrics.checks import Floats
from medkit.metrics.spread import mean_over_seeds
from medkit.record.results import Metric
from medkit.saliency.map_scores import flat, hits, likeness, mean_of
from medkit.saliency.randomisation import Stage, randomised, weights_of
from medkit.saliency.removal import removal_curves
from medkit.saliency.similarity import stability
from medkit.saliency.volume_maps import VolumeMaps, in_cells
from medkit.saliency.volume_net import VolumeNet

Explain = Callable[[VolumeNet, Tensor], VolumeMaps]
MOST, LEAST = 0.5, 0.2
FEWEST = 10  # volumes, and exams: a mean over fewer may pass by luck, its interval too
ROUNDING = 1e-9  # equal maps differ by some 1e-17, which is not above 0


@dataclass(frozen=True)
class Check:
    """One figure and its bar.

    Attributes:
        name: What was looked at.
        found: With its interval and n.
        bar: In words.
        passed: Whether the interval meets the bar.
        why: What it means where it does not.
    """

    name: str
    found: Metric
    bar: str
    passed: bool
    why: str

    def __str__(self) -> str:
        low, high = self.found.low, self.found.high
        limits = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        return f"{self.name} {self.found.value:.2f}{limits} (n = {self.found.n}; {self.bar})"


@dataclass(frozen=True)
class MapVerdict:
    """What the checks say of one method on one trained net.

    Attributes:
        method: Name of the method.
        checks: All that were made.
        too_few: Where there were too few volumes or exams to pass: how many; else "".
    """

    method: str
    checks: tuple[Check, ...]
    too_few: str = ""

    @property
    def passed(self) -> bool:
        """Whether maps of this method may be shown: enough was checked, and nothing failed."""
        return bool(self.checks) and not self.too_few and all(c.passed for c in self.checks)

    def __str__(self) -> str:
        if not self.checks:
            return f"{self.method}: not checked"
        if self.passed:
            return f"{self.method} passes: " + "; ".join(map(str, self.checks))
        bad = [f"{check}: {check.why}" for check in self.checks if not check.passed]
        if not bad:
            found = "; ".join(map(str, self.checks))
            return f"too few to judge {self.method}: {self.too_few}; nothing has failed: {found}"
        return f"do not use {self.method}: " + "; ".join(bad)

    def on(self, maps: VolumeMaps) -> VolumeMaps:
        """Return the maps with this verdict on them."""
        return replace(maps, verdict=str(self))


def examine(
    explain: Explain,
    of: VolumeNet,
    volume_hu: Tensor,
    *,
    seeds: Sequence[nn.Module] = (),
    shuffled: Sequence[nn.Module] = (),
    mask: Tensor | None = None,
    groups: ArrayLike | None = None,
    cell: int = 1,
    draws: int = 5,
    seed: int = 0,
) -> MapVerdict:
    """Put a method to the test on a trained net.

    Without other nets only randomised weights and the nodules are looked at. Each is against the
    same method on nets with random weights: what it shows of these comes from the volume and the
    architecture, such as a head that looks at the middle.

    Deletion only fails a method that is surely worse than random nets' maps. Scattered voxels of
    air are nothing a net was trained on, and maps that find such voxels win it: on nodules
    voxelwise integrated gradients are 25 logits ahead, which no second seed agrees with, and
    occlusion, which seeds do agree on, is ahead by 1 to 2.

    Args:
        explain: ``explain(of, volume_hu)``, such as ``integrated_gradients``, or
            ``lambda of, hu: integrated_gradients(of, hu).in_blocks(4)``.
        of: The trained net.
        volume_hu: Some 30 volumes of different exams, ``(B, 1, H, W, D)`` [HU]. With fewer than
            10 volumes or exams nothing passes.
        seeds: Nets that were trained alike with other seeds: maps must be alike.
        shuffled: Nets trained alike on shuffled labels: maps must not be.
        mask: Where the nodules are, bool ``(B, H, W, D)``.
        groups: Exam of each volume.
        cell: Maps are compared as means over blocks of so many voxels.
        draws: Nets with random weights.
        seed: Decides these.
    """
    first = explain(of, volume_hu)
    random = [explain(random_net(of, draw, seed=seed), volume_hu) for draw in range(draws)]
    trained = [first, *(explain(replace(of, net=net), volume_hu) for net in seeds)]
    dealt = [explain(replace(of, net=net), volume_hu) for net in shuffled]
    found = randomisation_checks(trained, random, cell=cell, groups=groups)
    if dealt:
        found += randomisation_checks(
            trained, dealt, cell=cell, groups=groups, against="nets trained on shuffled labels"
        )
    if len(trained) > 1:
        found.append(stability_check(trained, cell=cell))
    if mask is not None:
        gain = hits(first, mask) - np.mean([hits(one, mask) for one in random], axis=0)
        why = "they point at the nodule no oftener than a net that knows nothing"
        found.append(_above_zero("pointing game, beyond random nets", gain, groups, why))
    of_first = removal_curves(of, first, volume_hu).areas("deletion")
    by_chance = [removal_curves(of, one, volume_hu).areas("deletion") for one in random]
    gain = mean_of(np.mean(by_chance, axis=0) - of_first, groups=groups)
    why = "the net misses what a random net's maps show more than what they show"
    worse = gain.high is not None and gain.high < 0
    found.append(
        Check(
            "area of deletion, below random nets' maps", gain, "not surely below 0", not worse, why
        )
    )
    count = len(volume_hu)
    exams = count if groups is None else len(np.unique(np.asarray(groups)))
    few = f"{count} volumes of {exams} exams, at least {FEWEST} of {FEWEST} exams are needed"
    return MapVerdict(first.method, tuple(found), few if min(count, exams) < FEWEST else "")


def random_net(of: VolumeNet, draw: int = 0, *, seed: int = 0) -> VolumeNet:
    """Return the net with all weights drawn anew: its maps show what needs no learning.

    Normal draws of the same root mean square; what BatchNorm has counted stays.

    Args:
        of: The trained net; it is not changed.
        draw: Which of the random nets.
        seed: Decides the weights.
    """
    names = [name for group in weights_of(of.net, ())[0] for name in group[1]]
    return replace(of, net=randomised(of.net, names, seed, draw))


def randomisation_checks(
    trained: Sequence[VolumeMaps],
    others: Sequence[VolumeMaps],
    *,
    cell: int = 1,
    groups: ArrayLike | None = None,
    against: str = "nets with random weights",
) -> list[Check]:
    """Test that maps depend on what was learnt (Adebayo 2018), one check or two.

    Likeness is Spearman's correlation of the maps of a volume, mean over volumes; its absolute
    value, as a random net's sign is random. Its mean over the other nets must be at most 0.5, by
    the upper limit of Student's interval. Where there are several trained nets their maps must
    also be more alike than they are to the others', which is sharper: bright structures and the
    architecture make maps alike that share nothing learnt (Yona and Greenfeld 2021).

    Args:
        trained: Maps by the trained net, and by others of the same training with other seeds.
        others: Maps of the same volumes by three nets or more that can't know.
        cell: As in :func:`examine`.
        groups: Exam of each volume.
        against: What the others are.

    Raises:
        ValueError: For fewer than three others.
    """
    if len(others) < 3:
        raise ValueError(
            f"likeness to {against} needs three of them or more, got {len(others)}: fewer leave an "
            "interval that nothing passes. Raise draws, or train more."
        )
    alike = [likeness(trained[0], other, cell=cell) for other in others]
    found = mean_over_seeds([abs(float(one.mean())) for one in alike])
    blank = float(np.mean([flat(one) for one in others]))
    high = found.value if found.high is None else found.high
    why = "they look alike whatever the net has learnt: they show its input, not its reasons"
    if blank > 0.5:
        why = f"{blank:.0%} of the maps by {against} are empty, so that this can't be told"
    passed = high <= MOST and blank <= 0.5
    checks = [Check(f"likeness to {against}", found, f"at most {MOST}", passed, why)]
    if len(trained) > 1:
        ours = np.mean([likeness(trained[0], one, cell=cell) for one in trained[1:]], axis=0)
        gain = ours - np.mean(alike, axis=0)
        why = f"nets of other seeds agree with it no more than {against} do"
        checks.append(_above_zero(f"likeness to other seeds, beyond {against}", gain, groups, why))
    return checks


def stability_check(maps: Sequence[VolumeMaps], *, cell: int = 1, least: float = LEAST) -> Check:
    """Test that maps are alike over seeds: mean pairwise rank correlation, jackknife interval.

    The bar is low, and on the lower limit (on the value for two nets, which have none): below
    0.2 another seed's map is another map.

    Args:
        maps: Of the same volumes, by nets that differ in their seed.
        cell: As in :func:`examine`.
        least: The bar.
    """
    found = stability([in_cells(one.values, cell).flatten(1).numpy() for one in maps], top=1)
    value = found["row_rank"]
    low = value.value if value.low is None else value.low
    why = "another seed gives another map; larger blocks may agree better"
    return Check("likeness over seeds", value, f"at least {least}", low >= least, why)


def cascade(
    explain: Explain, of: VolumeNet, volume_hu: Tensor, *, cell: int = 1, seed: int = 0
) -> tuple[Stage, ...]:
    """Return the likeness to the trained net's maps as weights become random, output first."""
    first, done, stages = explain(of, volume_hu), list[str](), list[Stage]()
    for module, tensors in weights_of(of.net, ())[0]:
        done += tensors
        other = explain(replace(of, net=randomised(of.net, done, seed, 0)), volume_hu)
        alike = float(likeness(first, other, cell=cell).mean())
        stages.append(Stage(module or type(of.net).__name__, alike))
    return tuple(stages)


def usable(verdicts: Mapping[str, MapVerdict]) -> list[str]:
    """Return the names of the methods that passed."""
    return [name for name, verdict in verdicts.items() if verdict.passed]


def _above_zero(name: str, gain: Floats, groups: ArrayLike | None, why: str) -> Check:
    found = mean_of(gain, groups=groups)
    low = -np.inf if found.low is None else found.low
    return Check(name, found, "above 0", bool(low > ROUNDING), why)
