"""Whether a gain is real, from files of predictions that anybody could have written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from medkit import cli
from medkit.metrics.discrimination import auroc_difference_over_seeds
from medkit.study.compare import compare
from medkit.study.compare_command import compare_command, text_of
from medkit.study.predictions import Predictions
from medkit.study.same_recipe import compare_with_itself

ROWS = 300


@pytest.fixture
def scored() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Labels, ten trainings of a recipe, and ten of a worse one."""
    draw = np.random.default_rng(0)
    y = (draw.random(ROWS) < 0.3).astype(float)
    shared = y + draw.normal(size=ROWS)
    better = shared + 0.2 * draw.normal(size=(10, ROWS))
    worse = shared + 1.6 * draw.normal(size=ROWS) + 0.2 * draw.normal(size=(10, ROWS))
    return y, 1 / (1 + np.exp(-better)), 1 / (1 + np.exp(-worse))


def recipe(
    y: NDArray[np.float64], scores: NDArray[np.float64], name: str = "net", first: int = 0
) -> Predictions:
    ids = np.array([f"P{row:04d}" for row in range(len(y))])
    seeds = tuple(str(first + i) for i in range(len(scores)))
    return Predictions(name, seeds, ids, ids, y, scores)


def test_the_same_seeds_are_paired_and_give_the_two_level_t(scored) -> None:
    y, a, b = scored
    found = compare(recipe(y, a[:5]), recipe(y, b[:5]))
    want = auroc_difference_over_seeds(y, a[:5], b[:5])
    line = found.lines[0].difference
    assert found.paired
    assert (line.value, line.low, line.high) == pytest.approx((want.value, want.low, want.high))
    assert found.verdict.startswith("A ranks better for other trainings and other patients")


def test_other_seeds_are_not_paired_and_the_reader_is_told(scored) -> None:
    y, a, b = scored
    found = compare(recipe(y, a[:5]), recipe(y, b[:5], first=3))
    assert not found.paired
    assert "seeds differ (2 in both), so they are not paired" in found.notes[-1]


def test_fewer_than_5_trainings_get_no_interval_and_no_verdict(scored) -> None:
    y, a, b = scored
    found = compare(recipe(y, a[:4]), recipe(y, b[:4]))
    assert found.verdict.startswith("No verdict: it needs 5 trainings of each recipe, and there")
    assert found.lines[0].difference.low is None
    assert found.power is None


@pytest.mark.parametrize("threshold", [-0.1, 5.0])
def test_a_threshold_that_no_row_or_every_row_reaches_is_refused(scored, threshold: float) -> None:
    y, a, b = scored
    with pytest.raises(ValueError, match=rf"must lie among the scores.*got {threshold:g}"):
        compare(recipe(y, a), recipe(y, b), threshold=threshold)


def test_other_metrics_get_an_interval_from_10_trainings_on(scored) -> None:
    y, a, b = scored
    five = compare(recipe(y, a[:5]), recipe(y, b[:5]), threshold=0.6)
    ten = compare(recipe(y, a), recipe(y, b), threshold=0.6, draws=200)
    names = [line.name for line in five.lines]
    assert names == ["AUROC", "AUPRC", "Brier (less is better)", "F1 at 0.6"]
    assert all(line.difference.low is None for line in five.lines[1:])
    assert "no interval below 10 seeds" in five.lines[1].difference.method
    for line in ten.lines:
        assert line.difference.low is not None
        assert line.difference.low < line.difference.value < line.difference.high


def test_the_numbers_of_other_metrics_are_scikit_learns(scored) -> None:
    from sklearn import metrics

    y, a, b = scored
    found = {n.name: n for n in compare(recipe(y, a[:2]), recipe(y, b[:2]), threshold=0.6).lines}
    for side, scores in (("a", a[:2]), ("b", b[:2])):
        want = {
            "AUPRC": [metrics.average_precision_score(y, s) for s in scores],
            "Brier (less is better)": [metrics.brier_score_loss(y, s) for s in scores],
            "F1 at 0.6": [metrics.f1_score(y, s >= 0.6) for s in scores],
        }
        for name, values in want.items():
            assert getattr(found[name], side) == pytest.approx(np.mean(values), abs=1e-12)


def test_scores_that_are_no_probabilities_have_no_brier_score(scored) -> None:
    y, a, b = scored
    found = compare(recipe(y, 10 * a[:5]), recipe(y, b[:5]))
    assert [line.name for line in found.lines] == ["AUROC", "AUPRC"]


