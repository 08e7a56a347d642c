"""Draws and curves that are the same to the last bit on any CPU.

``exp``, ``log``, ``erf`` and NumPy's normal draws may differ in the last bit from one CPU or libm
to the next, and sums and matrix products with the width of the vector unit. Here is only ``+``,
``-``, ``*``, ``/`` and ``floor`` on whole arrays, one operation a call (so nothing is fused), which
IEEE 754 fixes to the bit. Noise is the sum of twelve uniforms less six (Irwin-Hall): mean 0,
variance 1, never beyond 6, and unlike a normal it has a density that can be written with those
operations.
"""

from __future__ import annotations

from math import comb, factorial

import numpy as np
from numpy.typing import NDArray

from medkit import keyed

Floats = NDArray[np.float64]

LN2 = 0.6931471805599453
TERMS = 12  # uniforms in one noise value


def uniforms(seed: int, *place: int | str, shape: tuple[int, ...]) -> Floats:
    """Draw from [0, 1), a function of ``(seed, place)``; the top 53 bits of Philox's raw output.

    NumPy promises raw bits for ever, but not what its distributions make of them.
    """
    count = 1
    for length in shape:
        count *= length
    raw = keyed.generator(seed, "synth", *place).bit_generator.random_raw(count)
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def noise(parts: Floats) -> Floats:
    """Add the 12 uniforms along the first axis and centre them: mean 0, variance 1."""
    total = parts[0]
    for part in parts[1:]:  # by hand: np.sum may add in another order on another CPU
        total = total + part
    return total - TERMS / 2


def noise_density(x: Floats) -> Floats:
    """Return the density of :func:`noise`, zero outside (-6, 6)."""
    near = TERMS / 2 - np.abs(x)  # symmetric; counted from the nearer end nothing cancels
    total = np.zeros_like(near)
    for k in range(TERMS // 2):
        t = np.maximum(near - k, 0.0)
        t2 = t * t
        t4 = t2 * t2
        total = total + ((-1) ** k * comb(TERMS, k) / factorial(TERMS - 1)) * (t4 * t4 * t2 * t)
    return np.maximum(total, 0.0)


def exp(x: Floats) -> Floats:
    """Return e to the x for moderate x, within a few parts in 10^15 of the true value."""
    halvings = np.floor(x / LN2 + 0.5)
    rest = x - halvings * LN2  # |rest| <= 0.35
    total = np.ones_like(rest)
    for k in range(14, 0, -1):
        total = total * rest / k + 1.0
    return np.ldexp(total, halvings.astype(np.int32))


def log(x: Floats) -> Floats:
    """Return the natural logarithm of x from 2^-63 to 2^63, within a few parts in 10^15."""
    rest, powers = x, np.zeros_like(x)
    for k in (32, 16, 8, 4, 2, 1):  # times powers of two, exactly, into [1/2, 2)
        down, up = rest >= 2.0**k, rest < 2.0**-k
        powers = powers + np.where(down, k, 0.0) - np.where(up, k, 0.0)
        rest = np.where(down, rest * 2.0**-k, np.where(up, rest * 2.0**k, rest))
    s = (rest - 1.0) / (rest + 1.0)
    s2 = s * s
    total = np.zeros_like(s)
    for k in range(35, 0, -2):  # 2 artanh(s), |s| <= 1/3
        total = total * s2 + 1.0 / k
    return 2.0 * s * total + powers * LN2


def sigmoid(x: Floats) -> Floats:
    """Return the logistic function of x."""
    return 1.0 / (1.0 + exp(-x))
