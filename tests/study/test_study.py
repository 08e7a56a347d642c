"""Studies: every training is stored once, whatever dies in between, and failures are counted."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medkit.record.folder import RunFolder
from medkit.record.results import write_metrics
from medkit.study.outcomes import Outcome, OutcomeError
from medkit.study.study import Study
from medkit.study.study_job import TrainError
from medkit.study.study_plan import Plan

TRAINING = """
import os, pathlib, signal, time
import numpy as np
import pandas as pd
from medkit import keyed
from medkit.study.outcomes import Outcome

HERE = pathlib.Path(__file__).parent

def one(recipe, seed, split_seed, site):
    with open(HERE / f"calls-{seed}-{split_seed}{site}", "a") as file:
        file.write("x")
    while seed == recipe.get("waits") and not (HERE / "go").exists():
        time.sleep(0.02)
    if seed == recipe.get("raises"):
        raise FloatingPointError("the loss exploded")
    if seed == recipe.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    draw = keyed.generator(seed, "init", split_seed, site)
    steps = np.arange(0, 40, 2)
    return Outcome(
        seed=seed,
        steps=steps,
        curves={"val/loss": np.exp(-steps / 9) + 0.01 * draw.normal(size=20)},
        metrics={"test/auroc": 0.8 + 0.01 * draw.normal()},
        predictions=pd.DataFrame({"row": ["a", "b"], "y": [0, 1], "score": draw.random(2)}),
        threshold=0.5,
        cpu_s=1.0,
        epochs=4,
        weights_sha256=f"{draw.integers(1 << 30):x}",
    )

def train(recipe, seeds, split_seed, site):
    for seed in seeds:
        yield one(recipe, seed, split_seed, site)

def buggy(recipe, seeds, split_seed, site):
    for seed in seeds:
        yield Outcome(seed=seed, metrics={"lr": recipe["lr"]})

def nonsense(recipe, seeds, split_seed, site):
    yield "nonsense"

def stacked(recipe, seeds, split_seed, site):
    (HERE / "asked").write_text(str(list(seeds)))
    return [one(recipe, seed, split_seed, site) for seed in seeds]
