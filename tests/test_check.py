"""``medkit check``: what it sees, what it says, and what it leaves alone."""

from __future__ import annotations

import inspect
import random
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medkit.check import check, run_check
from medkit.check.compare import first_difference
from medkit.check.digest import digest
from medkit.check.findings import Finding
from medkit.check.history import Twice, history
from medkit.check.subject import SpecError, load
from medkit.check.trace import Tracer

FOREIGN = Path(__file__).resolve().parent / "foreign"


@pytest.fixture(autouse=True)
def _foreign_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOREIGN))
    monkeypatch.chdir(tmp_path)


def broken(module: str, data: str) -> Finding:
    """Check two planted classes and return the first broken promise."""
    found = [f for f in check(f"planted:{module}", f"planted:{data}") if f.holds is False]
    assert found, "no promise was found broken"
    return found[0]


# ---- digests


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        (0.0, -0.0),
        ([1, [2]], [1, [3]]),
        ({"a": 1}, {"b": 1}),
        (deque([1, 2]), deque([2, 1])),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (random.Random(1), random.Random(2)),
        (np.random.default_rng(1), np.random.default_rng(2)),
    ],
)
def test_what_differs_has_another_digest(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)
    assert digest(one) is not None


def test_equal_contents_have_equal_digests() -> None:
    def make() -> dict[str, Any]:
        return {"x": torch.arange(4.0), "rng": np.random.default_rng(3), "n": [1, (2, None)]}

    assert digest(make()) == digest(make())


def test_an_address_is_no_part_of_a_digest() -> None:
    assert digest(object()) is None
    assert digest([1, object()]) == digest([1, object()])


def test_a_generator_function_shows_how_far_it_went() -> None:
    def numbers():
        yield from range(10)

    one, other = numbers(), numbers()
    next(one), next(other)
    same = digest(one) == digest(other)
    next(other)
    assert same
    assert digest(one) != digest(other)


# ---- naming a line


def draws_from_nowhere(x: float) -> float:
    noise = 0.1
    rng = np.random.default_rng()
    return x + noise * rng.random()


def test_the_line_that_makes_the_difference_is_named() -> None:
    culprit = Twice().differs(lambda: draws_from_nowhere(1.0))
    assert culprit is not None
    assert culprit.source == "rng = np.random.default_rng()"
    assert culprit.names == ("rng",)


def test_what_is_keyed_is_not_blamed() -> None:
    assert Twice().differs(lambda: 3.0, budget_s=0.0) is None


def test_a_line_that_only_takes_the_time_is_not_mistaken_for_the_cause() -> None:
    took: list[float] = []

    def work() -> float:
        began = time.perf_counter()
        value = np.random.default_rng().random()
        took.append(time.perf_counter() - began)
        return value

    culprit = Twice().differs(work)
    assert culprit is not None
    assert culprit.source.startswith("value =")


def test_book_keeping_is_not_mistaken_for_the_cause() -> None:
    class Rows:
        served = 0

        def __init__(self) -> None:
            self.count = 0

        def fetch(self) -> float:
            self.count += 1
            return np.random.default_rng().random()

    culprit = Twice().differs(Rows().fetch)
    assert culprit is not None
    assert culprit.source == "return np.random.default_rng().random()"


def test_state_that_is_carried_over_is_named_where_it_changes() -> None:
    class Rows:
        def __init__(self) -> None:
            self.count = 0

        def fetch(self) -> int:
            self.count += 1
            return self.count % 7

    culprit = Twice().differs(Rows().fetch)
    assert culprit is not None
    assert culprit.source == "self.count += 1"
    assert culprit.carried


def test_a_value_that_only_a_library_sees_is_named() -> None:
    seen: list[float] = []

    def work() -> list[float]:
        torch.nn.init.constant_(torch.zeros(1), random.SystemRandom().random())
        seen.append(random.SystemRandom().random())
        return list(seen)

    culprit = Twice().differs(work)
    assert culprit is not None
    assert culprit.source.startswith("torch.nn.init.constant_(")


def test_installed_files_are_not_traced() -> None:
    tracer = Tracer()
    with tracer.recording():
        torch.nn.functional.dropout(torch.ones(2))
    assert {record.file for record in tracer.records} <= {__file__}


def test_equal_passes_have_no_first_difference() -> None:
    tracers = [Tracer(), Tracer()]
    for tracer in tracers:
        with tracer.recording():
            abs(-1)
    assert not first_difference(tracers[0].records, tracers[1].records).file


