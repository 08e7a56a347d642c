"""Does a map point at the nodule, and better than maps that cannot know where it is?

A map of one study lies well on many others: nodules are in lungs, and every model's favourite
place is somewhere. So the pointing game (Zhang 2018) is played by two impostors too: the maps of
other studies, and those of models with random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from medkit.metrics.checks import Codes, Floats, codes
from medkit.metrics.intervals import mean, over, share
from medkit.record.results import Metric
from medkit.saliency.map_scores import hits, pointing_game
from medkit.saliency.volume_maps import VolumeMaps

__all__ = ["Pointing", "point"]


@dataclass(frozen=True)
class Pointing:
    """How often the highest cell of a map touches the nodule.

    Attributes:
        method: Of the maps, with their field.
        found: Share of studies, with Wilson's interval.
        others: The same of other studies' maps; what chance gives.
        over_others: By how much the first is more, over patients.
        random: As ``others``, of models with random weights; None where there was none.
        over_random: By how much it is more than these.
    """

    method: str
    found: Metric
    others: Metric
    over_others: Metric
    random: Metric | None = None
    over_random: Metric | None = None

    @property
    def usable(self) -> bool:
        """Whether the maps are shown to point better than each control: lower limits above 0."""
        asked = [one for one in (self.over_others, self.over_random) if one is not None]
        return all(one.low is not None and one.low > 0 for one in asked)

    def __str__(self) -> str:
        text = f"points at {_said(self.found)} of {self.found.n}; other studies' maps at "
        text += _said(self.others)
        if self.random is not None:
            text += f", random weights' at {_said(self.random)}"
        return f"{self.method}: {'' if self.usable else 'do not use: '}{text}"

    def on(self, maps: VolumeMaps) -> VolumeMaps:
        """Write the verdict on maps, where a figure of them says it."""
        verdict = str(self).removeprefix(f"{self.method}: ")
        return replace(maps, verdict=verdict)


def point(
    maps: VolumeMaps,
    mask: Tensor,
    *,
    groups: ArrayLike,
    random: Sequence[VolumeMaps] = (),
) -> Pointing:
    """Play the pointing game, and have the impostors play it.

    A cell of a coarse map counts as a hit where the nodule touches it; the impostors have the same
    cells, so coarse maps gain nothing by it.

    Args:
        maps: Of studies with a nodule.
        mask: Where it is, bool ``(B, H, W, K)`` (:func:`~medkit.saliency.map_scores.spheres`).
        groups: Patient of each study; a study's impostors are other patients'.
        random: Maps of the same studies by models with random weights.

    Raises:
        ValueError: For studies of fewer than two patients, or masks of other pictures.
    """
    owner = codes(groups, len(maps.values), "groups")
    if len(mask) != len(maps.values) or owner.max() < 1:
        raise ValueError(
            "the game needs a mask a study, and studies of two patients at least; got "
            f"{len(mask)} masks, {len(maps.values)} maps and {owner.max() + 1} patients."
        )
    grid = tuple(maps.values.shape[1:])
    if mask.shape[3] != grid[2]:
        raise ValueError(
            f"masks must be of as many pictures as the maps; got {mask.shape[3]} and {grid[2]}. "
            "Where the model's processor cuts pictures into tiles, each has a map: have them seen "
            "whole, by max_pixels= of hub.encoder or larger patches."
        )
    there = F.adaptive_max_pool3d(mask[:, None].float(), grid)[:, 0].bool()
    own = hits(maps, there)
    others = _by_others(maps, there, owner)
    known = dict(others=_share(others, owner), over_others=_more(own, others, owner))
    if random:
        lucky = np.mean([hits(one, there) for one in random], axis=0)
        known |= {"random": _share(lucky, owner), "over_random": _more(own, lucky, owner)}
    found = pointing_game(maps, there, groups=owner)
    return Pointing(maps.method, found, **known)


def _by_others(maps: VolumeMaps, there: Tensor, owner: Codes) -> Floats:
    """Return the share of other patients' maps that hit each study's nodule."""
    total, count = np.zeros(len(owner)), np.zeros(len(owner))
    for shift in range(1, len(owner)):
        moved = replace(maps, values=maps.values.roll(shift, 0))
        other = owner != np.roll(owner, shift)
        total += hits(moved, there) * other
        count += other
    return total / count


def _share(values: Floats, owner: Codes) -> Metric:
    return share(values, np.ones(len(values)), "pointing game", level=0.95, owner=owner)


def _more(own: Floats, others: Floats, owner: Codes) -> Metric:
    value, low, high = mean(own - others, level=0.95, owner=owner)
    how = f"difference of hits, normal interval{over(owner)}"
    return Metric(value, low, high, 0.95, len(own), method=how)


def _said(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return f"{metric.value:.2f}"
    return f"{metric.value:.2f} [{metric.low:.2f}, {metric.high:.2f}]"