"""


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of the user's, with functions that train."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "users_training.py").write_text(TRAINING)
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("users_training")
    del sys.modules["users_training"]


def calls(training: ModuleType) -> dict[str, int]:
    """Return how often each member was trained, by seed, split and site."""
    folder = Path(str(training.__file__)).parent
    return {p.name.removeprefix("calls-"): len(p.read_text()) for p in folder.glob("calls-*")}


def same(a: Outcome, b: Outcome) -> bool:
    """Whether two outcomes are equal bit by bit."""
    arrays = [np.array_equal(a.steps, b.steps), a.curves.keys() == b.curves.keys()]
    arrays += [np.array_equal(a.curves[n], b.curves[n], equal_nan=True) for n in a.curves]
    frames = (a.predictions is None) == (b.predictions is None)
    if a.predictions is not None and b.predictions is not None:
        frames = a.predictions.equals(b.predictions)
    plain = [{k: v for k, v in vars(one).items() if k not in _TABLES} for one in (a, b)]
    return all(arrays) and frames and repr(plain[0]) == repr(plain[1])


_TABLES = {"steps", "curves", "predictions"}


def of_seeds(outcomes: Sequence[Outcome]) -> list[int]:
    return [outcome.seed for outcome in outcomes]


def test_an_outcome_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    outcome = Outcome(
        seed=3,
        recipe="warm",
        split_seed=2,
        site="north/east",
        status="failed",
        reason="not finite",
        steps=np.array([1, 5]),
        curves={"val/loss": np.array([0.1 + 0.2, math.nan]), "monitor/loss": np.ones(2)},
        metrics={"test/auroc": 1 / 3, "test/brier": math.inf},
        predictions=pd.DataFrame({"patient": ["01", "1"], "y": [0, 1], "score": [0.1, 0.7]}),
        threshold=0.25,
        skipped_steps=4,
        weights_sha256="ab",
    )
    outcome.save(tmp_path / "s3")
    assert same(Outcome.load(tmp_path / "s3"), outcome)


def test_an_outcome_that_is_not_whole_is_not_there(training: ModuleType, tmp_path: Path) -> None:
    study = Study(tmp_path / "study", {"a": {}}, seeds=[0])
    study.run(training.train)
    (tmp_path / "study/a/split0/s0/outcome.json").unlink()
    assert study.outcomes == []
    assert study.missing == 1


def test_a_damaged_outcome_is_named(training: ModuleType, tmp_path: Path) -> None:
    study = Study(tmp_path / "study", {"a": {}}, seeds=[0])
    study.run(training.train)
    (tmp_path / "study/a/split0/s0/curves.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"s0 must hold what .* Remove the folder"):
        _ = study.outcomes


def test_each_member_has_a_folder_and_is_trained_once(training: ModuleType, tmp_path: Path) -> None:
    study = Study(
        tmp_path / "study", {"a": {}}, seeds=[4, 7], split_seeds=[0, 1], sites=["", "north"]
    )
    assert study.missing == 8
    study.run(training.train)
    study.run(training.train)
    assert study.missing == 0
    assert set(calls(training).values()) == {1}
    assert len(calls(training)) == 8
    found = {path.parent.relative_to(study.path).as_posix() for path in study.path.rglob("*.json")}
    assert "a/split1-north/s7" in found
    assert [one.cell for one in study.outcomes[::2]] == [
        ("a", 0, ""),
        ("a", 1, ""),
        ("a", 0, "north"),
        ("a", 1, "north"),
    ]


def test_more_seeds_splits_and_recipes_train_only_what_is_missing(
    training: ModuleType, tmp_path: Path
) -> None:
    Study(tmp_path / "study", {"a": {}}, seeds=range(2)).run(training.stacked)
    more = Study(tmp_path / "study", {"a": {}}, seeds=range(4))
    more.run(training.stacked)
    assert (tmp_path / "code/asked").read_text() == "[2, 3]"
    assert calls(training) == {"0-0": 1, "1-0": 1, "2-0": 1, "3-0": 1}
    assert Study(tmp_path / "study", {"a": {}, "b": {}}, seeds=range(4)).missing == 4


def test_a_call_gets_one_seed_where_that_is_asked_for(training: ModuleType, tmp_path: Path) -> None:
    Study(tmp_path / "study", {"a": {}}, seeds=range(3)).run(training.stacked, seeds_per_job=1)
    assert (tmp_path / "code/asked").read_text() == "[2]"


def test_fixed_recipes_free_splits_and_repeats_are_members(
    training: ModuleType, tmp_path: Path
) -> None:
    study = Study(
        tmp_path / "study",
        {"net": {}, "logistic": {}},
        seeds=[5, 6, 7],
        fixed=["logistic"],
        free_splits=2,
        repeats=1,
    )
    study.run(training.train)
    where = [(one.recipe, one.split_seed, one.seed) for one in study.outcomes]
    assert where[:3] == [("net", 0, 5), ("net", 0, 6), ("net", 0, 7)]
    assert where[3:] == [("net", 1, 5), ("net", 2, 6), ("logistic", 0, 5)]
    (again,) = study.repeats
    assert same(again, study.outcomes[0])


@pytest.mark.parametrize("train", ["train", "stacked"])
def test_a_training_that_raises_is_stored_as_failed_and_costs_no_other(
    training: ModuleType, tmp_path: Path, train: str
) -> None:
    study = Study(tmp_path / "study", {"a": {"raises": 1}}, seeds=range(3))
    study.run(getattr(training, train))
    states = [(one.seed, one.status, one.reason) for one in study.outcomes]
    assert states == [
        (0, "done", ""),
        (1, "failed", "FloatingPointError: the loss exploded"),
        (2, "done", ""),
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_every_training_raises_is_a_bug_of_train_and_not_stored(
    training: ModuleType, tmp_path: Path, jobs: int
) -> None:
    study = Study(tmp_path / "study", {"a": {}}, seeds=range(2))
    with pytest.raises(
        TrainError, match=r"all 2 trainings raised the same, KeyError: 'lr'. None of"
    ):
        study.run(training.buggy, jobs=jobs)
    assert (study.outcomes, study.missing) == ([], 2)
    study.run(training.train)
    assert [one.status for one in study.outcomes] == ["done", "done"]
    assert not list(study.path.glob("a/*/*/traceback.txt"))


def test_the_traceback_of_a_bug_is_told_once(
    training: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TrainError) as raised:
        Study(tmp_path / "study", {"a": {}}, seeds=range(3)).run(training.buggy)
    assert str(raised.value).count("Traceback (most recent call last)") == 1
    assert 'recipe["lr"]' in str(raised.value)
    assert "Traceback" not in caplog.text


def test_failures_are_kept_where_another_training_is_done(
    training: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipes: dict[str, Any] = {"a": {}}
    Study(tmp_path / "study", recipes, seeds=[0, 1]).run(training.train)
    study = Study(tmp_path / "study", recipes | {"b": {}}, seeds=[0, 1])
    study.run(training.buggy)
    assert [one.status for one in study.outcomes] == ["done", "done", "failed", "failed"]
    assert caplog.text.count("Traceback (most recent call last)") == 1


def test_trainings_that_all_end_in_nan_or_raise_apart_are_results(tmp_path: Path) -> None:
    def diverging(recipe: Any, seeds: Sequence[int], *_: Any) -> Iterator[Outcome]:
        yield from (Outcome(seed=seed, metrics={"test/auroc": math.nan}) for seed in seeds)

    def apart(recipe: Any, seeds: Sequence[int], *_: Any) -> Iterator[Outcome]:
        raise FloatingPointError(f"the loss exploded at step {seeds[0]}")

    for number, train in enumerate((diverging, apart)):
        study = Study(tmp_path / str(number), {"a": {}}, seeds=range(2))
        study.run(train, seeds_per_job=1)
        assert [one.status for one in study.outcomes] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"steps": [1, 2], "curves": {"val/loss": [0.3, math.nan]}}, "val/loss at step 2"),
        ({"metrics": {"test/auroc": math.nan}}, "test/auroc"),
        ({"predictions": pd.DataFrame({"row": ["a"], "y": [1], "score": [math.nan]})}, "a score"),
    ],
)
def test_a_training_that_ends_in_nan_has_failed_whatever_it_says(
    tmp_path: Path, bad: dict[str, Any], named: str
) -> None:
    study = Study(tmp_path / "study", {"a": {}}, seeds=[0])
    study.run(lambda *_: [Outcome(seed=0, status="done", **bad)])
    (outcome,) = study.outcomes
    assert (outcome.status, outcome.reason) == ("failed", f"not finite: {named}")


def test_failed_members_are_trained_again_only_when_asked(
    training: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = Study(tmp_path / "study", {"a": {"raises": 1}}, seeds=range(2))
    study.run(training.train)
    assert "1 of 2 trainings failed, and count as such (a split 0 seed 1)" in caplog.text
    assert "retry_failed=True" in caplog.text
    before = calls(training)
    study.run(training.train)
    assert calls(training) == before
    study.run(training.train, retry_failed=True)
    assert calls(training)["0-0"] == 1
    assert calls(training)["1-0"] == before["1-0"] + 1


SCRIPT = """
import sys
import users_training
from medkit.study.study import Study
Study(sys.argv[1], {"a": {"waits": 3}}, seeds=range(6)).run(
    users_training.train, jobs=int(sys.argv[2]), seeds_per_job=int(sys.argv[3]) or None
)
"""


@pytest.mark.parametrize(
    ("number", "jobs", "seeds_per_job", "at_first"),
    [(signal.SIGKILL, 1, 0, 3), (signal.SIGTERM, 2, 2, 5)],
)
def test_after_a_kill_only_what_is_missing_is_trained_and_it_comes_out_the_same(
    training: ModuleType,
    tmp_path: Path,
    number: signal.Signals,
    jobs: int,
    seeds_per_job: int,
    at_first: int,
) -> None:
    code = tmp_path / "code"
    words = [sys.executable, "-c", SCRIPT, tmp_path / "study", str(jobs), str(seeds_per_job)]
    paths = os.pathsep.join([str(code), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list((tmp_path / "study").rglob("outcome.json"))) == at_first)
        wait_for(lambda: calls(training).get("3-0") == 1)
    finally:
        process.send_signal(number)
        assert process.wait(30) == -number
    (code / "go").touch()
    study = Study(tmp_path / "study", {"a": {"waits": 3}}, seeds=range(6))
    kept = of_seeds(study.outcomes)
    assert kept == [seed for seed in range(6) if seed != 3][:at_first]
    study.run(training.train)
    assert {seed: calls(training)[f"{seed}-0"] for seed in kept} == dict.fromkeys(kept, 1)
    assert calls(training)["3-0"] == 2
    whole = Study(tmp_path / "whole", {"a": {"waits": 3}}, seeds=range(6))
    whole.run(training.train)
    assert all(same(a, b) for a, b in zip(study.outcomes, whole.outcomes, strict=True))


def test_processes_of_a_killed_study_end_with_it(training: ModuleType, tmp_path: Path) -> None:
    words = [sys.executable, "-c", SCRIPT, tmp_path / "study", "2", "2"]
    paths = os.pathsep.join([str(tmp_path / "code"), str(Path(__file__).parents[2])])
    process = subprocess.Popen(
        words, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: calls(training).get("3-0") == 1)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    wait_for(lambda: str(tmp_path / "study") not in running())


def running() -> str:
    """Return the command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return "\n".join(found)


