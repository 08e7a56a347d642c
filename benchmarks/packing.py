"""Packed rows: equal to what is not packed, leaks found, and what they save.

Nine families at a test's size with random weights: five conversations of different lengths in rows,
against each in a batch of its own; largest difference of a logit, as a share of the largest logit
where that is above 1. Leaks: a mask of ones, a mask of segment numbers, no mask with a cache, and
for Qwen-VL three rows of places without a mask. PaliGemma looks at a question in both directions
and is refused. Speed: a Llama of 3.3 million weights, forward and backward on one thread, CPU
seconds a token that is not padding, packing included; arms in turn, medians with their 95 %
interval, bars on the interval's limit. Gradients are of all conversations, added up.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")
sys.path.append(str(Path(__file__).resolve().parent.parent))  # the families of the tests

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from report import Report
from torch import Tensor
from trainer_overhead import keep_freed_memory, median_interval

from medkit import keyed
from medkit.data.encoded import LEARNT, Encoded, given, padded
from medkit.data.packing import ByLength, PackedBatches, packed, plan_packs
from medkit.vlm.model import loss_sum
from medkit.vlm.packs import packed_for, packing_error, places_of, require_exact_packing
from tests.vlm.families import QUICK, SLOW
from tests.vlm.test_packing import alone, made

LONGEST, BATCH, VOCABULARY = 512, 16, 400
Lengths = NDArray[np.int64]
Batch = dict[str, Tensor]


def mixes(count: int) -> dict[str, Lengths]:
    """Return tokens of conversations: the findings' three mixes."""
    draw = keyed.generator(0, "lengths")
    heavy = np.clip(draw.lognormal(4.08, 0.8, count).astype(np.int64), 8, LONGEST)
    return {
        "heavy tail": heavy,
        "uniform": draw.integers(16, 257, count),
        "all about equal": draw.integers(76, 85, count),
    }


def tell_exactness(report: Report) -> None:
    """Compare logits of nine families, and plant leaks."""
    exact = {torch.float32: 0, torch.float64: 0}
    planted = found = refused = 0
    for name, build in (QUICK | SLOW).items():
        worst = {}
        for dtype, most in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            model, some = made(build, dtype)
            if name == "paligemma":
                some = [replace(one, kinds={"token_type_ids": LEARNT}) for one in some]
            batch = padded(some, 0)
            longest = int(batch["attention_mask"].sum(1).max()) + 9
            together = packed_for(model, batch, longest=longest)
            with torch.no_grad():
                rows = model(**given(together), use_cache=False).logits[together["segment"] >= 0]
            worst[dtype] = float((rows - alone(model, some)).abs().max())
            exact[dtype] += worst[dtype] <= most
        if name == "paligemma":
            try:
                require_exact_packing(model, batch)
            except ValueError:
                refused = 1
        else:
            leaks = planted_leaks(model, batch)
            planted += len(leaks)
            found += sum(error > 1e-4 for error in leaks)
        text = f"float32 {worst[torch.float32]:.1e}, float64 {worst[torch.float64]:.1e}"
        if name == "paligemma":
            report.note(f"  {name}: {text}; {'refused' if refused else 'NOT REFUSED'}")
        else:
            report.note(f"  {name}: {text}; leaks from {min(leaks):.1e}")
    report.figure("exact/families, float32 1e-5", exact[torch.float32], at_least=7)
    report.figure("exact/families, float64 1e-12", exact[torch.float64], at_least=7)
    report.share("exact/refused where it is not", refused, 1, at_least=1.0)
    report.share("leaks/found", found, planted, at_least=1.0, peers="ms-swift, TRL: no test")


def planted_leaks(model: Any, batch: Batch) -> list[float]:
    """Return the differences that leaks make."""
    length = int(batch["attention_mask"].sum())
    good = packed_for(model, batch, longest=length)
    bare: dict[str, Any] = {k: v for k, v in good.items() if k != "attention_mask"}
    leaks: list[dict[str, Any]] = [
        good | {"attention_mask": torch.ones(1, length, dtype=torch.int64)},
        good | {"attention_mask": good["segment"] + 1},
        bare | {"use_cache": True},
    ]
    four = places_of(model, batch)
    if four is not None:
        leaks.append(packed(batch, longest=length, places=four[1:], mask=False))
    return [packing_error(model, batch, leak) for leak in leaks]


