from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from medkit import keyed
from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation, Turn, read_conversations
from medkit.data.report_schema import NODULE
from medkit.synth.reports import make_studies, write_reports
from medkit.vlm.answers import looked, score_fields, swapped, write_answers
from medkit.vlm.constrained import FieldGrammar
from medkit.vlm.tutorial import tutorial_model, tutorial_pictures, tutorial_tokenizer

STUDIES = make_studies(200, seed=1)
TRUE = [study.fields for study in STUDIES]
TEXTS = [study.fields_json for study in STUDIES]
PATIENT = [study.patient for study in STUDIES]


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    return read_conversations(write_reports(tmp_path_factory.mktemp("reports"), STUDIES[:12]))


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(tutorial_tokenizer(["a b"], pieces=NODULE.pieces()), tutorial_pictures)


@pytest.fixture(scope="module")
def model(encoder: ChatEncoder) -> Any:
    with keyed.globals_keyed(0, "init", "fit"):
        return tutorial_model(vocabulary=len(encoder.tokenizer), hidden=32, layers=1)


def written(model: Any, encoder: ChatEncoder, some: list[Conversation], **more: Any) -> list[str]:
    grammar = FieldGrammar(NODULE, encoder.tokenizer)
    settings = {"max_new_tokens": grammar.longest_tokens, "processor": grammar.processor}
    return write_answers(model, encoder, some, **settings | more)


def test_answers_are_the_same_whatever_the_batch(
    model: Any, encoder: ChatEncoder, some: list[Conversation]
) -> None:
    longer = [
        Conversation((Turn("system", "a b a b"), *one.turns), one.images, columns=one.columns)
        for one in some[::2]
    ]
    mixed = [pair for both in zip(some[::2], longer, strict=True) for pair in both]
    whole = written(model, encoder, mixed)
    assert written(model, encoder, mixed, batch_size=1) == whole
    assert all(NODULE.parse(text) is not None for text in whole)


def test_draws_are_keyed_and_the_mode_is_as_before(
    model: Any, encoder: ChatEncoder, some: list[Conversation]
) -> None:
    model.train()
    first = written(model, encoder, some, temperature=3.0, seed=4)
    torch.manual_seed(9)
    assert written(model, encoder, some, temperature=3.0, seed=4) == first
    assert written(model, encoder, some, temperature=3.0, seed=5) != first
    assert model.training


def test_pictures_are_dealt_to_others_and_to_nobody_their_own(some: list[Conversation]) -> None:
    other = swapped(some, seed=3)
    assert all(a.images != b.images for a, b in zip(some, other, strict=True))
    assert sorted(one.images for one in other) == sorted(one.images for one in some)
    assert [one.columns for one in other] == [one.columns for one in some]
    assert swapped(some, seed=3) == other != swapped(some, seed=4)
    with pytest.raises(ValueError, match="dealt anew among two or more"):
        swapped(some[:1])


def test_scores_are_counted_by_hand() -> None:
    texts = list(TEXTS)
    texts[0] = "not JSON"
    wrong = next(n for n, one in enumerate(TRUE) if n and one["nodule"])
    texts[wrong] = '{"nodule":false}'
    found = score_fields(NODULE, texts, TRUE, patient=PATIENT).metrics()
    there = sum(one["nodule"] for one in TRUE)
    assert found["valid"].value == pytest.approx(199 / 200)
    assert found["exact"].value == pytest.approx(198 / 200)
    assert found["missed"].value == pytest.approx((1 + TRUE[0]["nodule"]) / there)
    assert found["invented"].value == 0
    assert found["side"].n == there
    assert "over 100 patients" in found["nodule"].method
    assert found["exact"].low < found["exact"].value < found["exact"].high  # type: ignore[operator]


def test_a_model_that_looks_is_told_from_one_that_does_not() -> None:
    own = score_fields(NODULE, TEXTS, TRUE, patient=PATIENT)
    dealt = score_fields(NODULE, TEXTS[1:] + TEXTS[:1], TRUE, patient=PATIENT)
    sees = looked(own, dealt)
    assert sees.low is not None
    assert sees.low > 0.3
    constant = [max(set(TEXTS), key=TEXTS.count)] * len(TEXTS)
    blind = score_fields(NODULE, constant, TRUE, patient=PATIENT)
    assert looked(blind, blind).value == 0
    guess = np.random.default_rng(0).permutation(len(TEXTS)).tolist()
    drawn = score_fields(NODULE, [TEXTS[g] for g in guess], TRUE, patient=PATIENT)
    never = looked(drawn, dealt)
    assert never.low is not None
    assert never.low < 0 < sees.low


def test_answers_without_truth_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each answer needs its true fields"):
        score_fields(NODULE, TEXTS, TRUE[:3])
    there = next(one for one in TRUE if one["nodule"])
    with pytest.raises(ValueError, match=r"row 1 has side='Left', where one of .*pass the schema"):
        score_fields(NODULE, TEXTS[:2], [there, {**there, "side": "Left"}])
