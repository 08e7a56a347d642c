"""Ink: each function draws on the Axes it is given, with units, n and intervals, and returns it.

Colours are Okabe and Ito's, which the colour-blind can tell apart; series differ in marker or
line as well, so that a print in grey still reads.
"""

from medkit.plot.curves import learning_curves, seed_fan
from medkit.plot.detection import froc
from medkit.plot.scores import attributions, calibration, forest, missingness, roc
from medkit.plot.spreads import effects, seed_spread, spread_ladder
from medkit.plot.style import COLORS

__all__ = [
    "COLORS",
    "attributions",
    "calibration",
    "effects",
    "forest",
    "froc",
    "learning_curves",
    "missingness",
    "roc",
    "seed_fan",
    "seed_spread",
    "spread_ladder",
]