def test_two_processes_give_the_same_outcomes_as_one(training: ModuleType, tmp_path: Path) -> None:
    found = []
    for jobs in (1, 2):
        study = Study(tmp_path / f"by{jobs}", {"a": {"raises": 1}}, seeds=range(3))
        study.run(training.train, jobs=jobs, seeds_per_job=2)
        found.append(study.outcomes)
    assert of_seeds(found[1]) == [0, 1, 2]
    lasting = [[one for one in outcomes if one.status == "done"] for outcomes in found]
    assert all(same(a, b) for a, b in zip(*lasting, strict=True))
    assert [one.reason for one in found[0]] == [one.reason for one in found[1]]
    assert "the loss exploded" in (tmp_path / "by2/logs/a-split0-s0-and-1.log").read_text()


def test_a_process_that_dies_costs_only_the_member_at_fault(
    training: ModuleType, tmp_path: Path
) -> None:
    study = Study(tmp_path / "study", {"a": {"dies": 1}}, seeds=range(2))
    study.run(training.stacked, jobs=2)  # the first process takes both down
    assert [(one.seed, one.status) for one in study.outcomes] == [(0, "done"), (1, "failed")]
    assert "ended by signal SIGKILL" in study.outcomes[1].reason


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipes": {"a": {"lr": 0.2}}}, r"recipe a.lr was 0.1, is 0.2"),
        ({"recipes": {"b": {}}}, r"recipe a was .* is None"),
        ({"seeds": [0]}, r"seeds were \[0, 1\], are \[0\]"),
        ({"seeds": [1, 0]}, r"seeds were \[0, 1\], are \[1, 0\]"),
        ({"split_seeds": [1]}, r"split_seeds \[0\] were part of it"),
        ({"split_seeds": [0, 4]}, "free splits are counted from behind other split_seeds"),
        ({"sites": ["north"]}, r"sites \[''\] were part of it"),
        ({"free_splits": 0}, "free_splits was 1, is 0"),
        ({"repeats": 0}, "repeats was 1, is 0.* before, free_splits and repeats too"),
    ],
)
def test_a_folder_with_another_study_is_refused(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    plan: dict[str, Any] = {"recipes": {"a": {"lr": 0.1}}, "seeds": [0, 1], "free_splits": 1}
    plan["repeats"] = 1
    (tmp_path / "study").mkdir()
    Plan({"a": {"lr": 0.1}}, (0, 1), free_splits=1, repeats=1).write(
        tmp_path / "study", cores_per_job=0
    )
    with pytest.raises(ValueError, match=rf"must go on with the study .*{named}") as refused:
        Study(tmp_path / "study", **plan | change)
    assert "Choose another folder" in str(refused.value)


def test_nothing_is_written_into_a_folder_that_is_no_studys(tmp_path: Path) -> None:
    (tmp_path / "results.csv").touch()
    with pytest.raises(ValueError, match=r"must be new, empty .*holds results.csv. Choose another"):
        Study(tmp_path, {"a": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"recipes": {}}, "at least one of its recipes"),
        ({"recipes": {"a": {}}, "seeds": [1, 1]}, "at least one of its seeds, each once"),
        ({"recipes": {"a/b": {}}}, "without slashes"),
        ({"recipes": {"logs": {}}}, "none of which may be called 'logs'"),
        ({"recipes": {"a": {}}, "fixed": ["b"]}, r"must name some of the recipes \['a'\]"),
        ({"recipes": {"a": {}}, "seeds": [1], "repeats": 2}, "between 0 and the number of seeds"),
        ({"recipes": {"a": {1, 2}}}, "what JSON can hold"),
        ({"recipes": {"a": 1}, "sites": "North"}, r"sites must be a list; .*sites=\['North'\]"),
        ({"recipes": {"a": 1}, "fixed": "a"}, r"fixed must be a list; got the text 'a'. Write"),
        ({"recipes": {"a": 1}, "seeds": "12"}, r"seeds must be several whole numbers, got '12'"),
        ({"recipes": {"a": 1}, "seeds": 3}, r"seeds must be several whole numbers, got 3\. Pass r"),
        ({"recipes": {"a": 1}, "seeds": [0.2, 1.5]}, r"several whole numbers, got \[0\.2, 1\.5\]"),
        ({"recipes": {"a": 1}, "split_seeds": "1"}, r"split_seeds must be several whole numbers"),
    ],
)
def test_a_study_that_could_not_run_is_refused(
    tmp_path: Path, plan: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Study(tmp_path / "study", **plan)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda *_: [Outcome(seed=9)], "it yielded seed 9"),
        (lambda *_: ["done"], "it yielded 'done'"),
        (lambda *_: [Outcome(seed=0)], r"it ended without \[1\]"),
        (lambda *_: None, "must return or yield Outcomes, got NoneType"),
        (lambda *_: [Outcome(seed=0, predictions=pd.DataFrame({"y": [1]}))], r"found \['y'\]"),
        (lambda *_: [Outcome(seed=0, steps=np.array([5, 3]))], r"steps must rise.*got \[5 3\]"),
        (lambda *_: [Outcome(seed=0, metrics={"test/auroc": ".8"})], r"got test/auroc='\.8'"),
    ],
)
def test_what_train_must_yield_is_said_and_no_failure_of_a_training(
    tmp_path: Path, train: Any, message: str
) -> None:
    study = Study(tmp_path / "study", {"a": {}}, seeds=[0, 1])
    with pytest.raises(OutcomeError, match=message):
        study.run(train)
    assert not [one for one in study.outcomes if one.status == "failed"]


