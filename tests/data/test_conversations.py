from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medkit.data.conversations import read_conversations, read_report_table, write_conversations
from medkit.synth.reports import make_studies, write_reports

GOOD: dict[str, Any] = {
    "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
}


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "some.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    return path


def test_what_the_kit_writes_is_read_and_written_again_the_same(tmp_path: Path) -> None:
    studies = make_studies(6, slices=2)
    found = read_conversations(write_reports(tmp_path, studies))
    assert [one.answer for one in found] == [study.fields_json for study in studies]
    assert [one.rejected for one in found] == [study.rejected for study in studies]
    assert found[0].columns["patient"] == found[1].columns["patient"]
    assert all(len(one.images) == 2 for one in found)
    write_conversations(tmp_path / "again.jsonl", found)
    assert read_conversations(tmp_path / "again.jsonl") == found


def test_turns_system_and_loss_are_kept(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "You read CT."},
        {"role": "user", "content": "Is there a nodule?"},
        {"role": "assistant", "content": "yes", "loss": False},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "left"},
    ]
    (one,) = read_conversations(written(tmp_path, {"messages": messages}, ""))
    assert [turn.loss for turn in one.turns] == [True, True, False, True, True]
    assert (one.answer, len(one.asked)) == ("left", 4)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"some.jsonl:2 must be JSON"),
        ("uid,findings", r"some.jsonl:2 must be JSON.*a CSV is read by read_report_table"),
        (
            {"messages": [GOOD["messages"][0], {"role": "assistant", "content": " "}]},
            r"some.jsonl:2: what the assistant says must not be empty.*found ' '.*\"loss\": false",
        ),
        ([1], "must be an object with a list called messages"),
        ({"messages": []}, "must end with what the assistant says"),
        ({"messages": GOOD["messages"][:1]}, "must end with what the assistant says"),
        ({"messages": [{"role": "doctor", "content": "?"}]}, "role of .*found .*doctor"),
        ({"messages": [*GOOD["messages"], *GOOD["messages"][1:]]}, "must take turns"),
        ({"messages": [GOOD["messages"][0], {"role": "system", "content": ""}]}, "must take turns"),
        ({**GOOD, "rejected_response": "!"}, "not the answer itself"),
        (
            {"messages": [{"role": "user", "content": "<image>"}, GOOD["messages"][1]]},
            r"as many images as <image> marks; found 0 and 1",
        ),
    ],
)
def test_a_line_that_is_none_is_named_with_what_is_wrong(
    tmp_path: Path, line: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        read_conversations(written(tmp_path, GOOD, line))


def test_an_empty_answer_that_is_not_learnt_is_kept(tmp_path: Path) -> None:
    silent = {"role": "assistant", "content": "", "loss": False}
    (one,) = read_conversations(written(tmp_path, {"messages": [GOOD["messages"][0], silent]}))
    assert one.answer == ""


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    line = {"messages": [{"role": "user", "content": "<image>"}, GOOD["messages"][1]]}
    with pytest.raises(FileNotFoundError, match=r"gone.png must be a picture"):
        read_conversations(written(tmp_path, line | {"images": ["gone.png"]}))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is empty"):
        read_conversations(written(tmp_path, ""))


def test_a_table_of_reports_becomes_conversations(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"")
    path = tmp_path / "reports.csv"
    path.write_text(
        "uid,findings,impression,files\n1,Clear.,Normal.,a.png;b.png\n2,,,a.png\n3,,Normal.,b.png\n"
    )
    first, third = read_report_table(path, images="files")
    assert (first.answer, third.answer) == ("Clear. Normal.", "Normal.")
    assert first.turns[0].content == "<image><image>Describe the findings."
    assert [Path(name).name for name in first.images] == ["a.png", "b.png"]
    assert third.columns == {"uid": "3"}
    path.write_text(path.read_text().replace("Normal.,b.png", "Normal.,"))
    with pytest.raises(ValueError, match=r"'files' .* 1 of 2 rows, .* header: 3\. .*images=None"):
        read_report_table(path, images="files")
    assert [one.images for one in read_report_table(path)] == [(), ()]
    with pytest.raises(ValueError, match=r"\['text'\] are not among.*answer="):
        read_report_table(path, answer=["text"])
    with pytest.raises(ValueError, match="has none"):
        read_report_table(written(tmp_path, "findings,impression", ","))
