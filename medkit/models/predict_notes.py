"""What to know before the predictions of a new table are used."""

from __future__ import annotations

import re
from collections.abc import Iterator

from medkit.data.contract.schema import Contract
from medkit.data.outside import Outside
from medkit.models.saved import SavedClassifier, SavedCox
from medkit.record.folder import RunFolder
from medkit.record.results import METRICS_NAME, Metric, read_metrics

_RIVALS = {
    SavedClassifier: ("auroc_minus_logistic", "logistic regression", "prob_logistic"),
    SavedCox: ("c_index_minus_cox", "penalised Cox regression", "risk_cox"),
}


def threshold_of(folder: RunFolder, stage: str) -> float | None:
    """Return the threshold that the run chose on the validation rows of a model.

    Args:
        folder: The run.
        stage: The model's name. ``site_a_fold``, an ensemble tested on ``site_a``, has
            ``val/site_a/threshold``.
    """
    found = {name: metric.value for name, metric in _of(folder, stage, "threshold")}
    if len(found) > 1:
        return found.get("val/threshold")
    return next(iter(found.values()), None)


def _of(folder: RunFolder, stage: str, name: str) -> list[tuple[str, Metric]]:
    """Return the metrics of a name that speak of a model: its own, else those of no other's."""
    places = {_place(path.name) for path in (folder.path / "checkpoints").glob("*")}
    found = [(n, m) for n, m in _metrics(folder).items() if n.rpartition("/")[2] == name]
    own = [(n, m) for n, m in found if _place(stage) in n.split("/")[1:-1]]
    return own or [(n, m) for n, m in found if not places & {*n.split("/")[1:-1]}]


def _place(stage: str) -> str:
    """Return what a stage was tested on by its name: ``site_a`` for ``site_a_fold0``."""
    return re.sub(r"(_fold|_seed)?\d*$", "", stage)


def _metrics(folder: RunFolder) -> dict[str, Metric]:
    path = folder.path / METRICS_NAME
    return read_metrics(path) if path.is_file() else {}


def notes_on(
    folder: RunFolder,
    model: SavedClassifier | SavedCox,
    contract: Contract | None,
    outside: Outside,
    threshold: float | None,
) -> Iterator[str]:
    """Yield what somebody should know before the predictions of a table are used."""
    if folder.status != "done":
        yield f"the run is not done, its status is {folder.status!r}: look at it before you go on"
    if contract is None:
        yield (
            "no data contract: units and codes are taken to be those of the table that was "
            "trained on, and only what is far from its rows is told"
        )
    if not outside.preprocessing.low:
        yield "the checkpoint is older than this medkit: what training rows reached is not in it"
    unsaid = outside.new_sites.pop("", 0)
    if unsaid:
        yield f"{unsaid:,} rows do not say their site: nothing that is a site's own was checked"
    if outside.new_sites:
        few = ", ".join(f"{s!r} ({n:,} rows)" for s, n in outside.new_sites.most_common(3))
        more = f" and {len(outside.new_sites) - 3} more" if len(outside.new_sites) > 3 else ""
        yield (
            f"not trained on: site {few}{more}. Probabilities are often wrong in level at another "
            "hospital even where their order is right: compare them with outcomes there "
            "(medkit.metrics.calibration) before they are used"
        )
    for site, names in outside.absent_at_trained_sites().items():
        where = f" at {site!r}" if site else ""
        yield f"no value{where} in {', '.join(names)}: the medians of training stand there"
    if threshold is not None:
        yield f"positive: from {threshold:.3g} on, the threshold of the run's metrics.json"
    metric, rival, column = _RIVALS[type(model)]
    for name, found in _of(folder, model.name, metric):
        if found.low is not None and found.low <= 0:
            yield (
                f"the run has not shown its net to rank better than {rival} ({name}): use {column}"
            )
            break