def test_a_process_whose_train_yields_nonsense_says_so(
    training: ModuleType, tmp_path: Path
) -> None:
    study = Study(tmp_path / "study", {"a": {}}, seeds=[0])
    with pytest.raises(TrainError, match="it yielded 'nonsense'"):
        study.run(training.nonsense, jobs=2)
    assert study.outcomes == []


def test_processes_need_a_train_that_can_be_imported(tmp_path: Path) -> None:
    study = Study(tmp_path / "study", {"a": {}}, seeds=[0])
    with pytest.raises(TrainError, match=r"must be able to import train.*Move it into a file"):
        study.run(lambda *_: [], jobs=2)
    with pytest.raises(ValueError, match=r"jobs and seeds_per_job must be at least 1, got 0"):
        study.run(lambda *_: [], jobs=0)


def test_an_outcome_must_have_a_value_per_step_and_a_state() -> None:
    with pytest.raises(ValueError, match=r"one value per step, \(2,\); got \{'val/loss': \(1,\)\}"):
        Outcome(seed=0, steps=np.arange(2), curves={"val/loss": np.zeros(1)})
    with pytest.raises(ValueError, match=r"status must be one of .*got 'killed'"):
        Outcome(seed=0, status="killed")


def swept(folder: Path) -> Path:
    """Write a sweep of two learning rates on two splits, two seeds each; one failed, one is on."""
    runs = []
    for lr in (0.1, 0.2):
        for split in (0, 1):
            for seed in (0, 1):
                name = f"lr={lr},split_seed={split}"
                runs.append({"point": {"lr": lr, "split_seed": split}, "seed": seed})
                runs[-1]["path"] = f"{name}/s{seed}"
                place = (lr, split, seed)
                status = {(0.1, 0, 1): "failed", (0.2, 1, 1): "interrupted"}.get(place, "done")
                run = RunFolder.create(
                    folder / name / f"s{seed}",
                    status=status,
                    cost={"cpu_s": 12.5, "steps_wasted": 3},
                    weights_sha256="ab",
                    attempts=[{"error": "loss is NaN" if status == "failed" else ""}],
                )
                write_metrics(
                    run.path / "metrics.json", {"test/auroc": lr + seed, "test/threshold": 0.4}
                )
                logs = run.path / "logs" / "fit"
                logs.mkdir(parents=True)
                (logs / "metrics.csv").write_text(
                    "epoch,step,train/loss,val/loss,val/auroc\n"
                    "0,4,0.9,,\n0,4,,0.7,\n0,4,,,0.6\n1,9,,nan,0.8\n"
                )
                run.ledger.append("spike", action="step skipped", stage="fit")
                table = pd.DataFrame({"row": ["a", "b"], "y": [0, 1], "score": [0.1, 0.9]})
                table.to_parquet(run.subfolder("predictions") / "test.parquet")
    (folder / "sweep.json").write_text(json.dumps({"runs": runs}))
    return folder


