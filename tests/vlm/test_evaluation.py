from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkit import keyed
from medkit.data.conversations import Conversation, Turn, read_conversations
from medkit.data.report_schema import NODULE
from medkit.synth.reports import TASKS, make_studies, write_reports
from medkit.vlm.answers import swapped
from medkit.vlm.evaluation import Evaluation, evaluate, over_seeds
from medkit.vlm.finding_terms import FINDINGS
from medkit.vlm.judges import FieldJudge, QuestionJudge, ReportJudge
from medkit.vlm.labeller import label

STUDIES = [*make_studies(60, seed=1), *make_studies(40, seed=1, site="B")]
JUDGES: dict[str, Any] = {
    "fields": FieldJudge(NODULE), "report": ReportJudge(), "questions": QuestionJudge(),
}  # fmt: skip
MAIN = {"fields": "accuracy", "report": "macro_f1", "questions": "exact"}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Conversation]]:
    folder: Path = tmp_path_factory.mktemp("reports")
    files = {task: write_reports(folder, STUDIES, name=task, task=task) for task in TASKS}
    return {task: read_conversations(file) for task, file in files.items()}


def sees(some: Sequence[Conversation]) -> Callable[[Sequence[Conversation]], list[str]]:
    """A model that is always right about the pictures it is shown."""
    known = {(one.images, one.asked): one.answer for one in some}
    return lambda shown: [known[one.images, one.asked] for one in shown]


def blind(some: Sequence[Conversation]) -> Callable[[Sequence[Conversation]], list[str]]:
    """A model that says what is usual, whatever it is shown."""
    usual: dict[Any, list[str]] = {}
    for one in some:
        usual.setdefault(one.asked, []).append(one.answer)
    said = {of: max(set(answers), key=answers.count) for of, answers in usual.items()}
    return lambda shown: [said[one.asked] for one in shown]


@pytest.mark.parametrize("task", TASKS)
def test_a_perfect_reader_is_right_and_known_to_look(
    asked: dict[str, list[Conversation]], task: str
) -> None:
    some = asked[task]
    found = evaluate(sees(some), some, JUDGES[task])
    for place in ("all", "A", "B"):
        assert found.metrics[f"{place}/{MAIN[task]}/own/share"].value == 1
        assert found.metrics[f"{place}/valid/own/share"].value == 1
        assert found.metrics[f"{place}/invented/own/share"].value == 0
        assert found.metrics[f"{place}/missed/own/share"].value == 0
        assert found.metrics[f"{place}/{MAIN[task]}/fall/share"].low > 0.02  # type: ignore[operator]
    assert found.metrics[f"all/{MAIN[task]}/fall/p"].value == 0.001
    assert str(found).startswith("looks at the pictures: ")


@pytest.mark.parametrize("task", TASKS)
def test_a_blind_model_is_valid_and_exposed(
    asked: dict[str, list[Conversation]], task: str
) -> None:
    some = asked[task]
    found = evaluate(blind(some), some, JUDGES[task])
    assert found.metrics["all/valid/own/share"].value == 1
    assert found.metrics[f"all/{MAIN[task]}/fall/share"].value == 0
    assert found.metrics[f"all/{MAIN[task]}/fall/p"].value == 1
    assert str(found).startswith("not known to look at the pictures: ")


def test_a_model_that_guesses_is_exposed_too(asked: dict[str, list[Conversation]]) -> None:
    some = asked["fields"]
    texts = [one.answer for one in some]
    flagged = 0
    for number in range(20):
        draws = iter(
            keyed.generator(number, "sample", "guesses", turn).permutation(len(texts))
            for turn in range(2)
        )
        found = evaluate(
            lambda shown, draws=draws: [texts[n] for n in next(draws)],  # type: ignore[misc]
            some, JUDGES["fields"], seed=number,
        )  # fmt: skip
        flagged += not found.looks
    assert flagged >= 18


def test_a_model_that_knows_the_hospital_alone_does_not_look(
    asked: dict[str, list[Conversation]],
) -> None:
    some = asked["fields"]
    of = {"A": '{"nodule":false}', "B": STUDIES[0].fields_json}

    def knows(shown: Sequence[Conversation]) -> list[str]:
        return [of["A" if "/A" in one.images[0] else "B"] for one in shown]

    found = evaluate(knows, some, JUDGES["fields"])
    assert not found.looks
    other = swapped(some, within="site")
    assert all(a.images[0].split("/")[-1][0] == a.columns["site"] for a in other)


def test_hospitals_are_scored_apart(asked: dict[str, list[Conversation]]) -> None:
    some = asked["fields"]
    truth = sees(some)

    def writes(shown: Sequence[Conversation]) -> list[str]:
        right = truth(shown)
        wrong = '{"nodule":false}'
        return [t if "/A" in c.images[0] else wrong for t, c in zip(right, shown, strict=True)]

    table = evaluate(writes, some, JUDGES["fields"]).table()
    share = np.mean([one.finding.nodule for one in STUDIES[60:]])
    assert table.loc[("A", "exact"), "own"] == 1
    assert table.loc[("B", "exact"), "own"] == pytest.approx(1 - share)
    assert table.loc[("B", "missed"), "own"] == 1
    assert table.loc[("all", "exact"), "own"] == pytest.approx(0.6 + 0.4 * (1 - share))
    assert table.loc[("all", "exact"), "n"] == 100


