"""Run a candidate classifier over a whole volume: a map of probabilities, and where it peaks.

::

    found = detect(model, volume, Search(stride_mm=4), mask=lung_mask(volume))
    found.centres_mm, found.score
    match(found.table("1.2.840..."), nodules)  # medkit.metrics.detection

**A net that was trained on the candidates of a detector is no detector**: it is a false-positive
reducer, for such candidates (``scores_at``). It has never seen most of what a lung is made of, and
what it says there, of bronchi or the chest wall, means nothing: it may call all of it a nodule.
To detect, train on places drawn at random in the lungs as negatives, many times as many as
nodules, and on the false positives that :func:`detect` finds in the training exams; look within
:func:`medkit.data.lungs.lung_mask`; and measure by :func:`medkit.metrics.detection.froc` on exams
that were not trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medkit.dicom.volume import Volume
from medkit.models.classifier import LitClassifier
from medkit.models.patch_scores import PatchForm, require_ct, scores_of

__all__ = ["Detected", "PatchForm", "Search", "detect", "peaks", "probability_map", "refined"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Search:
    """How to look.

    Attributes:
        patch: What the net was trained on.
        stride_mm: From one look to the next: no more than twice what a nodule may be off the
            centre of a patch for the net still to know it.
        refine_mm: Stride that a closer look around each candidate ends with; None: no such look.
        radius_mm: Of two candidates so near one another the better stays; so of two such nodules.
        threshold: Probability from which on there is a candidate.
        most: Candidates a volume, the best. A FROC curve needs many more than 8 a scan, and a low
            ``threshold``.
    """

    patch: PatchForm = field(default_factory=PatchForm)
    stride_mm: float = 4.0
    refine_mm: float | None = 1.0
    radius_mm: float = 6.0
    threshold: float = 0.0
    most: int = 100

    def __post_init__(self) -> None:
        fine = self.stride_mm if self.refine_mm is None else self.refine_mm
        if not min(self.stride_mm, self.radius_mm, fine) > 0 or self.most < 1:
            raise ValueError(
                "a search needs strides and a radius above 0 mm, and at least 1 candidate; got "
                f"{self}. Leave them out for the usual ones."
            )


@dataclass(frozen=True, eq=False)
class Detected:
    """What was found.

    Attributes:
        centres_mm: Of the candidates, the likeliest first, ``(K, 3)`` RAS [mm].
        score: Their probabilities, float32 ``(K,)``.
        probability: The map at the first stride, as a volume; NaN where nobody looked.
    """

    centres_mm: Floats
    score: NDArray[np.float32]
    probability: Volume

    def __repr__(self) -> str:
        best = f"{self.score[0]:.3g}" if len(self.score) else "none"
        return f"Detected({len(self.score)} candidates, best score {best}, {self.probability!r})"

    def table(self, exam: str | int) -> dict[str, NDArray[Any]]:
        """Return columns ``exam``, ``x``, ``y``, ``z`` (RAS) and ``score``."""
        places = dict(zip("xyz", self.centres_mm.T, strict=True))
        return {"exam": np.full(len(self.score), exam), **places, "score": self.score}


def detect(
    model: LitClassifier,
    volume: Volume,
    search: Search | None = None,
    *,
    mask: ArrayLike | None = None,
) -> Detected:
    """Look everywhere, keep the best of each neighbourhood, and look closer around these.

    Device and precision: see :func:`medkit.models.patch_scores.scores_at`. A long look shows a bar.

    Args:
        model: Classifier of patches ``(B, 1, size, size, size)``, trained on places from all over
            the lungs; one of a detector's candidates alone is a false-positive reducer, see above.
        volume: CT in HU, of any orientation and spacing. NIfTI and MetaImage files don't say what
            they hold (unit ""): it is taken for HU.
        search: Patch, strides and what counts as a candidate.
        mask: bool, as ``volume.array``: where to look (:func:`medkit.data.lungs.lung_mask`). None:
            everywhere.

    Raises:
        TypeError: For an array, which doesn't say where it lies.
        ValueError: For a volume that is not in HU, or a mask of another shape.
        FloatingPointError: Where the net returns what is no number.
    """
    search = search or Search()
    probability = probability_map(model, volume, search, mask=mask)
    centres, score = peaks(probability, search)
    if search.refine_mm is not None and score.size:
        centres, score = refined(model, volume, centres, search)
    return Detected(centres, score, probability)


def probability_map(
    model: LitClassifier,
    volume: Volume,
    search: Search | None = None,
    *,
    mask: ArrayLike | None = None,
) -> Volume:
    """Return the probability at each place of a grid along the volume's axes; NaN off the mask.

    Raises:
        TypeError: For an array, which doesn't say where it lies.
        ValueError: For a volume that is not in HU, or a mask of another shape.
        FloatingPointError: Where the net returns what is no number.
    """
    require_ct(volume)
    search = search or Search()
    shape, spacing = np.array(volume.array.shape), np.array(volume.spacing_mm)
    step = search.stride_mm / spacing
    counts = np.floor((shape - 1) / step + 1e-9).astype(int) + 1
    start = (shape - 1 - (counts - 1) * step) / 2
    to_index = np.diag([*step, 1.0])
    to_index[:3, 3] = start
    affine = volume.affine @ to_index
    looks = _looks(mask, volume, counts, step, start)

    def places(first: int, stop: int) -> Floats:
        index = np.stack(np.unravel_index(looks[first:stop], counts), axis=1)
        return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])

    values = np.full(counts.prod(), np.nan, np.float32)
    values[looks] = scores_of(model, volume, places, len(looks), search.patch)
    slices = np.ascontiguousarray(values.reshape(counts).transpose(2, 0, 1))
    return Volume(slices.transpose(1, 2, 0), affine, "probability", dict(volume.provenance))


def peaks(probability: Volume, search: Search) -> tuple[Floats, NDArray[np.float32]]:
    """Return places [mm] and scores of a map's candidates: the best of each neighbourhood."""
    values = probability.array
    index = np.argwhere(values >= search.threshold)  # NaN is not
    return _suppressed(probability.world_of(index), values[tuple(index.T)], search)