def test_a_sweeps_runs_are_read_as_outcomes(tmp_path: Path) -> None:
    study = Study.of_sweep(swept(tmp_path))
    assert [(one.recipe, one.split_seed, one.seed) for one in study.outcomes[:4]] == [
        ("lr=0.1", 0, 0),
        ("lr=0.1", 0, 1),
        ("lr=0.1", 1, 0),
        ("lr=0.1", 1, 1),
    ]
    assert (len(study.outcomes), study.missing) == (7, 1)
    first, second = study.outcomes[:2]
    assert (second.status, second.reason) == ("failed", "loss is NaN")
    assert first.metrics == {"test/auroc": 0.1, "test/threshold": 0.4}
    assert (first.threshold, first.cpu_s, first.wasted_steps) == (0.4, 12.5, 3)
    assert (first.skipped_steps, first.epochs, first.weights_sha256) == (1, 2, "ab")
    assert first.steps.tolist() == [4, 9]
    np.testing.assert_array_equal(first.curves["val/loss"], [0.7, math.nan])
    np.testing.assert_array_equal(first.curves["val/auroc"], [0.6, 0.8])
    assert "lr=0.2: 3 trainings on 2 splits, 0 failed" in str(Study.open(tmp_path).report())


def test_a_sweep_is_read_and_not_run_and_must_be_one(tmp_path: Path) -> None:
    study = Study.of_sweep(swept(tmp_path / "sweep"))
    with pytest.raises(ValueError, match=r"holds a sweep.*medkit sweep ... --out"):
        study.run(lambda *_: [])
    with pytest.raises(ValueError, match=r"must be the folder of a sweep"):
        Study.of_sweep(tmp_path)
    with pytest.raises(ValueError, match=r"must be the folder of a study or of a sweep"):
        Study.open(tmp_path)