def test_another_history_is_another_day_and_other_generators() -> None:
    with history(0):
        first = time.time(), random.random()
    with history(1):
        second = time.time(), random.random()
    assert second[0] - first[0] > 86_400
    assert first[1] != second[1]


def test_a_history_leaves_the_generators_as_they_were() -> None:
    state = random.getstate()
    with history(1):
        random.random()
    assert random.getstate() == state


# ---- what is said


@pytest.mark.parametrize(
    ("module", "data", "promise", "words"),
    [
        ("PlainNet", "Counter", "augmentation", ["self.served += 1", "carried over"]),
        ("PlainNet", "MonaiLambda", "augmentation", ["transform 1 of Compose: Lambdad"]),
        ("PlainNet", "Clock", "augmentation", ["time.time()", "the wall time decides"]),
        ("PlainNet", "Streaming", "positions", ["class Stream(", "no position"]),
        ("PlainNet", "Threads", "positions", ["ThreadDataLoader(", "share their generators"]),
        ("PlainNet", "Moody", "order", ["os.urandom(8)"]),
        ("UnkeyedWeights", "Data", "initial weights", ["default_rng()", "operating system"]),
        ("PrivateHistory", "Data", "training step", ["next(self.scales)", "self.scales"]),
    ],
)
def test_a_broken_promise_is_said_with_line_and_remedy(
    module: str, data: str, promise: str, words: list[str]
) -> None:
    found = broken(module, data)
    assert found.promise == promise
    assert all(word in f"{found.where} {found.advice}" for word in words)


def test_what_stands_on_a_broken_promise_is_not_called_sound() -> None:
    verdicts = {f.promise: f.verdict for f in check("planted:PlainNet", "planted:Counter")}
    assert verdicts["augmentation"] == "BROKEN"
    assert verdicts["workers"] == verdicts["resume"] == "not checked"


def test_a_module_that_fails_is_reported_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check("check_cases:Fails", "plain_project:PlainData") == 1
    assert "there is no such layer" in capsys.readouterr().out


def test_a_broken_promise_exits_with_1_and_prints_a_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_check("planted:PlainNet", "planted:Moody") == 1
    shown = capsys.readouterr()
    assert "order           BROKEN" in shown.out
    assert "1 of 12 promises broken, " in shown.out
    assert "[2/12] order" in shown.err


def test_a_dataloader_can_be_checked() -> None:
    findings = check("plain_project:PlainNet", "check_cases:loader")
    assert [f.promise for f in findings if not f.holds] == []


def test_manual_optimization_is_judged_by_whole_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check("check_cases:Manual", "plain_project:PlainData") == 0
    shown = capsys.readouterr().out
    assert "training step   not checked" in shown
    assert "resume          holds" in shown


# ---- usage


@pytest.mark.parametrize(
    ("module", "data", "words"),
    [
        ("plain_project.PlainNet", "plain_project:PlainData", "package:Name"),
        ("no_such_project:Net", "plain_project:PlainData", "'no_such_project' was not found in"),
        ("plain_project:PlainNt", "plain_project:PlainData", "Did you mean 'PlainNet'?"),
        ("planted:N", "plain_project:PlainData", "got a int"),
        ("planted:MoodySampler", "plain_project:PlainData", "without arguments"),
        ("plain_project:PlainData", "plain_project:PlainNet", "The module comes first"),
    ],
)
def test_a_spec_that_leads_nowhere_exits_with_2_and_says_what_was_tried(
    module: str, data: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_check(module, data) == 2
    assert words in capsys.readouterr().err


def test_a_missing_dependency_is_not_called_a_missing_package(tmp_path: Path) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_nobody_has\n")
    with pytest.raises(SpecError, match="needs 'a_package_nobody_has', which is not installed"):
        load("needs_more:Net", "plain_project:PlainData")


def test_a_check_leaves_the_process_as_it_was() -> None:
    state = random.getstate(), torch.get_rng_state().tolist()
    threads, tracing = torch.get_num_threads(), sys.gettrace()
    check("planted:PlainNet", "planted:Counter")
    assert (random.getstate(), torch.get_rng_state().tolist()) == state
    assert (torch.get_num_threads(), sys.gettrace()) == (threads, tracing)
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_plant_is_one_class_with_its_name_in_one_line() -> None:
    import planted

    lines = inspect.getsource(planted).splitlines()
    for name in planted.PLANTED:
        assert sum(line.endswith(f"# {name}") for line in lines) == 1
