from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation, Turn, read_conversations
from medkit.data.encoded import IGNORED, padded
from medkit.data.report_schema import NODULE
from medkit.synth.reports import make_studies, write_reports
from medkit.vlm.tutorial import TOKENS_PER_IMAGE, tutorial_tokenizer

STUDIES = make_studies(20)
LONG = Conversation(
    (
        Turn("system", "You read CT."),
        Turn("user", "Is there a nodule?"),
        Turn("assistant", "yes", loss=False),
        Turn("user", "Where?"),
        Turn("assistant", "in the left lung"),
    )
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tutorial_tokenizer([s.report for s in STUDIES], pieces=NODULE.pieces())


def grey(files: Any) -> Any:
    marks = ["<image>" * TOKENS_PER_IMAGE] * len(files)
    return {"pixel_values": torch.zeros(len(files), 1, 64, 64)}, marks


def learnt(tokenizer: Any, encoded: Any) -> str:
    text: str = tokenizer.decode(encoded.labels[encoded.labels != IGNORED])
    return text


def test_only_the_answer_and_its_end_are_learnt(tokenizer: Any) -> None:
    encoded = ChatEncoder(tokenizer).encode(LONG)
    assert learnt(tokenizer, encoded) == "in the left lung<eos>"
    said = "<bos><system>You read CT.<user>Is there a nodule?<assistant>yes<eos>"
    assert tokenizer.decode(encoded.ids).startswith(said)
    kept = encoded.labels != IGNORED
    assert torch.equal(encoded.labels[kept], encoded.ids[kept])


def test_another_answer_stands_in_its_place(tokenizer: Any) -> None:
    encoder = ChatEncoder(tokenizer)
    assert learnt(tokenizer, encoder.encode(LONG, "nowhere")) == "nowhere<eos>"
    prompt = encoder.prompt(LONG)
    assert torch.equal(encoder.encode(LONG).ids[: len(prompt.ids)], prompt.ids)
    assert tokenizer.decode(prompt.ids).endswith("Where?<assistant>")


def test_fields_are_a_token_a_piece(tokenizer: Any, tmp_path: Path) -> None:
    encoder = ChatEncoder(tokenizer, grey)
    for one in read_conversations(write_reports(tmp_path, STUDIES)):
        encoded = encoder.encode(one)
        kept = (encoded.labels != IGNORED).sum()
        assert kept == (2 if one.columns["fields"] == {"nodule": False} else 9)
        assert learnt(tokenizer, encoded) == one.answer + "<eos>"
        seen = int((encoded.ids == tokenizer.convert_tokens_to_ids("<image>")).sum())
        assert seen == TOKENS_PER_IMAGE


def test_a_batch_is_filled_up_on_the_right(tokenizer: Any, tmp_path: Path) -> None:
    encoder = ChatEncoder(tokenizer, grey)
    some = [encoder.encode(one) for one in read_conversations(write_reports(tmp_path, STUDIES))]
    batch = padded(some, tokenizer.pad_token_id)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert batch["pixel_values"].shape == (20, 1, 64, 64)
    for row, one in enumerate(some):
        there = batch["attention_mask"][row].bool()
        assert torch.equal(batch["input_ids"][row][there], one.ids)
        assert (batch["labels"][row][~there] == IGNORED).all()


def test_a_template_that_rewrites_what_was_said_is_found_out(tokenizer: Any) -> None:
    other = tutorial_tokenizer(["a b"])
    other.chat_template = "{{ messages|length }}" + other.chat_template
    with pytest.raises(ValueError, match="must write a turn alike whatever follows it"):
        ChatEncoder(other).encode(LONG)


def test_a_mark_without_a_picture_is_refused(tokenizer: Any) -> None:
    turns = (Turn("user", "<image>Left:<image>?"), Turn("assistant", "no"))
    with pytest.raises(ValueError, match=r"this one has 1 and 2. Write a mark where"):
        ChatEncoder(tokenizer, grey).encode(Conversation(turns, ("one.png",)))


def test_an_answer_ends_where_the_template_ends_none(tokenizer: Any) -> None:
    other = tutorial_tokenizer(["a b"])
    other.chat_template = other.chat_template.replace("<eos>", " ")
    encoder = ChatEncoder(other)
    assert learnt(other, encoder.encode(LONG)) == "in the left lung<eos>"
    other.eos_token = None
    with pytest.raises(ValueError, match=r"needs a token that ends it.*Set tokenizer.eos_token"):
        ChatEncoder(other)


def test_what_cannot_be_encoded_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    bare = tutorial_tokenizer(["a b"])
    bare.chat_template = None
    with pytest.raises(ValueError, match=r"fast tokenizer with a chat template.*Set"):
        ChatEncoder(bare)
    (one, *_) = read_conversations(write_reports(tmp_path, STUDIES))
    with pytest.raises(ValueError, match="has 1 pictures, and the encoder sees none"):
        ChatEncoder(tokenizer).encode(one)
