"""The small model that travels with the code reads hospital A, and is seen to look there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from medkit import keyed
from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation, read_conversations
from medkit.data.report_schema import NODULE
from medkit.saliency.map_scores import spheres
from medkit.synth.report_samples import FIRST
from medkit.synth.reports import make_studies
from medkit.vlm import hub, tutorial
from medkit.vlm.answers import write_answers
from medkit.vlm.attention import attention_maps
from medkit.vlm.attribution import occlusion
from medkit.vlm.constrained import FieldGrammar
from medkit.vlm.evaluation import evaluate
from medkit.vlm.judges import FieldJudge
from medkit.vlm.places import ask
from medkit.vlm.pointing import point

SAMPLE = Path(__file__).parents[2] / "data_samples" / "reports"


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    tokenizer = tutorial.tutorial_tokenizer(["a"], pieces=NODULE.pieces())
    return ChatEncoder(tokenizer, tutorial.tutorial_pictures)


@pytest.fixture(scope="module")
def model() -> Any:
    return hub.pretrained(model_id=str(SAMPLE / "model")).eval()


@pytest.fixture(scope="module")
def some() -> list[Conversation]:
    return read_conversations(SAMPLE / "fields.jsonl")


def test_its_tokenizer_is_the_tutorials(encoder: ChatEncoder, some: list[Conversation]) -> None:
    import transformers

    saved = transformers.AutoTokenizer.from_pretrained(SAMPLE / "model")
    for one in some[:5]:
        assert saved(one.answer).input_ids == encoder.tokenizer(one.answer).input_ids
    assert saved.chat_template == encoder.tokenizer.chat_template


def test_the_hubs_encoder_knows_it(encoder: ChatEncoder, some: list[Conversation]) -> None:
    own, other = (
        one.encode(some[0]) for one in (encoder, hub.encoder(model_id=str(SAMPLE / "model")))
    )
    assert own.ids.tolist() == other.ids.tolist()
    assert torch.equal(own.pictures["pixel_values"], other.pictures["pixel_values"])


def test_it_reads_hospital_a_by_looking(
    model: Any, encoder: ChatEncoder, some: list[Conversation]
) -> None:
    grammar = FieldGrammar(NODULE, encoder.tokenizer)
    how = {"max_new_tokens": grammar.longest_tokens, "processor": grammar.processor}
    found = evaluate(partial(write_answers, model, encoder, **how), some, FieldJudge(NODULE))
    table = found.table()
    assert found.looks
    assert table.loc[("A", "exact"), "own"] > 0.9
    assert table.loc[("A", "exact"), "shuffled"] < 0.1
    assert table.loc[("B", "exact"), "high"] < table.loc[("A", "exact"), "low"]


def test_occlusion_of_the_side_points_at_the_nodule_and_attention_does_not(
    model: Any, encoder: ChatEncoder, some: list[Conversation]
) -> None:
    studies = make_studies(24, first=FIRST)
    kept = [n for n, study in enumerate(studies) if study.finding.nodule]
    found = [studies[n].finding for n in kept]
    centre = [(one.row, one.column, 0) for one in found]
    there = spheres(
        [one.size_mm for one in found], (64, 64, 1), spacing_mm=(4, 4, 8), centre=centre
    )  # fmt: skip
    asked = [ask(encoder, some[n], schema=NODULE) for n in kept]
    with keyed.globals_keyed(0, "init", "random"):
        unlearnt = type(model)(model.config).eval()
    games = []
    for explain in (partial(occlusion, side=12, stride=8), attention_maps):
        own, random = (explain(net, asked, fields=["side"])["side"] for net in (model, unlearnt))
        patients = [studies[n].patient for n in kept]
        games.append(point(own, there, groups=patients, random=[random]))
    assert [game.usable for game in games] == [True, False]
