"""Scale and offset of a scanner's values, from tissue whose HU is known."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

__all__ = [
    *("AIR_HU", "MUSCLE_HU", "Harmonisation", "correction", "fit_sites", "measured_correction"),
]

_log = logging.getLogger(__name__)
AIR_HU, MUSCLE_HU = -970.0, 50.0  # what windpipe and muscle truly have


def correction(
    air_hu: ArrayLike, muscle_hu: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scale and offset that give air and muscle their true values: two points, a line.

    Args:
        air_hu: Measured in each exam, ``(N,)``; NaN, or less than 100 below ``muscle_hu``: it is
            not known, and values stay as they are.
        muscle_hu: Measured there.
    """
    air, muscle = np.asarray(air_hu, np.float64), np.asarray(muscle_hu, np.float64)
    known = np.isfinite(air) & np.isfinite(muscle) & (muscle - air > 100)
    apart = np.where(known, muscle - air, 1.0)
    scale = np.where(known, (MUSCLE_HU - AIR_HU) / apart, 1.0)
    offset = np.where(known, AIR_HU - np.where(known, air, 0.0) * scale, 0.0)
    return scale, offset


@dataclass(frozen=True)
class Harmonisation:
    """How values of each site become alike: ``value * scale + offset``.

    Attributes:
        sites: Site -> (scale, offset); a site that is not here is left as it is.
        fitted_on: Digest of whose rows it was fitted on.
    """

    sites: dict[str, tuple[float, float]]
    fitted_on: str

    def of(self, site: NDArray[np.str_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return scale and offset of each row."""
        found = [self.sites.get(name, (1.0, 0.0)) for name in site.tolist()]
        scale, offset = np.array(found, np.float64).reshape(-1, 2).T
        return scale, offset


def fit_sites(
    volume_hu: NDArray[np.int16],
    site: NDArray[np.str_],
    rows: NDArray[np.int64],
    *,
    fitted_on: str,
    most: int = 400,
) -> Harmonisation:
    """Bring the 5th and 95th percentile of each site's patches to the mean over sites.

    Fitted on the training rows alone; a hospital that was not trained on is left as it is, which
    is the point where this differs from a reference that each exam carries.

    Args:
        volume_hu: Patches, ``(N, S, S, S)``.
        site: Of each.
        rows: The training rows.
        fitted_on: Digest of whose rows these are.
        most: Rows of a site that are looked at, evenly from all.
    """
    limits = {}
    for name in sorted(set(site[rows].tolist())):
        own = rows[site[rows] == name]
        own = own[np.linspace(0, len(own) - 1, min(most, len(own))).astype(int)]
        limits[name] = np.percentile(volume_hu[own], [5, 95])
    low, high = np.mean(list(limits.values()), axis=0)
    sites = {}
    for name, (own_low, own_high) in limits.items():
        scale = (high - low) / (own_high - own_low) if own_high > own_low else 1.0
        sites[name] = (float(scale), float(low - own_low * scale))
    return Harmonisation(sites, fitted_on)


def measured_correction(
    table: pd.DataFrame,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each row's scale and offset by its exam's own air and muscle.

    Raises:
        ValueError: For a table without the columns ``air_hu`` and ``muscle_hu``.
    """
    if not {"air_hu", "muscle_hu"} <= {*table}:
        raise ValueError(
            'harmonise="reference" needs columns air_hu and muscle_hu, means measured in '
            "each exam's windpipe and muscle, and the table has none. Add them, or pass "
            'harmonise="site" or "none".'
        )
    air, muscle = (table[name].to_numpy(np.float64) for name in ("air_hu", "muscle_hu"))
    scale, offset = correction(air, muscle)
    unknown = int(((scale == 1) & (offset == 0)).sum())
    if unknown:
        _log.warning("%d candidates without air and muscle stay as they are", unknown)
    return scale, offset
