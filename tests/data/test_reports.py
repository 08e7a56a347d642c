from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation, Turn, read_conversations, read_report_table
from medkit.data.report_schema import NODULE
from medkit.data.reports import ReportDataModule, ReportDataset
from medkit.synth.reports import make_studies, write_reports
from medkit.trainer import keyed
from medkit.vlm.tutorial import tutorial_pictures, tutorial_tokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    both = [*make_studies(80), *make_studies(40, site="B")]
    return write_reports(tmp_path_factory.mktemp("reports"), both)


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(tutorial_tokenizer(["a"], pieces=NODULE.pieces()), tutorial_pictures)


def made(path: Any, encoder: ChatEncoder, **settings: Any) -> ReportDataModule:
    dm = ReportDataModule(path, encoder, batch_size=8, **settings)
    dm.setup()
    return dm


def test_no_patient_is_on_two_sides(path: Path, encoder: ChatEncoder) -> None:
    dm = made(path, encoder)
    sides = [
        {dm.conversations[row].columns["patient"] for row in dm.rows(part)}
        for part in ("train", "val", "test")
    ]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60
    assert sum(len(dm.rows(part)) for part in ("train", "val", "test")) == 120


def test_a_hospital_is_kept_for_the_test(path: Path, encoder: ChatEncoder) -> None:
    dm = made(path, encoder, test_site="B")
    assert {dm.conversations[row].columns["site"] for row in dm.rows("test")} == {"B"}
    assert {dm.conversations[row].columns["site"] for row in dm.rows("train")} == {"A"}
    with pytest.raises(ValueError, match="test_site must be one of"):
        made(path, encoder, test_site="C")


def test_a_batch_says_whose_rows_it_has(path: Path, encoder: ChatEncoder) -> None:
    dm = made(path, encoder)
    batch = next(iter(dm.val_dataloader()))
    assert batch["row"].tolist() == dm.rows("val")[:8]
    assert [dm.sites[site] for site in batch["site"]] == [
        dm.conversations[row].columns["site"] for row in batch["row"].tolist()
    ]
    assert batch["pixel_values"].shape == (8, 1, 64, 64)
    assert batch["input_ids"].shape == batch["labels"].shape


def test_the_order_is_keyed(path: Path, encoder: ChatEncoder) -> None:
    def rows(seed: int) -> list[int]:
        dm = keyed(ReportDataModule(path, encoder, batch_size=8), seed=seed)
        dm.setup()
        return [row for batch in dm.train_dataloader() for row in batch["row"].tolist()]

    torch.manual_seed(1)
    first = rows(3)
    torch.manual_seed(2)
    assert rows(3) == first != rows(4)


def test_a_conversation_without_patient_is_refused(path: Path, encoder: ChatEncoder) -> None:
    some = read_conversations(path)[:6]
    bare = Conversation((Turn("user", "?"), Turn("assistant", "!")))
    with pytest.raises(ValueError, match=r"1 of 7 do not .*, the first is row 6, counted from 0"):
        made([*some, bare], encoder)
    assert len(made([*some, bare], encoder, patient=None).conversations) == 7
    with pytest.raises(RuntimeError, match=r"after dm\.setup"):
        _ = ReportDataModule(path, encoder).conversations


def test_an_empty_patient_is_refused_as_one_that_is_not_there(
    tmp_path: Path, encoder: ChatEncoder
) -> None:
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "1"}]
    lines = [{"messages": said, "patient": whose} for whose in ("a", "b", None, "", float("nan"))]
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=r"3 of 5 do not .*some.jsonl:3\. .*pass None where"):
        made(file, encoder)
    table = tmp_path / "some.csv"
    table.write_text("patient,findings,impression\na,Clear.,\n,Clear.,\n")
    with pytest.raises(ValueError, match=r"1 of 2 do not .*some.csv, row 2 below the header\."):
        made(read_report_table(table), encoder)


def test_the_line_of_what_is_no_picture_is_named(tmp_path: Path, encoder: ChatEncoder) -> None:
    (tmp_path / "report.csv").write_text("uid,findings\n")
    said = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "1"}]
    file = tmp_path / "some.jsonl"
    file.write_text("\n" + json.dumps({"messages": said, "images": ["report.csv"]}))
    some = read_conversations(file)
    with pytest.raises(ValueError, match=r"some.jsonl:2: .*report.csv"):
        ReportDataset(some, encoder)
    bare = Conversation(some[0].turns, some[0].images)
    with pytest.raises(ValueError, match=r"^row 0, counted from 0: .*report.csv"):
        ReportDataset([bare], encoder)


def test_the_plan_is_known_before_a_fit(path: Path, encoder: ChatEncoder) -> None:
    assert made(path, encoder).plan is None
    dm = made(path, encoder, packing="auto")
    assert dm.plan is not None
    assert f"{len(dm.rows('train'))} conversations in" in str(dm.plan)


@pytest.mark.parametrize("settings", [{}, {"packing": "by_length"}, {"pairs": True}], ids=str)
def test_rows_that_fill_no_batch_are_refused_before_a_fit(
    settings: Any, path: Path, encoder: ChatEncoder
) -> None:
    some = [replace(one, rejected="no") for one in read_conversations(path)[:9]]
    dm = made(some, encoder, patient=None, **settings)
    assert len(dm.rows("train")) == 6
    with pytest.raises(ValueError, match=r"batch.*8.* 6.* Lower batch_size"):
        dm.train_dataloader()


@pytest.mark.parametrize("settings", [{}, {"packing": True}, {"pairs": True}], ids=str)
def test_pictures_that_are_read_again_are_the_same_ones(
    settings: Any, path: Path, encoder: ChatEncoder
) -> None:
    some = [replace(one, rejected="no") for one in read_conversations(path)]
    kept = made(some, encoder, **settings)
    again = made(some, encoder, keep_pictures=False, num_workers=2, **settings)
    assert kept.dataset.encoded[0][0].pictures
    for both in again.dataset.encoded:
        assert not any(one.pictures for one in both if one is not None)
    batches = [list(keyed(dm, seed=3).train_dataloader()) for dm in (kept, again)]
    assert len(batches[0]) == len(batches[1]) > 3
    for one, other in zip(*batches, strict=True):
        alike = [one, other] if "chosen" not in one else [one["rejected"], other["rejected"]]
        assert alike[0].keys() == alike[1].keys()
        for name, value in alike[0].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(alike[1][name]))