def test_one_run_of_a_recipe_that_draws_nothing_is_enough(scored) -> None:
    y, a, b = scored
    baseline = recipe(y, b[:1], "logistic regression")
    assert compare(recipe(y, a[:5]), baseline).verdict.startswith("No verdict")
    found = compare(recipe(y, a[:5]), baseline, fixed=["B"])
    want = auroc_difference_over_seeds(y, a[:5], [b[0]] * 5)
    assert (found.lines[0].difference.low) == pytest.approx(want.low)
    assert found.seeds == (5, 0)
    assert "B  logistic regression: draws nothing" in text_of(found)


def test_a_fixed_recipe_with_several_runs_is_refused(scored) -> None:
    y, a, b = scored
    with pytest.raises(ValueError, match=r"must have one run; net has 5\. Leave --fixed A out"):
        compare(recipe(y, a[:5]), recipe(y, b[:5]), fixed=["A"])
    with pytest.raises(ValueError, match="both are said to be fixed"):
        compare(recipe(y, a[:1]), recipe(y, b[:1]), fixed=["A", "B"])


def test_rows_of_one_patient_are_not_independent(scored) -> None:
    y, a, b = scored
    patient = np.repeat(np.arange(ROWS // 3), 3).astype(str)
    apart = compare(recipe(y, a[:5]), recipe(y, b[:5]))
    sides = [replace(recipe(y, scores[:5]), patient=patient) for scores in (a, b)]
    together = compare(sides[0], sides[1])
    want = auroc_difference_over_seeds(y, a[:5], b[:5], groups=patient)
    assert together.lines[0].difference.low == pytest.approx(want.low)
    assert together.lines[0].difference.low != apart.lines[0].difference.low
    assert "100 patients (300 rows)" in text_of(together)


def test_the_probability_of_improvement_and_flips_are_counted_over_pairs(scored) -> None:
    y, a, b = scored
    found = compare(recipe(y, a[:4]), recipe(y, b[:3]), flag_rate=0.25)
    each = [[_auroc(y, one) for one in side] for side in (a[:4], b[:3])]
    wins = np.mean([(p > q) + (p == q) / 2 for p in each[0] for q in each[1]])
    assert found.improvement["AUROC"].value == pytest.approx(wins)
    top = [[np.argsort(-one)[:75] for one in side] for side in (a[:4], b[:3])]
    turned = np.mean([len(np.setxor1d(p, q)) / ROWS for p in top[0] for q in top[1]])
    assert found.flips["between A and B"].value == pytest.approx(turned)


def test_one_run_claims_are_those_of_delong_over_all_pairs(scored) -> None:
    from medkit.metrics.discrimination import auroc_difference

    y, a, b = scored
    one = compare(recipe(y, a[:3]), recipe(y, b[:2])).one_run
    gaps = [auroc_difference(y, p, q) for p in a[:3] for q in b[:2]]
    assert one is not None
    assert (one.a_better, one.pairs) == (sum(gap.low > 0 for gap in gaps), 6)


def test_a_difference_that_is_not_shown_comes_with_the_power_to_show_it(scored) -> None:
    y, a, _ = scored
    noisy = a + 0.4 * np.random.default_rng(1).normal(size=(10, ROWS))
    found = compare(recipe(y, noisy[:5]), recipe(y, noisy[5:], first=5), gain=0.03)
    assert found.power is not None
    assert "are not shown to differ for other trainings and other patients" in found.verdict
    assert f"found in {found.power.now:.0%} of such studies" in found.verdict


def test_recipes_within_the_gain_that_matters_are_called_so(scored) -> None:
    y, a, _ = scored
    found = compare(recipe(y, a[:5]), recipe(y, a[5:], first=5), gain=0.05)
    assert found.verdict.startswith("A and B do not differ by 0.05 or more")


def test_one_patient_in_a_class_says_nothing_of_others(scored) -> None:
    _, a, b = scored
    alone = np.where(np.arange(ROWS) == 5, 1.0, 0.0)
    found = compare(recipe(alone, a[:5]), recipe(alone, b[:5]))
    assert found.verdict == "No verdict: one patient in a class says nothing of others."
    assert found.lines[0].difference.low is None


def test_a_gain_must_be_above_0(scored) -> None:
    y, a, b = scored
    with pytest.raises(ValueError, match=r"gain must be above 0, got 0.*smallest difference"):
        compare(recipe(y, a), recipe(y, b), gain=0)


def test_other_patients_are_refused_without_naming_one(scored) -> None:
    y, a, b = scored
    other = replace(recipe(y, b), row=np.array([f"P{row:04d}" for row in range(9, ROWS + 9)]))
    message = r"net has 300 and net 300, of which 291 are in both\. Score the same test set"
    with pytest.raises(ValueError, match=message) as error:
        compare(recipe(y, a), other)
    assert "P0" not in str(error.value)


def test_other_labels_are_refused(scored) -> None:
    y, a, b = scored
    turned = np.where(np.arange(ROWS) < 7, 1 - y, y)
    with pytest.raises(ValueError, match=r"differ in 7 of 300 rows\. One of them has another"):
        compare(recipe(y, a), recipe(turned, b))


def test_trainings_of_one_recipe_are_compared_in_disjoint_pairs(scored) -> None:
    y, a, _ = scored
    found = compare_with_itself(recipe(y, a))
    assert (found.one_run.n, found.two_level.n, found.regrouped.n) == (5, 1, 200)
    assert found.one_run.low is not None
    assert found.regrouped.low is None
    assert compare_with_itself(recipe(y, a[:9])).two_level is None


def test_a_training_alone_has_nothing_to_be_compared_with(scored) -> None:
    y, a, _ = scored
    with pytest.raises(ValueError, match=r"at least 2 trainings of a recipe, and net has 1"):
        compare_with_itself(recipe(y, a[:1]))


def test_the_command_says_it_in_words_and_writes_it_as_json(scored, tmp_path, capsys) -> None:
    y, a, b = scored
    for name, scores in (("a", a[:5]), ("b", b[:5])):
        write_wide(tmp_path / f"{name}.csv", y, scores)
    out = tmp_path / "found.json"
    assert compare_command(str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), json=str(out)) == 0
    said = capsys.readouterr().out
    assert "paired by seed" in said
    assert "one-run DeLong would have called A better in" in said
    assert "decisions flipped per patient" in said
    assert "takes" in said
    content = json.loads(out.read_text())
    assert content["seeds"] == [5, 5]
    assert content["lines"][0]["difference"]["method"].startswith("two-level t")
    assert content["verdict"] in said


def test_a_file_against_itself_is_a_a(scored, tmp_path, capsys) -> None:
    y, a, _ = scored
    write_wide(tmp_path / "a.csv", y, a)
    compare_command(
        str(tmp_path / "a.csv"), str(tmp_path / "a.csv"), json=str(tmp_path / "aa.json")
    )
    said = capsys.readouterr().out
    assert "Every difference above is false" in said
    assert "aa/one_run_delong_called_different" in (tmp_path / "aa.json").read_text()
    compare_command(str(tmp_path / "a.csv"), aa=True)
    assert capsys.readouterr().out == said


def test_one_recipe_alone_is_refused_unless_a_a_is_meant(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"needs two recipes: .*got a\.csv alone"):
        compare_command("a.csv")


def test_a_a_takes_no_second_recipe(capsys) -> None:
    assert cli.main(["compare", "--aa", "a.csv", "b.csv"]) == 2
    said = capsys.readouterr().err
    assert "--aa compares trainings of one recipe" in said
    assert "got two, a.csv and b.csv. Leave --aa out" in said


def test_the_command_line_compares_and_says_what_is_wrong(scored, tmp_path, capsys) -> None:
    y, a, b = scored
    for name, scores in (("a", a[:5]), ("b", b[:1])):
        write_wide(tmp_path / f"{name}.csv", y, scores)
    paths = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    assert cli.main(["compare", *paths, "--fixed", "B", "--gain", "0.02"]) == 0
    assert "a true gain of 0.02 is found in" in capsys.readouterr().out
    assert cli.main(["compare", paths[0]]) == 2
    assert "medkit: compare needs two recipes" in capsys.readouterr().err


def write_wide(path: Path, y: NDArray[np.float64], scores: NDArray[np.float64]) -> None:
    columns = {f"seed_{i}": one for i, one in enumerate(scores)}
    ids = [f"P{row:04d}" for row in range(len(y))]
    pd.DataFrame({"patient": ids, "y": y.astype(int), **columns}).to_csv(path, index=False)


def _auroc(y: NDArray[np.float64], score: NDArray[np.float64]) -> float:
    return float((np.sign(score[y == 1][:, None] - score[y == 0]) / 2 + 0.5).mean())
