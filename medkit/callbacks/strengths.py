"""How strong an augmentation is: by epoch, or by the generalisation gap."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """A strength that rises, or falls, in a straight line over the first epochs, and stays.

    One number for the strength of all transforms, and its linear rise: Cubuk et al. 2020
    (RandAugment). Easy rows before hard ones: Bengio et al. 2009; curricula that are learnt beside
    the net also come out rising (Hou et al. 2023).

    Attributes:
        epochs: Epochs until ``end`` is reached.
        start: Strength of the first epoch.
        end: Strength from then on.
    """

    epochs: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(
                f"a ramp must last at least 1 epoch, got {self.epochs}. For a strength that stays "
                "none is needed."
            )

    def __call__(self, epoch: int) -> float:
        """Return the strength of an epoch."""
        return self.start + (self.end - self.start) * min(1.0, epoch / self.epochs)


@dataclass(frozen=True)
class ByGap:
    """A strength that follows the generalisation gap, ``1 - training loss / validation loss``.

    The control of Karras et al. 2020 (adaptive discriminator augmentation): a fixed step up where
    the net fits its training rows too well, down where it doesn't. The training loss is the mean
    over the epoch's batches, so with dropout, augmentation and balanced draws in it: the gap may
    well be negative, and ``low`` and ``high`` have to be chosen by looking.

    Attributes:
        low: A smaller gap lowers the strength.
        high: A larger one raises it.
        step: By so much.
        start: Strength of the first epoch.
        most: Highest strength; the lowest is 0.
        monitor: Logged name of the validation loss; positive, in the training loss's unit.
    """

    low: float = 0.05
    high: float = 0.15
    step: float = 0.1
    start: float = 0.0
    most: float = 1.0
    monitor: str = "val/loss"

    def __post_init__(self) -> None:
        if not self.low <= self.high or not self.step > 0 or not 0 <= self.start <= self.most:
            raise ValueError(
                "a gap's control needs low <= high, step > 0 and 0 <= start <= most, got "
                f"{self.low}, {self.high}, {self.step}, {self.start} and {self.most}. The defaults "
                "are 0.05, 0.15, 0.1, 0 and 1."
            )

    def after(self, strength: float, gap: float) -> float:
        """Return the strength that follows on an epoch with this gap."""
        if math.isnan(gap) or self.low <= gap <= self.high:
            return strength
        step = self.step if gap > self.high else -self.step
        return round(min(self.most, max(0.0, strength + step)), 12)  # 0.1 + 0.2 is 0.3 in a ledger
