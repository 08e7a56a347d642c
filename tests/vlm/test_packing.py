from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medkit.data.chat import IGNORED, Encoded
from medkit.data.packing import packed, plan_packs
from medkit.vlm.packs import packing_error, positions_of, require_exact_packing
from tests.vlm.families import EACH, QUICK, SLOW, llava, paligemma

Build = Callable[[], Any]
CAUSAL = [one for one in EACH if one.id != "paligemma"]
DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-12)]


def conversations(model: Any, dtype: torch.dtype = torch.float32) -> list[Encoded]:
    """Conversations of different lengths, most of them with a picture."""
    draw, kind, out = torch.Generator().manual_seed(0), type(model).__name__, []
    for number in range(5):
        ids = torch.randint(8, 64, (5 + 3 * number,), generator=draw)
        pictures: dict[str, Tensor] = {}
        if number % 2 == 0 or "Blip2" in kind:  # which cannot do without
            pictures = picture(kind, draw, dtype)
            image = torch.full((tokens(kind),), 3)
            ids = torch.cat([ids[:2], image, ids[2:]])
        labels = ids.clone()
        labels[:3] = IGNORED
        out.append(Encoded(ids, labels, pictures))
    return out


def tokens(kind: str) -> int:
    if "Onevision" in kind:
        return 36  # the picture as a whole, and its one tile with the ends of its lines
    return 16 if kind.startswith(("LlavaFor", "PaliGemma")) else 4


def picture(kind: str, draw: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    if "Qwen" in kind:
        flat = torch.randn(16, 3 * 2 * 8 * 8, generator=draw).to(dtype)
        return {"pixel_values": flat, "image_grid_thw": torch.tensor([[1, 4, 4]])}
    one = torch.randn(1, 3, 32, 32, generator=draw).to(dtype)
    if "Onevision" in kind:
        return {"pixel_values": torch.stack([one, one], 1), "image_sizes": torch.tensor([[32, 32]])}
    return {"pixel_values": one[None] if "SmolVLM" in kind or "Idefics3" in kind else one}


def made(build: Build, dtype: torch.dtype) -> tuple[Any, list[Encoded]]:
    torch.manual_seed(0)
    model = build().eval().to(dtype)
    return model, conversations(model, dtype)


@pytest.mark.parametrize("build", CAUSAL)
@pytest.mark.parametrize(("dtype", "most"), DTYPES, ids=["float32", "float64"])
def test_packed_conversations_are_what_they_are_alone(
    build: Build, dtype: torch.dtype, most: float
) -> None:
    model, some = made(build, dtype)
    assert require_exact_packing(model, some) <= most
    batch = packed([some], pad=0, longest=200, positions=positions_of(model))
    assert packing_error(model, some, batch) <= most  # with padding behind


@pytest.mark.parametrize("build", CAUSAL)
def test_the_ways_to_leak_are_found(build: Build) -> None:
    model, some = made(build, torch.float64)
    length = sum(len(one.ids) for one in some)
    good = packed([some], pad=0, longest=length, positions=positions_of(model))
    ones = good | {"attention_mask": torch.ones(1, length, dtype=torch.int64)}
    segments = good | {"attention_mask": good["segment"] + 1}
    cached = {name: value for name, value in good.items() if name != "attention_mask"}
    for leak in (ones, segments, cached | {"use_cache": True}):  # type: ignore[dict-item]
        assert packing_error(model, some, leak) > 1e-4


def test_a_model_that_looks_in_both_directions_is_refused() -> None:
    model, some = made(paligemma, torch.float32)
    with pytest.raises(ValueError, match=r"must be what they are alone.*sorted by length"):
        require_exact_packing(model, some)


def test_all_nine_families_are_tried() -> None:
    assert len(QUICK | SLOW) == 9


def test_gradients_are_those_of_the_conversations_alone() -> None:
    model, some = made(llava, torch.float64)

    def gradient(batches: list[dict[str, Tensor]]) -> Tensor:
        model.zero_grad()
        for batch in batches:
            labels = batch["labels"][:, 1:]
            given = {k: v for k, v in batch.items() if k not in ("labels", "segment")}
            logits = model(**given).logits[:, :-1]
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            ).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = gradient([packed([some[:3], some[3:]], pad=0, longest=90)])
    parts = gradient([packed([[one]], pad=0, longest=len(one.ids)) for one in some])
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-11)


def test_the_first_token_of_a_conversation_is_not_learnt_from_another() -> None:
    ids = torch.tensor([5, 6, 7])
    batch = packed([[Encoded(ids, ids), Encoded(ids, ids)]], pad=0, longest=8)
    none = IGNORED
    assert batch["labels"].tolist() == [[none, 6, 7, none, 6, 7, none, none]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 0]]
    assert batch["segment"].tolist() == [[0, 0, 0, 1, 1, 1, -1, -1]]
    may = batch["attention_mask"][0, 0]
    assert may[4].tolist() == [False, False, False, True, True, False, False, False]
    assert may[7].tolist() == [False] * 7 + [True]


def test_heavy_tails_are_packed_and_equal_lengths_are_not() -> None:
    draw = np.random.default_rng(0)
    heavy = np.clip(draw.lognormal(4, 0.8, 2000).astype(int), 8, 512)
    plan = plan_packs(heavy, longest=512)
    assert sorted(row for pack in plan.packs for row in pack) == list(range(2000))
    assert all(sum(heavy[row] for row in pack) <= 512 for pack in plan.packs)
    assert plan.efficiency >= 0.95
    assert plan.waste > 0.5 > plan.sorted_waste
    assert plan.worth_it
    assert "pack" in str(plan)
    even = plan_packs(np.full(200, 60) + draw.integers(0, 5, 200), longest=512)
    assert not even.worth_it
    assert "do not pack" in str(even)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 to 8 tokens are packed.*found up to 9"):
        plan_packs([3, 9], longest=8)
    with pytest.raises(ValueError, match="found none"):
        plan_packs([], longest=8)
    ids = torch.arange(5)
    with pytest.raises(ValueError, match="a row holds 8 tokens, and pack 0 has more"):
        packed([[Encoded(ids, ids), Encoded(ids, ids)]], pad=0, longest=8)
