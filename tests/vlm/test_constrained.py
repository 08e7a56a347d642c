from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra vlm is not installed")
pytest.importorskip("llguidance", reason="the extra vlm is not installed")

from medkit import keyed
from medkit.data.report_schema import LUNG_NODULE, NODULE, ReportSchema
from medkit.synth.reports import make_studies
from medkit.vlm.constrained import FieldGrammar
from medkit.vlm.tutorial import tutorial_model, tutorial_tokenizer

TEXTS = ["There is a 7 mm nodule.", '{"nodule":true,"side":"left"}']


def answers(
    schema: ReportSchema, tokenizer: Any, rows: int, temperature: float, **settings: Any
) -> list[str]:
    """Let a model of random weights answer under the schema."""
    with keyed.globals_keyed(0, "init", "fit"):
        model: Any = tutorial_model(vocabulary=len(tokenizer), hidden=32, layers=1).eval()
        grammar = FieldGrammar(schema, tokenizer)
        ids = torch.tensor([tokenizer("<bos><user>?<assistant>")["input_ids"]]).repeat(rows, 1)
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=temperature > 0,
            temperature=temperature or None, max_new_tokens=grammar.longest_tokens,
            logits_processor=[grammar.processor()], pad_token_id=tokenizer.pad_token_id, **settings,
        )  # fmt: skip
    found: list[str] = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
    return found


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("pieces", [True, False], ids=["a token a piece", "plain tokens"])
def test_random_weights_write_what_the_schema_allows(temperature: float, pieces: bool) -> None:
    tokenizer = tutorial_tokenizer(TEXTS, pieces=NODULE.pieces() if pieces else [])
    found = answers(NODULE, tokenizer, 60, temperature)
    assert all(NODULE.parse(text) is not None for text in found)
    assert len(set(found)) > 5


def test_whole_numbers_stay_in_their_range() -> None:
    found = answers(LUNG_NODULE, tutorial_tokenizer(TEXTS), 60, 3.0)
    sizes = [
        report["size_mm"]
        for text in found
        if "size_mm" in (report := LUNG_NODULE.parse(text) or {})
    ]
    assert all(LUNG_NODULE.parse(text) is not None for text in found)
    assert len(sizes) > 5
    assert all(2 <= size <= 60 for size in sizes)


def test_beams_may_change_places() -> None:
    tokenizer = tutorial_tokenizer(TEXTS, pieces=NODULE.pieces())
    found = answers(NODULE, tokenizer, 4, 0.0, num_beams=3)
    assert all(NODULE.parse(text) is not None for text in found)


def test_a_second_call_with_one_processor_is_refused() -> None:
    tokenizer = tutorial_tokenizer(TEXTS)
    processor = FieldGrammar(NODULE, tokenizer).processor()
    scores = torch.zeros(2, len(tokenizer))
    ids = torch.zeros(2, 5, dtype=torch.int64)
    processor(ids, scores)
    with pytest.raises(ValueError, match=r"one call of generate.*Take grammar.processor\(\) anew"):
        processor(ids[:1], scores[:1])
    wrong = torch.cat([ids, torch.full((2, 1), tokenizer.eos_token_id)], dim=1)
    with pytest.raises(ValueError, match=r"row 0 went on with .* Put this one last"):
        processor(wrong, scores)


@pytest.mark.parametrize("texts", [TEXTS, ["a"]], ids=["merged", "single characters"])
def test_what_is_allowed_is_left_whole(texts: list[str]) -> None:
    """Also long tokens that begin as what must come next does."""
    tokenizer = tutorial_tokenizer(texts, pieces=NODULE.pieces())
    scores = torch.zeros(1, len(tokenizer) + 9)  # models may have more rows than the tokenizer
    left = FieldGrammar(NODULE, tokenizer).processor()(torch.zeros(1, 3, dtype=torch.int64), scores)
    allowed = {tokenizer.decode([int(token)]) for token in left.isfinite()[0].nonzero()}
    assert all('{"nodule":'.startswith(text[:10]) for text in allowed)
    assert {"{", '{"nodule":false}', '{"nodule":true,"side":'} <= allowed


def test_the_likeliest_answer_stays_where_it_is_valid() -> None:
    tokenizer = tutorial_tokenizer(["a"], pieces=NODULE.pieces())
    wanted = make_studies(9)[8].fields_json
    said = [*tokenizer(wanted)["input_ids"], tokenizer.eos_token_id]
    processor, ids = FieldGrammar(NODULE, tokenizer).processor(), torch.zeros(1, 3).long()
    for token in said:
        scores = torch.zeros(1, len(tokenizer))
        scores[0, token] = 1
        best = processor(ids, scores).argmax(1)
        assert int(best) == token
        ids = torch.cat([ids, best[None]], dim=1)


def test_what_cannot_be_enforced_is_refused() -> None:
    tokenizer = tutorial_tokenizer(TEXTS)
    with pytest.raises(ValueError, match="must be one that can be enforced token by token"):
        FieldGrammar({"type": "nothing"}, tokenizer)
    with pytest.raises(ValueError, match=r"known of a ReportSchema.*Pass max_new_tokens"):
        _ = FieldGrammar({"type": "string"}, tokenizer).longest_tokens