def test_questions_about_one_study_get_one_other_studys_pictures(
    asked: dict[str, list[Conversation]],
) -> None:
    some = asked["questions"]
    other = swapped(some, seed=2)
    pairs = {(a.images, b.images) for a, b in zip(some, other, strict=True)}
    assert len(pairs) == len(STUDIES)
    assert all(a != b for a, b in pairs)
    with pytest.raises(ValueError, match="two or more sets"):
        swapped([one for one in some if one.images == some[0].images])


def test_answers_to_questions_are_counted_by_hand() -> None:
    def turn(asked: str, answer: str) -> Conversation:
        return Conversation((Turn("user", asked), Turn("assistant", answer)))

    some = [turn("Is there one?", "Yes"), turn("Is there one?", "no"), turn("Which?", "left")]
    found = QuestionJudge()([" yes. ", "yes", "blue"], some)
    assert found["exact"].hits.tolist() == [1, 0, 0]
    assert found["valid"].hits.tolist() == [1, 1, 0]
    assert found["is_there_one_"].asked.tolist() == [1, 1, 0]
    assert found["invented"].hits.tolist() == [0, 1, 0]
    assert found["missed"].hits.tolist() == [0, 0, 0]


def test_reports_are_counted_by_hand() -> None:
    def turn(answer: str, **columns: Any) -> Conversation:
        return Conversation((Turn("user", "?"), Turn("assistant", answer)), columns=columns)

    some = [
        turn("12 mm nodule in the left lung. No effusion."),
        turn("Small effusion."),
        turn("No nodule."),
        turn("", findings={"Nodule": True}),
    ]
    said = [
        "13 mm nodule in the right lung.", "No effusion. Cardiomegaly.", "Possible nodule.",
        "There is a nodule.",
    ]  # fmt: skip
    found = ReportJudge()(said, some)
    names = [name for name in FINDINGS if name in ("Effusion", "Nodule")]
    f1 = found["macro_f1"].hits.sum(0) / found["macro_f1"].asked.sum(0)
    assert dict(zip(names, f1.tolist(), strict=True)) == {"Effusion": 0, "Nodule": 1}
    assert found["place"].hits.tolist() == [0, 0, 0, 0]
    assert found["place"].asked.tolist() == [1, 0, 0, 0]
    assert found["size"].hits.tolist() == [1, 0, 0, 0]
    assert found["size"].asked.tolist() == [1, 0, 0, 0]
    assert found["invented"].hits.tolist() == [0, 1, 0, 0]
    assert found["missed"].hits.tolist() == [0, 1, 0, 0]


def test_the_wording_of_a_report_does_not_count() -> None:
    true = "There is a 12 mm solid nodule in the lower zone of the right lung. No effusion."
    said = "Solid nodule of 13 mm in the right lower zone."
    some = [Conversation((Turn("user", "?"), Turn("assistant", true)))]
    found = ReportJudge()([said], some)
    assert {n: one.hits.tolist() for n, one in found.items() if not one.error} == {
        "macro_f1": [[2.0]], "valid": [1.0], "place": [1.0], "size": [1.0],
    }  # fmt: skip


def test_the_labeller_reads_the_made_up_reports_as_their_findings() -> None:
    studies = [*make_studies(300, seed=9), *STUDIES]
    said = [label(one.report)["Nodule"] == "present" for one in studies]
    assert said == [one.finding.nodule for one in studies]


def test_seeds_spread_is_their_mean_sd_and_range(asked: dict[str, list[Conversation]]) -> None:
    some = asked["fields"]
    right, usual = sees(some), blind(some)

    def mostly(count: int) -> Evaluation:
        def writes(shown: Sequence[Conversation]) -> list[str]:
            return [*right(shown)[:count], *usual(shown)[count:]]

        return evaluate(writes, some, JUDGES["fields"])

    runs = [mostly(count) for count in (100, 90, 80)]
    table = over_seeds(runs)
    values = [one.metrics["all/exact/own/share"].value for one in runs]
    row = table.loc[("all", "exact")]
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["sd"] == pytest.approx(np.std(values, ddof=1))
    assert (row["least"], row["most"], row["n"]) == (min(values), max(values), 3)
    assert row["low"] < row["mean"] < row["high"]
    with pytest.raises(ValueError, match="compared by the same scores"):
        over_seeds([])


def test_another_seed_deals_other_pictures_and_the_same_seed_the_same(
    asked: dict[str, list[Conversation]],
) -> None:
    some = asked["fields"]
    first, again, other = (evaluate(sees(some), some, JUDGES["fields"], seed=s) for s in (3, 3, 4))
    assert first.shuffled == again.shuffled != other.shuffled
    assert first.metrics == again.metrics


def test_conversations_without_patient_or_truth_are_refused(
    asked: dict[str, list[Conversation]],
) -> None:
    some = asked["fields"]
    with pytest.raises(ValueError, match="must say whose it is"):
        evaluate(sees(some), some, JUDGES["fields"], patient="who")
    empty = [replace(one, columns=one.columns | {"patient": None}) for one in some]
    with pytest.raises(ValueError, match=r"100 of 100 do not .*fields.jsonl:1\. Name the column"):
        evaluate(sees(some), empty, JUDGES["fields"])
    with pytest.raises(ValueError, match="two or more sets"):
        evaluate(sees(some), [], JUDGES["fields"])
    bare = [replace(one, columns={"patient": "x"}) for one in some]
    with pytest.raises(ValueError, match="must have its true fields"):
        evaluate(sees(some), bare, JUDGES["fields"])