def refined(
    model: LitClassifier, volume: Volume, centres_mm: Floats, search: Search
) -> tuple[Floats, NDArray[np.float32]]:
    """Look around each place, at half a stride and then at half of that; return where it is best.

    Each round goes to the best of 27 places, of equally good ones to that nearest to their middle.
    The last one's steps are ``refine_mm`` or less.
    """
    step, fine = search.stride_mm, search.refine_mm or search.stride_mm
    axes = (volume.affine[:3, :3] / np.array(volume.spacing_mm)).T
    centres, score = centres_mm, np.empty(0, np.float32)
    while step > fine or not score.size:
        step /= 2
        offsets = (np.indices((3, 3, 3)).reshape(3, -1).T - 1.0) @ axes * step
        score, best = _around(model, volume, centres, offsets, search)
        centres = centres + offsets[best]
    return _suppressed(centres, score, search)


def _around(
    model: LitClassifier, volume: Volume, centres: Floats, offsets: Floats, search: Search
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the best score around each place, and the number of its offset."""
    many = len(offsets)

    def places(first: int, stop: int) -> Floats:
        look = np.arange(first, stop)
        return np.asarray(centres[look // many] + offsets[look % many])

    scores = scores_of(model, volume, places, len(centres) * many, search.patch).reshape(-1, many)
    score = scores.max(axis=1)
    best = np.empty(len(centres), np.int64)
    for number, tied in enumerate(scores == score[:, None]):
        away = np.sum((offsets - offsets[tied].mean(axis=0)) ** 2, axis=1)
        best[number] = np.where(tied, away, np.inf).argmin()
    return score, best


def _suppressed(
    places: Floats, score: NDArray[np.float32], search: Search
) -> tuple[Floats, NDArray[np.float32]]:
    """Go from the best down, and drop what is near one that stays."""
    from scipy.spatial import cKDTree

    kept: list[int] = []
    if len(score):
        tree, gone = cKDTree(places), np.zeros(len(score), bool)
        for one in np.argsort(-score, kind="stable").tolist():
            if not gone[one]:
                kept.append(one)
                gone[tree.query_ball_point(places[one], search.radius_mm)] = True
            if len(kept) == search.most:
                break
    return places[kept], score[kept]


def _looks(
    mask: ArrayLike | None, volume: Volume, counts: NDArray[Any], step: Floats, start: Floats
) -> NDArray[np.int64]:
    """Return the places of the grid, counted along it, whose nearest voxel is in the mask."""
    if mask is None:
        return np.arange(counts.prod())
    where = np.asarray(mask)
    if where.shape != volume.array.shape or where.dtype != np.bool_:
        raise ValueError(
            f"mask must be bool of shape {volume.array.shape}, as volume.array; got {where.dtype} "
            f"of {where.shape}. Resample it, and compare a label map with 0."
        )
    axes = zip(counts, step, start, where.shape, strict=True)
    near = [np.minimum(np.rint(at + np.arange(n) * by), m - 1).astype(int) for n, by, at, m in axes]
    return np.flatnonzero(where[np.ix_(*near)])
