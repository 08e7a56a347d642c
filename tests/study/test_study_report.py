"""What a study reports, on outcomes small enough to be worked out by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medkit import cli
from medkit.metrics.spread import sd_over_seeds
from medkit.record.results import Metric, read_metrics, write_metrics
from medkit.study.outcomes import Outcome
from medkit.study.study import Study
from medkit.study.study_arm import Arm, curves_of
from medkit.study.study_numbers import flip_rate, linear_residual, pooled
from medkit.study.study_report import ReportSettings, StudyReport

Made = Callable[[int, int], dict[str, Any]]
AUROCS = [0.80, 0.82, 0.84, 0.81, 0.83]


def report(
    folder: Path, made: Made, settings: ReportSettings | None = None, **plan: Any
) -> StudyReport:
    """Return the report of a study whose outcomes have the given fields, by seed and split."""

    def train(recipe: Any, seeds: Sequence[int], split: int, site: str) -> list[Outcome]:
        return [Outcome(seed=seed, **made(seed, split)) for seed in seeds]

    study = Study(folder / "study", **{"recipes": {"net": {}}, "seeds": range(5)} | plan)
    study.run(train)
    return study.report(settings)


def at(found: StudyReport, name: str) -> Metric:
    return found.metrics[f"net/{name}"]


def aurocs(seed: int, split: int) -> dict[str, Any]:
    return {"metrics": {"test/auroc": AUROCS[seed]}}


def table(scores: Sequence[float], y: Sequence[int] = (0, 0, 1, 1)) -> pd.DataFrame:
    rows = [f"p{number}" for number in range(len(y))]
    return pd.DataFrame({"patient": rows, "y": list(y), "score": list(scores)})


def test_the_spread_of_results_is_sd_iqr_and_range_with_n(tmp_path: Path) -> None:
    found = report(tmp_path, aurocs)
    sd = at(found, "result/sd")
    assert sd.value == pytest.approx(0.0158114)
    assert (sd.low, sd.high) == pytest.approx((0.0094731, 0.0454344), rel=1e-4)  # chi-square, 4
    assert at(found, "result/IQR").value == pytest.approx(0.02)
    assert at(found, "result/range").value == pytest.approx(0.04)
    assert {at(found, f"result/{name}").n for name in ("sd", "IQR", "range")} == {5}
    assert at(found, "reproducibility/test-auroc-within-0.01").n == 2
    assert at(found, "reproducibility/test-auroc-within-0.01").value == 0


def test_decisions_flip_at_each_trainings_threshold_and_at_a_common_rate(tmp_path: Path) -> None:
    def made(seed: int, split: int) -> dict[str, Any]:
        scores = [0.1, 0.2, 0.6, 0.9] if seed else [0.1, 0.7, 0.6, 0.9]
        return {"predictions": table(scores), "threshold": 0.5} | aurocs(seed, split)

    found = report(tmp_path, made, ReportSettings(flag_rate=0.5))
    # of 10 pairs of trainings 4 hold seed 0, which differs in 1 of 4 rows, at the rate in 2
    assert at(found, "result/decisions-flipped-at-own-threshold").value == pytest.approx(0.1)
    assert at(found, "result/decisions-flipped-at-flag-rate-0.5").value == pytest.approx(0.2)
    alike = at(found, "reproducibility/decisions-alike-at-flag-rate-0.5")
    assert alike.value == pytest.approx(0.8)


def test_flips_have_an_interval_from_leaving_out_each_training() -> None:
    flags = np.zeros((3, 80), bool)
    flags[0, 0] = flags[2, 1] = True
    # pairs differ in 1, 2 and 1 of 80 rows, and those are the values without each training
    found = flip_rate([flags], "at 0.5")
    assert found.value == pytest.approx(4 / 3 / 80)
    error = math.sqrt(2 / 3 * (1 / 9 + 4 / 9 + 1 / 9)) / 80
    assert found.high == pytest.approx(4 / 3 / 80 + 4.302653 * error)  # t of 2 degrees
    assert found.low == 0.0


def curve(level: float) -> dict[str, Any]:
    steps = np.arange(8)
    return {"steps": steps, "curves": {"val/loss": np.where(steps < 6, 1.0, level)}}


def test_convergence_is_told_as_run_on_the_same_rows_and_on_a_common_monitor(
    tmp_path: Path,
) -> None:
    def made(seed: int, split: int) -> dict[str, Any]:
        fields = curve(1 + 0.01 * AUROCS[seed] + 0.5 * split)
        monitor = {"monitor/loss": np.full(8, 2 + AUROCS[seed])}
        return fields | {"curves": fields["curves"] | monitor} | aurocs(seed, split)

    found = report(tmp_path, made, free_splits=5)
    same, free = (at(found, f"convergence/loss-band-{name}") for name in ("same-rows", "as-run"))
    assert same.value == pytest.approx(196 * 0.000158114 / 1.0082, rel=1e-4)
    levels = [1 + 0.01 * a + 0.5 * s for a, s in zip(AUROCS, range(1, 6), strict=True)]
    levels = levels[:5]
    assert free.value == pytest.approx(196 * np.std([*levels], ddof=1) / np.mean(levels), rel=1e-6)
    monitor = at(found, "convergence/loss-band-common-monitor")
    assert monitor.value == pytest.approx(196 * 0.0158114 / 2.82, rel=1e-4)
    lines = {line.what: line.varied for arm in found.arms for line in arm.lines}
    assert lines["loss band, as run"] == ("split", "init", "order", "dropout")
    assert lines["loss band, same rows"] == ("init", "order", "dropout")


def test_each_training_as_run_has_a_split_and_a_seed_of_its_own() -> None:
    runs = [Outcome(seed=s, split_seed=0) for s in range(3)]
    runs += [Outcome(seed=0, split_seed=1), Outcome(seed=1, split_seed=2)]
    free = Arm("net", "", False, tuple(runs)).free
    assert sorted((run.split_seed, run.seed) for run in free) == [(0, 2), (1, 0), (2, 1)]
    assert Arm("net", "", False, tuple(runs[:3])).free == ()


def test_several_splits_are_pooled_and_not_mixed(tmp_path: Path) -> None:
    shift = {0: 0.0, 1: -0.2}

    def made(seed: int, split: int) -> dict[str, Any]:
        return {"metrics": {"test/auroc": AUROCS[seed] + shift[split]}}

    found = report(tmp_path, made, split_seeds=[0, 1])
    assert at(found, "result/sd").value == pytest.approx(0.0158114)
    assert at(found, "result/test-auroc").value == pytest.approx(0.72)
    assert at(found, "result/test-auroc").low is None  # two splits
    two = pooled([sd_over_seeds([0.0, 2.0]), sd_over_seeds([0.0, 4.0, 8.0])])
    assert two.value == pytest.approx(math.sqrt((2 + 2 * 16) / 3))
    assert two.n == 5


def test_a_diverged_run_stays_in_the_count(tmp_path: Path) -> None:
    def made(seed: int, split: int) -> dict[str, Any]:
        fields = curve(math.nan if seed == 3 else 1 + 0.01 * AUROCS[seed]) | aurocs(seed, split)
        return fields | {"epochs": 10, "skipped_steps": seed}

    found = report(tmp_path, made)
    band = at(found, "convergence/loss-band-same-rows")
    assert math.isinf(band.value)
    assert band.method.startswith("1 of 5 runs diverged; the other 4: ")
    assert at(found, "crashes/runs-without-usable-weights").value == 0.2
    assert at(found, "crashes/skipped-steps").value == pytest.approx(0.2)  # 10 in 50 epochs
    assert "1 failed" in str(found)
    assert "failed: not finite: val/loss at step 7" in str(found)


def test_a_run_that_ended_early_counts_as_diverged_and_other_steps_give_no_band() -> None:
    whole = [Outcome(seed=s, **curve(1.0)) for s in range(2)]
    dead = Outcome(seed=2, status="failed", steps=np.arange(3), curves={"val/loss": np.ones(3)})
    found = curves_of([*whole, dead], "val/loss")
    assert found is not None
    assert np.isnan(found[1][2]).sum() == 5
    other = Outcome(seed=2, steps=np.arange(3), curves={"val/loss": np.ones(3)})
    assert curves_of([*whole, other], "val/loss") is None


def full(seed: int, split: int) -> dict[str, Any]:
    """Return everything an outcome can have."""
    draw = np.random.default_rng(seed)
    curves = {f"{rows}/loss": 1 + draw.random(40) for rows in ("val", "monitor")}
    curves["val/auroc"] = np.linspace(0.6, 0.9, 40) + 0.01 * draw.random(40)
    y = np.arange(60) % 2
    return {
        "steps": np.arange(40),
        "curves": curves,
        "predictions": table(0.1 + 0.3 * y + 0.6 * draw.random(60), y.tolist()),
        "threshold": 0.5,
        "epochs": 4,
        "weights_sha256": "same",
    } | aurocs(seed, split)


SPEED = ReportSettings(target=0.7, events=200, members=1)


def test_a_smoke_test_prints_no_interval(tmp_path: Path) -> None:
    found = report(
        tmp_path,
        full,
        SPEED,
        seeds=range(3),
        recipes={"net": {}, "logistic": {}},
        fixed=["logistic"],
    )
    assert len(found.metrics) > 20
    assert [name for name, metric in found.metrics.items() if metric.low is not None] == []
    assert "[" not in str(found)
    assert "[" not in found._repr_html_()
    assert "A smoke test: 3 seeds say nothing about spread" in str(found)


def test_from_five_seeds_there_are_intervals_and_it_is_said_what_they_are_worth(
    tmp_path: Path,
) -> None:
    found = report(tmp_path, full, SPEED)
    assert at(found, "result/sd").low is not None
    assert "From 5 seeds a spread is known to about ±69 %" in str(found)
    assert "With the split left free, as run, nothing was measured" in str(found)
    assert "No logistic regression stands beside it" in str(found)


def test_speed_needs_200_events(tmp_path: Path) -> None:
    slow = report(tmp_path, full, replace(SPEED, events=199))
    assert math.isnan(at(slow, "convergence/steps-to-0.7").value)
    assert "199 events" in at(slow, "convergence/steps-to-0.7").method
    fast = Study.open(tmp_path / "study").report(SPEED)
    assert at(fast, "convergence/steps-to-0.7").value == pytest.approx(12.5, abs=1)
    assert at(fast, "convergence/steps-to-0.7-spread").unit == "%"


def test_an_ensemble_is_of_members_that_no_other_has(tmp_path: Path) -> None:
    scores = {0: [0.0, 0.8, 0.9], 1: [0.8, 0.0, 0.9], 2: [0.0, 0.0, 0.9], 3: [0.9, 0.9, 0.1]}

    def made(seed: int, split: int) -> dict[str, Any]:
        return {"predictions": table(scores[seed], [0, 0, 1])} | aurocs(seed, split)

    settings = ReportSettings(members=2)
    found = report(tmp_path, made, settings, seeds=range(4))
    # seeds 0 and 1 rank all pairs right together; 2 and 3 give 0.45, 0.45, 0.5
    assert at(found, "mean-of-2-members/AUROC").value == 1.0
    assert at(found, "mean-of-2-members/AUROC").n == 2
    assert at(found, "mean-of-2-members/sd").value == 0.0


def test_a_net_that_says_what_logistic_regression_says_has_learned_nothing_of_its_own() -> None:
    linear = np.array([0.1, 0.3, 0.5, 0.8])
    logit = np.log(linear / (1 - linear))
    scaled = 1 / (1 + np.exp(-(2 * logit + 1)))
    other = 1 / (1 + np.exp(-np.array([1.0, -1.0, 1.0, -1.0])))
    share = linear_residual(np.array([scaled, other]), linear)
    assert share[0] == pytest.approx(0, abs=1e-12)
    r = np.corrcoef(logit, [1, -1, 1, -1])[0, 1]
    assert share[1] == pytest.approx(1 - r**2)


def test_the_logistic_regression_has_its_row_and_what_the_net_gained_over_it(
    tmp_path: Path,
) -> None:
    y = np.arange(60) % 2
    linear = np.random.default_rng(9).random(60)

    def train(recipe: Any, seeds: Sequence[int], split: int, site: str) -> list[Outcome]:
        noise = [np.random.default_rng(seed).random(60) for seed in seeds]
        scores = [0.5 * linear + 0.4 * recipe * (y + one) / 2 for one in noise]
        return [
            Outcome(seed=seed, predictions=table(score, y.tolist()), metrics={"test/auroc": 0.7})
            for seed, score in zip(seeds, scores, strict=True)
        ]

    study = Study(tmp_path, {"net": 1, "logistic": 0}, seeds=range(5), fixed=["logistic"])
    study.run(train)
    found = study.report()
    gained = at(found, "against-logistic-regression/AUROC-gained")
    assert gained.low is not None
    assert gained.low > 0
    assert 0 < at(found, "against-logistic-regression/share-of-the-score").value < 1
    assert "draws nothing: no spread is no merit of it" in str(found)
    assert "No logistic regression" not in str(found)
    assert str(found).splitlines()[2].startswith("logistic")  # in the table of all


@pytest.mark.parametrize("repeats", [0, 6])
def test_bits_are_compared_of_the_same_seed_trained_again(tmp_path: Path, repeats: int) -> None:
    study = Study(tmp_path, {"net": {}}, seeds=range(6), repeats=repeats)
    for job in study.plan.jobs():
        for seed in job.seeds:
            digest = "other" if job.again and seed == 4 else f"{seed}"
            outcome = Outcome(seed=seed, recipe="net", weights_sha256=digest)
            outcome.save(job.folder(study.path, seed))
    equal = at(study.report(), "reproducibility/bitwise-same-seed")
    assert equal.n == repeats
    assert equal.value == pytest.approx(5 / 6) if repeats else math.isnan(equal.value)


@pytest.mark.parametrize(
    ("repeats", "said"), [(0, "takes Study(repeats=...), and"), (1, "only the digest is missing,")]
)
def test_what_bits_lack_to_be_compared_is_said(tmp_path: Path, repeats: int, said: str) -> None:
    study = Study(tmp_path, {"net": {}}, seeds=range(5), repeats=repeats)
    for job in study.plan.jobs():
        for seed in job.seeds:
            Outcome(seed=seed, recipe="net").save(job.folder(study.path, seed))
    method = at(study.report(), "reproducibility/bitwise-same-seed").method
    assert f"{said} weights_sha256" in method


def test_the_numbers_can_be_filed_with_a_run(tmp_path: Path) -> None:
    found = report(tmp_path, full, SPEED, recipes={"lr=0.1,wd=1": {}})
    write_metrics(tmp_path / "metrics.json", found.metrics)
    assert "lr-0.1-wd-1/result/sd" in found.metrics


def test_html_is_escaped(tmp_path: Path) -> None:
    found = report(tmp_path, aurocs, recipes={"<b>": {}})
    assert "&lt;b&gt;: 5 trainings" in found._repr_html_()
    assert "<b>" not in found._repr_html_()


def test_a_report_needs_trainings_and_a_metric_that_they_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least one training to report on.*Call run"):
        Study(tmp_path / "new", {"a": {}}).report()
    with pytest.raises(
        ValueError, match=r"one that trainings have left, \['test/auroc'\]; got 'x'"
    ):
        report(tmp_path, aurocs, ReportSettings(metric="x"))


def test_the_command_line_reports_on_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(tmp_path, aurocs)
    file = tmp_path / "numbers.json"
    assert cli.main(["study", str(tmp_path / "study"), "--json", str(file)]) == 0
    assert capsys.readouterr().out == str(found)
    assert read_metrics(file)["net/result/sd"].value == at(found, "result/sd").value
    assert cli.main(["study", str(tmp_path)]) == 2
    assert "must be the folder of a study or of a sweep" in capsys.readouterr().err


def test_the_report_is_written_as_a_page_that_loads_nothing(tmp_path: Path) -> None:
    found = report(tmp_path, aurocs)
    file = tmp_path / "report.html"
    assert cli.main(["study", str(tmp_path / "study"), "--html", str(file)]) == 0
    page = file.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert found._repr_html_() in page
    assert not re.search(r"(src|href)=|<script|url\(|@import", page)
