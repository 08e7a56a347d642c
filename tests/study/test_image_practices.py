from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medkit.data.loader import KeyedLoader
from medkit.metrics.discrimination import auroc
from medkit.study.image_data import (
    WINDOW_HU,
    HalfPositive,
    Patches,
    another_scanner,
    split,
    symmetry,
)
from medkit.study.image_practices import PRACTICES, image_ablation, train
from medkit.study.image_recipe import ImageRecipe
from medkit.study.outcomes import Outcome
from medkit.study.study import Study
from medkit.synth.chest_ct import Candidates, read_candidates, write_candidates

SMALL: dict[str, Any] = {"steps": 4, "every": 2, "batch_size": 8, "val_negatives": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("candidates")
    write_candidates(path, seed=1, sites={"A": 200, "B": 200, "C": 200})
    return str(path)


@pytest.fixture(scope="module")
def candidates(folder: str) -> Candidates:
    return read_candidates(folder)


@pytest.fixture(scope="module")
def usual(folder: str) -> Outcome:
    return end(folder)[0]


def end(folder: str, seeds: list[int] | None = None, **settings: Any) -> list[Outcome]:
    return list(train({"folder": folder} | SMALL | settings, seeds or [3], 0, "C"))


def scores(outcome: Outcome) -> Any:
    assert outcome.predictions is not None
    return outcome.predictions["score"].to_numpy()


def test_each_seed_leaves_curves_and_scores_of_the_held_out_hospital(folder: str) -> None:
    first, second = end(folder, [3, 4])
    assert (first.seed, second.seed) == (3, 4)
    assert first.steps.tolist() == [2, 4]
    assert set(first.curves) == {"val/loss", "val/auroc"}
    assert first.predictions is not None
    assert set(first.predictions["site"]) == {"C"}
    assert len(first.predictions) == 200
    assert first.predictions["patient"].nunique() == 10
    assert not set(read_candidates(folder).table["exam"]) & set(first.predictions["patient"])
    assert first.checked().status == "done"
    assert not np.array_equal(scores(first), scores(second))
    # the last look is at what is kept
    assert first.curves["val/auroc"][-1] == pytest.approx(first.metrics["val/auroc"])
    assert first.curves["val/loss"][-1] == pytest.approx(first.metrics["val/loss"], rel=1e-5)
    found = auroc(first.predictions["y"], scores(first)).value
    assert found == pytest.approx(first.metrics["test/auroc"], abs=1e-5)


def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(
    folder: str, usual: Outcome
) -> None:
    torch.manual_seed(12345)
    assert end(folder, [9, 3])[1].weights_sha256 == usual.weights_sha256


@pytest.mark.parametrize(
    "settings",
    [
        *({"draws": "shuffled"}, {"augment": "flips"}, {"augment": "none"}, {"intensity": "raw"}),
        *({"reference": False}, {"schedule": "constant"}, {"norm": "group"}, {"clip": 1e-3}),
        {"ema": None},
    ],
)
def test_each_switch_changes_what_is_trained(
    folder: str, usual: Outcome, settings: dict[str, Any]
) -> None:
    (other,) = end(folder, **settings)
    assert other.weights_sha256 != usual.weights_sha256
    assert other.checked().status == "done"


def test_the_best_look_is_kept_where_that_is_asked_for(folder: str) -> None:
    settings = {"steps": 12, "every": 1, "schedule": "constant", "augment": "none"}
    last, best = (end(folder, **settings, best_epoch=yes)[0] for yes in (False, True))
    assert np.array_equal(last.curves["val/auroc"], best.curves["val/auroc"])
    assert last.metrics["val/auroc"] == pytest.approx(last.curves["val/auroc"][-1])
    assert best.metrics["val/auroc"] == pytest.approx(best.curves["val/auroc"].max())
    assert best.metrics["val/auroc"] > last.metrics["val/auroc"]


def test_no_exam_and_no_held_out_hospital_is_on_two_sides(candidates: Candidates) -> None:
    table = candidates.table
    parts = split(candidates, site="B", split_seed=0, negatives=50)
    exams = {name: set(table["exam"].iloc[at]) for name, at in vars(parts).items()}
    assert not exams["train"] & exams["val"]
    assert set(table["site"].iloc[parts.test]) == {"B"}
    assert not {"B"} & set(table["site"].iloc[np.concatenate([parts.train, parts.val])])
    assert (table["y"].iloc[parts.val] == 0).sum() == 50
    other = split(candidates, site="B", split_seed=1, negatives=50)
    assert set(other.val) != set(parts.val)


def test_every_batch_is_half_positive_and_every_positive_as_often(candidates: Candidates) -> None:
    y = candidates.table["y"].to_numpy()
    sampler = HalfPositive(y)
    order = sampler.keyed_order(np.random.default_rng(0))
    assert len(order) == len(sampler) == len(y)
    assert (y[order].reshape(-1, 8).sum(axis=1) == 4).all()
    drawn = np.bincount(order, minlength=len(y))
    assert drawn[y == 1].max() - drawn[y == 1].min() <= 1
    assert drawn[y == 0].max() == 1


def test_a_sample_is_augmented_as_its_place_says(candidates: Candidates) -> None:
    rows = np.arange(32)

    def loader(seed: int) -> KeyedLoader:
        patches = Patches(candidates, rows, flips=True, intensity=True)
        return KeyedLoader(DataLoader(patches, 8), seed=seed)

    first, again, other = ([batch.x for batch in loader(seed)] for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first[0], other[0])
    later = loader(1)
    later.set_epoch(1)
    assert not torch.equal(next(iter(later)).x, first[0])


def test_each_epoch_of_a_training_has_an_order_and_an_augmentation_of_its_own(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []
    fetch = Patches.__getitem__

    def spy(self: Patches, index: int) -> Any:
        got = fetch(self, index)
        if self.flips:
            seen.append((index, float(got.x.sum())))
        return got

    monkeypatch.setattr(Patches, "__getitem__", spy)
    end(folder, steps=4, batch_size=140, draws="shuffled")  # two batches an epoch
    first, second = dict(seen[:280]), dict(seen[280:])
    shared = first.keys() & second.keys()
    assert [index for index, _ in seen[:280]] != [index for index, _ in seen[280:]]
    assert len(shared) == 280
    assert sum(first[index] == second[index] for index in shared) < 5


def test_symmetries_of_a_cube_keep_its_values_and_its_centre() -> None:
    cube = torch.arange(5**3, dtype=torch.float32).reshape(5, 5, 5)
    torch.manual_seed(0)
    seen = {tuple(symmetry(cube).flatten().tolist()) for _ in range(600)}
    assert len(seen) == 48
    assert {patch[62] for patch in seen} == {62.0}


def test_another_scanner_keeps_tissue_within_its_limits() -> None:
    torch.manual_seed(0)
    flat = torch.full((24, 24, 24), -800.0)
    means = torch.stack([another_scanner(flat).mean() for _ in range(200)])
    assert (means + 800).abs().max() < 40 + 0.04 * 800 + 1
    assert (means + 800).abs().max() > 40


def test_the_exams_reference_undoes_its_scale_and_offset(candidates: Candidates) -> None:
    far = candidates.table["muscle_hu"].to_numpy()
    row = int(np.abs(far - 50).argmax())
    plain, mended = (
        Patches(candidates, np.array([row]), reference=yes)[0].x.ravel() for yes in (False, True)
    )
    low, high = WINDOW_HU
    hu = candidates.volume_hu[row].ravel().astype(np.float64)
    assert plain.numpy() == pytest.approx(np.clip((hu - low) / (high - low), 0, 1), abs=1e-5)
    air, muscle = (candidates.table[name].iloc[row] for name in ("air_hu", "muscle_hu"))
    true = (hu - air) / (muscle - air) * (50 + 970) - 970
    assert mended.numpy() == pytest.approx(np.clip((true - low) / (high - low), 0, 1), abs=1e-5)


def test_the_recipe_is_the_default_and_the_start_is_a_plain_script(folder: str) -> None:
    arms = image_ablation(folder).arms()
    assert ImageRecipe.of(arms["recipe"]) == ImageRecipe(folder=folder)
    start = ImageRecipe.of(arms["start"])
    plain = {"draws": "shuffled", "augment": "none", "intensity": "raw", "reference": False}
    assert start == ImageRecipe(folder=folder, schedule="constant", ema=None, **plain)  # type: ignore[arg-type]
    pair = "balanced draws and augmentation"
    both = ImageRecipe.of(arms[f"start with {pair}"])
    assert (both.draws, both.augment) == ("half positive", "flips")
    neither = ImageRecipe.of(arms[f"recipe without {pair}"])
    assert (neither.draws, neither.augment) == ("shuffled", "none")
    assert {f"recipe with {p.name}" for p in PRACTICES if not p.used} <= arms.keys()
    left = image_ablation(folder, leave_out=["GroupNorm"], ways=["tried"], steps=70).arms()
    assert "recipe with GroupNorm" not in left
    assert left["recipe"]["steps"] == 70


def test_settings_that_are_not_known_are_refused(folder: str) -> None:
    with pytest.raises(ValueError, match=r"must have folder and.*found \['flip'\].*Spell"):
        ImageRecipe.of({"folder": folder, "flip": True})
    with pytest.raises(ValueError, match=r"norm must be one of \['batch', 'group'\], got 'layer'"):
        image_ablation(folder, norm="layer")
    with pytest.raises(ValueError, match=r"must look at least once.*every=9.*defaults"):
        ImageRecipe.of({"folder": folder, "steps": 3, "every": 9})
    with pytest.raises(ValueError, match=r"leave_out must name some of.*got \['clip'\].*Spell"):
        image_ablation(folder, leave_out=["clip"])


def test_a_split_without_positives_to_test_on_is_refused(candidates: Candidates) -> None:
    with pytest.raises(ValueError, match=r"hold both classes; with '' held out \['test'\] lack"):
        split(candidates, site="", split_seed=0, negatives=5)


@pytest.mark.slow
def test_a_study_trains_the_arms_in_processes_of_their_own(folder: str, tmp_path: Path) -> None:
    of = image_ablation(folder, ways=["pairs"], **SMALL)
    study = of.study(tmp_path / "study", seeds=[1], sites=["C"])
    study.run(train, jobs=2, seeds_per_job=1)
    assert isinstance(study, Study)
    assert study.missing == 0
    assert {one.status for one in study.outcomes} == {"done"}
    found = of.effects(study.outcomes, curve="val/auroc", spread="late")
    assert "balanced draws and augmentation" in {row.practice for row in found.rows}
    (here,) = train(of.arms()["recipe"], [1], 0, "C")
    (apart,) = [one for one in study.outcomes if one.recipe == "recipe"]
    assert apart.weights_sha256 == here.weights_sha256
