from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from medkit.data.encoded import IGNORED, LEARNT, Encoded, given, padded
from medkit.data.packing import ByLength, PackedBatches, packed, plan_packs
from medkit.vlm.adapters import Adapters
from medkit.vlm.packs import packed_for, packing_error, places_of, require_exact_packing
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


def alone(model: Any, some: list[Encoded]) -> Tensor:
    """Logits of each conversation in a batch of its own."""
    found = []
    for one in some:
        batch = padded([one], 0)
        if places_of(model, batch) is not None:
            batch["mm_token_type_ids"] = (batch["input_ids"] == 3).int()
        with torch.no_grad():
            found.append(model(**given(batch)).logits[0])
    return torch.cat(found)


@pytest.mark.parametrize("build", CAUSAL)
@pytest.mark.parametrize(("dtype", "most"), DTYPES, ids=["float32", "float64"])
def test_packed_conversations_are_what_they_are_alone(
    build: Build, dtype: torch.dtype, most: float
) -> None:
    model, some = made(build, dtype)
    batch = padded(some, 0)
    assert require_exact_packing(model, batch) <= most
    longest = int(batch["attention_mask"].sum(1).max()) + 9
    assert require_exact_packing(model, batch, longest=longest) <= most  # with padding behind
    together = packed_for(model, batch, longest=longest)
    assert len(together["input_ids"]) > 1
    with torch.no_grad():
        found = model(**given(together)).logits[together["segment"] >= 0]
    torch.testing.assert_close(found, alone(model, some), rtol=0, atol=most)


@pytest.mark.parametrize("build", [one for one in CAUSAL if one.id != "blip2"])
def test_without_a_mask_they_are_told_apart_by_their_places(build: Build) -> None:
    model, some = made(build, torch.float64)
    batch = padded(some, 0)
    together = packed(batch, longest=70, places=places_of(model, batch), mask=False)
    assert "attention_mask" not in together
    assert packing_error(model, batch, together) <= 1e-12


def test_a_model_that_is_not_told_its_places_leaks_without_a_mask() -> None:
    model, some = made(QUICK["blip2"], torch.float64)  # OPT counts them by itself
    batch = padded(some, 0)
    assert packing_error(model, batch, packed(batch, longest=70, mask=False)) > 1e-4


@pytest.mark.parametrize("build", CAUSAL)
def test_the_ways_to_leak_are_found(build: Build) -> None:
    model, some = made(build, torch.float64)
    batch = padded(some, 0)
    length = sum(len(one.ids) for one in some)
    good = packed_for(model, batch, longest=length)
    ones = good | {"attention_mask": torch.ones(1, length, dtype=torch.int64)}
    segments = good | {"attention_mask": good["segment"] + 1}
    cached = {name: value for name, value in good.items() if name != "attention_mask"}
    for leak in (ones, segments, cached | {"use_cache": True}):  # type: ignore[dict-item]
        assert packing_error(model, batch, leak) > 1e-4


def test_three_rows_of_places_leak_where_there_is_no_mask() -> None:
    model, some = made(QUICK["qwen2_5_vl"], torch.float64)
    batch = padded(some, 0)
    four = places_of(model, batch)
    assert four is not None
    wrong = packed(batch, longest=70, places=four[1:], mask=False)
    assert packing_error(model, batch, wrong) > 1e-4


def test_places_are_the_same_with_adapters() -> None:
    model, some = made(QUICK["qwen2_5_vl"], torch.float32)
    batch = padded(some, 0)
    before = places_of(model, batch)
    adapted = Adapters(groups=("llm",)).add_to(model)
    after = places_of(adapted, batch)
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    assert require_exact_packing(adapted, batch) <= 1e-5


def test_a_model_that_looks_in_both_directions_is_refused() -> None:
    model, some = made(paligemma, torch.float32)
    told = [replace(one, kinds={"token_type_ids": LEARNT}) for one in some]
    with pytest.raises(ValueError, match=r"must be what they are alone.*sorted by length"):
        require_exact_packing(model, padded(told, 0))


