"""Median fill, scales and missing indicators: fitted on training rows, stored as plain numbers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

SCALES = ("robust", "standard")
_NORMAL_IQR = 1.3489795  # interquartile range of a standard normal
_ENDS = (0.005, 0.995)
_BLOCK = 8192  # rows


@dataclass(frozen=True)
class Preprocessing:
    """How raw values become what a net sees; knows the training rows and no others.

    Attributes:
        features: Columns expected, in order.
        fill: Median of each, put where a value is missing.
        center: Taken off each.
        scale: Each is divided by it. 0 where the training rows say nothing (never measured, or
            always the same value): such a column is 0 in every row, whatever comes later.
        clip: Scaled values are cut at plus and minus this; None: not.
        indicators: Columns that get a second, 0/1 column: 1 where the value was missing.
        fitted_on: Digest of whose rows it was fitted on, see :func:`digest_ids`.
        rows: How many those were.
        low: What 0.5 % of the training rows are below, by column; what is far from there was not
            seen in training. Quantiles, as extremes would be single patients'.
        high: What 0.5 % are above.
        missing: Share missing in the training rows, by column.
        most_missing: Share missing in the training row with the most missing cells.
    """

    features: tuple[str, ...]
    fill: tuple[float, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    clip: float | None
    indicators: tuple[str, ...]
    fitted_on: str
    rows: int
    low: tuple[float, ...] = ()  # these four: empty in checkpoints from before them
    high: tuple[float, ...] = ()
    missing: tuple[float, ...] = ()
    most_missing: float = 1.0

    @property
    def names(self) -> list[str]:
        """Name of each column of what :meth:`apply` returns."""
        return [*self.features, *(f"{name} missing" for name in self.indicators)]

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill, scale, clip, append indicators: ``(N, F)`` with NaN to ``(N, F + I)`` without."""
        x = np.empty((len(values), len(self.names)), np.float32)
        for start in range(0, len(values), _BLOCK):  # that stays in the cache
            self._apply_block(values[start : start + _BLOCK], x[start : start + _BLOCK])
        return x

    def _apply_block(self, values: NDArray[np.float32], x: NDArray[np.float32]) -> None:
        indicator_of = {name: len(self.features) + i for i, name in enumerate(self.indicators)}
        for index, name in enumerate(self.features):
            column = values[:, index].astype(np.float64)
            missing = np.isnan(column)
            if name in indicator_of:
                x[:, indicator_of[name]] = missing
            if self.scale[index] == 0:
                x[:, index] = 0.0
                continue
            column[missing] = self.fill[index]
            scaled = (column - self.center[index]) / self.scale[index]
            if self.clip is not None:
                np.clip(scaled, -self.clip, self.clip, out=scaled)
            x[:, index] = scaled

    def state(self) -> dict[str, Any]:
        """Return plain lists and numbers, for a checkpoint that loads with weights_only=True."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Preprocessing:
        """Rebuild from :meth:`state`."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in state.items()
        }
        return cls(**fields)


def fit(
    values: NDArray[np.float32],
    features: Sequence[str],
    *,
    scale: str = "robust",
    clip: float | None = None,
    indicators: bool = True,
    fitted_on: str,
    rows: NDArray[np.int64] | None = None,
) -> Preprocessing:
    """Fit on the training rows alone.

    Args:
        values: ``(N, F)`` of the training rows (see ``rows``), NaN where missing.
        features: Names of the columns.
        scale: "robust" centres on the median and divides by the interquartile range (by the
            standard deviation where half of the values are equal), so finite garbage in a column
            does not spoil it; "standard" takes mean and standard deviation.
        clip: See :class:`Preprocessing`.
        indicators: Add an indicator for each column with missing values.
        fitted_on: Digest of the rows' patients.
        rows: Numbers of the training rows, where ``values`` holds others too: spares a copy of the
            table. None: all are training rows.
    """
    if scale not in SCALES:
        raise ValueError(
            f"scale must be one of {list(SCALES)}, got {scale!r}. "
            "Other transforms belong in the table itself, before it is split."
        )
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}. 4.0 cuts at four scales.")
    fill, center, scales, with_indicator = [], [], [], []
    ends, missing, of_row = [], [], np.zeros(len(values) if rows is None else len(rows), np.int32)
    for index, name in enumerate(features):
        column = (values[:, index] if rows is None else values[rows, index]).astype(np.float64)
        gone = np.isnan(column)
        there = column[~gone]
        median, middle, width = _location(there, scale)
        ends.append(np.quantile(there, _ENDS).tolist() if len(there) else [0.0, 0.0])
        missing.append(float(gone.mean()))
        of_row += gone
        if width == 0:
            log.warning(
                "%s in every training row: column %r is not used",
                "one value" if len(there) else "missing",
                name,
            )
        fill.append(median)
        center.append(middle)
        scales.append(width)
        if indicators and 0 < len(there) < len(column):
            with_indicator.append(name)
    return Preprocessing(
        features=tuple(features),
        fill=tuple(fill),
        center=tuple(center),
        scale=tuple(scales),
        clip=clip,
        indicators=tuple(with_indicator),
        fitted_on=fitted_on,
        rows=len(of_row),
        low=tuple(low for low, _ in ends),
        high=tuple(high for _, high in ends),
        missing=tuple(missing),
        most_missing=float(of_row.max(initial=0)) / max(1, len(features)),
    )


def _location(there: NDArray[np.float64], scale: str) -> tuple[float, float, float]:
    """Return median, centre and width of the values that are there; width 0 if they say nothing."""
    if len(there) == 0 or there.min() == there.max():
        return (float(there[0]) if len(there) else 0.0), 0.0, 0.0
    low, median, high = (float(q) for q in np.quantile(there, (0.25, 0.5, 0.75)))
    if scale == "standard":
        return median, float(there.mean()), float(there.std())
    return median, median, (high - low) / _NORMAL_IQR or float(there.std())


def digest_ids(patient: NDArray[np.str_]) -> str:
    """Return a SHA-256 over patients and their numbers of rows: whose rows, without saying whose.

    The order of the rows does not matter.
    """
    names, counts = np.unique(patient, return_counts=True)
    digest = hashlib.sha256()
    for start in range(0, len(names), _BLOCK):  # two million ids as Python texts: 400 MB
        some = slice(start, start + _BLOCK)
        pairs = zip(names[some].tolist(), counts[some].tolist(), strict=True)
        digest.update((b"\n" if start else b"") + "\n".join(map("%s\t%d".__mod__, pairs)).encode())
    return digest.hexdigest()


def require_same_rows(stored: Preprocessing, fitted: Preprocessing) -> None:
    """Refuse a preprocessing for rows of other patients than it was fitted on."""
    if (stored.features, stored.fitted_on) != (fitted.features, fitted.fitted_on):
        raise ValueError(
            "a checkpoint goes on with the patients it was trained on; its medians and scales were "
            f"fitted on {stored.rows} rows (digest {stored.fitted_on[:12]}), this split has "
            f"{fitted.rows} (digest {fitted.fitted_on[:12]}). Use the same table, split_seed and "
            "fractions, or begin a new run; for new rows use dm.apply(table)."
        )
