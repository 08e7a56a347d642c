"""How many seeds, or patients, a gain needs to be found."""

from __future__ import annotations

from math import ceil

from medkit.metrics.two_level import TwoLevel

USUAL = 0.8  # of all such studies find the gain
FEWEST_SEEDS = 5  # from which on the two-level t errs in at most 5 % of cases
_MOST = 1000  # seeds, or times the patients


def smallest_gain(found: TwoLevel, *, power: float = USUAL) -> float:
    """Return the true difference that a test with these variances finds in ``power`` of cases."""
    if not found.se > 0:
        return 0.0
    low, high = 0.0, found.se
    while found.power(high) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if found.power(middle) < power else (low, middle)
    return high


def seeds_needed(found: TwoLevel, gain: float, seeds: int, *, power: float = USUAL) -> int | None:
    """Return how many seeds each recipe needs on these patients; None where 1,000 don't suffice.

    Args:
        found: The variances, from ``seeds`` trainings.
        gain: The true difference to be found.
        seeds: How many there were, at least 2.
        power: How often it is to be found.
    """
    many = range(FEWEST_SEEDS, _MOST + 1)
    return next((n for n in many if found.with_seeds(seeds, n).power(gain) >= power), None)


def patients_needed(
    found: TwoLevel, gain: float, patients: int, *, power: float = USUAL
) -> int | None:
    """Return how many patients such as these are needed with these seeds; None: none suffice.

    A thousandth to a thousand times as many as there are is what is looked at.
    """
    low, high = 1 / _MOST, float(_MOST)
    if found.with_patients(high).power(gain) < power:
        return None
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        enough = found.with_patients(middle).power(gain) >= power
        low, high = (low, middle) if enough else (middle, high)
    return ceil(patients * high)
