"""Several trainings in one picture: the runs of a sweep, seeds, members trained together."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medkit.metrics.checks import Floats
from medkit.models.seed_ensemble import SeedEnsemble
from medkit.plot import learning_curves
from medkit.record.folder import RunFolder, run_folders
from medkit.widgets.curves import History, Picture, Thinned, finish, panels_for
from medkit.widgets.marks import Mark, marks


def fan(
    *sources: Path | str | SeedEnsemble,
    stage: str = "fit",
    metrics: Sequence[str] | None = None,
    loss_label: str = "val/loss",
    title: str = "",
) -> Picture:
    """Draw validation loss and metrics of several trainings: each thinly, their mean boldly.

    One curve is an anecdote; how far seeds lie apart is part of the result (Bouthillier et al.
    2021). What guards did in any of the runs is marked below the loss.

    Args:
        *sources: Run folders, folders of runs such as a sweep's (each grid point gets a colour of
            its own), or stacks of members.
        stage: Which fit of the runs.
        metrics: A panel for each; None takes the first few ``val/`` ones that are no loss.
        loss_label: Name and unit of the validation loss.
        title: Above all panels.

    Raises:
        FileNotFoundError: Where a folder holds no run, or none that has logged this stage.
    """
    groups: dict[str, list[History]] = {}
    for source in sources:
        if isinstance(source, SeedEnsemble):
            found = {"members": of_members(source)}
        else:
            found = read_histories(source, stage=stage)
        for name, histories in found.items():
            groups.setdefault(name, []).extend(histories)
    every = [history for histories in groups.values() for history in histories]
    if metrics is None:
        metrics = panels_for(dict.fromkeys(name for history in every for name in history.logged))
    names = ["val/loss", *metrics]
    widths = [1.6] + [1.3] * len(metrics)
    figure = Picture(figsize=(2.4 * sum(widths), 2.8), layout="constrained")
    panels = figure.subplots(1, len(names), width_ratios=widths, squeeze=False)[0]
    for number, (panel, name) in enumerate(zip(panels, names, strict=True)):
        steps, curves = _on_common_steps(groups, name)
        learning_curves(panel, curves, x=steps, ylabel=name if number else loss_label)
        if number:
            panel.get_legend().remove()
    finish(figure, panels, _together(every), title)
    return figure


def read_histories(folder: Path | str, *, stage: str = "fit") -> dict[str, list[History]]:
    """Read the curves of one run, or of all under a folder, grouped by the folder they lie in.

    Raises:
        FileNotFoundError: Where there is nothing to draw.
    """
    runs = run_folders(folder)
    groups: dict[str, list[History]] = {}
    for run in runs:
        logs = run.path / "logs" / stage / "metrics.csv"
        if logs.is_file():
            groups.setdefault(run.path.parent.name, []).append(_read(run, logs, stage))
    if not groups:
        stages = {path.parent.name for run in runs for path in run.path.glob("logs/*/metrics.csv")}
        raise FileNotFoundError(
            f"{folder} must hold a run that has logged stage {stage!r}; found {len(runs)} runs"
            f"{f' with stages {sorted(stages)}' if stages else ''}. Name a run folder or one with "
            "runs in it, and one of their stages."
        )
    return groups


def of_members(ensemble: SeedEnsemble) -> list[History]:
    """Return the curves of a stack's members, over epochs' ends as steps."""
    lines = members_of(ensemble, steps=_steps(ensemble))
    histories = [History() for _ in ensemble.seeds]
    for name, members in lines.items():
        for history, line in zip(histories, members, strict=True):
            history.logged[name] = line
    return histories


def members_of(ensemble: SeedEnsemble, *, steps: float) -> dict[str, list[Thinned]]:
    """Return metric -> the curve of each member, the last of them at optimizer step ``steps``."""
    table = ensemble.table("val")
    found: dict[str, list[Thinned]] = {}
    if table.empty:
        return found
    per_epoch = steps / (int(table["epoch"].max()) + 1)
    for name in [column for column in table if column not in ("epoch", "seed")]:
        for seed in ensemble.seeds:
            line, own = Thinned(), table[table["seed"] == seed]
            for epoch, value in zip(own["epoch"], own[name], strict=True):
                line.add((int(epoch) + 1) * per_epoch, float(value))
            found.setdefault(f"val/{name}", []).append(line)
    return found


def _steps(ensemble: SeedEnsemble) -> float:
    trainer = ensemble._trainer
    return 1.0 if trainer is None else float(trainer.global_step)


def _read(run: RunFolder, logs: Path, stage: str) -> History:
    history = History()
    with logs.open(newline="") as handle:
        for row in csv.DictReader(handle):
            values = {n: float(v) for n, v in row.items() if v and n.startswith("val/")}
            if values and row.get("step"):
                history.log(int(row["step"]) + 1, values)  # Lightning counts from 0
    history.marks = marks(run.ledger.read(), stage=stage)
    return history


def _on_common_steps(
    groups: dict[str, list[History]], name: str
) -> tuple[list[float], dict[str, Floats]]:
    """Return all steps at which a metric was logged, and group -> values ``(runs, steps)``."""
    lines = {
        group: [history.logged.get(name, Thinned()) for history in histories]
        for group, histories in groups.items()
    }
    steps = sorted({x for members in lines.values() for line in members for x in line.x})
    column = {x: number for number, x in enumerate(steps)}
    curves: dict[str, Floats] = {}
    for group, members in lines.items():
        values = np.full((len(members), len(steps)), math.nan)
        for row, line in enumerate(members):
            values[row, [column[x] for x in line.x]] = line.y
        curves[group] = values
    return steps, curves


def _together(histories: Sequence[History]) -> list[Mark]:
    return sorted(mark for history in histories for mark in history.marks)
