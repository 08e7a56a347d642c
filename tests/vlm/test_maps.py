"""Attention, gradients and occlusion of a field, on each family's own grid."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="the extra vlm is not installed")

import tokenizers

from medkit import keyed
from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation, read_conversations
from medkit.data.encoded import Encoded
from medkit.data.report_schema import NODULE
from medkit.synth.reports import make_studies, write_reports
from medkit.vlm import attribution, hub
from medkit.vlm.attention import attention_maps, eager
from medkit.vlm.places import Asked, Pixels, ask, token_grids
from medkit.vlm.tutorial import tutorial_model, tutorial_pictures, tutorial_tokenizer
from tests.vlm.checkpoints import checkpoint
from tests.vlm.families import EACH, QUICK, SLOW, qwen2_5_vl
from tests.vlm.test_packing import picture, tokens

PLACED = [one for one in EACH if one.id not in ("blip2", "llava_onevision")]


def built(build: Any) -> Any:
    torch.manual_seed(0)
    return build().eval()


def asked_of(model: Any, given: dict[str, Tensor] | None = None) -> Asked:
    """A question with one picture and an answer of two fields, the second of two tokens."""
    kind, draw = type(model).__name__, torch.Generator().manual_seed(1)
    pictures = given or picture(kind, draw, torch.float32)
    ids = torch.cat([torch.tensor([8, 9]), torch.full((tokens(kind),), 3), torch.arange(10, 16)])
    blank = {k: torch.full_like(v, -1.0) if k == "pixel_values" else v for k, v in pictures.items()}
    last = len(ids) - 1
    fields = {"one": (last - 3,), "two": (last - 2, last - 1)}
    return Asked(encoded(model, ids, pictures), fields, {"one": "1", "two": "2"}, blank)


def encoded(model: Any, ids: Tensor, pictures: Mapping[str, Tensor]) -> Encoded:
    kinds = {"mm_token_type_ids": 3} if "Qwen" in type(model).__name__ else {}
    return Encoded(ids, ids, pictures, kinds)


def patch_changed(model: Any, asked: Asked, row: int, column: int, cells: int) -> dict[str, Tensor]:
    """The same pictures with one cell of a ``cells`` x ``cells`` grid made bright."""
    pixels = Pixels(asked.encoded.pictures, 2 if "Qwen" in type(model).__name__ else 1)
    step = pixels.sides[0] // cells
    part = slice(row * step, (row + 1) * step), slice(column * step, (column + 1) * step)
    values = asked.encoded.pictures["pixel_values"]
    changed = torch.where(pixels.mask(0, *part), values + 5.0, values)
    return {**asked.encoded.pictures, "pixel_values": changed}


@pytest.mark.parametrize("build", PLACED)
def test_attention_is_that_of_the_place_a_token_is_predicted_from(build: Any) -> None:
    model = built(build)
    asked = asked_of(model)
    found = attention_maps(model, [asked], layers=[0])["two"]
    at, (rows, columns) = token_grids(model, asked)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**asked.inputs(model), output_attentions=True, use_cache=False)
    places = [p - 1 for p in asked.tokens["two"]]
    by_hand = output.attentions[0][0].mean(0)[places].mean(0)[at[0]].view(rows, columns)
    assert torch.equal(found.values[0, :, :, 0], by_hand)
    assert rows * columns == tokens(type(model).__name__)


@pytest.mark.parametrize("build", PLACED)
def test_a_cell_of_the_grid_is_that_part_of_the_picture(build: Any) -> None:
    model = built(build)
    asked = asked_of(model)
    at, (rows, columns) = token_grids(model, asked)

    def seen(of: Asked) -> Tensor:
        kept: list[Tensor] = []
        text = model.get_decoder()
        hook = text.register_forward_pre_hook(
            lambda _, args, given: kept.append(given["inputs_embeds"][0]), with_kwargs=True
        )
        with torch.no_grad():
            model(**of.inputs(model), use_cache=False)
        hook.remove()
        return kept[0][at[0]]

    for row, column in ((0, 1), (1, 0)):
        moved = asked_of(model, patch_changed(model, asked, row, column, rows))
        change = (seen(moved) - seen(asked)).norm(dim=1).view(rows, columns)
        assert divmod(int(change.argmax()), columns) == (row, column)


@pytest.mark.parametrize("build", PLACED[:1])
def test_implementations_of_attention_are_put_back_even_after_an_error(build: Any) -> None:
    model = built(build)
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "eager"})
    names = ("", "text_config", "vision_config")

    def now() -> list[str]:
        parts = [getattr(model.config, name) if name else model.config for name in names]
        return [part._attn_implementation for part in parts]

    before = now()
    assert len(set(before)) == 2
    inside: list[str] = []

    def fails() -> None:
        with eager(model):
            inside.extend(now())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert set(inside) == {"eager"}
    assert now() == before


def test_a_model_that_returns_no_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(QUICK["llava"])
    for nothing in (None, (), (None, None)):
        answer = SimpleNamespace(attentions=nothing)
        monkeypatch.setattr(model, "forward", lambda answer=answer, **_: answer)
        with pytest.raises(RuntimeError, match="must return the attention of each layer"):
            attention_maps(model, [asked_of(model)])


@pytest.mark.parametrize("name", ["blip2", "llava_onevision"])
def test_image_tokens_without_a_place_are_refused_with_the_reason(name: str) -> None:
    model = built((QUICK | SLOW)[name])
    with pytest.raises(ValueError, match="must stand for a place in the picture"):
        attention_maps(model, [asked_of(model)])


def test_tokens_that_are_no_grid_are_refused() -> None:
    model = built(QUICK["llava"])
    asked = asked_of(model)
    ids = torch.cat([asked.encoded.ids, torch.tensor([3])])  # a class token, say
    more = Asked(encoded(model, ids, asked.encoded.pictures), asked.tokens, asked.said, asked.blank)
    with pytest.raises(ValueError, match="must be a grid over the picture; found 17"):
        token_grids(model, more)


@pytest.mark.parametrize("build", EACH)
def test_shares_add_up_to_what_the_pictures_change(build: Any) -> None:
    model = built(build)
    asked = asked_of(model)
    found = attribution.integrated_gradients(model, [asked], steps=64, cell=2)
    black = Asked(encoded(model, asked.encoded.ids, asked.blank), asked.tokens, {})
    for name, places in asked.tokens.items():
        with torch.no_grad():
            said = [model(**one.inputs(model)).logits[0].log_softmax(-1) for one in (asked, black)]
        ids = asked.encoded.ids
        change = sum(float(said[0][p - 1, ids[p]] - said[1][p - 1, ids[p]]) for p in places)
        one = found[name]
        assert float(one.values.sum()) - change == pytest.approx(float(one.delta), abs=1e-4)  # type: ignore[arg-type]
        assert float(one.residual()) < 0.02


def test_squares_of_a_model_that_is_given_patches_are_counted_in_patches() -> None:
    model = built(qwen2_5_vl)
    asked = asked_of(model)
    with pytest.raises(ValueError, match=r"<= 4 \[patches.* got side=8.* Pass side=2, stride=1"):
        attribution.occlusion(model, [asked])
    assert attribution.occlusion(model, [asked], side=2, stride=1)["two"].values.shape[1] == 4


@pytest.mark.parametrize("build", EACH)
def test_occlusion_is_the_loss_by_the_squares_that_cover_a_place(build: Any) -> None:
    model = built(build)
    asked = asked_of(model)
    pixels = Pixels(asked.encoded.pictures, 2 if "Qwen" in type(model).__name__ else 1)
    side = pixels.sides[0] // 2
    found = attribution.occlusion(model, [asked], side=side, stride=side)["two"].values[0, ..., 0]
    mask = pixels.mask(0, slice(side, None), slice(0, side))  # below on the left
    values = asked.encoded.pictures["pixel_values"]
    holed = {
        **asked.encoded.pictures,
        "pixel_values": torch.where(mask, asked.blank["pixel_values"], values),
    }
    ids = asked.encoded.ids
    with torch.no_grad():
        whole, less = (
            model(**one.inputs(model)).logits[0].log_softmax(-1)
            for one in (asked, asked_of(model, holed))
        )
    lost = sum(float(whole[p - 1, ids[p]] - less[p - 1, ids[p]]) for p in asked.tokens["two"])
    assert torch.allclose(found[side:, :side], torch.tensor(lost).float(), atol=1e-5)
    assert not torch.allclose(found[:side, :side], torch.tensor(lost).float(), atol=1e-5)


# ---- the tutorial model -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(tutorial_tokenizer(["a b"], pieces=NODULE.pieces()), tutorial_pictures)


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    studies = [one for one in make_studies(8, seed=2, slices=3) if one.finding.nodule]
    return read_conversations(write_reports(tmp_path_factory.mktemp("reports"), studies))


@pytest.fixture(scope="module")
def model(encoder: ChatEncoder) -> Any:
    with keyed.globals_keyed(0, "init", "fit"):
        return tutorial_model(vocabulary=len(encoder.tokenizer), hidden=32, layers=1).eval()


def test_the_tokens_of_a_field_are_those_that_say_its_value(
    encoder: ChatEncoder, some: list[Conversation]
) -> None:
    found = ask(encoder, some[0], schema=NODULE)
    true = some[0].columns["fields"]
    for name, places in found.tokens.items():
        text = encoder.tokenizer.decode(found.encoded.ids[list(places)])
        assert found.said[name] in text
        others = [str(value) for key, value in true.items() if key != name]
        assert not any(f'"{value}"' in text for value in others)
    assert set(found.tokens) == set(NODULE.names)


def test_any_tokenizer_finds_its_own_pieces_of_a_value(some: list[Conversation]) -> None:
    letters = ChatEncoder(tutorial_tokenizer(["x"]), tutorial_pictures)  # a token a letter
    found = ask(letters, some[0], schema=NODULE)
    side = some[0].columns["fields"]["side"]
    ids = found.encoded.ids[list(found.tokens["side"])]
    assert letters.tokenizer.decode(ids) == f'"{side}"'
    whole = ask(letters, some[0], "Quite normal.")
    assert letters.tokenizer.decode(whole.encoded.ids[list(whole.tokens["answer"])]) == (
        "Quite normal."
    )


def test_a_tokenizer_that_changes_what_is_said_is_refused(some: list[Conversation]) -> None:
    tokenizer = tutorial_tokenizer(["x"])
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    with pytest.raises(ValueError, match="tokens must spell it"):
        ask(ChatEncoder(tokenizer, tutorial_pictures), some[0], "A Nodule.")


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm", "llava"])
def test_a_real_familys_template_and_processor_are_followed(
    name: str, some: list[Conversation], tmp_path: Path
) -> None:
    folder = str(checkpoint(name, tmp_path))
    encoder, own = hub.encoder(model_id=folder), hub.pretrained(model_id=folder)
    asked = [ask(encoder, one, schema=NODULE) for one in some[:2]]
    for one, conversation in zip(asked, some, strict=False):
        for field, value in conversation.columns["fields"].items():
            text = encoder.tokenizer.decode(one.encoded.ids[list(one.tokens[field])])
            assert text == json.dumps(value)
    maps = attention_maps(own, asked, fields=["side"])["side"]
    assert (maps.values > 0).all()
    shares = attribution.integrated_gradients(own, asked, fields=["side"], steps=2, most_steps=2)
    assert (shares["side"].values != 0).any()


def test_an_answer_that_is_not_of_the_schema_is_refused(
    encoder: ChatEncoder, some: list[Conversation]
) -> None:
    with pytest.raises(ValueError, match="an answer of the schema"):
        ask(encoder, some[0], "not JSON", schema=NODULE)


def test_each_slice_has_a_map_and_the_model_is_left_as_it_was(
    model: Any, encoder: ChatEncoder, some: list[Conversation]
) -> None:
    asked = [ask(encoder, one, schema=NODULE) for one in some[:3]]
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention = attention_maps(model, asked, fields=["side"])["side"]
    shares = attribution.integrated_gradients(model, asked, fields=["side"], steps=4)["side"]
    lost = attribution.occlusion(model, asked, fields=["side"], side=32, stride=32)["side"]
    assert attention.values.shape == (3, 4, 4, 3)
    assert shares.values.shape == (3, 16, 16, 3)
    assert lost.values.shape == (3, 64, 64, 3)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    model.eval()


@pytest.mark.gpu
def test_maps_are_the_same_on_an_accelerator(
    model: Any, encoder: ChatEncoder, some: list[Conversation]
) -> None:
    device = torch.accelerator.current_accelerator()
    asked = [ask(encoder, one, schema=NODULE) for one in some[:2]]
    there = copy.deepcopy(model).to(device)
    for explain in (attention_maps, attribution.integrated_gradients, attribution.occlusion):
        here, other = (explain(net, asked, fields=["zone"])["zone"] for net in (model, there))
        assert other.values.device.type == "cpu"
        torch.testing.assert_close(other.values, here.values, rtol=1e-3, atol=1e-4)


def test_answers_without_a_field_are_refused(
    model: Any, encoder: ChatEncoder, some: list[Conversation]
) -> None:
    clear = [
        ask(encoder, some[0], schema=NODULE),
        ask(encoder, some[1], '{"nodule":false}', schema=NODULE),
    ]
    assert list(attention_maps(model, clear)) == ["nodule"]
    with pytest.raises(ValueError, match="every answer must have the fields"):
        attention_maps(model, clear, fields=["side"])
    for wrong in ({"steps": 0}, {"cell": 0}, {"tolerance": 0}):
        with pytest.raises(ValueError, match="steps must be from 1 to most_steps"):
            attribution.integrated_gradients(model, clear, **wrong)
    with pytest.raises(ValueError, match=r"\[pixels\]; got side=4, stride=5\. Pass side=8, str"):
        attribution.occlusion(model, clear, side=4, stride=5)
    bare = Asked(clear[0].encoded, clear[0].tokens, clear[0].said)
    with pytest.raises(ValueError, match="held against black ones"):
        attribution.occlusion(model, [bare])