def test_all_nine_families_are_tried() -> None:
    assert len(QUICK | SLOW) == 9


def test_gradients_are_those_of_the_conversations_alone() -> None:
    model, some = made(llava, torch.float64)

    def gradient(batches: list[dict[str, Tensor]]) -> Tensor:
        model.zero_grad()
        for batch in batches:
            logits = model(**given(batch)).logits[:, :-1]
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED,
                reduction="sum",
            ).backward()  # fmt: skip
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = gradient([packed(padded(some, 0), longest=70)])
    parts = gradient([packed(padded([one], 0), longest=len(one.ids)) for one in some])
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-11)


def test_the_first_token_of_a_conversation_is_not_learnt_from_another() -> None:
    ids = torch.tensor([5, 6, 7])
    batch = packed(padded([Encoded(ids, ids), Encoded(ids, ids)], 0), longest=8)
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
    assert str(plan).endswith("pack, or sort by length, which is as fast")
    assert str(plan_packs(heavy[:60], longest=512)).endswith(": pack")
    even = plan_packs(np.full(200, 60) + draw.integers(0, 5, 200), longest=512)
    assert not even.worth_it
    assert "do not pack" in str(even)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 to 8 tokens are packed.*found up to 9"):
        plan_packs([3, 9], longest=8)
    with pytest.raises(ValueError, match="found none"):
        plan_packs([], longest=8)
    ids = torch.arange(9)
    with pytest.raises(ValueError, match=r"a row holds 8 tokens, and a conversation .* has 9"):
        packed(padded([Encoded(ids, ids)], 0), longest=8)
    with pytest.raises(ValueError, match="there must be conversations for one batch, 4; found 2"):
        ByLength([3, 4], batch_size=4)


def lognormal(count: int) -> NDArray[np.int64]:
    draw = np.random.default_rng(0)
    return np.clip(draw.lognormal(4, 0.8, count).astype(int), 8, 512)


def epochs(sampler: Sampler[list[int]]) -> list[list[list[int]]]:
    found = []
    for key in (1, 1, 2):
        torch.manual_seed(key)
        found.append(list(sampler))
    return found


def test_batches_of_whole_packs_are_a_function_of_the_epochs_key() -> None:
    lengths = lognormal(1000)
    sampler = PackedBatches(lengths, longest=512, batch_size=32)
    first, again, other = epochs(sampler)
    assert first == again != other
    assert len(first) == len(other) == len(sampler)
    for epoch in (first, other):
        used = [one for batch in epoch for one in batch]
        assert len(used) == len(set(used)) > 950
        assert all(rows_of(lengths[batch], 512) <= sampler.rows for batch in epoch)
        assert lengths[used].sum() / (len(epoch) * sampler.rows * 512) >= 0.95
    assert 24 < np.mean([len(batch) for batch in first]) < 40


def rows_of(lengths: NDArray[np.int64], longest: int) -> int:
    some = [Encoded(torch.zeros(n, dtype=torch.int64), torch.zeros(n)) for n in lengths]
    return len(packed(padded(some, 0), longest=longest)["input_ids"])


def test_batches_of_one_length_are_a_function_of_the_epochs_key() -> None:
    lengths = lognormal(1000)
    sampler = ByLength(lengths, batch_size=32)
    first, again, other = epochs(sampler)
    assert first == again != other
    assert len(first) == len(sampler) == 31
    used = [one for batch in first for one in batch]
    assert len(used) == len(set(used)) == 31 * 32
    waste = 1 - lengths[used].sum() / sum(32 * lengths[batch].max() for batch in first)
    assert waste < 0.2 < plan_packs(lengths, longest=512).waste
    longest = [lengths[batch].max() for batch in first]
    assert longest != sorted(longest)
