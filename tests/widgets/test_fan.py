"""Runs of a sweep and members of a stack are drawn one by one, in groups, with their mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkit.models.seed_ensemble import SeedEnsemble
from medkit.plot import COLORS
from medkit.widgets.fan import fan, members_of, read_histories

LOSSES = {"a": [[0.9, 0.5, 0.4], [0.8, 0.6, 0.5]], "b": [[0.7, 0.7]]}


def write_run(folder: Path, losses: list[float], stage: str = "fit") -> None:
    logs = folder / "logs" / stage
    logs.mkdir(parents=True)
    (folder / "run.json").write_text('{"seed": 0, "status": "done"}')
    rows = ["epoch,step,train/loss,val/auroc,val/auroc_sd,val/loss"]
    for epoch, loss in enumerate(losses):
        rows += [
            f"{epoch},{4 * epoch + 3},,{1 - loss},0.1,{loss}",
            f"{epoch},{4 * epoch + 3},0.5,,,",
        ]
    (logs / "metrics.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for name, runs in LOSSES.items():
        for seed, losses in enumerate(runs):
            write_run(tmp_path / name / f"s{seed}", losses)
    skipped = {"stage": "fit", "step": 5, "action": "step skipped", "detail": "", "rows": [1]}
    other = skipped | {"stage": "warm"}
    lines = "\n".join(json.dumps(one) for one in (skipped, other)) + "\n"
    (tmp_path / "a" / "s1" / "ledger.jsonl").write_text(lines)
    return tmp_path


def test_runs_are_read_at_the_steps_they_had_done(sweep: Path) -> None:
    groups = read_histories(sweep)
    assert {name: len(histories) for name, histories in groups.items()} == {"a": 2, "b": 1}
    first = groups["a"][0].logged["val/loss"]
    assert (first.x, first.y) == ([4, 8, 12], [0.9, 0.5, 0.4])
    assert [len(history.marks) for history in groups["a"]] == [0, 1]


def test_each_run_is_a_line_and_each_grid_point_has_a_mean_of_its_own(sweep: Path) -> None:
    figure = fan(sweep, title="two recipes")
    loss, auroc = figure.axes
    lines = [line for line in loss.get_lines() if len(line.get_xdata()) > 1]
    of_a = [line for line in lines if line.get_color() == COLORS[0]]
    assert [list(line.get_ydata()) for line in of_a[:2]] == LOSSES["a"]
    np.testing.assert_allclose(of_a[2].get_ydata(), np.mean(LOSSES["a"], axis=0))
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert labels == ["a: mean of 2 runs", "b"]
    assert auroc.get_ylabel() == "val/auroc"  # and no panel for its sd
    assert [ax.get_xlabel() for ax in figure.axes] == ["optimizer step"] * 2


def test_what_guards_did_in_any_run_is_marked(sweep: Path) -> None:
    (legend,) = fan(sweep).legends
    assert [text.get_text() for text in legend.get_texts()] == ["1 step skipped"]


def test_single_runs_of_one_folder_are_one_fan(sweep: Path) -> None:
    figure = fan(sweep / "a" / "s0", sweep / "a" / "s1", metrics=[])
    (legend,) = [ax.get_legend() for ax in figure.axes]
    assert [text.get_text() for text in legend.get_texts()] == ["a: mean of 2 runs"]


def test_a_run_that_ended_early_is_drawn_as_far_as_it_came(sweep: Path) -> None:
    write_run(sweep / "a" / "s2", [0.7])
    *runs, mean = (
        line
        for line in fan(sweep / "a", metrics=[]).axes[0].get_lines()
        if line.get_color() == COLORS[0]
    )
    assert [list(line.get_xdata()) for line in runs] == [[4, 8, 12], [4, 8, 12], [4]]
    np.testing.assert_allclose(mean.get_ydata(), [0.8, 0.55, 0.45])  # of those still there


class Table(SeedEnsemble):
    """A stack whose curves are given."""

    def __init__(self) -> None:
        super().__init__("medkit.models.nets:mlp", {"inputs": 2}, seeds=(3, 7))

    def table(self, stage: str = "val") -> pd.DataFrame:
        rows = [(e, s, 1.0 / (e + 1) + s, 0.5 + 0.1 * e) for e in range(3) for s in (3, 7, -1)]
        return pd.DataFrame(rows, columns=["epoch", "seed", "loss", "auroc"])


def test_each_member_of_a_stack_is_a_line_and_the_ensemble_none() -> None:
    members = members_of(Table(), steps=30)
    assert [line.x for line in members["val/loss"]] == [[10, 20, 30]] * 2
    assert members["val/loss"][0].y == pytest.approx([4.0, 3.5, 3 + 1 / 3])
    figure = fan(Table())
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["members: mean of 2 runs"]
    assert len(figure.axes[0].get_lines()) == 3


def test_a_folder_without_a_run_or_without_the_stage_is_refused(sweep: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"stage 'warm'; found 3 runs with stages \['fit'\]"
    ):
        fan(sweep, stage="warm")
    with pytest.raises(FileNotFoundError, match=r"must hold a run.*found 0 runs\. Name a run"):
        fan(sweep / "a" / "s0" / "logs")