def llama() -> Any:
    """A language model of 3.3 million weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LONGEST,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).train()


def conversations(lengths: Lengths) -> list[Encoded]:
    """Return random tokens, all of them learnt."""
    draw = keyed.torch_generator(0, "tokens")
    ids = [torch.randint(3, VOCABULARY, (n,), generator=draw) for n in lengths.tolist()]
    return [Encoded(one, one) for one in ids]


def loss_of(model: Any, batch: Batch, *, packs: bool) -> Tensor:
    """Return the summed loss of a batch, packed or as it is."""
    if packs:
        batch = packed_for(model, batch, longest=LONGEST)
    labels = batch["labels"]
    labels[:, 0] = -100
    return loss_sum(model(**given(batch), use_cache=False).logits, labels)[0]


def seconds_a_token(model: Any, batches: Sequence[Batch], *, packs: bool) -> float:
    """Return CPU seconds of forward and backward a token that is not padding."""
    began = time.process_time()
    for batch in batches:
        model.zero_grad()
        loss_of(model, batch, packs=packs).backward()  # type: ignore[no-untyped-call]
    spent = time.process_time() - began
    return spent / sum(int(batch["attention_mask"].sum()) for batch in batches)


def arms_of(model: Any, lengths: Lengths) -> dict[str, Callable[[], float]]:
    """Return the three ways to train on the same conversations, as the kit's loaders do."""
    some = conversations(lengths)
    shuffled = keyed.generator(0, "order").permutation(len(some)).tolist()
    torch.manual_seed(0)
    orders: dict[str, list[list[int]]] = {
        "packed": list(PackedBatches(lengths, longest=LONGEST, batch_size=BATCH)),
        "random": [shuffled[at : at + BATCH] for at in range(0, len(some), BATCH)],
        "by length": list(ByLength(lengths, batch_size=BATCH)),
    }
    return {
        name: partial(
            seconds_a_token,
            model,
            [padded([some[one] for one in batch], 0) for batch in order],
            packs=name == "packed",
        )
        for name, order in orders.items()
    }


def tell_speed(report: Report, name: str, lengths: Lengths, rounds: int) -> None:
    """Time a mix in three ways, in turn."""
    plan = plan_packs(lengths, longest=LONGEST, batch_size=BATCH)
    report.note(f"{name}: mean {lengths.mean():.0f}, most {lengths.max()} tokens; {plan}")
    model, heavy = llama(), name == "heavy tail"
    arms = arms_of(model, lengths)
    names = list(arms)
    for one in names:
        arms[one]()
    times: dict[str, list[float]] = {one: [] for one in names}
    for turn in range(rounds):
        for one in names[turn % 3 :] + names[: turn % 3]:
            times[one].append(arms[one]())
    for one in names:
        value, (low, high) = median_interval([1 / each for each in times[one]])
        report.figure(f"{name}/{one}/tokens a CPU second", value, (low, high))
    for other in ("random", "by length"):
        ratios = [b / a for a, b in zip(times["packed"], times[other], strict=True)]
        value, limits = median_interval(ratios)
        bar = 2.5 if heavy and other == "random" else None
        report.figure(
            f"{name}/packed against {other}", value, limits, at_least=bar, on_limit=bar is not None
        )
    if heavy:
        sampler = PackedBatches(lengths, longest=LONGEST, batch_size=BATCH)
        torch.manual_seed(0)
        used = sum(int(lengths[batch].sum()) for batch in sampler)
        report.figure(
            f"{name}/places that hold a token, of all rows", plan.efficiency, at_least=0.95
        )
        share = used / (len(sampler) * sampler.rows * LONGEST)
        report.figure(f"{name}/the same, of an epoch's batches", share, at_least=0.95)


def tell_equality(report: Report, lengths: Lengths) -> None:
    """Compare loss and gradient of the same conversations, packed and not."""
    model, some = llama(), conversations(lengths)
    found = []
    for packs in (True, False):
        model.zero_grad()
        total = 0.0
        for at in range(0, len(some), BATCH):
            loss = loss_of(model, padded(some[at : at + BATCH], 0), packs=packs)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        found.append((total, torch.cat([p.grad.flatten() for p in model.parameters()])))
    (a, packed_gradient), (b, gradient) = found
    report.figure("equal/loss, relative difference", abs(a - b) / b, at_most=1e-6)
    apart = float((packed_gradient - gradient).norm() / gradient.norm())
    report.figure("equal/gradient, relative difference", apart, at_most=1e-5)


def main() -> int:
    torch.set_num_threads(1)
    keep_freed_memory()
    report = Report(__doc__)
    count, few, rounds = (192, 64, 2) if report.quick else (192, 96, 5)
    tell_exactness(report)
    weights = sum(value.numel() for value in llama().parameters())
    report.note(f"Llama of {weights:,} weights, {count} conversations, batches of {BATCH}")
    found = mixes(count)
    heavy = found.pop("heavy tail")
    tell_equality(report, heavy)
    tell_speed(report, "heavy tail", heavy, rounds)
    for name, lengths in found.items():
        tell_speed(report, name, lengths[:few], max(2, rounds // 2))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
