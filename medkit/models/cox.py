"""What a net for survival must beat before it is believed: penalised linear Cox regression."""

from medkit.data.cox import CoxBaseline, PartialLikelihood, choose_l2, event_folds, fit_cox
from medkit.data.hazard import BaselineHazard, breslow

__all__ = [
    "BaselineHazard",
    "CoxBaseline",
    "PartialLikelihood",
    "breslow",
    "choose_l2",
    "event_folds",
    "fit_cox",
]
