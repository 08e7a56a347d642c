"""The numbers every binary model is reported with, named for metrics.json."""

from __future__ import annotations

from numpy.typing import ArrayLike

from medkit.metrics.calibration import brier
from medkit.metrics.discrimination import auprc, auroc, prevalence
from medkit.record.results import Metric


def binary(
    y: ArrayLike,
    prob: ArrayLike,
    *,
    stage: str,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> dict[str, Metric]:
    """Return ``stage/auroc``, ``stage/auprc``, ``stage/prevalence`` and ``stage/brier``.

    Args:
        y: Labels 0 and 1, ``(N,)``.
        prob: Probability of label 1, ``(N,)``.
        stage: Such as "val", "test" or "test/site_b".
        seed: Decides the bootstrap's resamples.
        groups: Patient of each row, for the bootstrap.
    """
    return {
        f"{stage}/auroc": auroc(y, prob),
        f"{stage}/auprc": auprc(y, prob, seed=seed, groups=groups),
        f"{stage}/prevalence": prevalence(y),
        f"{stage}/brier": brier(y, prob),
    }
