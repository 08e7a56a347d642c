from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medkit.metrics.discrimination import auroc
from medkit.study.image_practices import PRACTICES, image_ablation, train
from medkit.study.image_recipe import ImageRecipe
from medkit.study.outcomes import Outcome
from medkit.study.study import Study
from medkit.synth.chest_ct import read_candidates, write_candidates

SMALL: dict[str, Any] = {"steps": 4, "every": 2, "batch_size": 8, "val_negatives": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("candidates")
    write_candidates(path, seed=1, sites={"A": 200, "B": 200, "C": 200})
    return str(path)


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


def test_turns_are_of_the_answer_and_not_of_the_training(folder: str, usual: Outcome) -> None:
    (once,) = end(folder, turns=False)
    assert once.weights_sha256 == usual.weights_sha256
    assert not np.array_equal(scores(once), scores(usual))


def test_the_best_look_is_kept_where_that_is_asked_for(folder: str) -> None:
    settings = {"steps": 12, "every": 1, "schedule": "constant", "augment": "none"}
    last, best = (end(folder, **settings, best_epoch=yes)[0] for yes in (False, True))
    assert np.array_equal(last.curves["val/auroc"], best.curves["val/auroc"])
    assert last.metrics["val/auroc"] == pytest.approx(last.curves["val/auroc"][-1])
    assert best.metrics["val/auroc"] == pytest.approx(best.curves["val/auroc"].max())
    assert best.metrics["val/auroc"] > last.metrics["val/auroc"]


def test_the_recipe_is_the_default_and_the_start_is_a_plain_script(folder: str) -> None:
    arms = image_ablation(folder).arms()
    assert ImageRecipe.of(arms["recipe"]) == ImageRecipe(folder=folder)
    start = ImageRecipe.of(arms["start"])
    plain = {"draws": "shuffled", "augment": "none", "intensity": "raw", "reference": False}
    plain |= {"turns": False}
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


def test_a_hospital_that_is_not_there_is_refused(folder: str) -> None:
    with pytest.raises(ValueError, match="test_site must be one of at least two sites, got 'D'"):
        list(train({"folder": folder} | SMALL, [3], 0, "D"))


def test_a_forgotten_rescale_costs_nothing_where_air_and_muscle_correct_it(
    folder: str, usual: Outcome
) -> None:
    assert usual.metrics["test/auroc_unscaled"] == pytest.approx(
        usual.metrics["test/auroc"], abs=1e-3
    )
    (plain,) = end(folder, reference=False, steps=40, every=40)
    assert plain.metrics["test/auroc_unscaled"] != plain.metrics["test/auroc"]


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
