from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from medkit.data.ehr import EHRDataModule
from medkit.models.baseline import fit_boosting
from medkit.models.ensemble import FoldEnsemble, fit_folds, stage_names
from medkit.models.member import best_weight
from medkit.models.tabular import warm_classifier
from medkit.record.files import safe_name
from medkit.synth.ehr import MISSING_CODES, make_hospitals
from medkit.trainer import Run, keyed, stable_trainer, start_run

pytestmark = [
    pytest.mark.usefixtures("_as_before_a_run"),
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
FOLDS, EPOCHS = 3, 2


class CutError(Exception):
    """The power fails."""


class Cut(pl.Callback):
    """Ends the training of one stage before its batch ``at``."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1 == self.at:
            raise CutError


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    drawn = make_hospitals(stays={"A": 150, "B": 150, "C": 60}, family="interacting")
    path.write_text(drawn.encounters_csv())
    return path


def data(csv: Path, fold: int, **changes: Any) -> EHRDataModule:
    settings: dict[str, Any] = {"target": "died", "site": "site", "missing_codes": MISSING_CODES}
    settings |= {"test_site": "C", "folds": FOLDS, "fold": fold, "batch_size": 64}
    return keyed(EHRDataModule(csv, **(settings | changes)))


def fit(run: Run, csv: Path, *, cut: tuple[str, int] | None = None) -> FoldEnsemble:
    def trainer(name: str) -> pl.Trainer:
        at = cut[1] if cut is not None and cut[0] == name else None
        return stable_trainer(
            run,
            name=name,
            max_epochs=EPOCHS,
            callbacks=[Cut(at)],
            checkpoint_every_n_steps=2,
            accelerator="cpu",
            enable_progress_bar=False,
        )

    return fit_folds(
        run,
        data=partial(data, csv),
        model=lambda dm: warm_classifier(dm, max_epochs=EPOCHS, net_args={"hidden": [4]}),
        trainer=trainer,
        folds=FOLDS,
    )


@pytest.fixture(scope="module")
def whole(csv: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FoldEnsemble]:
    """An ensemble that nothing interrupted, and its run folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run = start_run(folder, seed=5, threads=1)
    ensemble = fit(run, csv)
    run.finish()
    return folder, ensemble


@pytest.mark.parametrize("cut", [("fold0", 3), ("fold1", 0), ("fold2", 5)])
def test_killed_in_any_member_and_resumed_it_ends_in_the_same_bits(
    cut: tuple[str, int], whole: tuple[Path, FoldEnsemble], csv: Path, tmp_path: Path
) -> None:
    folder, want = whole
    run = start_run(tmp_path / "run", seed=5, threads=1)
    with pytest.raises(CutError):
        fit(run, csv, cut=cut)
    run.finish("killed")
    run = start_run(tmp_path / "run", seed=5, threads=1)
    got = fit(run, csv)
    np.testing.assert_array_equal(got.test().prob, want.test().prob)
    stages = run.folder.read()["stages"]
    assert sorted(stages) == ["fold0", "fold1", "fold2"]
    run.finish()
    assert run.folder.read()["weights_sha256"] == _weights(folder)


def _weights(folder: Path) -> str:
    import json

    return json.loads((folder / "run.json").read_text())["weights_sha256"]


def test_another_seed_ends_in_other_bits(
    whole: tuple[Path, FoldEnsemble], csv: Path, tmp_path: Path
) -> None:
    other = fit(start_run(tmp_path / "run", seed=6, threads=1), csv)
    assert not np.array_equal(other.test().prob, whole[1].test().prob)


def test_the_members_probabilities_are_averaged(whole: tuple[Path, FoldEnsemble]) -> None:
    ensemble = whole[1]
    said = ensemble.test()
    each = [
        member.prob(member.dm.rows("test"), weight=ensemble.weight) for member in ensemble.members
    ]
    np.testing.assert_array_equal(said.prob, np.mean(each, axis=0))
    np.testing.assert_array_equal(said.spread, np.std(each, axis=0))
    assert said.spread.max() > 0


def test_the_baseline_stands_beside_on_the_same_folds(whole: tuple[Path, FoldEnsemble]) -> None:
    members = whole[1].members
    each = [member.dm.baseline.prob(member.dm.rows("test").x) for member in members]
    np.testing.assert_array_equal(whole[1].test().baseline, np.mean(each, axis=0))


def test_boosting_stands_beside_on_the_same_folds(whole: tuple[Path, FoldEnsemble]) -> None:
    ensemble = whole[1]
    dms = [member.dm for member in ensemble.members]
    models = [fit_boosting(dm.values("train"), dm.rows("train").y) for dm in dms]
    pairs = list(zip(models, dms, strict=True))
    want = np.mean([model.prob(dm.values("test")) for model, dm in pairs], axis=0)
    np.testing.assert_array_equal(ensemble.boosting("test"), want)
    got, said = ensemble.boosting("out_of_fold"), ensemble.out_of_fold()
    own = dms[1].rows("val").row.numpy()
    at = np.searchsorted(said.row, own)
    np.testing.assert_array_equal(got[at], models[1].prob(dms[1].values("val")))


def test_boosting_scores_new_rows_as_it_did_in_the_test(
    whole: tuple[Path, FoldEnsemble], csv: Path
) -> None:
    arrivals = pd.read_csv(csv).query("site == 'C'").drop(columns="died")
    np.testing.assert_array_equal(whole[1].boosting(arrivals), whole[1].boosting("test"))


def test_boosting_of_rows_it_does_not_know_is_refused(whole: tuple[Path, FoldEnsemble]) -> None:
    with pytest.raises(ValueError, match=r"'test', 'out_of_fold' or a table, got 'val'\. Read"):
        whole[1].boosting("val")


def test_boosting_needs_the_training_rows(whole: tuple[Path, FoldEnsemble]) -> None:
    loaded = FoldEnsemble.load(whole[0])
    with pytest.raises(ValueError, match=r"came from checkpoints, which hold no rows\. Call"):
        loaded.boosting("test")


def test_each_development_row_is_scored_by_the_member_that_has_not_seen_it(
    whole: tuple[Path, FoldEnsemble],
) -> None:
    said = whole[1].out_of_fold()
    table = whole[1].members[0].dm.table
    assert said.row.tolist() == np.flatnonzero(table.site != "C").tolist()
    assert said.y.tolist() == table.y[said.row].tolist()
    member = whole[1].members[1]
    own = member.dm.rows("val")
    at = np.searchsorted(said.row, own.row.numpy())
    np.testing.assert_array_equal(said.prob[at], member.prob(own, weight=whole[1].weight))


def test_new_rows_get_what_the_same_rows_got_in_the_test(
    whole: tuple[Path, FoldEnsemble], csv: Path
) -> None:
    table = pd.read_csv(csv)
    arrivals = table[table["site"] == "C"].drop(columns="died")
    said = whole[1].predict(arrivals)
    np.testing.assert_array_equal(said.prob, whole[1].test().prob)
    assert set(said.y.tolist()) == {-1}


def test_the_run_folder_alone_gives_the_ensemble_back(
    whole: tuple[Path, FoldEnsemble], csv: Path
) -> None:
    folder, ensemble = whole
    table = pd.read_csv(csv).query("site == 'C'")
    loaded = FoldEnsemble.load(folder)
    assert loaded.weight == ensemble.weight
    assert [member.stage for member in loaded.members] == ["fold0", "fold1", "fold2"]
    for got, want in zip(loaded.predict(table), ensemble.predict(table), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_member_is_left_in_the_mode_it_was_in(whole: tuple[Path, FoldEnsemble]) -> None:
    member = whole[1].members[0]
    member.model.train()
    member.prob(member.dm.rows("test"))
    assert member.model.training
    member.model.eval()
    assert torch.equal(member.model.net.coef, torch.tensor(member.dm.baseline.coef))


def test_a_data_module_that_leaves_another_fold_out_is_refused(csv: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", seed=5, threads=1)
    with pytest.raises(ValueError, match=r"member 0 of 5 must leave fold 0 out, .* fold=2\. Pass"):
        fit_folds(run, data=lambda fold: data(csv, 2), model=warm_classifier, trainer=pl.Trainer)


def test_a_folder_without_members_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a sound checkpoint per member .*found none"):
        FoldEnsemble.load(tmp_path)


def test_a_damaged_member_is_named(whole: tuple[Path, FoldEnsemble], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(whole[0], copy)
    path = next((copy / "checkpoints" / "fold1").glob("*.ckpt"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match=r"of which \['fold1'\] have none\. Resume the run"):
        FoldEnsemble.load(copy)


def test_an_ensemble_that_was_not_finished_is_refused(
    whole: tuple[Path, FoldEnsemble], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "fold.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"was not finished\. Resume the run"):
        FoldEnsemble.load(tmp_path / "run")


def test_the_weight_has_the_least_cross_entropy_of_a_grid() -> None:
    draw = np.random.default_rng(0)
    start, added = draw.normal(size=2000), draw.normal(size=2000)
    y = (draw.random(2000) < 1 / (1 + np.exp(-start - 0.4 * added))).astype(int)
    found = best_weight(start, start + added, y)
    grid = np.linspace(0, 1, 201)
    loss = [np.mean(np.logaddexp(0, start + w * added) - y * (start + w * added)) for w in grid]
    assert found == pytest.approx(grid[np.argmin(loss)], abs=0.005)


@pytest.mark.parametrize(("sign", "want"), [(-1, 0.0), (1, 1.0)])
def test_a_net_that_only_harms_counts_nothing_and_one_that_only_helps_counts_whole(
    sign: int, want: float
) -> None:
    y = np.array([0, 1, 0, 1])
    start = np.zeros(4)
    assert best_weight(start, sign * 0.5 * (2.0 * y - 1), y) == want


def test_with_no_weight_the_ensemble_is_logistic_regression(
    whole: tuple[Path, FoldEnsemble],
) -> None:
    said = FoldEnsemble(whole[1].members, weight=0.0).test()
    np.testing.assert_allclose(said.prob, said.baseline, atol=1e-12)


@pytest.mark.parametrize(
    ("sites", "names"),
    [
        (["A", "va"], ["site_a", "site_va"]),
        (["A", "St. Mary/x", "a"], ["site_a", "site_st._mary_x", "site_a_2"]),
        (["a b", "a/b", "a b_2", "A_B"], ["site_a_b", "site_a_b_2", "site_a_b_2_2", "site_a_b_3"]),
        (["北京", "上海"], ["site___", "site____2"]),
        (["x" * 200, "x" * 201], ["site_" + "x" * 60, "site_" + "x" * 60 + "_2"]),
    ],
    ids=["ordinary", "slashes and cases", "numbers", "other letters", "long"],
)
def test_stages_are_named_after_their_sites_and_no_two_alike(
    sites: list[str], names: list[str]
) -> None:
    assert stage_names(sites) == dict(zip(sites, names, strict=True))
    assert [safe_name(f"{name}_fold4") for name in names] == [f"{name}_fold4" for name in names]
